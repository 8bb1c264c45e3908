"""P3, P4, P5, P11 and P12: running commands, how soon they start, what they cost, and what idling costs."""

import asyncio
import contextlib
import http.client
import itertools
import json
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from bench.anchors import bullmq, true
from bench.anchors.true import await_count
from bench.figure import Bench, Figure, Goal, Measure
from bench.latency import RATE_HZ, count, quantiles
from bench.processes import cpu_s, environment, process, python
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, Stack, stack
from bench.wire import Client
from storage import jobs, logs
from storage.jobs import Order

TRUE = ["true"]
#: Measured by `perf`; docs/performance.md says more.
COMMAND_NOTE = (
    "`true` itself takes 1.1 ms of CPU where a hypervisor answers each question that glibc asks the processor before "
    "`main`; xargs, which does nothing else, is then 2.7 to 3 times Celery and 20 to 26 times RQ's fork"
)
TAGS_NOTE = "HOSTLER_TAGS=direct, so that the worker's jobs can be told from the agent's"


@contextlib.contextmanager
def held_back(up: Stack) -> Iterator[None]:
    """Keep the workers from claiming meanwhile, as `hostler workers drain` does."""
    with up.redis() as client:
        names = [key.decode() for key in client.scan_iter("h:worker:*")]
        for name in names:
            client.hset(name, "drain", "1")
        yield
        for name in names:
            client.hdel(name, "drain")
        client.publish("h:wake", "undrained")


def completed(up: Stack) -> int:
    """Return how many jobs have completed."""
    with up.redis() as client:
        return int(client.zcard("h:jobs:completed"))


def await_completed(up: Stack, wanted: int) -> float:
    """Wait until so many jobs have completed, over one connection, which Redis pays for; return when that was."""
    with up.redis() as client:
        return await_count(lambda: int(client.zcard("h:jobs:completed")), wanted)


async def fill(up: Stack, number: int) -> None:
    """Submit `number` jobs that run `true`."""
    store = up.store()
    try:
        for _ in range(0, number, 50):
            await asyncio.gather(*(jobs.submit(store, "user:bench", Order(argv=TRUE)) for _ in range(50)))
    finally:
        await store.close()


# P3


@contextlib.contextmanager
def true_jobs(bench: Bench) -> Iterator[Measure]:
    """`true` as jobs, two slots, queue filled beforehand, from the first claim to the last result."""
    up, number = stack(bench, workers=1, **NO_LIMIT), 200 if bench.quick else 600

    async def measure() -> float:
        already = completed(up)
        with held_back(up):
            await fill(up, number)
            began = time.perf_counter()
        ended = await_completed(up, already + number)
        return number / (ended - began)

    asyncio.run(measure())
    yield measure


# P11


@contextlib.contextmanager
def cost_of_true(bench: Bench) -> Iterator[Measure]:
    """CPU of worker, commands, web and Redis together, ms a `true` job, each submitted by a request of its own."""
    up, number = stack(bench, workers=1, **NO_LIMIT), 200 if bench.quick else 600
    where, body = urlsplit(up.url), json.dumps({"argv": TRUE})
    families = {name: up.pids(name) for name in ("worker", "web", "redis")}

    def measure() -> dict[str, float]:
        already = completed(up)
        before = {name: cpu_s(*pids) for name, pids in families.items()}
        client = http.client.HTTPConnection(where.hostname or "", where.port)
        with held_back(up), contextlib.closing(client):
            for _ in range(number):
                client.request(
                    "POST", "/api/jobs/submit", body, {"Content-Type": "application/json", **up.headers}
                )
                client.getresponse().read()
        await_completed(up, already + number)
        parts = {name: (cpu_s(*pids) - before[name]) * 1000 / number for name, pids in families.items()}
        return {"value": sum(parts.values()), **parts}

    measure()
    yield measure


# P4, P5

_STAMP = Path(__file__).with_name("stamp.c")
_IN_PYTHON = [sys.executable, "-I", "-S", "-c", "import time; print(time.monotonic_ns())"]


def stamp(bench: Bench) -> list[str]:
    """Return a command that prints the monotonic clock in ns, first of all."""
    compiler = shutil.which("cc")
    if compiler is None:
        return _IN_PYTHON

    def compile_it() -> list[str]:
        program = bench.directory / "stamp"
        bare = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"]
        if subprocess.run([compiler, *bare, "-o", program, _STAMP], check=False).returncode != 0:
            return _IN_PYTHON  # a processor whose system calls it does not know
        program.chmod(0o755)
        return [str(program)]

    return bench.shared("stamp", compile_it)


def _is_completed(client: redis.Redis, job_id: str) -> bool:
    return bool(client.hget(f"h:job:{job_id}", "state") == b"completed")


def start_delays(up: Stack, argv: list[str], tags: list[str], number: int) -> list[float]:
    """Submit jobs at a steady rate; return how long each took from its request to the command's first line, ms."""
    where, body = urlsplit(up.url), json.dumps({"argv": argv, "tags": tags}).encode()
    head = (
        f"POST /api/jobs/submit HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {up.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request, sent = head.encode() + body, {}
    with socket.create_connection((where.hostname or "", where.port or 80), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        for each in range(number):
            time.sleep(max(0.0, began + each / RATE_HZ - time.monotonic()))
            # made before: once it has sent, a client that waits leaves its core to the web, which is woken there
            response = http.client.HTTPResponse(connection)
            at = time.monotonic_ns()
            connection.sendall(request)
            response.begin()
            sent[json.loads(response.read())["jobId"]] = at
    delays = []
    with up.redis() as client:
        for job_id, at in sent.items():
            await_count(partial(_is_completed, client, job_id), 1)
            ((_, entry),) = logs.unpacked(client.hget(f"h:job:{job_id}", "log") or b"")
            delays.append((int(entry.data) - at) / 1e6)
    return delays


@contextlib.contextmanager
def request_to_start(bench: Bench) -> Iterator[Measure]:
    """Request sent until the command's first instruction, ms, over the worker's own line."""
    up, argv = _both_ways(bench), stamp(bench)
    start_delays(up, argv, ["direct"], 20)
    yield lambda: quantiles(start_delays(up, argv, ["direct"], count(bench)))


@contextlib.contextmanager
def request_to_start_over_http(bench: Bench) -> Iterator[Measure]:
    """The same over an agent's long poll."""
    up, argv = _both_ways(bench), stamp(bench)
    work = bench.directory / "agent"
    work.mkdir(mode=0o711)
    env = environment(HOSTLER_API_KEY=up.api_key, HOSTLER_WORK_DIR=str(work))
    command = python("-m", "workers.agent", "--url", up.url, "--name", "bench-agent", "--tags", "over-http")
    with process(command, log=bench.directory / "agent.log", env=env):
        with up.redis() as client:
            await_count(lambda: client.hget("h:worker:bench-agent", "status") == b"online", 1)
        start_delays(up, argv, ["over-http"], 20)
        yield lambda: quantiles(start_delays(up, argv, ["over-http"], count(bench)))


def _both_ways(bench: Bench) -> Stack:
    return stack(bench, workers=1, HOSTLER_TAGS="direct", **NO_LIMIT)


# P12

AGENTS = 200


@contextlib.contextmanager
def idling(bench: Bench) -> Iterator[Measure]:
    """What an idle worker and 200 agents that wait for work cost, % of a core; and a warm start of all, s."""
    up, seconds = stack(bench, workers=1, **NO_LIMIT), 4 if bench.quick else 20

    async def measure() -> dict[str, float]:
        worker, began = up.pids("worker"), time.monotonic()
        before = cpu_s(*worker)
        await asyncio.sleep(seconds)
        idle = (cpu_s(*worker) - before) / (time.monotonic() - began) * 100
        return {"worker": idle, "agents": await agents_cost(up, seconds), "up": warm_start_s(bench)}

    yield measure


async def agents_cost(up: Stack, seconds: float) -> float:
    """Return what web and Redis use while agents do nothing but wait and send heartbeats, % of a core."""
    server = [*up.pids("web"), *up.pids("redis")]
    with contextlib.ExitStack() as open_lines:
        lines = [(Client(up.url), Client(up.url)) for _ in range(AGENTS)]
        for client in itertools.chain.from_iterable(lines):
            open_lines.callback(client.close)
        waiting = [
            asyncio.create_task(_agent(up, *pair, f"bench-{time.monotonic_ns()}", number / AGENTS))
            for number, pair in enumerate(lines)
        ]
        try:
            await asyncio.sleep(6)  # until their first heartbeats are over
            before, began = cpu_s(*server), time.monotonic()
            await asyncio.sleep(seconds)
            return (cpu_s(*server) - before) / (time.monotonic() - began) * 100
        finally:
            for each in waiting:
                each.cancel()
            told = await asyncio.gather(*waiting, return_exceptions=True)
            if failed := [each for each in told if not isinstance(each, asyncio.CancelledError)]:
                raise RuntimeError(f"{len(failed)} agents ended: {failed[0]!r}")


async def _agent(up: Stack, polling: Client, beating: Client, name: str, share: float) -> None:
    """Wait for work in one long poll after the other, and send heartbeats as often as the API wants them."""
    known = json.dumps({"workerId": name, "hostname": "bench", "slots": 1})
    token = {"x-worker-token": (await _ask(beating, "POST", "register", up.headers, known))["token"]}

    async def poll() -> None:
        wait_s = 0.1 + 20 * (
            share * 37 % 1
        )  # else all of them would end at once, within what is measured or not
        while True:
            status, body = await polling.ask("GET", f"/api/jobs/get-job?wait={wait_s:g}", token)
            if status != 204:
                raise RuntimeError(f"{name} was told {status} {body[:200]!r}")
            wait_s = 20

    async def beat() -> None:
        pause_s = 5.0
        said = json.dumps({"workerId": name, "status": "idle"})
        await _ask(beating, "POST", "heartbeat", token, said)
        await asyncio.sleep(share * pause_s)
        while True:
            answer = await _ask(beating, "POST", "heartbeat", token, said)
            pause_s = answer.get("nextCheckIn", 5000) / 1000
            await asyncio.sleep(pause_s)

    await asyncio.gather(beat(), poll())


async def _ask(client: Client, method: str, path: str, headers: dict[str, str], body: str) -> dict[str, Any]:
    status, answer = await client.ask(method, f"/api/workers/{path}", headers, body)
    if status >= 300:
        raise RuntimeError(f"{path} was answered {status} {answer[:200]!r}")
    return dict(json.loads(answer))


def warm_start_s(bench: Bench) -> float:
    """Return how long `hostler up` takes to be ready on data that it has made before."""
    data = bench.directory / "warm"
    bench.shared("warm", lambda: _ready_after_s(bench, data))
    return _ready_after_s(bench, data)


def _ready_after_s(bench: Bench, data: Path) -> float:
    log = bench.directory / f"warm-{time.monotonic_ns()}.log"
    log.touch()
    began = time.monotonic()
    hostler = Path(sysconfig.get_path("scripts")) / "hostler"
    command = [str(hostler), "up", "--port", "0", "--data", str(data), "--workers", "1"]
    with process(command, log=log, grace_s=60) as child:
        while b"Hostler is ready" not in log.read_bytes():
            if child.poll() is not None or time.monotonic() - began > 60:
                raise RuntimeError(f"It did not become ready: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.01)
        return time.monotonic() - began


FIGURES = [
    Figure(
        id="P3",
        what="`true` as a job with its output and exit code kept, one worker with 2 slots, queue filled beforehand",
        unit="/s",
        own=true_jobs,
        anchors={"xargs": true.xargs, "celery": true.celery, "rq-fork": true.rq},
        goals=(
            Goal(limit=0.60, stretch=0.75, anchor="xargs"),
            Goal(limit=3, anchor="celery"),
            Goal(limit=20, anchor="rq-fork"),
        ),
        overrides=(NO_LIMIT_NOTE,),
        notes=(COMMAND_NOTE,),
    ),
    Figure(
        id="P4",
        what="request sent until the first instruction of the command, idle fleet, 20 a second",
        unit=" ms",
        own=request_to_start,
        anchors={"bullmq": bullmq.start},
        goals=(
            Goal(limit=1.2, anchor="bullmq", metric="p50", at_most=True),
            Goal(limit=1.3, anchor="bullmq", metric="p99", at_most=True),
        ),
        overrides=(NO_LIMIT_NOTE, TAGS_NOTE),
        notes=(
            "on its way a job wakes web, Redis, worker, launcher and command, each of which has slept for 50 ms; "
            "BullMQ's worker runs the job in its own process",
        ),
    ),
    Figure(
        id="P5",
        what="the same through an HTTP agent's long poll",
        unit=" ms",
        own=request_to_start_over_http,
        anchors={"P4": request_to_start},
        goals=(Goal(limit=2.5, anchor="P4", metric="p50", at_most=True),),
        overrides=(NO_LIMIT_NOTE, TAGS_NOTE),
    ),
    Figure(
        id="P11",
        what="CPU a `true` job: worker, its command, web and Redis together; a request for each",
        unit=" ms",
        own=cost_of_true,
        goals=(Goal(limit=2.5, at_most=True),),
        overrides=(NO_LIMIT_NOTE,),
        notes=(COMMAND_NOTE,),
    ),
    Figure(
        id="P12",
        what="idle: a worker; web and Redis with 200 agents that wait and send heartbeats; warm `hostler up`",
        unit=" %",
        own=idling,
        goals=(
            Goal(limit=0.5, metric="worker", at_most=True),
            Goal(limit=5, metric="agents", at_most=True),
            Goal(limit=3, metric="up", at_most=True, unit=" s"),
        ),
        overrides=(NO_LIMIT_NOTE,),
        quick_rounds=1,
    ),
]
