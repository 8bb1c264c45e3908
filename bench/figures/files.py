"""P8: what the bytes of files cost on their way through the web."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from bench.figure import Bench, Figure, Goal, Measure, Missing
from bench.processes import await_port, descendants, environment, free_port, process, python, rss_bytes
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, Stack, stack

MB = 1_000_000
BUCKET = "bench"


def _size_mib(bench: Bench) -> int:
    return 64 if bench.quick else 256


def _blob(bench: Bench) -> Path:
    def make() -> Path:
        path = bench.directory / "blob"
        with path.open("wb") as file:
            for _ in range(_size_mib(bench)):
                file.write(os.urandom(1 << 20))
        return path

    return bench.shared("blob", make)


def _up(bench: Bench) -> Stack:
    return stack(bench, workers=0, **NO_LIMIT)


def curl_command(*arguments: str) -> list[str]:
    """Return the command of a transfer that fails with its answer. Raises Missing when there is no curl."""
    binary = shutil.which("curl")
    if binary is None:
        raise Missing("curl is not installed: apt-get install curl")
    return [binary, "-sS", "-f", "-H", "Expect:", *arguments]


def curl(*arguments: str) -> float:
    """Return how many seconds a transfer took."""
    told = subprocess.run(
        curl_command("-o", "/dev/null", "-w", "%{time_total}", *arguments),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if told.returncode:
        raise RuntimeError(f"curl failed: {told.stderr[-300:]}")
    return float(told.stdout)


def s3(up: Stack) -> Any:
    """Return a client of the S3 of a Hostler, with a bucket of its own."""
    known = json.loads((up.data / "s3" / "hostler.json").read_text())
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{known['ports']['s3']}",
        region_name="us-east-1",
        aws_access_key_id=known["access_key"],
        aws_secret_access_key=known["secret_key"],
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.create_bucket(Bucket=BUCKET)
    return client


class Peak:
    """The most memory that some processes held at once, beyond what they held before; read every 20 ms."""

    def __init__(self, *pids: int) -> None:
        self._pids = [each for pid in pids for each in descendants(pid)]
        self._before = rss_bytes(*self._pids)
        self._most, self._done = self._before, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, rss_bytes(*self._pids))

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth_mib(self) -> float:
        """Return the growth in MiB."""
        return (self._most - self._before) / (1 << 20)


@contextlib.contextmanager
def through_the_api(bench: Bench) -> Iterator[Measure]:
    """Upload and download through the API, and receive without storing."""
    up, blob, amount = _up(bench), _blob(bench), _size_mib(bench) * (1 << 20) / MB
    receiver = bench.shared("receiver", lambda: bench.enter(_receiver(bench)))
    authorized = f"Authorization: Bearer {up.api_key}"
    form = f"file=@{blob};type=application/octet-stream"
    with up.client() as client:

        def measure() -> dict[str, float]:
            with Peak(*up.pids("web")) as peak:
                up_s = curl("-H", authorized, "-F", form, f"{up.url}/api/files/upload")
                file_id = client.get("/api/files/list").json()["files"][0]["fileId"]
                down_s = curl("-H", authorized, f"{up.url}/api/files/download/{file_id}")
            client.delete(f"/api/files/{file_id}").raise_for_status()
            hash_s = curl("-F", form, f"{receiver}/upload")
            rates = {"up": amount / up_s, "down": amount / down_s, "hash": amount / hash_s}
            return {**rates, "rss-growth-mib": peak.growth_mib}

        small = bench.directory / "small"
        with blob.open("rb") as whole:
            small.write_bytes(whole.read(16 << 20))  # two parts
        for _ in range(8):  # the first one of each process reads boto3, and starts threads and connections
            curl("-H", authorized, "-F", f"file=@{small}", f"{up.url}/api/files/upload")
        measure()
        yield measure


@contextlib.contextmanager
def _receiver(bench: Bench) -> Iterator[str]:
    port, log = free_port(), bench.directory / "receiver.log"
    command = python("-m", "gunicorn", "bench.anchors.receive_app:create()", "-k", "api.server.Worker")
    command += ["-w", "1", "-b", f"127.0.0.1:{port}", "--log-level", "error", "--no-control-socket"]
    with process(command, log=log, env=environment()) as child:
        await_port(port, child, log)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def boto3_multipart(bench: Bench) -> Iterator[Measure]:
    """Upload straight to S3 by boto3's own multipart transfer."""
    blob, amount = str(_blob(bench)), _size_mib(bench) * (1 << 20) / MB
    client = bench.shared("s3", lambda: s3(_up(bench)))
    transfer = TransferConfig(multipart_chunksize=8 << 20, max_concurrency=4)

    def measure() -> dict[str, float]:
        began = time.perf_counter()
        client.upload_file(blob, BUCKET, "direct", Config=transfer)
        return {"up": amount / (time.perf_counter() - began)}

    yield measure


@contextlib.contextmanager
def presigned_curl(bench: Bench) -> Iterator[Measure]:
    """Download straight from S3 by a presigned URL."""
    blob, amount = str(_blob(bench)), _size_mib(bench) * (1 << 20) / MB
    client = bench.shared("s3", lambda: s3(_up(bench)))
    client.upload_file(blob, BUCKET, "down")
    url = client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "down"})
    yield lambda: {"down": amount / curl(url)}


@contextlib.contextmanager
def bare_sha256(bench: Bench) -> Iterator[Measure]:
    """Hash the same bytes, read from a file in pieces of 64 KiB."""
    blob, amount = _blob(bench), _size_mib(bench) * (1 << 20) / MB

    def measure() -> dict[str, float]:
        digest, buffer = hashlib.sha256(), bytearray(64 * 1024)
        began = time.perf_counter()
        with blob.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
        return {"hash": amount / (time.perf_counter() - began)}

    yield measure


FIGURES = [
    Figure(
        id="P8",
        what="a file of 256 MiB through the API, up and down; received and hashed without being stored; growth of RSS",
        unit=" MB/s",
        own=through_the_api,
        anchors={"boto3-multipart": boto3_multipart, "presigned-curl": presigned_curl, "sha256": bare_sha256},
        goals=(
            Goal(limit=0.95, anchor="boto3-multipart", metric="up"),
            Goal(limit=0.70, stretch=0.80, anchor="presigned-curl", metric="down"),
            Goal(limit=0.80, anchor="sha256", metric="hash"),
            Goal(limit=32, metric="rss-growth-mib", at_most=True, unit=" MiB"),
        ),
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
        notes=("hash: the sender and the kernel's copies share two cores with the receiver",),
    )
]
