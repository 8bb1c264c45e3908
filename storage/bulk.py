"""Cancels and retries of many jobs: each is tried, and each has an outcome of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from storage import jobs
from storage.errors import HostlerError, Unavailable
from storage.store import Store

MOST_JOBS = 1000
#: So many are asked of Redis in one turn, so that others hardly wait.
_PORTION = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: the state it, or the job made of it, is in; or why nothing was changed."""

    job_id: str
    state: jobs.State | None = None
    made: str | None = None
    error: HostlerError | None = None


async def cancel(store: Store, actor: str, job_ids: Sequence[str]) -> list[Outcome]:
    """Ask for the end of each job, as `jobs.cancel` does. Raises Unavailable where Redis took none."""

    async def one(job_id: str) -> Outcome:
        return Outcome(job_id, state=await jobs.cancel(store, actor, job_id))

    return await _each(job_ids, one)


async def retry(
    store: Store, actor: str, job_ids: Sequence[str], *, idempotency_key: str | None = None
) -> list[Outcome]:
    """Run each finished job once more, as `jobs.retry` does; under the same key a command is never made twice.

    Raises Unavailable where Redis took none.
    """

    async def one(job_id: str) -> Outcome:
        key = None if idempotency_key is None else f"{idempotency_key}:{job_id}"
        made = await jobs.retry(store, actor, job_id, idempotency_key=key)
        return Outcome(job_id, state=jobs.State.QUEUED, made=made.id)

    return await _each(job_ids, one)


async def _each(job_ids: Sequence[str], act: Callable[[str], Awaitable[Outcome]]) -> list[Outcome]:
    async def tried(job_id: str) -> Outcome:
        try:
            return await act(job_id)
        except HostlerError as error:
            return Outcome(job_id, error=error)

    wanted = list(dict.fromkeys(job_ids))
    outcomes: list[Outcome] = []
    for start in range(0, len(wanted), _PORTION):
        outcomes += await asyncio.gather(*map(tried, wanted[start : start + _PORTION]))
    errors = [each.error for each in outcomes]
    if errors and all(isinstance(error, Unavailable) for error in errors):
        raise errors[0] or Unavailable("Redis took none of them.")
    return outcomes
