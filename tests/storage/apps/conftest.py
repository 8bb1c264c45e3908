"""A node that tests of apps speak for."""

import pytest
from nodes import Node

from storage.store import Store


@pytest.fixture
async def node(store: Store) -> Node:
    return await Node.online(store)
