"""The state of everything in numbers: jobs, queues, the last hour by minutes, workers and apps, in few round trips."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage import apps, fleet, queues
from storage.calls import command, script, text
from storage.jobs import State
from storage.store import Store

#: The last hour, and how many of the jobs that ended last are looked at for what only their records tell.
MINUTES = 60
SAMPLED = 1000
#: Somebody who looks again within so long is told the same.
FRESH_S = 1.0
#: Tag sets beyond are not asked for the length of their queues.
_MOST_SETS = 100


@dataclass(frozen=True, slots=True)
class Overview:
    """What there is now. Times are milliseconds; lists have one entry a minute, the oldest first."""

    taken: float
    jobs: dict[str, int]
    queues: list[dict[str, Any]]
    from_ms: int
    minutes: dict[str, list[int | None]]
    latency: dict[str, int | None]
    workers: dict[str, int]
    apps: dict[str, int]


async def overview(store: Store) -> Overview:
    """Return the state of everything, at most a second old."""
    kept = store.cache.get("overview")
    if isinstance(kept, Overview) and time.monotonic() - kept.taken < FRESH_S:
        return kept
    from_ms = (store.now_ms() // 60_000 - MINUTES + 1) * 60_000
    workers = await fleet.workers(store)
    lines = [queues.RQ_PREFIX + name for name in await _queue_names(store, workers)]
    *counts, waiting, quarantined, ended_in_all, lengths, minutes, rows = await _numbers(
        store, lines, from_ms
    )
    jobs = dict(zip([state.value for state in State], counts, strict=True))
    submitted, ended = minutes[:MINUTES], minutes[MINUTES:]
    found = Overview(
        taken=time.monotonic(),
        jobs={**jobs, "waiting": waiting, "quarantined": quarantined, "ended": ended_in_all},
        queues=[
            {"name": line.removeprefix(queues.RQ_PREFIX), "waiting": length}
            for line, length in zip(lines, lengths, strict=True)
        ],
        from_ms=from_ms,
        minutes={
            "submitted": submitted,
            "ended": ended,
            **_by_minute(rows, from_ms, whole=len(rows) < SAMPLED),
        },
        latency=_latency(rows),
        workers=_capacity(workers),
        apps=dict(Counter(app.status for app in await apps.every(store))),
    )
    store.cache["overview"] = found
    return found


async def _queue_names(store: Store, workers: Sequence[fleet.Worker]) -> list[str]:
    sets = sorted(await fleet.tag_sets(store))[:_MOST_SETS]
    names = [
        queues.of_job(level, each.split("+") if each else ())
        for each in ["", *sets]
        for level in queues.Priority
    ]
    return [*dict.fromkeys(names), *(queues.of_node(worker.id) for worker in workers)]


async def _numbers(store: Store, lines: Sequence[str], from_ms: int) -> list[Any]:
    """Ask for all that is only counted, in one round trip, and sort the answers."""
    spans = [(from_ms + minute * 60_000, f"({from_ms + (minute + 1) * 60_000}") for minute in range(MINUTES)]
    states = [command("ZCARD", f"h:jobs:{state}") for state in State]
    others = [command("SCARD", "h:parked"), command("ZCARD", "h:quarantine"), command("ZCARD", "h:ended")]
    sample = script("select", 0, SAMPLED, "1", "state", "created", "started", "ended", keys=["h:ended"])
    found = await store.calls(
        *states, *others, sample,
        *(command("LLEN", line) for line in lines),
        *(command("ZCOUNT", key, *span) for key in ("h:jobs", "h:ended") for span in spans),
    )  # fmt: skip
    head = len(states) + len(others)
    rest = found[head + 1 :]
    return [
        *found[:head],
        rest[: len(lines)],
        rest[len(lines) :],
        [row for _, row in found[head][1] if row[3]],
    ]


def _by_minute(rows: list[Any], from_ms: int, *, whole: bool) -> dict[str, list[int | None]]:
    """Return, a minute, how many failed and how long the middle one waited and ran; None where no record was seen."""
    failed: list[list[int]] = [[] for _ in range(MINUTES)]
    waited: list[list[int]] = [[] for _ in range(MINUTES)]
    ran: list[list[int]] = [[] for _ in range(MINUTES)]
    oldest = 0 if whole else min(int(row[3]) for row in rows)
    for state, created, started, ended in rows:
        minute = (int(ended) - from_ms) // 60_000
        if not 0 <= minute < MINUTES:
            continue
        failed[minute].append(text(state) == State.FAILED)
        if started:
            waited[minute].append(int(started) - int(created))
            ran[minute].append(int(ended) - int(started))
    seen = [from_ms + minute * 60_000 >= oldest for minute in range(MINUTES)]
    return {
        "failed": [sum(each) if known else None for each, known in zip(failed, seen, strict=True)],
        "waited": [_at(each, 0.5) for each in waited],
        "ran": [_at(each, 0.5) for each in ran],
    }


def _latency(rows: list[Any]) -> dict[str, int | None]:
    waited = [int(started) - int(created) for _, created, started, _ in rows if started]
    ran = [int(ended) - int(started) for _, _, started, ended in rows if started]
    return {
        "sampled": len(waited),
        "waited_p50": _at(waited, 0.5),
        "waited_p95": _at(waited, 0.95),
        "ran_p50": _at(ran, 0.5),
        "ran_p95": _at(ran, 0.95),
    }


def _at(values: list[int], share: float) -> int | None:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else None


def _capacity(workers: Sequence[fleet.Worker]) -> dict[str, int]:
    online = [worker for worker in workers if worker.status == "online"]
    return {
        "total": len(workers),
        "online": len(online),
        "draining": sum(worker.draining for worker in online),
        "slots": sum(worker.slots for worker in online),
        "running": sum(worker.running for worker in online),
    }
