"""L05, L06, L08 and L15: how soon and how fast jobs run, what agents cost, how soon a dead one is noticed."""

import asyncio
import contextlib
import functools
import os
import random
import signal
import time
from typing import Any

import httpx

from bench.figure import Bench
from bench.figures import work
from bench.latency import quantiles
from bench.processes import environment, process, python
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, Stack, stack
from bench.target import Found, Target, at_least, at_most, shown
from bench.targets.web import lost
from storage import jobs
from storage.jobs import Order

STARTS = 200
AGENT_JOBS, AGENT_TAG = 400, "over-http"
AGENTS_SECONDS = 15
SILENT = 40
BEAT_S = 5.0
#: Agents fall silent at some time within one heartbeat's pause.
SILENT_BY_S = 2 * BEAT_S
_WATCHED_FOR_S = 60.0


def start(bench: Bench) -> Found:
    """Submit jobs to an idle fleet, 20 a second."""
    up, argv = stack(bench, workers=1, **NO_LIMIT), work.stamp(bench)
    work.start_delays(up, argv, [], 20)
    return Found(quantiles(work.start_delays(up, argv, [], STARTS)), (f"{STARTS} jobs, 20/s",))


def throughput(bench: Bench) -> Found:
    """Run `true`, from a queue that was filled beforehand: on a worker, and on an agent."""
    with work.true_jobs(bench) as measure:
        worker = asyncio.run(_float(measure))
    return Found({"worker": worker, "agent": _on_an_agent(bench)})


async def _float(measure: Any) -> float:
    return float(await measure())


def _on_an_agent(bench: Bench) -> float:
    """Return how many jobs a second an agent of two slots runs."""
    up = stack(bench, workers=1, **NO_LIMIT)
    directory = bench.directory / "agent"
    directory.mkdir(mode=0o711)
    already = work.completed(up)
    asyncio.run(_fill(up, AGENT_JOBS))
    env = environment(HOSTLER_API_KEY=up.api_key, HOSTLER_WORK_DIR=str(directory))
    command = python("-m", "workers.agent", "--url", up.url, "--name", "load", "--tags", AGENT_TAG)
    with process(command, log=bench.directory / "agent.log", env=env):
        warm = AGENT_JOBS // 10
        began = work.await_completed(up, already + warm)
        ended = work.await_completed(up, already + AGENT_JOBS)
    return (AGENT_JOBS - warm) / (ended - began)


async def _fill(up: Stack, number: int) -> None:
    store, order = up.store(), Order(argv=work.TRUE, tags=[AGENT_TAG])
    try:
        for _ in range(0, number, 50):
            await asyncio.gather(*(jobs.submit(store, "user:load", order) for _ in range(50)))
    finally:
        await store.close()


async def agents(bench: Bench) -> Found:
    """Let 200 agents wait for work and send heartbeats."""
    up = stack(bench, workers=0, **NO_LIMIT)
    used = await work.agents_cost(up, AGENTS_SECONDS)
    return Found({"CPU": used}, ("web and Redis together",))


# L15


async def dead_workers(bench: Bench) -> Found:
    """Let agents fall silent while each holds a job; kill a worker; start Hostler anew."""
    up = stack(bench, workers=1, **NO_LIMIT)
    noticed = await _noticed_s(up)
    figures = {
        "detection p99": quantiles(noticed)["p99"],
        "ready again": await asyncio.to_thread(work.warm_start_s, bench),
        "worker again": await asyncio.to_thread(_worker_again_s, up),
    }
    return Found(figures, (f"{SILENT} agents, detection p50 {shown(quantiles(noticed)['p50'])}s",))


async def _noticed_s(up: Stack) -> list[float]:
    """Return how long after each agent's end its job was taken from it."""
    limits = httpx.Limits(max_connections=SILENT, max_keepalive_connections=SILENT)
    async with httpx.AsyncClient(base_url=up.url, trust_env=False, timeout=30, limits=limits) as client:
        fell_silent = dict(await asyncio.gather(*(_agent(client, up, each) for each in range(SILENT))))
    noticed: dict[str, float] = {}
    deadline = time.monotonic() + _WATCHED_FOR_S
    with contextlib.closing(up.redis()) as redis:
        while len(noticed) < SILENT and time.monotonic() < deadline:
            waiting = [each for each in fell_silent if each not in noticed]
            with redis.pipeline(transaction=False) as pipe:
                for job_id in waiting:
                    pipe.hget(f"h:job:{job_id}", "state")
                states = pipe.execute()
            now = time.monotonic()
            noticed |= {
                job: now - fell_silent[job]
                for job, state in zip(waiting, states, strict=True)
                if state != b"running"
            }
            await asyncio.sleep(0.02)
    return [noticed.get(job, _WATCHED_FOR_S) for job in fell_silent]


async def _agent(client: httpx.AsyncClient, up: Stack, number: int) -> tuple[str, float]:
    """Take a job, send heartbeats for some time, and fall silent; return the job and when that was."""
    chance, name = random.Random(number), f"silent-{number}"  # noqa: S311
    known = {"workerId": name, "hostname": "load", "slots": 1, "tags": [name]}
    answer = await client.post("/api/workers/register", json=known, headers=up.headers)
    token = {"x-worker-token": answer.raise_for_status().json()["token"]}
    beat = functools.partial(
        client.post, "/api/workers/heartbeat", json={"workerId": name, "status": "busy"}, headers=token
    )
    (await beat()).raise_for_status()
    job = {"argv": ["true"], "tags": [name]}
    job_id: str = (await client.post("/api/jobs/submit", json=job, headers=up.headers)).json()["jobId"]
    taken = await client.get("/api/jobs/get-job?wait=10", headers=token)
    if taken.status_code != 200:
        raise RuntimeError(f"{name} got no job: {taken.status_code} {taken.text[:200]}")
    left_s = chance.uniform(BEAT_S, SILENT_BY_S)
    while left_s > BEAT_S:
        (await beat()).raise_for_status()
        await asyncio.sleep(BEAT_S)
        left_s -= BEAT_S
    (await beat()).raise_for_status()
    await asyncio.sleep(left_s)
    return job_id, time.monotonic()


def _worker_again_s(up: Stack) -> float:
    """Return how long after a worker was killed a job that was then submitted has ended."""
    (pid,) = up.pids("worker")
    with up.client() as client:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        job_id = client.post("/api/jobs/submit", json={"argv": ["true"]}).raise_for_status().json()["jobId"]
        if lost(up, [job_id]):
            raise RuntimeError("No worker came back.")
    return time.monotonic() - began


TARGETS = [
    Target(
        id="L05",
        what="request sent until the first instruction of the command, idle fleet",
        limits=(at_most("p50", 100, "ms"), at_most("p99", 500, "ms")),
        measure=start,
        overrides=(NO_LIMIT_NOTE,),
    ),
    Target(
        id="L06",
        what="`true` as jobs from a queue that is full: a worker of 2 slots, and an agent of 2 slots over HTTP",
        limits=(at_least("worker", 25, "/s"), at_least("agent", 100, "/s")),
        measure=throughput,
        overrides=(NO_LIMIT_NOTE,),
    ),
    Target(
        id="L08",
        what="200 agents in long polls that send heartbeats: CPU of web and Redis, of a core",
        limits=(at_most("CPU", 30, "%"),),
        measure=agents,
        overrides=(NO_LIMIT_NOTE,),
    ),
    Target(
        id="L15",
        what="agents that hold a job and fall silent, until it is given back; `hostler up` on its data, until it is "
        "ready; a worker of it is killed, until its successor has run a job",
        limits=(
            at_most("detection p99", 30, "s"),
            at_most("ready again", 3, "s"),
            at_most("worker again", 3, "s"),
        ),
        measure=dead_workers,
        overrides=(NO_LIMIT_NOTE,),
    ),
]
