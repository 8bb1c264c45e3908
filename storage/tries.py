"""The attempts of one job, past and present: who ran each, from when to when, and how it ended."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from storage import archive, jobs, logs
from storage.calls import command, pairs, text
from storage.errors import NotFound
from storage.store import Store

_TRY = re.compile(r"try:(\d{1,9})")
#: So many entries of a live log are asked when they came.
_MOST_TIMES = 5000


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt. `outcome` is running, a final state, or why the job was queued again."""

    number: int
    worker: str | None
    started_ms: int | None
    ended_ms: int | None
    exit_code: int | None
    outcome: str


async def of_job(store: Store, job_id: str) -> list[Try]:
    """Return the attempts of a job, the first one first. Raises NotFound."""
    row = await store.call(command("HGETALL", f"h:job:{jobs.known(job_id)}", read=pairs))
    if not row:
        if not await store.call(command("EXISTS", "h:archived")):
            raise NotFound("Job not found")
        row = await archive.get(store, job_id)
    found = [_past(int(named[1]), value) for name, value in row.items() if (named := _TRY.fullmatch(name))]
    found.sort(key=lambda each: each.number)
    if row.get("state") != "queued" and row.get("started"):
        found.append(_present(row))
    return found


def _past(number: int, record: str) -> Try:
    started, ended, exit_code, worker, why = orjson.loads(record)
    return Try(number, worker or None, _number(started), _number(ended), _number(exit_code), why)


def _present(row: Mapping[str, str]) -> Try:
    outcome = row["state"] if row["state"] != "failed" else row.get("reason") or "failed"
    return Try(
        int(row.get("attempt") or 0), row.get("worker") or None, _number(row["started"]),
        _number(row.get("ended", "")), _number(row.get("exit", "")), outcome,
    )  # fmt: skip


def _number(value: str) -> int | None:
    return int(value) if value.lstrip("-").isdecimal() else None


async def line_times(store: Store, job_id: str) -> list[tuple[int, int]]:
    """Return from which `seq` on lines came when (ms), for what Redis still holds of a job's log, oldest first.

    Parts that have moved to the object store say nothing of time.
    """
    entries: list[Any]
    packed: bytes | None
    entries, packed = await store.calls(
        command("XREVRANGE", f"h:log:{jobs.known(job_id)}", "+", "-", "COUNT", _MOST_TIMES),
        command("HGET", f"h:job:{job_id}", "log"),
    )
    times: list[tuple[int, int]] = []
    for at_ms, entry in logs.unpacked(packed or b""):
        if not times or times[-1][1] != at_ms:
            times.append((entry.line + 1, at_ms))
    for entry_id, flat in reversed(entries):
        head = dict(zip(flat[::2], flat[1::2], strict=True)).get(b"s", b"").split(b" ")
        at_ms = int(text(entry_id).partition("-")[0])
        if len(head) == 4 and (not times or times[-1][1] != at_ms):
            times.append((int(head[1]) + 1, at_ms))
    return times
