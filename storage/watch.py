"""What happens, told as it happens: the one subscriber and the one reader of the event stream in a process.

Output comes over a subscription and events by a blocking read, so each has a way of its own. What is told keeps their
order all the same: an attempt's output comes after its start and before its end.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import hiredis
import orjson

from storage import logs, queues
from storage.calls import command, text
from storage.errors import Unavailable
from storage.logs import Entry, Snapshot
from storage.store import Store
from storage.wire import DEADLINE_S, Subscribed, Wire

log = logging.getLogger("hostler.storage")

#: The channel of all jobs' output.
EVERY_OUTPUT = "h:out:*"
_WAKE, _QUEUED, _TAG_SETS = b"h:wake", b"h:queued", b"tagsets"
_OUTPUT = b"h:out:"
_APP_LOG = b"h:applogs:"
#: The channel of what all apps print.
EVERY_APP_LOG = "h:applogs:*"
#: After these events of a job nothing more comes from the attempt before.
_ENDS = frozenset({"job.completed", "job.queued"})
#: How long connections outlive the last one who wanted them: a client that comes back finds them open.
LINGER_S = 30.0
#: How long one way of news waits for the other before it goes ahead alone.
_PATIENCE_S = 2.0
_BLOCK_MS = 10_000
_PAGE = 64  #: entries; one may tell of fifty jobs, and a follower of all has room for some 4,000


@dataclass(slots=True, eq=False)
class Event:
    """One entry of the event stream. `frames` is room for what listeners make of it, so that it is made once."""

    id: str
    name: str
    fields: dict[str, str]
    frames: dict[object, str] = field(default_factory=dict)

    @property
    def job_id(self) -> str | None:
        """Return the job it is about, if it is about one."""
        return self.fields.get("id")


@dataclass(slots=True, eq=False)
class Output:
    """One piece of output: the `number`-th that came here, after the event called `event_id`."""

    job_id: str
    entry: Entry
    number: int
    event_id: str
    frames: dict[object, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class AppLines:
    """Lines that an app printed, each as storage.apps.append described it."""

    instance_id: str
    lines: list[dict[str, Any]]
    size_bytes: int
    frames: dict[object, str] = field(default_factory=dict)


class Listener(Protocol):
    """Who is told. Every method returns at once."""

    def happened(self, event: Event) -> None:
        """Take an event."""

    def printed(self, output: Output) -> None:
        """Take a piece of output."""

    def logged(self, lines: "AppLines") -> None:
        """Take lines that an app printed."""

    def woken(self, queue: str, many: int) -> None:
        """Take the news that a queue got so many jobs, or that the tag sets changed (`tagsets`)."""

    def lost_touch(self) -> None:
        """Take the news that some may have been missed just now."""


def moment(event_id: str) -> tuple[int, int]:
    """Return an event's id as numbers, which compare as the events follow one another."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


async def newest_event(store: Store) -> str:
    """Return the id of the newest event; "0-0" when there is none."""
    return _last_id(await store.call(command("XREVRANGE", "h:events", "+", "-", "COUNT", 1)))


def _first_id(reply: list[Any]) -> str:
    return events_of(reply)[0].id if reply else "0-0"


def _last_id(reply: list[Any]) -> str:
    return text(reply[0][0]) if reply else "0-0"


async def events_after(store: Store, event_id: str) -> AsyncGenerator[list[Event], None]:
    """Yield the events that follow `event_id`, in pages; the stream keeps about the last 100,000."""
    while True:
        reply = await store.call(command("XRANGE", "h:events", f"({event_id}", "+", "COUNT", _PAGE))
        if reply:
            after = moment(event_id)  # which may lie within what one entry tells of
            yield [event for event in events_of(reply) if moment(event.id) > after]
            event_id = text(reply[-1][0])
        if len(reply) < _PAGE:
            return


async def is_forgotten(store: Store, event_id: str) -> bool:
    """Tell whether events after `event_id` may have left the stream, or the stream was lost since.

    "0-0" stands for the oldest that there is, and is never forgotten.
    """
    oldest, newest = await store.calls(
        command("XRANGE", "h:events", "-", "+", "COUNT", 1, read=_first_id),
        command("XREVRANGE", "h:events", "+", "-", "COUNT", 1, read=_last_id),
    )
    return event_id != "0-0" and not moment(oldest) <= moment(event_id) <= moment(newest)


def events_of(entries: Iterable[Any]) -> list[Event]:
    """Return the events of the stream's `entries`: one may tell of several jobs (storage/scripts/_events.lua)."""
    events = []
    for event_id, flat in entries:
        fields = {text(flat[i]): text(flat[i + 1]) for i in range(0, len(flat), 2)}
        name, several = fields.pop("e", ""), fields.pop("ids", "").split()
        if several:
            milliseconds, last = moment(text(event_id))
            first = last - len(several) + 1
            for number, job_id in enumerate(several, first):
                events.append(Event(f"{milliseconds}-{number}", name, {**fields, "id": job_id}))
        else:
            events.append(Event(text(event_id), name, fields))
    return events


class _Ear(Subscribed):
    """The subscribed connection: what comes unasked goes to `watch`, the rest answers what was asked."""

    def __init__(self, watch: "Watch") -> None:
        super().__init__()
        self.watch = watch

    def data_received(self, data: bytes) -> None:
        """Sort what comes."""
        self.heard = self.loop.time()
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            if isinstance(reply, list) and reply[0] != b"pong":
                if reply[0] in {b"message", b"pmessage"}:
                    self.watch._told(reply[0], reply[-2], reply[-1])
                else:
                    self.watch._subscribed(reply[0], text(reply[1]))
            elif self.waiting:
                self.answer(reply)
            elif isinstance(reply, Exception):  # what was to be subscribed is not
                self.close()

    def say(self, *words: str) -> None:
        """Send a command whose answer comes as a message."""
        if self.transport is not None and not self.broken:
            self.transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # any number of words


class Watch:
    """Tells `listener` what it asked for with `open`. Connects when first asked, and again after every loss."""

    def __init__(self, store: Store, listener: Listener) -> None:
        self._store, self._listener = store, listener
        self._mark_channel = f"h:mark:{secrets.token_hex(8)}"
        self._wanted: Counter[str] = Counter()
        self._ready: dict[str, asyncio.Event] = {}
        self._users = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._aside: set[asyncio.Task[None]] = set()
        self._ear: _Ear | None = None
        self._connected = asyncio.Event()
        self._reading = asyncio.Event()
        self._every: set[str] = (
            set()
        )  # the patterns in force: what they bring comes whatever else is subscribed
        self._arrived = 0
        self._marks: dict[int, asyncio.Future[int]] = {}
        self._mark = 0
        self._position = "0-0"
        self._moved: asyncio.Future[None] | None = None
        self._attempts: dict[str, int] = {}  # jobs whose start has been told, or was long ago
        self._early: dict[str, list[tuple[Entry, int]]] = {}  # output that waits for the news of its start

    # What is wanted

    async def open(self, *channels: str, events: bool = False) -> None:
        """Begin to tell of `channels` (besides h:wake and h:queued, which come always) and, with `events`, of events.

        Returns when nothing from now on will be missed. Raises Unavailable; `close` must follow in any case.
        """
        self._users += 1
        self._wanted.update(channels)
        for channel in channels:
            if self._wanted[channel] == 1:
                self._ready[channel] = asyncio.Event()
                self._subscribe(channel)
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._listen()))
        if events and len(self._tasks) == 1:
            self._tasks.append(asyncio.create_task(self._read()))
        ready = [self._connected, *(self._ready[channel] for channel in channels)]
        ready += [self._reading] if events else []
        try:
            async with asyncio.timeout(DEADLINE_S):
                for each in ready:
                    await each.wait()
        except TimeoutError:
            raise Unavailable("Redis cannot be watched for now.") from None

    def close(self, *channels: str) -> None:
        """Take an `open` of the same channels back."""
        self._users -= 1
        self._wanted.subtract(channels)
        for channel in channels:
            if not self._wanted[channel]:
                del self._wanted[channel], self._ready[channel]
                if self._ear is not None:
                    self._ear.say("PUNSUBSCRIBE" if channel.endswith("*") else "UNSUBSCRIBE", channel)
        if not self._users:
            asyncio.get_running_loop().call_later(LINGER_S, self._rest)

    def _rest(self) -> None:
        if not self._users:
            for task in self._tasks:
                task.cancel()
            self._tasks.clear()

    async def stop(self) -> None:
        """Let go of everything. Safe to run twice."""
        ending = [*self._tasks, *self._aside]
        for task in ending:
            task.cancel()
        self._tasks.clear()
        await asyncio.gather(*ending, return_exceptions=True)

    async def look(self, job_id: str, *, after: int) -> tuple[Snapshot, int]:
        """Return a job and its log from line `after` on, and the number of the last output that is in it.

        What was opened before and bears a higher number comes after it. Raises NotFound, Unavailable.
        """
        number, heard = self._new_mark()
        try:
            found = await logs.snapshot(
                self._store, job_id, after=after, mark=(self._mark_channel, str(number))
            )
            if found.finished:
                return found, self._arrived
            async with asyncio.timeout(_PATIENCE_S):
                return found, await heard
        except TimeoutError:
            raise Unavailable("Redis cannot be watched for now.") from None
        finally:
            self._marks.pop(number, None)

    def _new_mark(self) -> tuple[int, asyncio.Future[int]]:
        self._mark += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._marks[self._mark] = future
        return self._mark, future

    # The subscription

    async def _listen(self) -> None:
        while True:
            try:
                await self._attend(await self._store.wire.another(lambda: _Ear(self)))
            except Exception:
                log.exception("the subscription broke")
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311  jitter

    async def _attend(self, ear: _Ear) -> None:
        """Subscribe to all that is wanted, and stay until the connection is lost."""
        try:
            self._ear, self._every = ear, set()
            for channel in self._wanted:
                self._subscribe(channel)
            # last: its answer says that all are in force
            ear.say("SUBSCRIBE", text(_WAKE), text(_QUEUED), self._mark_channel)
            await ear.stay()
        finally:
            ear.close()
            if self._ear is ear:
                self._ear = None
                self._connected.clear()
                for ready in self._ready.values():
                    ready.clear()

    def _subscribe(self, channel: str) -> None:
        if self._ear is not None:
            self._ear.say("PSUBSCRIBE" if channel.endswith("*") else "SUBSCRIBE", channel)

    def _subscribed(self, kind: bytes, channel: str) -> None:
        if kind == b"psubscribe":
            self._every.add(channel)
        elif kind == b"punsubscribe":
            self._every.discard(channel)
        if channel == self._mark_channel:
            self._connected.set()
            self._listener.lost_touch()
        elif kind in {b"subscribe", b"psubscribe"} and channel in self._ready:
            self._ready[channel].set()

    def _told(self, kind: bytes, channel: bytes, message: bytes) -> None:
        if self._every and kind == b"message" and f"{text(channel).rpartition(':')[0]}:*" in self._every:
            return  # it comes once more, by the pattern
        if channel.startswith(_OUTPUT):
            head, _, data = message.partition(b"\n")
            self._arrived += 1
            self._printed(channel[len(_OUTPUT) :].decode(), logs.entry_of(head, data), self._arrived)
        elif channel.startswith(_APP_LOG):
            self._logged(text(channel[len(_APP_LOG) :]), message)
        elif channel in {_WAKE, _QUEUED}:
            if channel == _QUEUED or message == _TAG_SETS:  # else it is said on both
                self._listener.woken(*queues.news(message))
        elif (future := self._marks.pop(int(message), None)) is not None and not future.done():
            future.set_result(self._arrived)

    def _logged(self, instance_id: str, message: bytes) -> None:
        with contextlib.suppress(orjson.JSONDecodeError):
            lines = orjson.loads(message)
            if isinstance(lines, list) and all(isinstance(line, dict) for line in lines):
                self._listener.logged(AppLines(instance_id, lines, len(message)))

    def _printed(self, job_id: str, entry: Entry, number: int) -> None:
        if job_id in self._early:
            self._early[job_id].append((entry, number))
        elif self._attempts.get(job_id) == entry.attempt:
            self._listener.printed(Output(job_id, entry, number, self._position))
        else:
            self._early[job_id] = [(entry, number)]
            self._begin_aside(job_id)

    def _begin_aside(self, job_id: str) -> None:
        task = asyncio.create_task(self._wait_for_start(job_id))
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _wait_for_start(self, job_id: str) -> None:
        """Hold a job's output until all events that are there now have been told: its start is one, or is long ago."""
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(_PATIENCE_S):
                newest = moment(await newest_event(self._store))
                while moment(self._position) < newest and job_id in self._early:
                    if self._moved is None:
                        self._moved = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._moved)
        self._let_go(job_id)

    def _let_go(self, job_id: str, attempt: int | None = None) -> None:
        """Tell of output that was held back, that of attempts after `attempt` excepted."""
        held = self._early.pop(job_id, [])
        told = [each for each in held if attempt is None or each[0].attempt <= attempt]
        if len(told) < len(held):
            self._early[job_id] = held[len(told) :]
        for entry, number in told:
            self._attempts[job_id] = entry.attempt
            self._listener.printed(Output(job_id, entry, number, self._position))

    # The event stream

    async def _read(self) -> None:
        wire = Wire(self._store.wire.address.url)
        self._attempts.clear()
        fresh, sure = True, False
        try:
            while True:
                try:
                    if not sure:
                        await self._find_position(fresh=fresh)
                        fresh, sure = False, True
                        self._reading.set()
                    words = (
                        "XREAD",
                        "COUNT",
                        _PAGE,
                        "BLOCK",
                        _BLOCK_MS,
                        "STREAMS",
                        "h:events",
                        self._position,
                    )
                    reply = await wire.call(command(*words), deadline_s=_BLOCK_MS / 1000 + DEADLINE_S)
                    if reply:
                        await self._tell(events_of(reply[0][1]))
                except (Unavailable, hiredis.ReplyError):
                    sure = False
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311  jitter
                except Exception:
                    log.exception("reading the events broke")
                    sure = False
                    await asyncio.sleep(1)
        finally:
            self._reading.clear()
            await wire.close()

    async def _find_position(self, *, fresh: bool) -> None:
        if fresh:
            self._position = await newest_event(self._store)
        elif await is_forgotten(self._store, self._position):
            self._position = await newest_event(self._store)
            self._listener.lost_touch()

    async def _tell(self, events: list[Event]) -> None:
        if any(event.name in _ENDS for event in events) and any(
            name.startswith("h:out:") for name in self._wanted
        ):
            await self._overtake()
        for event in events:
            job_id = event.job_id or ""
            if event.name in _ENDS:  # a job's first job.queued names no attempt, and ends none
                self._let_go(job_id, int(event.fields.get("a") or 0))
                self._attempts.pop(job_id, None)
            self._position = event.id
            self._listener.happened(event)
            if event.name == "job.started":
                self._attempts[job_id] = int(event.fields["a"])
                self._let_go(job_id, self._attempts[job_id])
        if self._moved is not None:
            self._moved.set_result(None)
            self._moved = None

    async def _overtake(self) -> None:
        """Return once all output that was published until now has arrived."""
        number, heard = self._new_mark()
        with contextlib.suppress(TimeoutError, Unavailable):
            await self._store.call(command("PUBLISH", self._mark_channel, number))
            async with asyncio.timeout(_PATIENCE_S):
                await heard
        self._marks.pop(number, None)
