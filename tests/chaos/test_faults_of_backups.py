"""F49, F52: backups of nodes whose engine is killed while it writes or restores, and data that were spoilt."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import engine
import psutil
import pytest
from servers import S3

sys.path.insert(
    0, str(Path(__file__).parents[1] / "workers" / "backups")
)  # where a node is driven step by step

from nodes_of_backups import Node

from settings import Settings
from storage import backups
from storage.backups import RecordState
from storage.store import Store

pytestmark = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")

KILLS = 10


@pytest.fixture
async def node(settings_with_s3: Settings, s3: S3, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that has the engine, with an object store of its own."""
    store = Store(settings_with_s3)
    holder = await engine.register(store, metadata='{"backupEngine": "restic"}')
    yield Node(store, holder, s3, tmp_path)
    await store.close()


async def killed(work: "asyncio.Task[Any]", verb: str, after_s: float) -> bool:
    """Kill the engine so long after it began with something; answers whether it was still at it."""
    while not work.done():
        for process in psutil.Process().children(recursive=True):
            try:
                found = process.name() == "restic" and verb in process.cmdline()
            except psutil.Error:
                continue
            if found:
                await asyncio.sleep(after_s)
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    return False
                return True
        await asyncio.sleep(0.005)
    return False


def grown(tree: Path, number: int) -> None:
    """Give a tree something new that takes a while to store."""
    (tree / f"new-{number}").write_bytes(os.urandom(6_000_000))


@pytest.mark.proves("F49")
async def test_an_engine_killed_while_it_backs_up_leaves_what_was_there(
    node: Node, tmp_path: Path, evidence: list[str]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "first").write_bytes(os.urandom(2_000_000))
    backup = await node.backup(volumes=[str(tree)])
    first = await node.ran(backup)
    hit = 0
    for number in range(KILLS):
        grown(tree, number)
        await backups.run(node.store, "user:u", backup.id)
        work = asyncio.ensure_future(node.carry_out())
        hit += await killed(work, "backup", 0.02 * number)
        await work
    ending, record = await node.verified(backup, first)
    assert (ending.outcome, record.state) == ("completed", RecordState.COMPLETED)
    ending, context = await node.restored(backup, first, target=str(tmp_path / "out"))
    assert ending.outcome == "completed", context.said
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["first"]
    assert (tmp_path / "out" / "first").read_bytes() == (tree / "first").read_bytes()
    assert (await node.ran(backup)).state is RecordState.COMPLETED
    assert hit >= KILLS // 2
    evidence += [
        f"{hit} kills of the engine while it wrote: the first record verified and restored, the next made"
    ]


@pytest.mark.proves("F49")
async def test_an_engine_killed_while_it_restores_leaves_nothing_half_done(
    node: Node, tmp_path: Path, evidence: list[str]
) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    grown(tree, 0)
    backup = await node.backup(volumes=[str(tree)])
    record = await node.ran(backup)
    before = (tree / "new-0").read_bytes()
    (tree / "new-0").write_bytes(b"changed since")
    hit = 0
    for number in range(KILLS):
        target = {"target": str(out)} if number % 2 else {}
        await backups.restore(node.store, "user:u", backup.id, record.id, admin=True, **target)
        work = asyncio.ensure_future(node.carry_out())
        struck = await killed(work, "restore", 0.01 * number)
        ending, _ = await work
        hit += struck
        if ending.outcome != "completed":
            assert (tree / "new-0").read_bytes() == b"changed since"
            assert not out.exists() or not any(out.iterdir())
        shutil.rmtree(out, ignore_errors=True)
        (tree / "new-0").write_bytes(b"changed since")
    ending, context = await node.restored(backup, record)
    assert ending.outcome == "completed", context.said
    assert (tree / "new-0").read_bytes() == before
    assert hit >= KILLS // 2
    evidence += [f"{hit} kills of the engine while it restored: all or nothing, and the next one whole"]


@pytest.mark.proves("F52")
async def test_one_flipped_bit_of_a_backup_is_reported_and_not_restored(
    node: Node, tmp_path: Path, evidence: list[str]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    grown(tree, 0)
    backup = await node.backup(volumes=[str(tree)])
    record = await node.ran(backup)
    (key, _), *_ = node.keys(backup, "data")
    node.flip(key)
    ending, found = await node.verified(backup, record)
    assert ending.outcome == "failed"
    assert found.state is RecordState.CORRUPT
    with pytest.raises(Exception, match="corrupt"):
        await node.restored(backup, record, target=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    evidence += ["one bit of the largest pack of a node's backup: verify reports it, restore refuses"]
