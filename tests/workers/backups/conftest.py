"""Fixtures for backups on a node: the tasks as the lane carries them out, on a real Valkey and object store."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import engine
import pytest
from nodes_of_backups import Node

from settings import Settings
from storage.errors import Unavailable
from storage.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            for program in ("restic", "rsync"):
                if shutil.which(program) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{program} is not installed"))


@pytest.fixture
async def node(settings_with_s3: Settings, s3: Any, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that has the engine, with an object store of its own."""
    store = Store(settings_with_s3)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Unavailable):  # servers that have only just begun on a busy machine
                holder = await engine.register(store, metadata='{"backupEngine": "restic"}')
                break
    yield Node(store, holder, s3, tmp_path)
    await store.close()
