"""Finding jobs by words: what was asked of them is read backwards in time, as far as is affordable."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from storage import jobs
from storage.calls import script, text
from storage.errors import NotFound, Unavailable
from storage.jobs import Job
from storage.store import Store

#: The newest jobs that a search looks at, in blocks of so many.
LOOKED_AT = 20_000
_BLOCK = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: one page of it, and how many there are among those that it looked at."""

    jobs: list[Job]
    total: int


async def search(
    store: Store,
    words: str,
    *,
    limit: int,
    offset: int,
    state: str | None = None,
    worker: str | None = None,
    tags: Sequence[str] = (),
) -> Found:
    """Return the newest jobs whose name, command, id, worker or tags contain every one of `words`, in any case.

    A whole id finds its job however old it is, where nothing else is asked for.
    """
    wanted = words.lower().split()
    if not (state or worker or tags) and (named := await _named(store, words.strip())) is not None:
        return Found([named][offset : offset + limit], 1)
    indexes = ([f"h:jobs:{state}"] if state else []) + ([f"h:jobs:worker:{worker}"] if worker else [])
    keys = [*indexes, *(f"h:jobs:tag:{tag}" for tag in tags)] or ["h:jobs"]
    ids: list[str] = []
    for start in range(0, LOOKED_AT, _BLOCK):
        rows = (await store.call(script("select", start, _BLOCK, "1", "spec", "worker", keys=keys)))[1]
        ids += [text(job_id) for job_id, (spec, ran_by) in rows if _fits(text(job_id), spec, ran_by, wanted)]
        if len(rows) < _BLOCK:
            break
        await asyncio.sleep(0)  # others are served meanwhile
    page = await asyncio.gather(*(_present(store, job_id) for job_id in ids[offset : offset + limit]))
    return Found([job for job in page if job is not None], len(ids))


def _fits(job_id: str, spec: bytes | None, worker: bytes | None, wanted: list[str]) -> bool:
    if spec is None:
        return False
    raw = f"{job_id} {text(worker)} {text(spec)}".lower()
    # the record's own words would match too, so what may fit is read; most of all others end here
    if not all(orjson.dumps(word).decode()[1:-1] in raw or word in raw for word in wanted):
        return False
    try:
        told: dict[str, Any] = orjson.loads(spec)
    except orjson.JSONDecodeError:
        return False
    said = [told.get("name"), told.get("command"), *(told.get("argv") or ()), *(told.get("tags") or ())]
    shown = " ".join([job_id, text(worker), *(str(each) for each in said if each)]).lower()
    return all(word in shown for word in wanted)


async def _named(store: Store, job_id: str) -> Job | None:
    try:
        return await jobs.get(store, job_id) if jobs.ID.fullmatch(job_id) else None
    except (NotFound, Unavailable, ValueError):  # no such job, or where old ones are kept does not answer
        return None


async def _present(store: Store, job_id: str) -> Job | None:
    try:
        return await store.call(jobs.fetch(job_id))
    except (NotFound, ValueError):  # gone meanwhile, or another's
        return None
