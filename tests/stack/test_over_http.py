"""The whole: two gunicorn workers and two `hostler worker`s, spoken to over HTTP alone."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from processes import Stack, new_stack, until
from servers import NO_TLS, S3, free_port

from storage import bootstrap

PRIORITIES = ("low", "normal", "high")


@pytest.fixture(scope="module")
def stack(s3: S3) -> Iterator[Stack]:
    """A stack with the web under gunicorn; its workers are started by the tests."""
    port = free_port()
    stack = new_stack(s3, PORT=str(port), HOSTLER_HOST="127.0.0.1", WEB_CONCURRENCY="2", HOSTLER_SLOTS="3")
    try:
        admin = asyncio.run(bootstrap.prepare(stack.settings))
        assert admin is not None
        stack.api_key, stack.url = admin.api_key, f"http://127.0.0.1:{port}"
        stack.start("gunicorn", "-c", "api/gunicorn.py", "api.asgi:app")
        stack.start("scheduler")
        until(lambda: _answers(stack.url), "the web answers")
        yield stack
    finally:
        stack.end()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health/live", trust_env=False, verify=NO_TLS).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"X-API-Key": stack.api_key}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=30, verify=NO_TLS) as client:
        yield client


async def submitted(client: httpx.AsyncClient, **body: object) -> str:
    """Submit a job; tried again under one key while no answer comes."""
    key = os.urandom(8).hex()
    for _ in range(10):
        try:
            answer = await client.post("/api/jobs/submit", json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobId"])
    raise AssertionError("No answer came.")


async def all_ended(client: httpx.AsyncClient, count: int, patience_s: float = 60) -> list[dict[str, object]]:
    """Wait until the fleet has nothing to do any more, and return the newest `count` jobs."""
    deadline = time.monotonic() + patience_s
    while True:
        counts = [
            (await client.get("/api/jobs/list", params={"status": state, "limit": 1})).json()["total"]
            for state in ("queued", "running")
        ]
        if counts == [0, 0]:
            break
        assert time.monotonic() < deadline, f"queued and running: {counts}"
        await asyncio.sleep(0.1)
    found: list[dict[str, object]] = []
    while len(found) < count:
        page = (await client.get("/api/jobs/list", params={"limit": 100, "offset": len(found)})).json()[
            "jobs"
        ]
        assert page
        found += page
    return found[:count]


async def test_five_hundred_jobs_of_mixed_priorities_end_once_and_the_urgent_ones_first(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    side = stack.directory / "side-effects"
    side.touch()
    side.chmod(0o666)
    limit = asyncio.Semaphore(20)

    async def submit(number: int) -> tuple[str, str]:
        async with limit:
            priority = PRIORITIES[number % 3]
            words = f'echo "$HOSTLER_JOB_ID {priority}" >> {side}'
            return await submitted(client, command=words, priority=priority, timeout=60), priority

    ids = dict(await asyncio.gather(*(submit(number) for number in range(500))))
    assert len(ids) == 500
    workers = [stack.worker(name, wait=False) for name in ("one", "two")]
    ended = {str(job["jobId"]): job["status"] for job in await all_ended(client, 500)}
    assert ended == dict.fromkeys(ids, "completed")
    lines = [line.split() for line in side.read_text().splitlines()]
    assert sorted(job_id for job_id, _ in lines) == sorted(ids)
    assert all(ids[job_id] == priority for job_id, priority in lines)
    ranks = [PRIORITIES.index(priority) for _, priority in lines]
    swaps = sum(abs(rank - best) for rank, best in zip(ranks, sorted(ranks, reverse=True), strict=True))
    assert swaps <= 40, "six slots may finish a little out of the order in which they began"
    stack.end(*workers)


async def test_what_was_acknowledged_survives_the_death_of_a_web_worker(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    side = stack.directory / "acknowledged"
    side.touch()
    side.chmod(0o666)
    worker = stack.worker("three")
    limit = asyncio.Semaphore(10)

    async def submit(number: int) -> str:
        async with limit:
            if number in {30, 60}:
                os.kill(web_worker(stack), signal.SIGKILL)
            return await submitted(client, command=f"echo $HOSTLER_JOB_ID >> {side}")

    ids = await asyncio.gather(*(submit(number) for number in range(100)))
    ended = {str(job["jobId"]): job["status"] for job in await all_ended(client, 100)}
    assert ended == dict.fromkeys(ids, "completed")
    assert sorted(side.read_text().split()) == sorted(ids)
    stack.end(worker)


def web_worker(stack: Stack) -> int:
    """Return the pid of a worker process of gunicorn."""
    master = stack.processes[0].pid
    children = Path(f"/proc/{master}/task/{master}/children")
    return int(until(lambda: children.read_text().split(), "gunicorn has workers")[0])
