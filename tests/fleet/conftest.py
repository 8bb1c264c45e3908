"""Fixtures for a Hostler behind a balancer, with its workers on hosts of their own: `make test-fleet`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import S3, running_s3

for room in ("stack", "chaos"):  # where processes are started, and where what clients were told is checked
    sys.path.insert(0, str(Path(__file__).parents[1] / room))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fleet_s3() -> Iterator[S3]:
    """A SeaweedFS for the whole fleet."""
    with running_s3() as server:
        yield server
