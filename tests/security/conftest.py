"""Fixtures for the attacks: one target for all of them, and ears that hear what should not be said."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ears import Ear, Outside, listening
from target import Target, build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            if os.name != "posix":
                item.add_marker(pytest.mark.skip(reason="the target's processes need POSIX"))


@pytest.fixture(scope="session")
def target(s3: Any) -> Iterator[Target]:
    """Hostler as real processes, and somebody of every role."""
    bucket = f"target-{uuid.uuid4().hex[:12]}"
    s3.client.create_bucket(Bucket=bucket)
    target = build(s3.environment(bucket))
    yield target
    target.end()
    s3.drop(bucket)


@pytest.fixture(autouse=True)
def judged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Judge what every test was answered to its mistakes, whichever it is about (A57)."""
    target = request.getfixturevalue("target") if "target" in request.fixturenames else None
    before = 0 if target is None else len(target.mistakes)
    yield
    if target is not None:
        target.judge(before)


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A port on loopback that nobody should be made to connect to."""
    with listening() as one:
        yield one


@pytest.fixture
def outside() -> Iterator[Outside]:
    server = Outside()
    yield server
    server.close()
