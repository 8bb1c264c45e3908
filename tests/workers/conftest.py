"""A store, the real API with faults in between, a fake of it, and agents that are registered with either."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import Answer, FakeServer
from faulty_api import EXCHANGE, HEARTBEAT, REGISTER, SECRET, Client, FaultyApi, plane, serve
from line_talk import refusal

from settings import Settings
from workers.http_line import HttpLine


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[FaultyApi]:
    async with serve(replace(settings, enroll_secret=SECRET)) as api:
        yield api


@pytest.fixture
async def client(api: FaultyApi, tmp_path: Path) -> AsyncIterator[Client]:
    """An agent that is registered."""
    api_plane = plane(api.url, tmp_path)
    await api_plane.register()
    client = Client(api_plane, HttpLine(api_plane))
    yield client
    await client.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that registers everybody, and answers as told beyond that."""
    server = FakeServer()
    server.on(f"POST {REGISTER}", Answer(201, {"token": "token-1"}))
    server.on(f"POST {HEARTBEAT}", Answer(200, {"nextCheckIn": 3000, "cancel": []}))
    server.on(f"POST {EXCHANGE}", refusal(404, "NOT_FOUND"))  # an API of before
    yield server
    server.close()


@pytest.fixture
async def faked(fake: FakeServer, tmp_path: Path) -> AsyncIterator[Client]:
    """An agent that is registered with the fake."""
    fake_plane = plane(fake.url, tmp_path)
    await fake_plane.register()
    client = Client(fake_plane, HttpLine(fake_plane, poll_wait_s=0.01))
    yield client
    await client.close()
