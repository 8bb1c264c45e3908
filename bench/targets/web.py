"""L01 to L04 and L07: what the web answers at a constant rate, in a burst, and in front of a backlog."""

import contextlib
import time
from collections.abc import Sequence

import httpx

from bench.figure import Bench
from bench.paced import Answers, Order, paced
from bench.processes import cpu_s
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, Stack, stack
from bench.target import Found, Target, at_most, shown

TRUE = '{"argv":["true"]}'
JOB_ID = r'"jobId":"([^"]+)"'
SECONDS = 10
SUBMIT_SECONDS, SUBMIT_SECONDS_LONG = 30, 600
BURST, BURST_SECONDS = 2000, 5
BACKLOG, BATCH = 100_000, 1000
#: All that was accepted has ended so long after the last request.
ENDED_WITHIN_S = 120.0
_ENDED = {b"completed", b"failed", b"cancelled"}


def _load(up: Stack, order: Order) -> tuple[Answers, str]:
    """Return what came back, and in words the rate and what the web's processes used."""
    web, began = up.pids("web"), time.monotonic()
    before = cpu_s(*web)
    answers = paced(order)
    used = (cpu_s(*web) - before) / (time.monotonic() - began) * 100
    return answers, f"{shown(order.rate)}/s for {shown(order.seconds)} s, web {shown(used)}% of a core"


def lost(up: Stack, ids: Sequence[str], within_s: float = ENDED_WITHIN_S) -> int:
    """Return how many of the jobs that were accepted do not exist, or have not ended within `within_s`."""
    waiting, deadline = list(ids), time.monotonic() + within_s
    with contextlib.closing(up.redis()) as client:
        while waiting and time.monotonic() < deadline:
            left = []
            for first in range(0, len(waiting), BATCH):
                with client.pipeline(transaction=False) as pipe:
                    some = waiting[first : first + BATCH]
                    for job_id in some:
                        pipe.hget(f"h:job:{job_id}", "state")
                    left += [
                        job for job, state in zip(some, pipe.execute(), strict=True) if state not in _ENDED
                    ]
            if left:
                time.sleep(0.2)
            waiting = left
    return len(waiting)


def health(bench: Bench) -> Found:
    """Ask for health, as load balancers do."""
    up = stack(bench, workers=1, **NO_LIMIT)
    answers, said = _load(up, Order(url=f"{up.url}/api/health", rate=1000, seconds=SECONDS))
    return Found({"p99": answers.expect_success().p99}, (said,))


def look(bench: Bench) -> Found:
    """Look at a job that has ended."""
    up = stack(bench, workers=1, **NO_LIMIT)
    with up.client() as client:
        job_id = (
            client.post("/api/jobs/submit", json={"command": "echo hello"}).raise_for_status().json()["jobId"]
        )
    if lost(up, [job_id]):
        raise RuntimeError("The job that is looked at did not end.")
    url = f"{up.url}/api/jobs/status?jobId={job_id}"
    answers, said = _load(up, Order(url=url, rate=400, seconds=SECONDS, headers=up.headers))
    return Found({"p99": answers.expect_success().p99}, (said,))


def _submit(up: Stack, rate: float, seconds: float) -> Order:
    return Order(
        url=f"{up.url}/api/jobs/submit", rate=rate, seconds=seconds, method="POST", body=TRUE,
        headers=up.headers, keep=JOB_ID,
    )  # fmt: skip


def submit(bench: Bench) -> Found:
    """Submit jobs while a worker runs them."""
    up = stack(bench, workers=1, **NO_LIMIT)
    answers, said = _load(up, _submit(up, 150, SUBMIT_SECONDS_LONG if bench.long else SUBMIT_SECONDS))
    if len(answers.expect_success().kept) != answers.sent:
        raise RuntimeError(f"{answers.sent} jobs were accepted and {len(answers.kept)} ids came back.")
    return Found({"p99": answers.p99, "lost": lost(up, answers.kept)}, (said,))


def burst(bench: Bench) -> Found:
    """Submit 2,000 jobs in 5 s, with the rate limit that is production's, and without one."""
    figures, said = {"refused otherwise": 0.0, "lost": 0.0}, []
    for name, env in (("with the default limit", {}), ("without", NO_LIMIT)):
        up = stack(bench, workers=1, **env)
        answers, _ = _load(up, _submit(up, BURST / BURST_SECONDS, BURST_SECONDS))
        figures["refused otherwise"] += answers.sent - answers.count("2", "429", "503")
        figures["lost"] += lost(up, answers.kept) + answers.count("2") - len(answers.kept)
        said.append(f"{name} {answers.statuses}".replace("'", ""))
    return Found(figures, tuple(said))


def backlog(bench: Bench) -> Found:
    """Submit and list in front of 100,000 jobs that wait."""
    up = stack(bench, workers=0, **NO_LIMIT)
    with contextlib.closing(up.redis()) as redis, up.client() as client:
        _fill(client, 1)
        before = redis.info("memory")["used_memory"]
        _fill(client, BACKLOG // BATCH)
        each = (redis.info("memory")["used_memory"] - before) / BACKLOG
    answers, _ = _load(up, _submit(up, 50, SECONDS / 2))
    submitted = answers.expect_success().p99
    listing = Order(url=f"{up.url}/api/jobs/list?limit=50", rate=50, seconds=SECONDS / 2, headers=up.headers)
    listed = _load(up, listing)[0].expect_success().p99
    figures = {"submit p99": submitted, "list p99": listed, "Redis a job": each}
    return Found(figures, ("50/s each, list of 50",))


def _fill(client: httpx.Client, batches: int) -> None:
    jobs = {"jobs": [{"command": f"make test-{number}"} for number in range(BATCH)]}
    for _ in range(batches):
        client.post("/api/jobs/submit-batch", json=jobs).raise_for_status()


TARGETS = [
    Target(
        id="L01",
        what="GET /api/health, 1,000 a second",
        limits=(at_most("p99", 20, "ms"),),
        measure=health,
        overrides=(NO_LIMIT_NOTE,),
    ),
    Target(
        id="L02",
        what="authenticated GET /api/jobs/status of a job, 400 a second",
        limits=(at_most("p99", 50, "ms"),),
        measure=look,
        overrides=(NO_LIMIT_NOTE,),
    ),
    Target(
        id="L03",
        what="POST /api/jobs/submit of `true`, 150 a second, while one worker runs them; every one exists and ends",
        limits=(at_most("p99", 150, "ms"), at_most("lost", 0)),
        measure=submit,
        overrides=(NO_LIMIT_NOTE,),
        notes=(f"{SUBMIT_SECONDS} s, and 10 minutes in the long setting",),
    ),
    Target(
        id="L04",
        what="2,000 submits in 5 s: each is accepted, or refused with 429 or 503; every one accepted exists and ends",
        limits=(
            at_most("refused otherwise", 0),
            at_most("lost", 0),
        ),
        measure=burst,
        overrides=(f"one of the two bursts with {NO_LIMIT_NOTE}",),
    ),
    Target(
        id="L07",
        what="a backlog of 100,000 jobs that wait",
        limits=(
            at_most("submit p99", 250, "ms"),
            at_most("list p99", 300, "ms"),
            at_most("Redis a job", 2000, " B"),
        ),
        measure=backlog,
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
    ),
]
