"""F65: processes of the version before and of this one, side by side on the same records, lose and double nothing."""

import io
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import ROOT
from servers import free_port
from world import Client, World, together

#: The last commit before this version's changes of scripts and records; a release moves it on.
PREVIOUS = "5f86afb35a813bd1d7d40b89f2eb24a47b5c0379"


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The code of the version before, as a folder."""
    try:
        packed = subprocess.run(["git", "-C", ROOT, "archive", PREVIOUS], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"commit {PREVIOUS[:7]}, the version before, is not in this copy's history")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def world(bare_world: World) -> World:
    return bare_world


@contextmanager
def under_load(*clients: Client) -> Iterator[None]:
    """Have every client submit meanwhile, some of it retried and some with a key that excludes others."""
    over = threading.Event()

    def load(client: Client) -> None:
        number = 0
        while not over.is_set():
            number += 1
            client.insist("true", concurrencyKey="one at a time")
            client.insist("[ $HOSTLER_ATTEMPT = 2 ]", retries=1, backoff={"delay": 0.1})
            client.insist(f"seq {number}", priority="high")
            over.wait(0.5)  # a busy machine must keep up: what is tested is who works beside whom

    with together(len(clients)) as pool:
        loads = [pool.submit(load, each) for each in clients]
        try:
            yield
        finally:
            over.set()
        for each in loads:
            each.result()


@pytest.mark.proves("F65")
@pytest.mark.parametrize("way", ["upgrade", "downgrade"])
def test_versions_that_follow_one_another_work_side_by_side_and_lose_nothing(
    world: World, previous: Path, way: str, evidence: list[str]
) -> None:
    first, second = (previous, ROOT) if way == "upgrade" else (ROOT, previous)
    world.stack.root = first
    before = world.client(_web(world, free_port()))
    scheduler, worker = world.stack.start("scheduler"), world.worker("first")
    gate = world.stack.directory / "gate"
    waiting = f"until [ -e {gate} ]; do sleep 0.1; done"
    running = [before.insist(waiting) for _ in range(2)]
    queued = [before.insist("true", priority="low") for _ in range(10)]
    later = before.insist("true", delay=3)
    for job_id in running:
        world.await_start(job_id)

    world.stack.root = second
    after = world.client(_web(world, free_port()))
    with under_load(before, after):
        world.stack.start("scheduler")
        world.stack.end(scheduler)
        world.worker("second")
        time.sleep(2)
        for client in (before, after):  # both show what the other has accepted
            assert client.job(running[0])["status"] == "running"
        gate.touch()
        for job_id in running:
            assert after.ended(job_id)["status"] == "completed"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        time.sleep(1)
    for job_id in (*queued, later):
        assert after.ended(job_id, patience_s=90)["status"] == "completed"
    said = world.check(patience_s=90)
    starts = [effect.job_id for effect in world.effects() if effect.word == "start"]
    assert all(starts.count(job_id) == 1 for job_id in (*running, *queued, later))
    evidence += [f"{way}: both versions at once, then one", said]


def _web(world: World, port: int) -> int:
    process = world.web(wait=False, PORT=str(port))
    world.await_web(process, port)
    return port
