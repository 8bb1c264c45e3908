"""The fleet: which workers there are, what they serve, and what that means for a job that waits."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from storage import queues
from storage.attempts import Holder, rq_time
from storage.calls import Call, command, pairs, script, text
from storage.errors import Conflict, NotFound
from storage.store import Store

#: A worker or agent that has not been heard of for two leases is offline.
SILENT_LEASES = 2


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker or agent as its record says. Times are milliseconds since the epoch."""

    id: str
    kind: str
    status: str
    hostname: str
    tags: tuple[str, ...]
    slots: int
    running: int
    current_job: str | None
    jobs_completed: int
    registered_ms: int
    seen_ms: int
    cpu_count: int | None
    memory_mb: int | None
    metadata: dict[str, Any]
    offline_ms: int | None
    offline_reason: str | None
    draining: bool
    version: str | None
    isolation: str | None
    pid: int | None

    @property
    def free_slots(self) -> int:
        """Return how many more jobs it could run now."""
        return max(0, self.slots - self.running) if self.status == "online" and not self.draining else 0


def _read(worker_id: str, row: Mapping[str, str], held: int, first_held: str) -> Worker:
    def number(name: str) -> int | None:  # None also for what somebody else wrote
        value = row.get(name, "")
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 16 else None

    kind = row.get("kind", "agent")
    running, current = (held, first_held) if kind == "agent" else (number("running"), row.get("current_job"))
    return Worker(
        id=worker_id,
        kind=kind,
        status=row.get("status", "offline"),
        hostname=row.get("hostname", ""),
        tags=queues.read_tags(row.get("tags", "[]")),
        slots=number("slots") or 1,
        running=running or 0,  # an agent runs all that it holds; a worker says what it runs
        current_job=current or None,
        jobs_completed=number("jobs_completed") or 0,
        registered_ms=number("registered") or 0,
        seen_ms=number("seen") or 0,
        cpu_count=number("cpu_count"),
        memory_mb=number("memory_mb"),
        metadata=_metadata(row.get("metadata", "{}")),
        offline_ms=number("offline_at"),
        offline_reason=row.get("offline_reason") or None,
        draining="drain" in row,
        version=row.get("version") or None,
        isolation=row.get("isolation") or None,
        pid=number("pid"),
    )


def _metadata(words: str) -> dict[str, Any]:
    try:
        metadata = orjson.loads(words)
    except orjson.JSONDecodeError:  # a record that somebody else wrote
        return {}
    return metadata if isinstance(metadata, dict) else {}


def register(
    holder: Holder, facts: Mapping[str, str | int], *, proof: str = "", silent_s: float
) -> Call[int]:
    """Make a worker known under a new registration; answers when its name was first registered (ms).

    `proof` is the registration it had before, if it still knows it. What an earlier registration still held is lost.
    Raises Conflict while another one of that name is online, and for an agent by the name of a node.
    """

    def read(reply: list[bytes]) -> int:
        if reply[0] == b"taken":
            raise Conflict("Worker already registered")
        if reply[0] == b"node":
            raise Conflict(f"{holder.worker!r} is a node; choose another name, or unregister the node first.")
        return int(reply[1])

    return script(
        "register", holder.worker, holder.registration, proof, rq_time(), orjson.dumps(dict(facts)),
        int(silent_s * 1000), read=read,
    )  # fmt: skip


def depart(
    worker_id: str, registration: str = "", *, reason: str, forget: bool = False, actor: str = ""
) -> Call[None]:
    """Mark a worker offline, or forget it; what it still holds is lost. Raises NotFound, Conflict."""

    def read(reply: bytes) -> None:
        if reply == b"unknown":
            raise NotFound("Worker not found")
        if reply == b"stale":
            raise Conflict(f"Worker {worker_id!r} has been registered anew since.")

    flag = "1" if forget else ""
    return script("depart", worker_id, registration, rq_time(), reason, flag, actor, read=read)


def drain(worker_id: str, *, on: bool, actor: str) -> Call[None]:
    """Describe keeping a worker from taking more jobs, or letting it again; this outlives its restarts.

    What it runs goes on, and so do its apps. Safe to repeat. Raises NotFound.
    """

    def read(reply: bytes) -> None:
        if reply == b"unknown":
            raise NotFound("Worker not found")

    return script("drain", worker_id, "1" if on else "", actor, read=read)


def fetch(worker_id: str) -> Call[Worker]:
    """Describe reading one worker. Raises NotFound."""

    def read(reply: list[Any]) -> Worker:
        for worker in _registered(reply):
            return worker
        raise NotFound("Worker not found")

    return script("fleet", worker_id, read=read)


def record(worker_id: str) -> Call[dict[str, str]]:
    """Describe reading a worker's whole record, as it is; empty when there is none."""
    return command("HGETALL", f"h:worker:{worker_id}", read=pairs)


async def workers(store: Store) -> list[Worker]:
    """Return all workers that are registered, oldest first."""
    return await store.call(script("fleet", read=_registered))


def _registered(rows: list[Any]) -> list[Worker]:
    read = [(text(worker), pairs(row), held, text(first)) for worker, row, held, first in rows]
    return [_read(*each) for each in read if "registration" in each[1]]


def _texts(replies: list[Any]) -> list[str]:
    return [text(each) for each in replies]


TAG_SETS = command("SMEMBERS", "h:tagsets", read=_texts)


async def tag_sets(store: Store) -> list[str]:
    """Return the tag sets that jobs have ever asked for."""
    return await store.call(TAG_SETS)


class TagSets:
    """The tag sets that jobs have ever asked for, remembered by who hears of new ones until there are some."""

    def __init__(self) -> None:
        self.known: list[str] | None = None
        self._news = 0  # counts what may have changed them

    def forget(self) -> None:
        """Hear that there may be others."""
        self.known, self._news = None, self._news + 1

    async def all(self, store: Store) -> list[str]:
        """Return them. Raises Unavailable."""
        known, news = self.known, self._news
        if known is None:
            known = await tag_sets(store)
            if news == self._news:  # else they may have changed on the way
                self.known = known
        return known


@dataclass(frozen=True, slots=True)
class _Picture:
    taken: float
    workers: tuple[Worker, ...]
    mean_run_s: float | None
    outlooks: dict[tuple[str, tuple[str, ...]], "Outlook | None"] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Tell whether it may still serve."""
        return time.monotonic() - self.taken < _PICTURE_S

    def outlook(self, priority: str, tags: tuple[str, ...]) -> "Outlook | None":
        """Return the outlook of a job submitted now; None where no worker serves it."""
        if (priority, tags) not in self.outlooks:
            self.outlooks[priority, tags] = self._outlook(priority, tags)
        return self.outlooks[priority, tags]

    def _outlook(self, priority: str, tags: tuple[str, ...]) -> "Outlook | None":
        serving = [each for each in self.workers if each.status == "online" and set(tags) <= set(each.tags)]
        slots = sum(each.slots for each in serving if not each.draining)
        if not slots:
            return None
        levels = list(queues.Priority)[: list(queues.Priority).index(queues.Priority(priority)) + 1]
        lists = tuple(queues.key(queues.of_job(level, tags)) for level in levels)
        return Outlook(slots, sum(each.free_slots for each in serving), self.mean_run_s, lists)


#: An estimate need not be fresher than this.
_PICTURE_S = 2.0


async def _picture(store: Store) -> _Picture:
    known = store.cache.get("fleet")
    if isinstance(known, _Picture) and known.fresh:
        return known
    picture = _Picture(time.monotonic(), tuple(await workers(store)), await _mean_run_s(store))
    store.cache["fleet"] = picture
    return picture


async def _mean_run_s(store: Store) -> float | None:
    """Return how long the last hundred jobs ran on average; None before any has ended."""
    fields = ("started", "ended")

    def read(reply: list[Any]) -> list[tuple[int, int]]:
        return [(int(began), int(ended)) for _, (began, ended) in reply[1] if began and ended]

    runs = await store.call(script("select", 0, 100, "1", *fields, keys=["h:ended"], read=read))
    return sum(ended - began for began, ended in runs) / len(runs) / 1000 if runs else None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of those who serve a new job, from which its submission estimates how long it will wait."""

    slots: int
    free: int
    mean_run_s: float | None
    lists: tuple[str, ...]  #: that are emptied before it, its own among them

    def words(self) -> tuple[str | int, ...]:
        """Return the outlook as submit.lua takes it."""
        mean_ms = "" if self.mean_run_s is None else int(self.mean_run_s * 1000)
        return self.slots, self.free, mean_ms, *self.lists


async def outlook(store: Store, priority: str, tags: Sequence[str]) -> Outlook | None:
    """Return the outlook of a job submitted now, at most two seconds old; None where no worker serves it."""
    return (await _picture(store)).outlook(priority, tuple(tags))


def outlook_at_hand(store: Store, priority: str, tags: Sequence[str]) -> Outlook | None:
    """Return the outlook of a job, as this process knows it. Raises LookupError where that is too old."""
    known = store.cache.get("fleet")
    if not isinstance(known, _Picture) or not known.fresh:
        raise LookupError("Nobody has looked at the fleet lately.")
    return known.outlook(priority, tuple(tags))
