"""A node for each test, on the test's own Valkey."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_node import Node

from settings import Settings


@pytest.fixture
def install_settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, work_dir=tmp_path)


@pytest.fixture
async def node(install_settings: Settings, tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(install_settings, tmp_path)
    await node.register()
    yield node
    await node.store.close()
