"""Backups on a node: kept, verified, restored and rehearsed, judged by rsync."""

import os
from pathlib import Path

import pytest
import trees
from nodes_of_backups import Node

from storage import backups
from storage.backups import RecordState


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return trees.make(tmp_path / "source" / "tree", files=300, size_bytes=6_000_000)


async def test_what_is_restored_is_what_was_there(node: Node, tree: Path) -> None:
    backup = await node.backup(volumes=[str(tree)])
    record = await node.ran(backup)
    assert record.proof["sources"] == [{"name": str(tree), "type": "path", "path": str(tree)}]
    ending, context = await node.restored(backup, record, target=str(node.directory / "elsewhere"))
    assert ending.outcome == "completed", context.said
    assert trees.differences(tree, node.directory / "elsewhere") == []
    (tree / "d1" / "e1" / "f1").write_text("spoilt")
    (tree / "new").write_text("later")
    ending, context = await node.restored(backup, record)
    assert ending.outcome == "completed", context.said
    assert trees.differences(node.directory / "elsewhere", tree) == []
    assert sorted(os.listdir(tree.parent)) == ["tree"]
    second = await node.ran(backup)
    assert second.proof["added_bytes"] < record.proof["added_bytes"] / 10
    assert (await node.verified(backup, second))[1].verified_ms is not None
