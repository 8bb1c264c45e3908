"""Fixtures for tests of the whole: a stack of two workers and a scheduler for each module."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from processes import Stack, new_stack
from servers import S3

from storage.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            if os.name != "posix":
                item.add_marker(pytest.mark.skip(reason="these tests hurt processes by POSIX signals"))


@pytest.fixture(scope="module")
def stack(s3: S3) -> Iterator[Stack]:
    """A stack with two workers of three slots each and a scheduler."""
    stack = new_stack(s3, HOSTLER_SLOTS="3")
    try:
        stack.start("scheduler")
        for name in ("one", "two"):
            stack.worker(name, wait=False)
        stack.await_workers(["one", "two"])
        yield stack
    finally:
        stack.end()


@pytest.fixture
async def store(stack: Stack) -> AsyncIterator[Store]:
    """A way to the stack's database, as the web process has one."""
    store = Store(stack.settings)
    yield store
    await store.close()
