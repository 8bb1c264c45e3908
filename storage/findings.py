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
from storage.calls import command
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


async def look(store: Store) -> None:
    """Look, and keep what was found for whoever asks. Safe to run twice. Raises Unavailable."""
    s3_up, s3_s = await _object_store(store)
    found = Findings(store.now_ms(), s3_up, s3_s, await _apps(store))
    words = [word for name, value in asdict(found).items() for word in (name, orjson.dumps(value))]
    await store.call(command("HSET", "h:noted", *words))


def read(kept: Mapping[str, str]) -> Findings | None:
    """Read what the leader kept; None where there is nothing that it could have written."""
    try:
        values: dict[str, Any] = {each.name: orjson.loads(kept[each.name]) for each in fields(Findings)}
        apps = {
            str(status): int(count) for status, count in dict(values["apps"]).items() if status in STATUSES
        }
        return Findings(int(values["at_ms"]), bool(values["s3_up"]), float(values["s3_s"]), apps)
    except (KeyError, ValueError, TypeError):
        return None


#: All that an app may be said to be.
STATUSES = frozenset({each.value for each in (*Phase, *Status)})


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
