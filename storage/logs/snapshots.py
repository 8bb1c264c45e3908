"""A job's log at one instant: which parts the object store has and what Redis holds, and the one walk over both."""

import base64
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from storage import jobs
from storage.calls import Call, command, pairs, script, text
from storage.errors import NotFound
from storage.logs.entries import Entry, Gap, Place, decode, decode_stream, entry_of
from storage.store import Store

log = logging.getLogger("hostler.storage")

#: How many pieces of one long line are compared where a part of the log meets the live stream.
_OVERLAP = 64


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the log in the object store: the lines from `first` up to, without, `next`."""

    attempt: int
    first: int
    next: int
    key: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job and its log at one instant: `live` is what Redis holds from the place that was asked for."""

    job_id: str
    event_id: str
    state: str
    attempt: int
    worker: str
    lines: int
    dropped: bool
    reason: str
    exit_code: int | None
    progress: int | None
    parts: list[Part]
    live: list[Entry]
    whole: bool

    @property
    def finished(self) -> bool:
        """Whether nothing will follow."""
        return self.state in {"completed", "failed", "cancelled"}


def look(
    job_id: str, *, after: int = 0, limit_bytes: int | None = None, mark: tuple[str, str] = ("", "")
) -> Call[Snapshot | None]:
    """Describe reading a job and its live log from line `after` on, all at one instant; None if unknown.

    With `limit_bytes`, the newest entries of about that size. `mark` is a channel and a message that is published
    at that very instant: what a follower hears before it is in the snapshot, what it hears after is not.
    """
    limit = "" if limit_bytes is None else limit_bytes
    return script("log", job_id, after, limit, *mark, read=lambda reply: looked(job_id, reply))


def looked(job_id: str, reply: list[Any]) -> Snapshot | None:
    """Read what log.lua answers."""
    if not reply:
        return None
    event_id, record, parts, entries, whole = reply
    names = ("state", "attempt", "worker", "lines", "dropped", "reason", "exit", "progress", "started")
    row = {name: text(value) for name, value in zip(names, record, strict=True)}
    live = [entry_of(head, data) for head, data in reversed(entries)]
    return _snapshot(job_id, row, pairs(parts), live, event_id=text(event_id), whole=whole == b"1")


def _snapshot(
    job_id: str,
    row: dict[str, str],
    parts: dict[str, str],
    live: list[Entry],
    *,
    event_id: str = "",
    whole: bool,
) -> Snapshot:
    def number(name: str) -> int | None:
        return int(row[name]) if row.get(name) else None

    records = (orjson.loads(record) for record in parts.values())
    found = [Part(each["attempt"], each["first"], each["next"], each["key"]) for each in records]
    return Snapshot(
        job_id=job_id,
        event_id=event_id,
        state=row["state"],
        attempt=number("attempt") or 0,
        worker=row.get("worker", ""),
        lines=number("lines") or 0,
        dropped=bool(number("dropped")),
        reason=row.get("reason", ""),
        exit_code=number("exit"),
        progress=number("progress"),
        parts=sorted(found, key=lambda part: (part.first, part.attempt)),
        live=live,
        whole=whole,
    )


async def snapshot(
    store: Store, job_id: str, *, after: int = 0, mark: tuple[str, str] = ("", "")
) -> Snapshot:
    """Return a job and its log at one instant, also when it has left Redis. Raises NotFound."""
    from storage import archive  # noqa: PLC0415  archive reads logs

    found = await store.call(look(job_id, after=after, mark=mark))
    if found is not None:
        return found
    # while nothing has left Redis, an unknown id need not be asked of the object store
    if not jobs.ID.fullmatch(job_id) or not await store.call(command("EXISTS", "h:archived")):
        raise NotFound("Job not found")
    stored: Any = await archive.read(store, job_id)
    live = list(decode(base64.b64decode(stored.get("live", ""))))
    return _snapshot(job_id, stored["record"], stored["logparts"], live, whole=True)


@dataclass(slots=True)
class _Reader:
    """Walks over entries in order, from a place on: what is before it is passed over, what is missing is told."""

    place: Place
    passed: Callable[[Entry], None]
    skip: int  # pieces of the next line that the reader has and the source will repeat
    recent: deque[tuple[str, bytes]] = field(default_factory=lambda: deque(maxlen=_OVERLAP))

    def take(self, entry: Entry) -> Iterator[Entry | Gap]:
        if self.place.is_past(entry):
            self.passed(entry)
            return
        if entry.line < self.place.line:
            before, entry = entry.split(self.place.line)
            self.passed(before)
        elif entry.line > self.place.line:
            yield Gap(self.place.line + 1, entry.line)
            self.place, self.skip = Place(entry.line), 0
        if entry.count:
            self.recent.clear()
            self.skip = 0
        else:
            self.recent.append((entry.channel, entry.data))
            if self.skip:
                self.skip -= 1
                return
        self.place = self.place.past(entry)
        yield entry


async def pieces(
    store: Store, found: Snapshot, place: Place, *, passed: Callable[[Entry], None] = lambda entry: None
) -> AsyncGenerator[Entry | Gap, None]:
    """Yield the log from `place` on, each entry once: from the parts as far as needed, then from the live stream.

    `passed` is told of entries before `place` that were seen on the way. Raises Unavailable.
    """
    reader = _Reader(place, passed, place.pieces)
    live = found.live

    def live_serves() -> bool:
        # its first entry may go on with a line whose beginning only the parts have
        return not found.dropped or bool(live and live[0].line < reader.place.line)

    for part in found.parts:
        if live_serves():
            break
        if part.next < reader.place.line:
            continue
        async with aclosing(_part(store, part)) as entries:
            async for entry in entries:
                for piece in reader.take(entry):
                    yield piece
                if live_serves():
                    break
    if live and not live_serves() and reader.place.pieces and live[0].line == reader.place.line:
        reader.skip = _overlap(list(reader.recent), live)
    for entry in live:
        for piece in reader.take(entry):
            yield piece
    if found.lines > reader.place.line:
        yield Gap(reader.place.line + 1, found.lines)


def _overlap(seen: list[tuple[str, bytes]], live: list[Entry]) -> int:
    """Return how many pieces at the head of `live` are the last of `seen`; pieces bear no number of their own."""
    head: list[tuple[str, bytes]] = []
    for entry in live:
        if entry.count:
            break
        head.append((entry.channel, entry.data))
    longest = min(len(seen), len(head))
    return next((size for size in range(longest, 0, -1) if seen[-size:] == head[:size]), 0)


async def _part(store: Store, part: Part) -> AsyncGenerator[Entry, None]:
    """Yield the entries of a part; what the object store has lost or damaged shows as a gap."""
    with suppress(NotFound):
        reading = await store.objects.open(part.key)
        try:
            async for entry in decode_stream(reading):
                yield entry
        except ValueError as error:
            log.error("a part of a log cannot be read", extra={"object": part.key, "why": str(error)})
        finally:
            await reading.close()
