"""Census: queues, workers, jobs and everything else that is counted, read in one round trip however large the fleet."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from storage import capacity, queues
from storage.calls import Call, script, text
from storage.capacity import Advice, Load
from storage.store import Store

#: Whoever asks again within this, and a millisecond a worker, hears the same.
FRESH_MS = 1000
#: Upper bounds of the buckets that times are counted in, in seconds; those of storage/scripts/_tally.lua.
BOUNDS_S = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
#: So many of the jobs that ended last tell how long jobs run.
_RECENT = 200


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue of commands: who serves it, what waits in it and since when, what of it runs."""

    tags: frozenset[str]
    priority: str
    depth: int
    running: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that are alike, how many they are, and how many jobs they run together."""

    kind: str
    status: str  #: online, draining, offline, or what an agent says of itself
    tags: frozenset[str]
    slots: int  #: of each
    count: int
    running: int

    @property
    def serves(self) -> bool:
        """Tell whether these take new jobs."""
        return self.status == "online"


@dataclass(frozen=True, slots=True)
class Times:
    """A histogram: how many times fell under each of BOUNDS_S and above all of them, not summed up, and their sum."""

    counts: tuple[int, ...]
    sum_s: float

    @property
    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as an exposition has them: the bound's name, and how many were at most that."""
        names = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        return [(name, float(sum(self.counts[: index + 1]))) for index, name in enumerate(names)]


@dataclass(frozen=True, slots=True)
class Census:
    """The fleet in numbers, at one instant of Redis's clock. Ages are in seconds; None is what nobody knows."""

    queues: tuple[Queue, ...]
    nodes: Queue  #: the nodes' own queues together
    groups: tuple[Group, ...]
    states: dict[str, int]
    counts: dict[str, int]
    led: bool
    reaped_s: float | None
    hold_s: float
    memory_bytes: int | None
    memory_limit_bytes: int | None
    waited: dict[str, Times]  #: by priority, `node` for nodes' own
    ran: dict[str, Times]  #: by the state that the job ended in
    ended: dict[tuple[str, str], int]  #: by state and reason
    again: dict[str, int]  #: by why a job went back into its queue
    schedules: dict[tuple[str, str], int]  #: occurrences, by what was done and whether they were missed
    noted: dict[str, str]  #: what the leader found, by name
    at_ms: int


def take() -> Call[Census]:
    """Describe taking the census, at most a second old."""
    return script("census", FRESH_MS, read=lambda reply: read(orjson.loads(reply)))


def read(given: Mapping[str, Any]) -> Census:
    """Read what census.lua answers."""
    now_ms = int(given["at"])
    tally = dict(_pairs(given["tally"]))
    depth, running, since = (int(each) for each in given["nodes"])
    memory = given["memory"] or {}
    return Census(
        queues=tuple(_queue(row, now_ms) for row in _rows(given["queues"])),
        nodes=Queue(frozenset(), "node", depth, running, _age_s(since, now_ms)),
        groups=tuple(_group(row) for row in _rows(given["groups"])),
        states={name: int(count) for name, count in given["states"].items()},
        counts={name: int(given[name]) for name in _COUNTS},
        led=bool(given["led"]),
        reaped_s=_age_s(int(given["reaped"]), now_ms) if given["reaped"] else None,
        hold_s=given["hold"] / 1000,
        memory_bytes=int(memory["used_memory"]) if "used_memory" in memory else None,
        memory_limit_bytes=int(memory["maxmemory"]) if memory.get("maxmemory") else None,
        waited=_times(tally, "wait"),
        ran=_times(tally, "run"),
        ended={_two(name): _number(n) for name, n in tally.items() if name.startswith("end:")},
        again={_two(name)[0]: _number(n) for name, n in tally.items() if name.startswith("again:")},
        schedules={_two(name): _number(n) for name, n in tally.items() if name.startswith("schedule:")},
        noted=dict(_pairs(given["noted"])),
        at_ms=now_ms,
    )


#: What the script counts under names of its own.
_COUNTS = (
    "parked", "leases", "expired", "quarantined", "webhooks", "batches", "schedules", "overdue", "files", "apps",
    "archived", "term",
)  # fmt: skip


def _rows(given: Any) -> Iterable[list[Any]]:
    return given or []  # Lua's empty table is an object in JSON


def _pairs(given: Any) -> Iterable[tuple[str, str]]:
    words = iter(given or [])
    return zip(words, words, strict=False)


def _age_s(since_ms: int, now_ms: int) -> float:
    return max(0.0, (now_ms - since_ms) / 1000) if since_ms else 0.0


def _queue(row: list[Any], now_ms: int) -> Queue:
    name, depth, running, since = row
    return Queue(
        queues.tags_of(name), name.rpartition(".")[2], int(depth), int(running), _age_s(int(since), now_ms)
    )


def _group(row: list[Any]) -> Group:
    kind, status, tags, slots, count, running = row
    return Group(kind, status, frozenset(queues.read_tags(tags)), int(slots), int(count), int(running))


def _is_number(*values: bytes | None) -> bool:
    return all(value is not None and value.isdigit() for value in values)


def _number(value: str) -> int:
    return int(value) if value.isdecimal() else 0


def _two(name: str) -> tuple[str, str]:
    _, first, *second = name.split(":", 2)
    return first, second[0] if second else ""


def _times(tally: Mapping[str, str], what: str) -> dict[str, Times]:
    found: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS_S) + 1))
    sums: dict[str, float] = defaultdict(float)
    for name, value in tally.items():
        kind, _, rest = name.partition(":")
        label, _, bucket = rest.rpartition(":")
        if kind != what:
            continue
        if bucket == "ms":
            sums[label] = _number(value) / 1000
        elif bucket.isdecimal() and 1 <= int(bucket) <= len(BOUNDS_S) + 1:
            found[label][int(bucket) - 1] = _number(value)
    return {label: Times(tuple(counts), sums[label]) for label, counts in found.items()}


# What a fleet of this size does with this load


@dataclass(frozen=True, slots=True)
class Pool:
    """The jobs that ask for one set of tags, who serves them, and what would meet a target."""

    tags: frozenset[str]
    depth: int
    running: int
    oldest_s: float
    mean_run_s: float | None
    workers: int  #: online, that serve them
    slots: int  #: of these
    drain_s: float | None
    slots_per_worker: float
    advice: Advice


@dataclass(frozen=True, slots=True)
class Outlook:
    """The census with what follows for each set of tags."""

    census: Census
    pools: tuple[Pool, ...]


async def outlook(
    store: Store, *, target_s: float = capacity.TARGET_S, also: Iterable[frozenset[str]] = ()
) -> Outlook:
    """Return the fleet in numbers, and for each set of tags how many workers start what waits within `target_s`.

    One round trip. Raises Unavailable.
    """
    taken, runs = await store.calls(take(), _recent_runs())
    return Outlook(taken, pools(taken, runs, target_s=target_s, also=also))


def pools(
    taken: Census, runs: Mapping[str, float], *, target_s: float, also: Iterable[frozenset[str]] = ()
) -> tuple[Pool, ...]:
    """Return one pool for each set of tags that jobs wait or run with, and for each that workers have or `also` names.

    `runs` are mean running times by set of tags; "" stands for all jobs. A worker serves all sets that its tags cover,
    so `slots` of several pools may be the same ones; the workers advised are for each set's own jobs and add up.
    """
    serving = [group for group in taken.groups if group.serves]
    sets: set[frozenset[str]] = {frozenset(), *also}
    sets |= {queue.tags for queue in taken.queues} | {group.tags for group in taken.groups}
    typical = _slots_per_worker(serving or taken.groups)
    found = []
    for tags in sorted(sets, key=queues.tag_set):
        mine = [queue for queue in taken.queues if queue.tags == tags]
        able = [group for group in serving if tags <= group.tags]
        own = [group for group in able if group.tags == tags] or able
        mean = runs.get(queues.tag_set(tags) or "-", runs.get(""))
        load = Load(
            sum(queue.depth for queue in mine),
            sum(queue.running for queue in mine),
            capacity.UNKNOWN_RUN_S if mean is None else mean,
        )
        slots = sum(group.slots * group.count for group in able)
        per_worker = _slots_per_worker(own) if own else typical
        found.append(
            Pool(
                tags=tags, depth=load.waiting, running=load.running,
                oldest_s=max((queue.oldest_s for queue in mine), default=0.0), mean_run_s=mean,
                workers=sum(group.count for group in able), slots=slots,
                drain_s=capacity.drain_s(load, slots), slots_per_worker=per_worker,
                advice=capacity.advise(load, slots_per_worker=per_worker, target_s=target_s),
            )
        )  # fmt: skip
    return tuple(found)


def _slots_per_worker(groups: Iterable[Group]) -> float:
    known = list(groups)
    count = sum(group.count for group in known)
    return sum(group.slots * group.count for group in known) / count if count else capacity.DEFAULT_SLOTS


def _recent_runs() -> Call[dict[str, float]]:
    """Describe reading how long the last jobs ran on average: by set of tags, `-` for none, "" for all together."""

    def read_runs(reply: list[Any]) -> dict[str, float]:
        seconds: dict[str, list[float]] = defaultdict(list)
        for _, (began, ended, queue) in reply[1]:
            if _is_number(began, ended) and (name := text(queue)).startswith(queues.COMMAND_PREFIX):
                for key in ("", queues.tag_set(queues.tags_of(name)) or "-"):
                    seconds[key].append(max(0, int(ended) - int(began)) / 1000)
        return {key: math.fsum(each) / len(each) for key, each in seconds.items()}

    fields = ("started", "ended", "queue")
    return script("select", 0, _RECENT, "1", *fields, keys=["h:ended"], read=read_runs)


__all__ = ["BOUNDS_S", "Census", "Group", "Outlook", "Pool", "Queue", "Times", "outlook", "take"]
