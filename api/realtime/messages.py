"""What those who follow jobs are told: replayed from what is kept, then live, in order and each message once."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from api.realtime.hub import Feed, Hub
from storage import logs, watch
from storage.calls import STREAM_ID, command, text
from storage.errors import Invalid
from storage.logs import Entry, Gap, Place, Snapshot
from storage.watch import Event, Output

#: How many jobs a gap in the output of all jobs names.
_MOST_NAMED = 1000

_CURSOR = re.compile(
    rf"(?P<event>{STREAM_ID})(\.(?P<line>\d{{1,15}})(\.(?P<pieces>\d{{1,9}})(\.(?P<attempt>\d{{1,9}}))?)?)?",
    re.ASCII,
)


_BEGINNING = Place()


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a client is: the last event it knows, and the lines of the log it has, of the job it follows."""

    event_id: str = "0-0"
    place: Place = _BEGINNING
    attempt: int = 0

    @classmethod
    def parse(cls, after: str | None) -> "Cursor | None":
        """Read what a client says it has: the id of a message, or the `seq` of a line. Raises Invalid."""
        if not after:
            return None
        if after.isascii() and after.isdigit() and len(after) <= 15:
            return cls(place=Place(int(after)))
        found = _CURSOR.fullmatch(after)
        if found is None:
            problem = "after must be the id of a message, or the seq of a line."
            raise Invalid(problem, details={"after": problem})
        place = Place(int(found["line"] or 0), int(found["pieces"] or 0))
        return cls(found["event"], place, int(found["attempt"] or 0))

    def __str__(self) -> str:
        return f"{self.event_id}.{self.place.line}.{self.place.pieces}.{self.attempt}"


class Message(NamedTuple):
    """One message: its type, the cursor of who has it, and the whole of it as JSON.

    The first one of each stream bears no type and no text: from it on, nothing is missed.
    """

    type: str
    id: str
    text: str


def _message(kind: str, cursor: str, body: Mapping[str, Any]) -> Message:
    return Message(kind, cursor, orjson.dumps({"type": kind, "id": cursor, **body}).decode())


def _shared(item: Event | Output, kind: str, cursor: str, body: Mapping[str, Any]) -> Message:
    """Return the message for `item`, encoded once for all who are at the same place."""
    if (frame := item.frames.get(cursor)) is None:
        frame = item.frames[cursor] = _message(kind, cursor, body).text
    return Message(kind, cursor, frame)


def _output(job_id: str, entry: Entry) -> dict[str, Any]:
    return {
        "jobId": job_id,
        "data": entry.data.decode("utf-8", "replace"),
        "stream": entry.stream,
        "seq": entry.line + 1,
        "lines": entry.count,
        "attempt": entry.attempt,
    }


#: How events are spelled; events that are not here are nothing to those who follow jobs.
_EVENTS = {
    "job.queued": lambda job, f: {"jobId": job, "reason": f.get("why") or None},
    "job.started": lambda job, f: {"jobId": job, "workerId": f["w"], "attempt": int(f["a"])},
    "job.progress": lambda job, f: {"jobId": job, "progress": int(f["p"])},
    "job.completed": lambda job, f: {
        "jobId": job,
        "status": f["state"],
        "reason": f.get("reason") or None,
        "exitCode": int(f["x"]) if f.get("x") else None,
    },
}


class _Follower:
    """One client of one job: where it is, and what it is told next."""

    def __init__(self, job_id: str, cursor: Cursor | None) -> None:
        self.job_id = job_id
        self.new = cursor is None
        start = cursor or Cursor()
        self.event_id, self.place, self.attempt = start.event_id, start.place, start.attempt
        self.progress: int | None = None

    @property
    def cursor(self) -> str:
        return str(Cursor(self.event_id, self.place, self.attempt))

    def say(self, kind: str, body: Mapping[str, Any]) -> Message:
        return _message(kind, self.cursor, {"jobId": self.job_id, **body})

    def started(self, attempt: int, worker: str | None) -> Message:
        self.attempt = attempt
        return self.say("job.started", {"workerId": worker, "attempt": attempt})

    async def catch_up(self, hub: Hub, found: Snapshot) -> AsyncGenerator[Message, None]:
        """Yield what of `found` the client does not have."""
        self.event_id = max(self.event_id, found.event_id or "0-0", key=watch.moment)
        if self.new and found.state == "queued":
            yield self.say("job.queued", {"reason": None})
        self.new = False
        async with aclosing(logs.pieces(hub.store, found, self.place)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Gap):
                    self.place = Place(piece.last)
                    yield self.say("stream.gap", {"from": piece.first, "to": piece.last})
                    continue
                if piece.attempt > self.attempt:
                    yield self.started(
                        piece.attempt, found.worker if piece.attempt == found.attempt else None
                    )
                self.place = self.place.past(piece)
                yield _message("job.output", self.cursor, _output(self.job_id, piece))
        if found.attempt > self.attempt and found.state != "queued":
            yield self.started(found.attempt, found.worker)
        if found.finished:
            ended = {"status": found.state, "reason": found.reason or None, "exitCode": found.exit_code}
            yield self.say("job.completed", ended)
        elif found.state == "running" and found.progress not in {None, self.progress}:
            self.progress = found.progress
            yield self.say("job.progress", {"progress": found.progress})

    def tell_output(self, output: Output) -> Message:
        self.event_id = max(self.event_id, output.event_id, key=watch.moment)
        self.place = self.place.past(output.entry)
        return _shared(output, "job.output", self.cursor, _output(self.job_id, output.entry))

    def tell_event(self, event: Event) -> Message | None:
        self.event_id = event.id
        if event.name not in _EVENTS:
            return None
        if event.name == "job.started":
            self.attempt, self.progress = int(event.fields["a"]), None
        if event.name == "job.progress":
            self.progress = int(event.fields["p"])
        return _shared(event, event.name, self.cursor, _EVENTS[event.name](self.job_id, event.fields))


async def of_job(hub: Hub, job_id: str, after: str | None) -> AsyncGenerator[Message, None]:
    """Yield what happens to one job and what it prints, after a cursor or else from the beginning, until it has ended.

    Raises Invalid, NotFound, Unavailable.
    """
    listening = False
    follower = _Follower(job_id, Cursor.parse(after))
    async with hub.follow(job_id) as feed:
        while True:
            feed.start_anew()
            found, heard = await hub.look(job_id, after=follower.place.line)
            if not listening:
                yield Message("", follower.cursor, "")
                listening = True
            async with aclosing(follower.catch_up(hub, found)) as messages:
                async for message in messages:
                    yield message
            if found.finished:
                return
            async with aclosing(_live(follower, feed, found, heard)) as messages:
                async for message in messages:
                    yield message


async def _live(
    follower: _Follower, feed: Feed[Event | Output], found: Snapshot, heard: int
) -> AsyncGenerator[Message, None]:
    """Yield what comes after `found`, for as long as nothing is missing; the job's end is for another look to tell."""
    seen = watch.moment(found.event_id or "0-0")
    while (items := await feed.take()) is not None:
        for item in items:
            if isinstance(item, Output):
                if item.number <= heard:
                    continue
                if item.entry.line != follower.place.line or item.entry.attempt != follower.attempt:
                    return
                yield follower.tell_output(item)
            elif watch.moment(item.id) > seen:
                if item.name == "job.completed":
                    return
                if (message := follower.tell_event(item)) is not None:
                    yield message


class Live:
    """Stands among messages: from here on they may be taken from elsewhere, up to where `position` is then set to."""

    def __init__(self, position: str) -> None:
        self.position = position


async def of_all(hub: Hub, after: str | None, *, live: bool = False) -> AsyncGenerator[Message | Live, None]:
    """Yield what happens to all jobs and what they print from now on; first, what has happened since `after`.

    Output that passed meanwhile is not repeated: a gap names the jobs whose log may have more. Whoever says `live` is
    yielded that whenever all that the hub has told so far has been yielded. Raises Invalid, Unavailable.
    """
    cursor = Cursor.parse(after)
    async with hub.follow() as feed:
        position = cursor.event_id if cursor else await watch.newest_event(hub.store)
        yield Message("", position, "")
        behind = cursor is not None
        while True:
            if behind:
                feed.start_anew()
                async with aclosing(_since(hub, position)) as messages:
                    async for message in messages:
                        position = message.id
                        yield message
            while (items := await feed.take()) is not None:
                for item in items:
                    now = told(item, position)
                    position = max(position, event_id(item), key=watch.moment)
                    if now is not None:
                        yield now
                if live and feed.is_empty and position == hub.told:
                    feed.miss()  # it takes nothing until it is started anew
                    yield (here := Live(position))
                    position = here.position
            behind = True


def event_id(item: Event | Output) -> str:
    """Return the id of an event, or of the one that some output came after."""
    return item.event_id if isinstance(item, Output) else item.id


def told(item: Event | Output, position: str) -> Message | None:
    """Return the message for `item`, unless what was told up to `position` covers it."""
    if isinstance(item, Output):
        if watch.moment(item.event_id) < watch.moment(position):
            return None
        cursor = str(Cursor(item.event_id, Place(item.entry.stop), item.entry.attempt))
        return _shared(item, "job.output", cursor, _output(item.job_id, item.entry))
    if item.name not in _EVENTS or watch.moment(item.id) <= watch.moment(position):
        return None
    return _shared(item, item.name, item.id, _EVENTS[item.name](item.job_id, item.fields))


async def _since(hub: Hub, position: str) -> AsyncGenerator[Message, None]:
    """Yield the events after `position`, and what has to be read elsewhere."""
    if await watch.is_forgotten(hub.store, position):
        newest = await watch.newest_event(hub.store)
        # there may be none that says how far back the stream still reaches; what there is follows
        yield _message("stream.gap", position, {"what": "events", "to": newest, "read": "/api/jobs/list"})
        if watch.moment(newest) < watch.moment(position):
            position = "0-0"
    running = await hub.store.call(command("ZRANGE", "h:jobs:running", 0, _MOST_NAMED - 1))
    printed = dict.fromkeys(text(each) for each in running)
    async with aclosing(watch.events_after(hub.store, position)) as pages:
        async for events in pages:
            for event in events:
                position = event.id
                if event.name in _EVENTS:
                    yield _message(event.name, event.id, _EVENTS[event.name](event.job_id, event.fields))
                    if event.name != "job.queued":
                        printed[event.job_id or ""] = None
    if printed:
        named = list(printed)[:_MOST_NAMED]
        where = {"what": "output", "jobIds": named, "read": "/api/jobs/{jobId}/log?after={seq}"}
        yield _message("stream.gap", position, where)
