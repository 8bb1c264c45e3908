"""The routine of recovery points: one when it is due, older ones pruned, and a word when that fails or is overdue."""

import time
from dataclasses import dataclass

from storage import users
from storage.calls import command, pairs
from storage.errors import HostlerError
from storage.notifications import event, notify
from storage.recovery.points import Place, Point, every, make, prune, verify
from storage.store import Store

#: A point that nobody waits for is made in this share of a core's time, and rests in between.
SHARE = 0.25
#: Points are under way for no more than this share of the time, however many jobs there are.
MOST_SHARE = 0.2
#: A point that is this many periods late is overdue.
LATE_PERIODS = 3
#: After a failure the next attempt waits so long, or a period if that is shorter.
AGAIN_S = 60.0
_KEY = "h:recovery"


@dataclass(frozen=True, slots=True)
class Standing:
    """How recovery stands: the newest point (ms), how long it took, and what went wrong since."""

    last_ms: int | None
    took_ms: int
    failed_ms: int | None
    why: str
    told: bool

    def period_s(self, every_s: float) -> float:
        """Return how long after one point the next is made, given the period that is configured."""
        return max(every_s, self.took_ms / 1000 / MOST_SHARE)


async def standing(store: Store) -> Standing:
    """Return how recovery stands, by what is noted in Redis or, where nothing is, by what lies in the object store."""
    noted = await store.call(command("HGETALL", _KEY, read=pairs))
    if "last" not in noted:
        points = await every(Place.of(store))
        noted |= {"last": str(points[0].made_ms), "took": str(points[0].took_ms)} if points else {}
        if points:
            await store.call(command("HSET", _KEY, "last", noted["last"], "took", noted["took"]))
    return Standing(
        last_ms=int(noted["last"]) if "last" in noted else None,
        took_ms=int(noted.get("took", 0)),
        failed_ms=int(noted["failed"]) if "failed" in noted else None,
        why=noted.get("why", ""),
        told="told" in noted,
    )


async def keep_up(store: Store, *, now: bool = False) -> Point | None:
    """Make a point if one is due, or `now`; answers it. Raises what it failed with, after telling who watches.

    None is due in a Redis without users. The new one is read back before any older one is deleted.
    """
    settings, now_ms = store.settings, store.now_ms()
    try:
        found = await standing(store)
        if not now and not _is_due(found, every_s=settings.recovery_every_s, now_ms=now_ms):
            return None
        if not now and not await users.any_exist(
            store
        ):  # whoever has lost Redis does not want that for a point
            return None
        share = 1.0 if now else SHARE
        point = await make(store, share=share)
        place = Place.of(store)
        await verify(place, point, share=share)
        await prune(
            place, last=settings.recovery_keep_last, days=settings.recovery_keep_days,
            weeks=settings.recovery_keep_weeks,
        )  # fmt: skip
    except HostlerError as error:
        await _failed(store, str(error))
        raise
    await store.calls(
        command("HSET", _KEY, "last", point.made_ms, "took", point.took_ms),
        command("HDEL", _KEY, "failed", "why", "told"),
        event("recovery.made", point=point.id, keys=point.keys, size=point.size_bytes, took=point.took_ms),
    )
    return point


def _is_due(found: Standing, *, every_s: float, now_ms: int) -> bool:
    if every_s <= 0:
        return False
    period_s = found.period_s(every_s)
    if found.failed_ms is not None and now_ms - found.failed_ms < min(AGAIN_S, period_s) * 1000:
        return False
    return found.last_ms is None or now_ms - found.last_ms >= period_s * 1000


async def _failed(store: Store, why: str) -> None:
    """Note a failure; who watches is told of the first in a row, and once more when the newest point is overdue."""
    now_ms = store.now_ms()
    noted = await store.call(command("HGETALL", _KEY, read=pairs))
    await store.call(command("HSET", _KEY, "failed", now_ms, "why", why[:300]))
    if "failed" not in noted:
        await store.calls(
            event("recovery.failed", why=why[:300]),
            notify("Recovery point failed", f"Hostler could not back itself up: {why}", level="warning"),
        )
    late_s = (now_ms - int(noted.get("last", 0))) / 1000
    limit_s = LATE_PERIODS * max(
        store.settings.recovery_every_s, int(noted.get("took", 0)) / 1000 / MOST_SHARE
    )
    if "told" not in noted and "last" in noted and late_s > limit_s:
        told = f"The newest recovery point is {late_s / 60:.0f} min old: {why}"
        await store.calls(
            command("HSET", _KEY, "told", now_ms),
            event("recovery.overdue", last=noted["last"], why=why[:300]),
            notify("Recovery point overdue", told, level="error"),
        )


def age_s(found: Standing) -> float | None:
    """Return how old the newest point is."""
    return None if found.last_ms is None else time.time() - found.last_ms / 1000
