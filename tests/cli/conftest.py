"""The command line, pointed at a server that answers as a test says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import FakeServer

KEY = "cb_test-key"


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of saved servers, with nothing else in the environment that names a server."""
    for name in ("HOSTLER_URL", "HOSTLER_API_KEY", "HOSTLER_TOKEN", "HOSTLER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config" / "contexts.json"
    monkeypatch.setenv("HOSTLER_CONFIG", str(path))
    return path


@pytest.fixture
def server(fake: FakeServer, config: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """The fake server, as the one that the environment names."""
    monkeypatch.setenv("HOSTLER_URL", fake.url)
    monkeypatch.setenv("HOSTLER_API_KEY", KEY)
    return fake
