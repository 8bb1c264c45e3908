"""`python dying.py make|rebuild`: does the one or the other again and again, and is killed at another point each time.

Prints a JSON line for each death: at which point, and what is there afterwards. Children are forked before anything has
a thread, so that each costs what the work costs and no start of an interpreter.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import orjson
import redis

from settings import Settings
from storage import audit, recovery, schedules, users
from storage.objects import Objects
from storage.recovery import Place, Point, points, rebuilding
from storage.store import Store

Work = Callable[[], Coroutine[Any, Any, Any]]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(what: Any, name: str, *, after: bool = False, at: int = 1) -> None:
    """Have this process die before or after the call of a function, the `at`-th one."""
    real, calls = getattr(what, name), [0]

    def doomed() -> bool:
        calls[0] += 1
        return calls[0] == at

    async def around(*arguments: Any, **named: Any) -> Any:
        now = doomed()
        if now and not after:
            die()
        answer = await real(*arguments, **named)
        if now:
            die()
        return answer

    setattr(what, name, around)


def dying_put(ending: str, *, after: bool) -> None:
    """Have this process die around the storing of the object whose key ends so."""
    real = Objects.put_bytes

    def around(self: Objects, key: str, data: bytes, **how: Any) -> Any:
        doomed = key.endswith(ending) or (ending == "record" and "/records/" in key)
        if doomed and not after:
            die()
        answer = real(self, key, data, **how)
        if doomed:
            die()
        return answer

    Objects.put_bytes = around  # type: ignore[method-assign]


MAKING: dict[str, Callable[[], None]] = {
    f"{'after' if after else 'before'} {name}": partial(dying_put, name, after=after)
    for name in ("part-000000", "part-000001", "part-000002", "index", "record")
    for after in (False, True)
}
REBUILDING: dict[str, Callable[[], None]] = {
    "point verified": partial(dying, rebuilding, "verify", after=True),
    "database claimed": partial(dying, rebuilding, "_claim", after=True),
    "fifth command": partial(dying, rebuilding._Loading, "add", at=5),
    "fiftieth command": partial(dying, rebuilding._Loading, "add", at=50),
    "all loaded": partial(dying, rebuilding, "_mend"),
    "jobs mended": partial(dying, rebuilding, "_jobs", after=True),
    "a user mended": partial(dying, users, "recover", after=True),
    "before a schedule": partial(dying, schedules, "recover"),
    "audit log read": partial(dying, audit, "read", after=True),
    "before the exchange": partial(dying, rebuilding, "_swap"),
    "after the exchange": partial(dying, rebuilding, "_in_use", at=3),
}


def in_a_child(work: Work) -> int:
    """Do something in a child of our own; answers how that ended."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(work())
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def with_store(step: Callable[[Store], Coroutine[Any, Any, Any]]) -> None:
    store = Store(Settings.from_env())
    await step(store)


async def count(store: Store) -> None:
    """Read every point that is listed back, and say how many there are and what keys lie there without a record."""
    place = Place.of(store)
    found = await recovery.every(place)
    for point in found:
        await recovery.verify(place, point)
    told = {"points": [point.id for point in found]}
    sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
    sys.stdout.flush()


async def make(store: Store) -> None:
    points.PART_BYTES = 4096
    await recovery.make(store)


async def rebuild(store: Store) -> None:
    place = Place.of(store)
    newest: Point = (await recovery.every(place))[0]
    await recovery.rebuild(store.settings, place, newest)


def main(what: str) -> None:
    url = Settings.from_env().redis_url
    Objects(
        Settings.from_env()
    )._client()  # reads a megabyte of descriptions, which children need not read again
    for name, prepare in (MAKING if what == "make" else REBUILDING).items():

        async def doomed(prepare: Callable[[], None] = prepare) -> None:
            prepare()
            await with_store(make if what == "make" else rebuild)

        ended = in_a_child(doomed)
        told: dict[str, Any] = {"at": name, "ended": ended}
        if what == "rebuild":
            told |= after_a_death(url)
        sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
        if what == "make":
            told["checked"] = in_a_child(lambda: with_store(count))
    if what == "make":
        in_a_child(lambda: with_store(make))
        in_a_child(lambda: with_store(count))


def after_a_death(url: str) -> dict[str, Any]:
    """Return what a rebuild that died left, and what a second one made of it; everything is empty afterwards."""
    with redis.Redis.from_url(url) as client:
        left = client.dbsize()
        other = [int(name[2:]) for name in client.info("keyspace") if name != "db0"]
        for number in other:  # time passes
            with redis.Redis.from_url(url.rpartition("/")[0] + f"/{number}") as half:
                if half.exists("h:rebuild"):
                    half.set("h:rebuild", f"dead {int(time.time() * 1000) - 61_000}")
        again = in_a_child(lambda: with_store(rebuild)) if not left else None
        keys = client.dbsize()
        beside = [name for name in client.info("keyspace") if name != "db0"]
        client.flushall()
    return {"left": left, "again": again, "keys": keys, "beside": beside}


if __name__ == "__main__":
    main(sys.argv[1])
