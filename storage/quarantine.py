"""Quarantine: jobs that lost three workers, kept from the queue until somebody has looked at them."""

from dataclasses import dataclass
from typing import Any

import orjson

from storage import jobs, tasks
from storage.calls import Call, command, script, text
from storage.errors import NotFound
from storage.jobs import Job, Submitted
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Death:
    """One worker that was lost while it ran the job.

    How the job's main process ended is known once a worker of that name is back on that machine: `by-itself`, or killed
    `with-its-worker`; the signal that ended it, if one did; and its peak resident memory.
    """

    worker: str
    attempt: int
    at_ms: int
    how: str | None = None
    signal: int | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A job in quarantine, and the workers it lost."""

    job: Job
    deaths: list[Death]


async def deaths(store: Store, job_id: str) -> list[Death]:
    """Return the workers that a job lost, the first one first."""
    rows: list[list[Any]] = [
        orjson.loads(each) for each in await store.call(command("LRANGE", f"h:deaths:{job_id}", 0, -1))
    ]
    if not rows:
        return []
    told = await store.call(
        command("HMGET", f"h:job:{job_id}", *(f"died:{attempt}" for _, attempt, _ in rows))
    )
    found = []
    for (worker, attempt, at_ms), obituary in zip(rows, told, strict=True):
        how, number, rss = text(obituary).split(" ") if obituary else ("", "", "")
        found.append(
            Death(
                str(worker), int(attempt), int(at_ms), how or None, int(number) if number else None,
                int(rss) if rss else None,
            )
        )  # fmt: skip
    return found


def obituary(job_id: str, attempt: int, *, how: str, signal: int | None, max_rss_bytes: int) -> Call[bool]:
    """Describe keeping how an attempt ended that its worker did not outlive; False where there is no such attempt."""
    number = "" if signal is None else signal
    return script("obituary", job_id, attempt, how, number, max_rss_bytes, read=bool)


async def page(store: Store, *, limit: int, offset: int) -> tuple[list[Quarantined], int]:
    """Return the jobs in quarantine, the latest first, and how many there are."""
    total, ids = await store.calls(
        command("ZCARD", "h:quarantine"), command("ZREVRANGE", "h:quarantine", offset, offset + limit - 1)
    )
    found = []
    for job_id in (text(each) for each in ids):
        job = await jobs.get(store, job_id)
        found.append(Quarantined(job, await deaths(store, job_id)))
    return found, total


async def release(store: Store, actor: str, job_id: str) -> Submitted:
    """Let what a job did be done again, as a new job. Raises NotFound when it is not in quarantine.

    What concerns an app may be refused because of the app's state: Conflict; the job then stays where it is.
    """
    job = await jobs.get(store, job_id)
    if job.spec.get("task", tasks.COMMAND.name) != tasks.COMMAND.name:
        if await store.call(command("ZSCORE", "h:quarantine", job_id)) is None:
            raise NotFound("There is no such job in quarantine.")
        submitted = await jobs.retry(store, actor, job_id)
        await _take_out(store, actor, job_id, "release")
        return submitted
    await _take_out(store, actor, job_id, "release")
    return await jobs.retry(store, actor, job_id)


async def discard(store: Store, actor: str, job_id: str) -> None:
    """Take a job out of the quarantine; it stays failed. Raises NotFound when it is not in quarantine."""
    await _take_out(store, actor, job_id, "discard")


async def _take_out(store: Store, actor: str, job_id: str, action: str) -> None:
    if not await store.call(script("unquarantine", job_id, actor, action)):
        raise NotFound(f"Job {job_id!r} is not in quarantine.")
