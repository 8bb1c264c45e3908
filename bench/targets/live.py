"""L09 and L10: events to many clients, and output from jobs."""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterable

from bench.figure import Bench, Missing
from bench.figures.live import EVENTS_PER_S, PYTHON, tell_crowd
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, Stack, stack
from bench.target import Found, Target, at_least, at_most, shown

CLIENTS, SECONDS = 500, 10
LINES, LINE_BYTES, SPEAKERS = 60_000, 500, 2
CHILD = """
import sys
count, size = int(sys.argv[1]), int(sys.argv[2])
for number in range(count):
    sys.stdout.write(("%d " % number).ljust(size - 1, "x") + "\\n")
"""
_PATIENCE_S = 120.0


async def crowd(bench: Bench) -> Found:
    """Tell 500 sockets of 200 events a second."""
    up = stack(bench, workers=0, **NO_LIMIT)
    told = await tell_crowd(bench, up, CLIENTS, SECONDS)
    said = f"{shown(told['events'])} events/s to {CLIENTS} for {SECONDS} s, web {shown(told['cores'])} cores"
    return Found({"p99": told["p99"], "RSS": told["rss"]}, (said,))


def ingest(bench: Bench) -> Found:
    """Let two jobs print as fast as they can, and read all of it again."""
    if not PYTHON.exists():
        raise Missing(f"{PYTHON} is not installed, and jobs must reach a Python")
    up = stack(bench, workers=1, **NO_LIMIT)
    command = shlex.join([str(PYTHON), "-I", "-S", "-c", CHILD, str(LINES), str(LINE_BYTES)])
    with up.client() as client:
        batch = {"jobs": [{"command": command}] * SPEAKERS}
        accepted = client.post("/api/jobs/submit-batch", json=batch).raise_for_status().json()
        ids = list(accepted["jobIds"])
        began = _await_states(up, ids, {b"running", b"completed"}, any)
        took = _await_states(up, ids, {b"completed"}, all) - began
    lines = SPEAKERS * LINES / took
    figures = {
        "MB/s": lines * LINE_BYTES / 1e6,
        "lines/s": lines,
        "gaps": float(sum(_gaps(up, each) for each in ids)),
    }
    return Found(figures, (f"{SPEAKERS} jobs, {shown(SPEAKERS * LINES * LINE_BYTES / 1e6)} MB",))


def _await_states(
    up: Stack, ids: list[str], wanted: set[bytes], which: Callable[[Iterable[object]], bool]
) -> float:
    deadline = time.monotonic() + _PATIENCE_S
    with contextlib.closing(up.redis()) as redis:
        while not which(redis.hget(f"h:job:{each}", "state") in wanted for each in ids):
            if time.monotonic() > deadline:
                raise RuntimeError(f"The jobs did not get there: {ids}")
            time.sleep(0.01)
    return time.monotonic()


def _gaps(up: Stack, job_id: str) -> int:
    """Return how many lines of a stored log are not where they belong, or missing at its end."""
    with (
        up.client() as client,
        client.stream("GET", f"/api/jobs/{job_id}/log", headers={"Accept": "text/plain"}) as answer,
    ):
        wrong = count = 0
        for count, line in enumerate(answer.iter_lines(), 1):
            wrong += line != f"{count - 1} ".ljust(LINE_BYTES - 1, "x")
    return wrong + abs(LINES - count)


TARGETS = [
    Target(
        id="L09",
        what=f"{CLIENTS} WebSocket clients on all jobs, {EVENTS_PER_S} events a second",
        limits=(at_most("p99", 1000, "ms"), at_most("RSS", 300, " MiB")),
        measure=crowd,
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
    ),
    Target(
        id="L10",
        what=f"{SPEAKERS} jobs that print lines of {LINE_BYTES} bytes as fast as they can, until all of it is stored",
        limits=(at_least("MB/s", 5), at_least("lines/s", 10_000), at_most("gaps", 0)),
        measure=ingest,
        overrides=(NO_LIMIT_NOTE,),
    ),
]
