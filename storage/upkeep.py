"""Upkeep of the queues: what the leader does so that no job is lost, late, or held by the dead."""

from dataclasses import dataclass
from typing import Any

from settings import Settings
from storage import fleet, queues
from storage.attempts import rq_time
from storage.calls import Call, command, script, text
from storage.fleet import SILENT_LEASES
from storage.store import Store

#: Whoever may lead asks for it this often, or a little more.
ASK_S = 3.0
#: What one tick handles of each kind; the rest is the next tick's.
MOST = 1000
#: What the lists begin with in which jobs wait.
_OURS = (queues.key(queues.COMMAND_PREFIX), queues.key(queues.NODE_PREFIX))
#: A cancel that its worker has not carried out by this much after its grace is carried out for it.
CANCEL_PATIENCE_S = 10


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a tick of the reaper did. `hold_ms` > 0: it waits for workers to renew after an outage."""

    hold_ms: int
    lost: list[str]
    cancelled: list[str]
    offline: list[str]


def lead(me: str, lead_s: float, settings: Settings) -> Call[int]:
    """Take or keep the lead for `lead_s`; answers the term, or 0 while somebody else leads.

    Whoever may lead asks every `ASK_S` seconds: by that it is known for how long Redis was away.
    """
    return script("lead", me, int(lead_s * 1000), int(settings.lease_s * 1000), _absence_ms(settings))


def step_down(me: str) -> Call[int]:
    """Give up the lead, if it is ours."""
    return script("step_down", me)


def reap(settings: Settings) -> Call[Reaped]:
    """Take back what dead workers held, end cancels that nobody honoured, mark silent workers offline.

    After an absence of Redis, of a third of a lease or more, nothing of it for one lease.
    """

    def read(reply: list[Any]) -> Reaped:
        names = [[text(each) for each in part] for part in reply[1:]]
        return Reaped(int(reply[0]), *names)

    patience_ms = int((settings.kill_grace_s + CANCEL_PATIENCE_S) * 1000)
    lease_ms = int(settings.lease_s * 1000)
    return script(
        "reap", lease_ms, patience_ms, lease_ms * SILENT_LEASES, MOST, rq_time(), _absence_ms(settings), read=read
    )  # fmt: skip


def _absence_ms(settings: Settings) -> int:
    """Return for how long nobody of us was heard of where Redis was away, and not just nobody's turn."""
    return int(max(settings.lease_s / 3, 1.5 * min(settings.reap_s, ASK_S)) * 1000)


def promote() -> Call[tuple[int, int | None]]:
    """Queue the delayed jobs whose time has come; answers how many, and in how many ms the next one is due."""
    return script("promote", MOST, read=lambda reply: (reply[0], int(reply[1]) if reply[1] else None))


def dependents() -> Call[bool]:
    """Go on with dependents of jobs that had more of them than one step sees to; answers whether there may be more."""
    return script("dependents", rq_time(), read=bool)


async def restore(store: Store, *, thorough: bool) -> list[str]:
    """Put queued jobs back that have no entry in any queue; answers their ids.

    Entries and records are counted first; only when the counts differ, or when `thorough`, is each job looked for.
    """
    names = [text(each) for each in await store.call(command("SMEMBERS", "rq:queues"))]
    ours = sorted(name for name in names if name.startswith(_OURS))
    queued, parked, *lengths = await store.calls(
        command("ZCARD", "h:jobs:queued"),
        command("SCARD", "h:parked"),
        *(command("LLEN", name) for name in ours),
    )
    if queued - parked == sum(lengths) and not thorough:
        return []
    entries: set[bytes] = set()
    for name in ours:
        entries |= await _all(store, name)
    missing = [each for each in await _queued(store) if each not in entries]
    restored: list[str] = []
    for start in range(0, len(missing), 100):
        found = await store.call(script("restore", *missing[start : start + 100]))
        restored += [text(each) for each in found]
    return restored


async def trim_registries(store: Store) -> None:
    """Forget what RQ's registries of ended jobs hold beyond its time; RQ's own maintenance, which would, never runs."""
    queues_of_rq = await store.call(command("SMEMBERS", "rq:queues"))
    now_s = int((await store.call(command("TIME")))[0])
    for name in (text(each).removeprefix(queues.RQ_PREFIX) for each in queues_of_rq):
        await store.calls(
            *(
                command("ZREMRANGEBYSCORE", f"rq:{registry}:{name}", 0, now_s)
                for registry in ("finished", "failed", "canceled")
            )
        )


async def forget_workers(store: Store, *, offline_before_ms: int) -> list[str]:
    """Forget workers that went offline before then and that nothing waits for, and those that only RQ still lists.

    Where workers come and go under names of chance, as in a cluster, there would be more and more of them. Answers the
    ids of the former.
    """
    tag_sets = await fleet.tag_sets(store)
    every_tag = {tag for names in tag_sets for tag in names.split("+")}
    lists = queues.served(tag_sets, sorted(every_tag))
    return await store.call(
        script("forget", offline_before_ms, *lists, read=lambda reply: [text(each) for each in reply])
    )


async def _all(store: Store, name: str, chunk: int = 5000) -> set[bytes]:
    """Return every entry of a list, read in chunks so that Redis is never held for long."""
    entries: set[bytes] = set()
    start = 0
    while part := await store.call(command("LRANGE", name, start, start + chunk - 1)):
        entries |= set(part)
        start += chunk
    return entries


async def _queued(store: Store, chunk: int = 5000) -> list[bytes]:
    ids: list[bytes] = []
    start = 0
    while part := await store.call(command("ZRANGE", "h:jobs:queued", start, start + chunk - 1)):
        ids += part
        start += chunk
    return ids
