"""L11 to L13: files that are large, many at once, and read in pieces by many."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from boto3.s3.transfer import TransferConfig

from bench.figure import Bench
from bench.figures.files import BUCKET, MB, Peak, curl, curl_command, s3
from bench.paced import Order, collect, pacing
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, Stack, stack
from bench.target import Found, Target, at_least, at_most, shown

MIB = 1 << 20
LARGE = 1024 * MIB
PARALLEL, SMALL = 20, 100 * MIB
READERS = 50
API_RATE, API_SECONDS = 50, 15
#: On a busy machine SeaweedFS takes in less than 10 MB a second.
PATIENCE_S = 600.0
LIMIT = {"HOSTLER_UPLOAD_LIMIT_MB": "1100"}
LIMIT_NOTE = "HOSTLER_UPLOAD_LIMIT_MB=1100 instead of 500, for a file of 1 GiB"


def _blob(bench: Bench, size_bytes: int) -> Path:
    path = bench.directory / f"blob-{size_bytes}"
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))
    return path


def _upload(up: Stack, path: Path) -> list[str]:
    """Return the arguments by which curl uploads `path`."""
    form = f"file=@{path};type=application/octet-stream"
    return ["-H", f"Authorization: Bearer {up.api_key}", "-F", form, f"{up.url}/api/files/upload"]


def upload(bench: Bench) -> Found:
    """Upload 1 GiB, and the same straight to S3."""
    up = stack(bench, workers=0, **LIMIT, **NO_LIMIT)
    small = _blob(bench, 8 * MIB)
    for _ in range(8):  # the first one of each process makes its client of S3, threads and connections
        curl(*_upload(up, small))
    blob = _blob(bench, LARGE)
    with Peak(*up.pids("web")) as peak:
        took = curl(*_upload(up, blob))
    began = time.perf_counter()
    transfer = TransferConfig(multipart_chunksize=8 * MIB, max_concurrency=4)
    s3(up).upload_file(str(blob), BUCKET, "direct", Config=transfer)
    direct = LARGE / MB / (time.perf_counter() - began)
    figures = {"rate": LARGE / MB / took, "RSS growth": peak.growth_mib}
    return Found(figures, (f"boto3 straight to the same S3 {shown(direct)} MB/s",))


def uploads(bench: Bench) -> Found:
    """Upload 20 files of 100 MiB at once, and ask the API for other things meanwhile."""
    up = stack(bench, workers=0, **NO_LIMIT)
    command, began = curl_command(*_upload(up, _blob(bench, SMALL))), time.monotonic()
    order = Order(url=f"{up.url}/api/jobs/list", rate=API_RATE, seconds=API_SECONDS, headers=up.headers)
    with _all([command] * PARALLEL) as children, pacing(order) as load:
        answers = collect(load, order).expect_success()
        still = sum(child.poll() is None for child in children)
        failed = _failed(children)
    rate = PARALLEL * SMALL / MB / (time.monotonic() - began)
    said = f"list {API_RATE}/s for {API_SECONDS} s, {still} uploads longer, together {shown(rate)} MB/s"
    return Found({"API p99": answers.p99, "failed": float(failed)}, (said,))


def ranges(bench: Bench) -> Found:
    """Have 50 clients download a share of 1 GiB each."""
    up, blob = stack(bench, workers=0, **LIMIT, **NO_LIMIT), _blob(bench, LARGE)
    curl(*_upload(up, blob))
    with up.client() as client:
        file_id = client.get("/api/files/list").json()["files"][0]["fileId"]
    cuts = [LARGE * each // READERS for each in range(READERS + 1)]
    parts = [bench.directory / f"part-{each}" for each in range(READERS)]
    commands = [
        curl_command(
            "-H", f"Authorization: Bearer {up.api_key}", "-r", f"{first}-{end - 1}", "-o", str(part),
            f"{up.url}/api/files/download/{file_id}",
        )
        for first, end, part in zip(cuts, cuts[1:], parts, strict=False)
    ]  # fmt: skip
    began = time.monotonic()
    with Peak(*up.pids("web")) as peak, _all(commands) as children:
        failed = _failed(children)
    took = time.monotonic() - began
    with blob.open("rb") as whole:
        wrong = sum(
            not part.exists() or part.read_bytes() != whole.read(part.stat().st_size) for part in parts
        )
        wrong += whole.read(1) != b""
    said = f"{shown(LARGE / MB / took)} MB/s, RSS growth {shown(peak.growth_mib)} MiB"
    return Found({"failed": float(failed), "wrong": float(wrong)}, (said,))


def _failed(children: list["subprocess.Popen[bytes]"]) -> int:
    """Return how many transfers failed, or had not ended in time; no word of their command, which holds a key."""
    deadline, failed = time.monotonic() + PATIENCE_S, 0
    for child in children:
        try:
            failed += child.wait(max(0.0, deadline - time.monotonic())) != 0
        except subprocess.TimeoutExpired:
            failed += 1
    return failed


@contextlib.contextmanager
def _all(commands: list[list[str]]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    with contextlib.ExitStack() as held:
        children = []
        for command in commands:
            children.append(held.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL)))
            held.callback(children[-1].kill)
        yield children


TARGETS = [
    Target(
        id="L11",
        what="upload of a file of 1 GiB; growth of the web's memory",
        limits=(at_least("rate", 100, " MB/s"), at_most("RSS growth", 32, " MiB")),
        measure=upload,
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE, LIMIT_NOTE),
        notes=(
            "the S3 server is SeaweedFS on the same cores and disk; what it takes in straight is the bound",
        ),
    ),
    Target(
        id="L12",
        what="20 uploads of 100 MiB at once, and GET /api/jobs/list meanwhile",
        limits=(at_most("API p99", 300, "ms"), at_most("failed", 0)),
        measure=uploads,
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
    ),
    Target(
        id="L13",
        what="50 clients download a fiftieth of 1 GiB each, by ranges",
        limits=(at_most("failed", 0), at_most("wrong", 0)),
        measure=ranges,
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE, LIMIT_NOTE),
    ),
]
