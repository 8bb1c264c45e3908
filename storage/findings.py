"""Findings: what only a look at many records or at another server tells, which the leader takes for everybody."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson

from storage.apps import reading
from storage.apps.records import Phase, Status
from storage.backups import times
from storage.backups.records import every as every_backup
from storage.calls import command, pairs
from storage.errors import HostlerError
from storage.store import Store

log = logging.getLogger("hostler.storage")

#: How often the leader looks.
EVERY_S = 20.0
#: Apps that are read at once.
_PAGE = 50


@dataclass(frozen=True, slots=True)
class Findings:
    """What the leader found, and when by its clock."""

    at_ms: int
    s3_up: bool
    s3_s: float
    apps: dict[str, int] = field(default_factory=dict)  #: by status
    backups: dict[str, int] = field(default_factory=dict)  #: that are enabled, and of them those in a bad way
    good_ms: int = 0  #: when the backup that is worst off last succeeded; 0 where none is due by the clock
    proven_ms: int = 0  #: likewise when a restore was last proven
    point_ms: int = 0  #: when the newest recovery point was made; 0 while there is none
    point_failed: bool = False  #: whether making one has failed since


async def look(store: Store) -> None:
    """Look, and keep what was found for whoever asks. Safe to run twice. Raises Unavailable."""
    s3_up, s3_s = await _object_store(store)
    point = await store.call(command("HGETALL", "h:recovery", read=pairs))
    found = Findings(
        store.now_ms(), s3_up, s3_s, await _apps(store), **await _backups(store),
        point_ms=int(point.get("last", 0)), point_failed="failed" in point,
    )  # fmt: skip
    words = [word for name, value in asdict(found).items() for word in (name, orjson.dumps(value))]
    await store.call(command("HSET", "h:noted", *words))


def read(kept: Mapping[str, str]) -> Findings | None:
    """Read what the leader kept; None where there is nothing that it could have written."""
    try:
        values: dict[str, Any] = {each.name: orjson.loads(kept[each.name]) for each in fields(Findings)}
        apps = {
            str(status): int(count) for status, count in dict(values["apps"]).items() if status in STATUSES
        }
        backups = {name: int(count) for name, count in dict(values["backups"]).items() if name in BACKUPS}
        times = {name: int(values[name]) for name in ("at_ms", "good_ms", "proven_ms", "point_ms")}
        return Findings(
            s3_up=bool(values["s3_up"]), s3_s=float(values["s3_s"]), apps=apps, backups=backups,
            point_failed=bool(values["point_failed"]), **times,
        )  # fmt: skip
    except (KeyError, ValueError, TypeError):
        return None


#: All that an app may be said to be.
STATUSES = frozenset({each.value for each in (*Phase, *Status)})


#: All that is said of backups.
BACKUPS = ("enabled", "overdue", "unproven", "failed")


async def _backups(store: Store) -> dict[str, Any]:
    now_ms = store.now_ms()
    enabled = [backup for backup in await every_backup(store) if backup.enabled]
    counts = {
        "enabled": len(enabled),
        "overdue": sum(times.overdue(backup, now_ms) is not None for backup in enabled),
        "unproven": sum(times.unproven(backup, now_ms) is not None for backup in enabled),
        "failed": sum(backup.last_state == "failed" for backup in enabled),
    }
    due = [backup.succeeded_ms or backup.created_ms for backup in enabled if backup.schedule is not None]
    drilled = [backup.proven_ms or backup.created_ms for backup in enabled if backup.drill is not None]
    return {"backups": counts, "good_ms": min(due, default=0), "proven_ms": min(drilled, default=0)}


async def _object_store(store: Store) -> tuple[bool, float]:
    began = time.perf_counter()
    try:
        return True, await store.objects.check()
    except HostlerError as error:
        log.warning("the object store does not answer", extra={"why": str(error)})
        return False, time.perf_counter() - began


async def _apps(store: Store) -> dict[str, int]:
    """Return how many apps there are of each status, read in pages so that Redis is never held for long."""
    found: Counter[str] = Counter()
    offset = 0
    while True:
        apps, total = await reading.page(store, limit=_PAGE, offset=offset)
        found.update(app.status for app in apps)
        offset += _PAGE
        if offset >= total:
            return dict(found)
