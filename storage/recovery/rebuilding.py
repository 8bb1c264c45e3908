"""Rebuilding a control plane from a recovery point, all or nothing.

The point is checked as a whole before anything is written. It is then loaded into another, empty database of the same
Redis, mended there, and put in the place of the live one in one step (SWAPDB); until then the live one is untouched, so
a rebuild that dies is simply run again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import hiredis

from settings import Settings
from storage import audit, backups, schedules, users
from storage.apps.records import read_wish
from storage.attempts import rq_time
from storage.calls import command, script, text
from storage.errors import Conflict, HostlerError, NotFound, Unavailable
from storage.recovery import keyspace
from storage.recovery.points import Place, Point, RecoveryError, commands, verify
from storage.seal import Forged
from storage.store import Store
from storage.wire import Wire

log = logging.getLogger("hostler.storage")

#: Attempts and wishes are counted on from so much higher: what was handed out in the time that was lost is less.
GAP = 1000
#: What lies in the database that is being loaded: who loads it, and when that was last alive (ms).
_MARK = "h:rebuild"
_DEAD_MS = 60_000
_MOST_DATABASES = 16
#: Commands in flight, and records mended in one step.
_BATCH, _STEP = 2000, 200
#: What a recovery point consists of; nothing else is carried out.
_VERBS = frozenset({b"SET", b"HSET", b"RPUSH", b"SADD", b"ZADD", b"XADD", b"DEL", b"PEXPIREAT"})
#: So many keys are named when a Redis turns out not to be empty.
_NAMED = 5


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild came to, in numbers and seconds. `aside` is the database that holds what was there before."""

    point: Point
    loaded: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    jobs_back_in_queues: int = 0
    jobs_waiting: int = 0
    jobs_running: int = 0
    jobs_lost: int = 0
    audit_lines: int = 0
    audit_broken_at: str | None = None
    unbelieved: list[str] = field(default_factory=list)
    aside: int | None = None
    verify_s: float = 0.0
    load_s: float = 0.0
    mend_s: float = 0.0
    took_s: float = 0.0


async def rebuild(
    settings: Settings,
    place: Place,
    point: Point,
    *,
    force: bool = False,
    keep_sessions: bool = False,
    dry_run: bool = False,
    actor: str = "system:rebuild",
    say: Callable[[str], None] = lambda _: None,
) -> Rebuilt:
    """Bring back what `point` holds. `dry_run` checks everything and writes nothing.

    Sessions and the registrations of workers are not brought back; `keep_sessions` brings sessions back, for a move
    that was planned. Raises RecoveryError when the point is not whole, when Redis is not empty and it is not `force`d
    (what is there is then put aside into another database), or when there is no empty database to load into;
    Conflict while another rebuild is under way; Unavailable.
    """
    began = time.monotonic()
    done = Rebuilt(point)
    live = Wire(settings.redis_url)
    try:
        await _refuse_unless_empty(live, force=force)
        say(f"Checking recovery point {point.id}.")
        await verify(place, point)
        done.verify_s = time.monotonic() - began
        if dry_run:
            done.counts.update(point.counts)
            done.took_s = time.monotonic() - began
            return done
        async with _spare(live) as (number, mark):
            store = Store(replace(settings, redis_url=_with_database(settings.redis_url, number)))
            try:
                await _claim(store.wire, mark)
                beating = asyncio.create_task(_keep_alive(store.wire, mark))
                try:
                    await _load(store, place, point, done, keep_sessions=keep_sessions, say=say)
                    await _mend(store, point, done, actor=actor, say=say)
                finally:
                    beating.cancel()
                    await asyncio.gather(beating, return_exceptions=True)
                await _swap(live, number, done, force=force)
            finally:
                await store.close()
    finally:
        await live.close()
    done.took_s = time.monotonic() - began
    return done


# Where to


async def _refuse_unless_empty(wire: Wire, *, force: bool) -> None:
    found = [] if force else await _in_use(wire)
    if found:
        names = ", ".join(found[:_NAMED])
        raise RecoveryError(
            f"Redis is not empty (it holds {names}{', and more' if len(found) > _NAMED else ''}). A rebuild never "
            "overwrites: empty it first, or have what is there put aside with --force."
        )


async def _in_use(wire: Wire) -> list[str]:
    """Return some of the keys by which a database is more than an empty one that processes have started on."""
    cursor: Any = b"0"
    found: list[str] = []
    while True:
        cursor, keys = await wire.call(command("SCAN", cursor, "COUNT", 1000))
        found += [name for name in map(text, keys) if not keyspace.says_nothing(name)]
        if cursor == b"0" or len(found) > _NAMED:
            return sorted(found)


class _spare:  # noqa: N801  used like a function
    """An empty database beside the live one, emptied again when the rebuild fails."""

    def __init__(self, live: Wire) -> None:
        self._live, self._mark = live, f"{secrets.token_hex(8)}"
        self._number: int | None = None

    async def __aenter__(self) -> tuple[int, str]:
        own = self._live.address.database
        for number in reversed(range(_MOST_DATABASES)):
            if number != own and await self._is_free(number, own):
                self._number = number
                return number, self._mark
        raise RecoveryError(
            "A rebuild needs a second, empty database in the same Redis (SELECT and SWAPDB), and there is none. "
            "Rebuild into a Redis or Valkey that has one, then move the data with the provider's own import."
        )

    async def _is_free(self, number: int, own: int) -> bool:
        try:
            _, size, mark, _ = await self._live.calls(
                command("SELECT", number), command("DBSIZE"), command("GET", _MARK), command("SELECT", own)
            )
        except hiredis.ReplyError:  # there are fewer databases; what followed was asked of the live one
            return False
        if not size:
            return True
        if mark is None:
            return False
        _, alive_ms = text(mark).split()
        if time.time_ns() // 1_000_000 - int(alive_ms) < _DEAD_MS:
            raise Conflict("Another rebuild is under way, or died less than a minute ago.")
        await self._live.calls(command("SELECT", number), command("FLUSHDB"), command("SELECT", own))
        return True

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or self._number is None:
            return
        own = self._live.address.database
        try:  # only what we have loaded: somebody else may have been faster
            mine = (await self._live.calls(
                command("SELECT", self._number), command("GET", _MARK), command("SELECT", own)
            ))[1]  # fmt: skip
            if mine is not None and text(mine).split()[0] == self._mark:
                await self._live.calls(
                    command("SELECT", self._number), command("FLUSHDB"), command("SELECT", own)
                )
        except HostlerError as problem:
            log.warning("left a half loaded database behind", extra={"why": str(problem)})


async def _claim(wire: Wire, mark: str) -> None:
    """Make an empty database ours. Raises Conflict when somebody was faster."""
    if not await wire.call(command("SET", _MARK, f"{mark} {time.time_ns() // 1_000_000}", "NX")):
        raise Conflict("Another rebuild is under way.")


async def _keep_alive(wire: Wire, mark: str) -> None:
    while True:
        await asyncio.sleep(_DEAD_MS / 4000)
        await wire.call(command("SET", _MARK, f"{mark} {time.time_ns() // 1_000_000}", "XX"))


def _with_database(url: str, number: int) -> str:
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "db"]
    return urlunsplit(parts._replace(query=urlencode([*query, ("db", str(number))])))


async def _swap(live: Wire, number: int, done: Rebuilt, *, force: bool) -> None:
    """Put the loaded database in the place of the live one, and empty that, unless it holds something."""
    own = live.address.database
    await _refuse_unless_empty(live, force=force)
    try:
        *_, answers = await live.calls(
            command("MULTI"), command("SWAPDB", own, number), command("DEL", _MARK), command("EXEC")
        )
    except hiredis.ReplyError as error:
        raise RecoveryError(f"Redis refuses to exchange its databases: {error}.") from None
    refused = [each for each in answers if isinstance(each, Exception)]
    if refused:
        raise RecoveryError(f"Redis refuses to exchange its databases: {refused[0]}.")
    await live.calls(command("PUBLISH", "h:wake", "tagsets"), command("PUBLISH", "h:wake", ""))
    await live.call(command("SELECT", number))
    try:
        if await _in_use(live):
            done.aside = number
        else:
            await live.call(command("FLUSHDB"))
    finally:
        await live.call(command("SELECT", own))


# What


async def _load(
    store: Store,
    place: Place,
    point: Point,
    done: Rebuilt,
    *,
    keep_sessions: bool,
    say: Callable[[str], None],
) -> None:
    """Carry out the commands of a point that are to be. Raises RecoveryError for one that no point has."""
    began = time.monotonic()
    loading = _Loading(store.wire)
    last = b""
    async for part in commands(place, point):
        for words in part:
            key = text(words[1])
            if words[0] not in _VERBS or not keyspace.is_captured(key):
                raise RecoveryError(
                    f"Recovery point {point.id} holds {text(words[0])} {key[:80]}, which it must not."
                )
            if keyspace.is_of_sessions(key) and not keep_sessions:
                continue
            if words[1] != last:
                last = words[1]
                done.loaded += 1
                if kind := keyspace.kind(key):
                    done.counts[kind] = done.counts.get(kind, 0) + 1
            await loading.add(words)
        say(f"Loaded {done.loaded} of {point.keys} keys.")
    await loading.settled()
    done.load_s = time.monotonic() - began


class _Loading:
    """Commands sent one after another without waiting for each answer."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sent = 0
        self._failure: BaseException | None = None

    async def add(self, words: list[bytes]) -> None:
        if not self._wire.tell(command(*words), self._answered):
            raise Unavailable("The connection to Redis was lost while it was loaded; run the rebuild again.")
        self._sent += 1
        if self._sent % _BATCH == 0:
            await self.settled()

    async def settled(self) -> None:
        await self._wire.call(command("PING"), deadline_s=60)
        if self._failure is not None:
            raise RecoveryError(f"Redis refused what was loaded: {self._failure}.")

    def _answered(self, reply: "asyncio.Future[Any]") -> None:
        if not reply.cancelled() and reply.exception() is not None:
            self._failure = self._failure or reply.exception()


# Mended


async def _mend(store: Store, point: Point, done: Rebuilt, *, actor: str, say: Callable[[str], None]) -> None:
    """Make indexes agree with their records, and take back what does not come back as it was."""
    began = time.monotonic()
    say("Mending jobs, apps, schedules and users.")
    await _jobs(store, done)
    await _each(store, "h:user:*", 2, users.recover, done)
    await _each(store, "h:schedule:*", 2, schedules.recover, done)
    await _each(store, "h:app:*", 2, _app, done)
    await _each(store, "h:backup:*", 2, backups.recover, done)
    await _drop_dangling(store)
    chain = await audit.read(store)
    done.audit_lines, done.audit_broken_at = chain.lines, chain.broken_at
    await store.call(script("recovered", chain.head, actor, point.id, point.made_ms, point.took_ms))
    done.mend_s = time.monotonic() - began


async def _names(store: Store, pattern: str, colons: int) -> AsyncIterator[list[str]]:
    """Yield what comes last in the keys that match, in pages."""
    cursor: Any = b"0"
    while True:
        cursor, keys = await store.call(command("SCAN", cursor, "MATCH", pattern, "COUNT", 2000))
        names = [text(key) for key in keys]
        yield [name.split(":", colons)[-1] for name in names if name.count(":") == colons]
        if cursor == b"0":
            return


async def _jobs(store: Store, done: Rebuilt) -> None:
    lease_ms = int(store.settings.lease_s * 1000)
    async for names in _names(store, "h:job:*", 2):
        for at in range(0, len(names), _STEP):
            _, running = await store.call(script("recover_jobs", lease_ms, GAP, *names[at : at + _STEP]))
            done.jobs_running += running
    queued = [text(each) for each in await store.call(command("ZRANGE", "h:jobs:queued", 0, -1))]
    for at in range(0, len(queued), _STEP):
        found = await store.call(script("recover_queued", rq_time(), *queued[at : at + _STEP]))
        done.jobs_back_in_queues += found[0]
        done.jobs_waiting += found[1]
        done.jobs_lost += found[2]


async def _each(
    store: Store,
    pattern: str,
    colons: int,
    mend: Callable[[Store, str], Coroutine[Any, Any, None]],
    done: Rebuilt,
) -> None:
    """Mend each record; one that Hostler did not write stays as it is, believed by nobody."""
    async for names in _names(store, pattern, colons):
        for name in names:
            try:
                await mend(store, name)
            except (Forged, NotFound) as error:
                done.unbelieved.append(f"{pattern[:-1]}{name}")
                log.error("a record is not believed", extra={"record": name, "why": str(error)})


async def _app(store: Store, instance_id: str) -> None:
    """Put an app into its indexes under a wish that its node takes for a new one. Raises Forged."""
    raw = await store.call(command("HGET", f"h:app:{instance_id}", "wish"))
    app = read_wish(store.seal, instance_id, raw or b"")
    app = replace(app, generation=app.generation + GAP)
    step = script("recover_app", instance_id, app.signed_wish(store.seal), app.generation)
    await store.call(step)


#: Indexes whose members are the last part of a record's key.
_INDEXES = (("h:files", "h:file:"), ("h:files:expiry", "h:file:"), ("h:backups", "h:backup:"))


async def _drop_dangling(store: Store) -> None:
    """Take out of the other indexes what has no record."""
    for index, record in _INDEXES:
        members = await store.call(command("ZRANGE", index, 0, -1))
        for at in range(0, len(members), _STEP):
            page = members[at : at + _STEP]
            there = await store.calls(*(command("EXISTS", record.encode() + each) for each in page))
            gone = [each for each, exists in zip(page, there, strict=True) if not exists]
            if gone:
                await store.call(command("ZREM", index, *gone))
