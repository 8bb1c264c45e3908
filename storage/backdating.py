"""Moving jobs that have ended into the past, so that a demonstration has one."""

from collections.abc import Mapping
from typing import Any

from storage import jobs
from storage.calls import command
from storage.errors import Conflict
from storage.store import Store


async def move(store: Store, moves: Mapping[str, tuple[int, int, int]]) -> None:
    """Give jobs that have ended other times: created, started and ended, in ms. Raises NotFound, Conflict."""
    for job_id, (created_ms, started_ms, ended_ms) in moves.items():
        job = await jobs.get(store, job_id)
        if not job.finished:
            raise Conflict(f"Job {job_id!r} is {job.state}; only what has ended lies in the past.")
        indexes = [
            "h:jobs",
            f"h:jobs:{job.state}",
            *(f"h:jobs:tag:{tag}" for tag in job.spec.get("tags", ())),
        ]
        if job.worker:
            indexes.append(f"h:jobs:worker:{job.worker}")
        times: list[Any] = ["created", created_ms, "started", started_ms, "ended", ended_ms]
        await store.calls(
            command("HSET", f"h:job:{job_id}", *times),
            *(command("ZADD", index, "XX", created_ms, job_id) for index in indexes),
            command("ZADD", "h:ended", "XX", ended_ms, job_id),
        )
