"""Anchors of the web paths, each under gunicorn with two stock uvicorn workers as Hostler has."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import redis

from bench.environments import virtual_environment
from bench.figure import Bench, Measure
from bench.load import load, require
from bench.processes import ROOT, await_port, environment, free_port, process, python
from bench.stack import valkey

WORKERS = 2
BODY = b'{"command": "echo hello world"}'
_ARQ = ("arq==0.28.*", "fastapi", "uvicorn==0.54.*", "uvicorn-worker==0.4.*", "gunicorn==27.*", "hiredis", "uvloop",
        "httptools")  # fmt: skip


def seconds(bench: Bench) -> float:
    """Return how long one load lasts."""
    return 1 if bench.quick else 5


@contextlib.contextmanager
def floor_push(bench: Bench) -> Iterator[Measure]:
    """Falcon and one LPUSH, requests/s."""
    require()
    url = _floor(bench)

    def measure() -> dict[str, float]:
        with contextlib.closing(redis.Redis.from_url(valkey(bench))) as client:
            client.delete("jobs")
        return load(bench.directory, f"{url}/push", seconds=seconds(bench), method="POST", body=BODY)

    yield measure


@contextlib.contextmanager
def floor_get(bench: Bench) -> Iterator[Measure]:
    """Falcon and one GET of 500 bytes, requests/s."""
    require()
    url = _floor(bench)
    with contextlib.closing(redis.Redis.from_url(valkey(bench))) as client:
        client.set("job", b'{"job": "' + b"x" * 500 + b'"}')
    yield lambda: load(bench.directory, f"{url}/get", seconds=seconds(bench))


@contextlib.contextmanager
def arq_push(bench: Bench) -> Iterator[Measure]:
    """FastAPI and arq's enqueue, requests/s."""
    require()
    binaries = virtual_environment("arq", *_ARQ)
    url = bench.enter(_served(bench, binaries, "bench.anchors.arq_app"))

    def measure() -> dict[str, float]:
        with contextlib.closing(redis.Redis.from_url(valkey(bench))) as client:
            client.flushall()
        return load(bench.directory, f"{url}/push", seconds=seconds(bench), method="POST", body=BODY)

    yield measure


def _floor(bench: Bench) -> str:
    return bench.shared("floor", lambda: bench.enter(_served(bench, None, "bench.anchors.floor_app")))


@contextlib.contextmanager
def _served(bench: Bench, binaries: Path | None, module: str) -> Iterator[str]:
    port, log = free_port(), bench.directory / f"{module}.log"
    command = [str(binaries / "python")] if binaries else python()
    command += ["-m", "gunicorn", f"{module}:create({valkey(bench)!r})", "-w", str(WORKERS)]
    command += [
        "-k",
        "uvicorn_worker.UvicornWorker",
        "-b",
        f"127.0.0.1:{port}",
        "--log-level",
        "error",
        "--no-control-socket",
    ]
    with process(command, log=log, env=environment(PYTHONPATH=str(ROOT)), cwd=bench.directory) as child:
        await_port(port, child, log)
        for _ in range(4 * WORKERS):  # each of them has answered once before it is measured, whatever it said
            httpx.get(f"http://127.0.0.1:{port}/", timeout=30, trust_env=False)
        yield f"http://127.0.0.1:{port}"
