"""P1, P2 and P13: what accepting jobs and looking at one cost the web."""

import contextlib
import time
from collections.abc import Iterator

import httpx
import orjson

from bench.anchors import web
from bench.figure import Bench, Figure, Goal, Measure
from bench.load import load, require
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, Stack, stack

BATCH = 1000


@contextlib.contextmanager
def submit(bench: Bench) -> Iterator[Measure]:
    """Submit jobs one a request."""
    require()
    up = stack(bench, workers=0, **NO_LIMIT)
    yield lambda: load(
        bench.directory, f"{up.url}/api/jobs/submit", seconds=web.seconds(bench), method="POST", body=web.BODY,
        headers=up.headers,
    )  # fmt: skip


@contextlib.contextmanager
def submit_batches(bench: Bench) -> Iterator[Measure]:
    """Submit jobs a thousand a request, four requests at a time; jobs/s."""
    up = stack(bench, workers=0, **NO_LIMIT)
    body = orjson.dumps({"jobs": [{"command": f"echo hello {number}"} for number in range(BATCH)]})

    def measure() -> float:
        _forget_jobs(up)
        loaded = load(
            bench.directory, f"{up.url}/api/jobs/submit-batch", seconds=web.seconds(bench), method="POST", body=body,
            headers=up.headers, connections=4,
        )  # fmt: skip
        return loaded["value"] * BATCH

    yield measure


def _forget_jobs(up: Stack) -> None:
    """Drop what earlier rounds have submitted, so that the memory of the machine suffices."""
    with contextlib.closing(up.redis()) as client:
        for kind in ("h:job:*", "rq:job:*"):
            names: list[bytes] = []
            for name in client.scan_iter(kind, count=5000):
                names.append(name)
                if len(names) == 5000:
                    client.unlink(*names)
                    names = []
            if names:
                client.unlink(*names)
        client.unlink("h:jobs", "h:jobs:queued", "rq:queue:jobs.normal", "h:audit")


@contextlib.contextmanager
def look(bench: Bench) -> Iterator[Measure]:
    """Look at one job, over and over."""
    require()
    up = stack(bench, workers=1, **NO_LIMIT)
    with up.client() as client:
        job_id = client.post("/api/jobs/submit", json={"command": "echo hello world"}).json()["jobId"]
        while (job := _job(client, job_id))["status"] != "completed":
            time.sleep(0.05)
    if job["stdout"] != "hello world\n":
        raise RuntimeError(f"The job that is looked at printed {job['stdout']!r}.")
    yield lambda: load(
        bench.directory,
        f"{up.url}/api/jobs/status?jobId={job_id}",
        seconds=web.seconds(bench),
        headers=up.headers,
    )


def _job(client: httpx.Client, job_id: str) -> dict[str, str]:
    found: dict[str, str] = client.get("/api/jobs/status", params={"jobId": job_id}).json()["job"]
    return found


FIGURES = [
    Figure(
        id="P1",
        what="POST /api/jobs/submit with an API key, wrk with 32 connections, 2 web workers",
        unit="/s",
        own=submit,
        anchors={"falcon-lpush": web.floor_push, "fastapi-arq": web.arq_push},
        goals=(Goal(limit=0.60, stretch=0.75, anchor="falcon-lpush"), Goal(limit=1.8, anchor="fastapi-arq")),
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
    ),
    Figure(
        id="P2",
        what="POST /api/jobs/submit-batch with 1,000 jobs, wrk with 4 connections, jobs/s against requests/s",
        unit="/s",
        own=submit_batches,
        anchors={"falcon-lpush": web.floor_push},
        goals=(Goal(limit=3.0, anchor="falcon-lpush"),),
        overrides=(
            NO_LIMIT_NOTE,
            NO_WORKERS_NOTE,
            "between rounds the bench deletes the jobs of the round before",
        ),
        notes=(
            "Redis, one thread: RQ's hash and ours for each job, a third less with jemalloc, half as much again while "
            "the append-only file is rewritten",
        ),
    ),
    Figure(
        id="P13",
        what="GET /api/jobs/status of a finished job with its output, wrk with 32 connections, 2 web workers",
        unit="/s",
        own=look,
        anchors={"falcon-get": web.floor_get},
        goals=(Goal(limit=1.0, anchor="falcon-get"),),
        overrides=(NO_LIMIT_NOTE,),
    ),
]
