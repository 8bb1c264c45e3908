"""Fixtures for the faults: one Hostler for all tests that mend what they break; the others start their own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import S3, running_s3

sys.path.insert(0, str(Path(__file__).parents[1] / "stack"))  # where the processes are started

from world import Client, World, new_world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.path.name != "test_checker.py":
            item.add_marker(pytest.mark.stack)
            if sys.platform != "linux":
                item.add_marker(pytest.mark.skip(reason="faults are injected by what Linux offers"))


@pytest.fixture(scope="session")
def chaos_s3() -> Iterator[S3]:
    """A SeaweedFS that these tests may kill."""
    with running_s3() as server:
        yield server


@pytest.fixture(scope="session")
def shared_world(chaos_s3: S3) -> Iterator[World]:
    """A Hostler without workers."""
    world = new_world(chaos_s3, HOSTLER_ENROLL_SECRET="enrol-these-agents", HOSTLER_SLOTS="3")
    yield world
    world.end()


@pytest.fixture
def bare_world(chaos_s3: S3) -> Iterator[World]:
    """A Hostler of one test, which it may lose; nothing of it runs but what the test starts."""
    world = new_world(chaos_s3, web=False, scheduler=False)
    yield world
    world.tell()
    world.end()


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The shared Hostler, with nothing of earlier tests left."""
    with shared_world.story():
        yield shared_world


@pytest.fixture
def client(world: World) -> Client:
    """A client of the shared Hostler."""
    return world.client()
