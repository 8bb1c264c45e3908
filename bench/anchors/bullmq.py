"""BullMQ: from the call that enqueues a job to its first line, another process, at a steady rate."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.environments import CACHE
from bench.figure import Bench, Measure, Missing
from bench.latency import RATE_HZ, count, quantiles
from bench.processes import environment, process
from bench.stack import valkey

_SCRIPT = Path(__file__).with_suffix(".mjs")
_PACKAGES = ("bullmq@6.7", "ioredis@5")


def _installed() -> Path:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("Node.js and npm are not installed: apt-get install nodejs npm")
    home = CACHE / "bullmq"
    mark = home / "installed.txt"
    if not mark.exists() or mark.read_text() != "\n".join(_PACKAGES):
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text('{"private": true}')
        try:
            subprocess.run(
                [npm, "install", "--silent", "--no-audit", "--no-fund", *_PACKAGES],
                cwd=home, env=environment(), capture_output=True, text=True, timeout=600, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise Missing(f"{_PACKAGES[0]} cannot be installed: {error}") from None
        mark.write_text("\n".join(_PACKAGES))
    return home


@contextlib.contextmanager
def start(bench: Bench) -> Iterator[Measure]:
    """Enqueue to start, in ms, with one worker that waits for work."""
    home = _installed()
    port = str(urlsplit(valkey(bench)).port)
    log = bench.directory / "bullmq.log"
    node = shutil.which("node") or ""
    with process([node, str(_SCRIPT), "work", port], log=log, cwd=home) as worker:
        deadline = time.monotonic() + 30
        while b"ready" not in log.read_bytes():
            if worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"BullMQ's worker did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)

        def measure() -> dict[str, float]:
            already, wanted = log.stat().st_size, count(bench)
            told = subprocess.run(
                [node, str(_SCRIPT), "add", port, str(wanted), str(RATE_HZ)],
                cwd=home, capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
            added = [int(each) for each in json.loads(told.stdout)]
            time.sleep(0.2)
            lines = log.read_bytes()[already:].decode().splitlines()
            begun = {int(number): int(at) for number, at in map(str.split, lines)}
            return quantiles([(begun[number] - at) / 1e6 for number, at in enumerate(added)])

        measure()
        yield measure
