"""P6, P7, P10: how soon, how much, and to how many at once what jobs say is told."""

import asyncio
import contextlib
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import redis
from websockets.asyncio.client import connect

from bench.figure import Bench, Figure, Goal, Measure, Missing
from bench.processes import cpu_s, descendants, environment, process, python, rss_bytes
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, Stack, stack, valkey
from storage import jobs

PYTHON = Path("/usr/bin/python3")
#: Prints `count` lines that bear the time at which they were written, each in a write of its own: `rate` a second, or
#: with 0 as fast as it can.
CHILD = """
import sys, time
count, rate = int(sys.argv[1]), float(sys.argv[2])
out, began = sys.stdout.buffer, time.monotonic()
for number in range(count):
    if rate:
        time.sleep(max(0, began + number / rate - time.monotonic()))
    out.write(b"%d %d\\n" % (number, time.time_ns()))
    out.flush()
"""
CLIENTS, EVENTS_PER_S = 1000, 200


def _child(count: int, rate: float) -> list[str]:
    if not PYTHON.exists():
        raise Missing(f"{PYTHON} is not installed, and jobs must reach a Python")
    return [str(PYTHON), "-I", "-S", "-c", CHILD, str(count), str(rate)]


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _delays_ms(lines: list[bytes], heard_ns: int) -> list[float]:
    return [(heard_ns - int(line.split()[1])) / 1e6 for line in lines]


async def _follow(up: Stack, argv: list[str]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Run a job and yield each message of its stream, with the time at which it came."""
    async with asyncio.timeout(120):
        with up.client() as client:
            answer = client.post("/api/jobs/submit", json={"command": shlex.join(argv), "delay": 0.3})
            job_id = answer.raise_for_status().json()["jobId"]
        where = f"{up.url.replace('http', 'ws', 1)}/api/jobs/stream?jobId={job_id}"
        async with connect(where, additional_headers=up.headers, max_size=None) as socket:
            async for said in socket:
                yield time.time_ns(), orjson.loads(said)


# P6: one line at a time


def _line_count(bench: Bench) -> int:
    return 100 if bench.quick else 500


@contextlib.contextmanager
def line_to_socket(bench: Bench) -> Iterator[Measure]:
    """A job's line until a WebSocket client has it, ms."""
    up, argv = stack(bench, workers=1, **NO_LIMIT), _child(_line_count(bench), 100)

    async def measure() -> dict[str, float]:
        delays: list[float] = []
        async for heard_ns, message in _follow(up, argv):
            if message["type"] == "job.output":
                delays += _delays_ms(message["data"].encode().splitlines(), heard_ns)
        if len(delays) != _line_count(bench):
            raise RuntimeError(f"{len(delays)} lines came of {_line_count(bench)}.")
        return {"p50": _quantile(delays, 50), "p99": _quantile(delays, 99)}

    yield measure


@contextlib.contextmanager
def line_by_stream(bench: Bench) -> Iterator[Measure]:
    """A child's line by XADD until an XREAD in another process has it, ms."""
    url, count = valkey(bench), _line_count(bench)

    def measure() -> dict[str, float]:
        read, _ = _through_a_stream(bench, url, _child(count, 100), count)
        return {"p50": read["p50"], "p99": read["p99"]}

    yield measure


# P7: a flood


def _flood_count(bench: Bench) -> int:
    return 100_000 if bench.quick else 500_000


@contextlib.contextmanager
def flood_to_socket(bench: Bench) -> Iterator[Measure]:
    """Lines a second of a job that floods, from its first line until a client has the last and all is stored."""
    up, count = stack(bench, workers=1, **NO_LIMIT), _flood_count(bench)

    async def measure() -> float:
        first_ns = end_ns = heard = 0
        job_id = ""
        async for heard_ns, message in _follow(up, _child(count, 0)):
            job_id = message["jobId"]
            if message["type"] == "job.output":
                first_ns = first_ns or int(message["data"].split(None, 2)[1])
                heard += message["data"].count("\n")
            elif message["type"] == "stream.gap":
                heard += message["to"] - message["from"]
            end_ns = heard_ns
        _expect_whole(up, job_id, count)
        if heard != count:
            raise RuntimeError(f"The client was told of {heard} lines of {count}.")
        return count / ((end_ns - first_ns) / 1e9)

    asyncio.run(measure())  # the first one has the worker read its client of S3, once in its life
    yield measure


def _expect_whole(up: Stack, job_id: str, count: int) -> None:
    with (
        up.client() as client,
        client.stream("GET", f"/api/jobs/{job_id}/log", headers={"Accept": "text/plain"}) as answer,
    ):
        expected = 0
        for line in answer.iter_lines():
            if int(line.split()[0]) != expected:
                raise RuntimeError(f"Line {expected} of the stored log is {line!r}.")
            expected += 1
    if expected != count:
        raise RuntimeError(f"{expected} lines are stored of {count}.")


@contextlib.contextmanager
def flood_by_stream(bench: Bench) -> Iterator[Measure]:
    """Lines a second by XADD, an entry for each read, until an XREAD in another process has the last."""
    url, count = valkey(bench), _flood_count(bench)

    def measure() -> float:
        _, seconds = _through_a_stream(bench, url, _child(count, 0), count)
        return count / seconds

    yield measure


def _through_a_stream(bench: Bench, url: str, argv: list[str], count: int) -> tuple[dict[str, float], float]:
    """Return the delays of lines by a stream, and how long all took from the first line's writing."""
    reader = python("-m", "bench.anchors.stream_reader", url, str(count))
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.delete("log")
        with subprocess.Popen(reader, stdout=subprocess.PIPE, env=environment()) as read:
            assert read.stdout is not None  # noqa: S101  asked for above
            read.stdout.readline()
            with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
                assert child.stdout is not None  # noqa: S101  as above
                _feed(client, child.stdout.fileno())
            told = orjson.loads(read.stdout.read())
    return told, told["seconds"]


def _feed(client: redis.Redis, fd: int) -> None:
    tail = b""
    while data := os.read(fd, 65536):
        whole, newline, tail = (tail + data).rpartition(b"\n")
        if newline:
            client.xadd("log", {"l": whole}, maxlen=100_000, approximate=True)


# P10: a crowd


@contextlib.contextmanager
def crowd(bench: Bench) -> Iterator[Measure]:
    """Tell 1,000 sockets of 200 events a second."""
    up = stack(bench, workers=0, **NO_LIMIT)
    clients = 200 if bench.quick else CLIENTS
    seconds = 3 if bench.quick else 10

    yield lambda: tell_crowd(bench, up, clients, seconds)


async def tell_crowd(bench: Bench, up: Stack, clients: int, seconds: int) -> dict[str, float]:
    """Let `clients` sockets hear of 200 events a second; raises RuntimeError unless each hears of all."""
    log, told = bench.directory / "crowd.log", bench.directory / "crowd.json"
    for each in (log, told):
        each.unlink(missing_ok=True)
    expected = EVENTS_PER_S * seconds
    command = python("-m", "bench.anchors.crowd", up.url, up.api_key, str(clients), str(expected), str(told))
    with process(command, log=log, env=environment()) as child:
        await _until(lambda: b"listening" in log.read_bytes(), child)
        web = up.pids("web")
        before = cpu_s(*web)
        began = time.monotonic()
        await _happen(up, expected)
        took_s = time.monotonic() - began
        used = (cpu_s(*web) - before) / took_s
        held = rss_bytes(*web, *(each for pid in web for each in descendants(pid)))
        await _until(told.exists, child)
        found = orjson.loads(told.read_bytes())
    if found["missing"]:
        raise RuntimeError(f"{found['missing']} messages never came.")
    return {"p99": found["p99"], "cores": used, "rss": held / (1 << 20), "events": expected / took_s}


async def _happen(up: Stack, count: int) -> None:
    """Have jobs accepted, evenly spread; each is one event."""
    store = up.store()
    try:
        began = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / EVENTS_PER_S - time.monotonic()))
            job = jobs.submission(store, "bench", jobs.Order(command="true"), job_id=store.new_id("job"))
            await store.call(job)
    finally:
        await store.close()


async def _until(condition: Any, child: "subprocess.Popen[bytes]", patience_s: float = 90) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if child.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("The crowd did not get there.")
        await asyncio.sleep(0.05)


FIGURES = [
    Figure(
        id="P6",
        what="a job's child writes a line, 100 a second, until a WebSocket client has it",
        unit=" ms",
        own=line_to_socket,
        anchors={"xadd-xread": line_by_stream},
        goals=(
            Goal(limit=2.0, anchor="xadd-xread", metric="p50", at_most=True),
            Goal(limit=3.0, anchor="xadd-xread", metric="p99", at_most=True),
        ),
        overrides=(NO_LIMIT_NOTE,),
    ),
    Figure(
        id="P7",
        what="a flood of short lines, followed by a WebSocket client and stored whole; from the first to the last told",
        unit=" lines/s",
        own=flood_to_socket,
        anchors={"xadd-per-read": flood_by_stream},
        goals=(Goal(limit=1.0, anchor="xadd-per-read"),),
        overrides=(NO_LIMIT_NOTE,),
        notes=(
            "the command, which writes each line by a call of its own, takes nearly all of the time on both sides, so "
            "that rounds differ by the machine's pace more than from one another",
        ),
    ),
    Figure(
        id="P10",
        what="1,000 WebSocket clients on all jobs, 200 events a second; 2 web workers together",
        unit=" ms",
        own=crowd,
        goals=(
            Goal(limit=200, metric="p99", at_most=True),
            Goal(limit=1.0, metric="cores", at_most=True, unit=" cores"),
            Goal(limit=300, metric="rss", at_most=True, unit=" MiB"),
            Goal(limit=190, metric="events", unit=" events/s"),
        ),
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
    ),
]
