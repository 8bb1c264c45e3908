"""Quarantine: jobs that lost three workers, kept from the queue until somebody has looked at them."""

from dataclasses import dataclass
from typing import Any

import orjson

from storage import jobs
from storage.calls import command, script, text
from storage.errors import NotFound
from storage.jobs import Job, Submitted
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Death:
    """One worker that was lost while it ran the job."""

    worker: str
    attempt: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A job in quarantine, and the workers it lost."""

    job: Job
    deaths: list[Death]


def _deaths(reply: list[bytes]) -> list[Death]:
    rows: list[list[Any]] = [orjson.loads(each) for each in reply]
    return [Death(str(worker), int(attempt), int(at_ms)) for worker, attempt, at_ms in rows]


async def page(store: Store, *, limit: int, offset: int) -> tuple[list[Quarantined], int]:
    """Return the jobs in quarantine, the latest first, and how many there are."""
    total, ids = await store.calls(
        command("ZCARD", "h:quarantine"), command("ZREVRANGE", "h:quarantine", offset, offset + limit - 1)
    )
    found = []
    for job_id in (text(each) for each in ids):
        job = await jobs.get(store, job_id)
        deaths = await store.call(command("LRANGE", f"h:deaths:{job_id}", 0, -1, read=_deaths))
        found.append(Quarantined(job, deaths))
    return found, total


async def release(store: Store, actor: str, job_id: str) -> Submitted:
    """Let a job's command run again, as a new job. Raises NotFound when it is not in quarantine."""
    await _take_out(store, actor, job_id, "release")
    return await jobs.retry(store, actor, job_id)


async def discard(store: Store, actor: str, job_id: str) -> None:
    """Take a job out of the quarantine; it stays failed. Raises NotFound when it is not in quarantine."""
    await _take_out(store, actor, job_id, "discard")


async def _take_out(store: Store, actor: str, job_id: str, action: str) -> None:
    if not await store.call(script("unquarantine", job_id, actor, action)):
        raise NotFound(f"Job {job_id!r} is not in quarantine.")
