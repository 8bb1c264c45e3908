"""Logs: what a job printed, pieced together from the live stream in Redis and the parts in the object store.

Lines are numbered from 0 inside and from 1 (`seq`) for readers, over all attempts of a job. An entry is what one
read of the worker brought: `count` lines end in it, none when it is a piece of a long line, which the next entry of
its channel goes on with. What neither Redis nor the object store has is a stated gap, never a silent one.
"""

import base64
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from storage import jobs
from storage.calls import Call, command, pairs, script
from storage.calls import text as decoded
from storage.errors import NotFound
from storage.jobs import Job
from storage.store import Store

log = logging.getLogger("hostler.storage")

#: What readers call the two channels.
STREAMS = {"o": "stdout", "e": "stderr"}

#: How parts are packed: fast, since the object store takes far longer over a byte than this does.
_PACK_LEVEL = 1
#: What a packed part begins with (RFC 8878, section 3.1.1); frames begin with a digit.
_PACKED = b"\x28"
#: So much of a part is unpacked at once.
_UNPACKED_BYTES = 1024 * 1024

#: How many pieces of one long line are compared where a part of the log meets the live stream.
_OVERLAP = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """Output that came together on `channel` (o or e): its first line is `line`, and `count` lines end in it."""

    attempt: int
    line: int
    count: int
    channel: str
    data: bytes

    @property
    def stop(self) -> int:
        """Return the number of the line after those that end here."""
        return self.line + self.count

    @property
    def stream(self) -> str:
        """Return the channel's name for readers: stdout or stderr."""
        return STREAMS[self.channel]

    def split(self, line: int) -> "tuple[Entry, Entry]":
        """Return what comes before `line`, which begins inside this entry, and the rest."""
        end, count = 0, line - self.line
        for _ in range(count):
            end = self.data.find(b"\n", end) + 1 or len(self.data)
        return (
            Entry(self.attempt, self.line, count, self.channel, self.data[:end]),
            Entry(self.attempt, line, self.count - count, self.channel, self.data[end:]),
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines that are kept nowhere, by the `seq` of the first and the last one."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Place:
    """How far a reader is: the number of the next line, and how many pieces of that line it has already."""

    line: int = 0
    pieces: int = 0

    def past(self, entry: Entry) -> "Place":
        """Return the place after `entry`."""
        if entry.count:
            return Place(entry.stop)
        return Place(entry.line, self.pieces + 1 if entry.line == self.line else 1)

    def is_past(self, entry: Entry) -> bool:
        """Tell whether `entry` lies before this place; pieces of the next line are the caller's to count."""
        return entry.stop < self.line or (entry.stop == self.line and entry.count > 0)


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


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log, without its end."""

    seq: int
    attempt: int
    stream: str
    text: str


@dataclass(slots=True)
class Log:
    """Some lines of a log; `next` is what to ask `after` for those that follow."""

    lines: list[Line]
    next: int
    gap: Gap | None
    more: bool
    state: str


#: The newest output of a job's last attempt as `stdout` and `stderr`, and whether some was left out (`truncated`).
Tail = dict[str, Any]


# Frames: how a part of the log lies in the object store


def encode_frame(attempt: int, line: int, count: int, channel: str, data: bytes) -> bytes:
    """Return an entry as parts of the log hold it: the five facts in a line of their own, then the data."""
    return b"%d %d %d %s %d\n%s" % (attempt, line, count, channel.encode("ascii"), len(data), data)


def decode(frames: bytes) -> Iterator[Entry]:
    """Yield the entries of a part that is in memory; one that is cut off at the end is left out."""
    at = 0
    while (end := frames.find(b"\n", at)) >= 0:
        attempt, line, count, channel, length = frames[at:end].split(b" ")
        at = end + 1 + int(length)
        if at > len(frames):
            return
        data = bytes(frames[end + 1 : at])
        yield Entry(int(attempt), int(line), int(count), channel.decode("ascii"), data)


def pack(frames: bytes) -> bytes:
    """Return frames as parts of the log are stored: packed with Zstandard, or as they are where that gains little."""
    import zstandard  # noqa: PLC0415  most processes never store a part

    packed = zstandard.ZstdCompressor(level=_PACK_LEVEL, write_checksum=True).compress(frames)
    return packed if len(packed) < len(frames) * 0.75 else frames


async def _unpacked(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the frames of a stored part. Raises ValueError when it is damaged."""
    held: list[bytes] = []
    packed: bool | None = None  # not known before the first byte
    async for chunk in chunks:
        if packed is None and chunk:
            packed = chunk.startswith(_PACKED)
        if packed:
            held.append(chunk)  # what is packed is short, and would unpack to any length if it came by itself
        else:
            yield chunk
    if held:
        import zstandard  # noqa: PLC0415  as above

        try:
            unpacker = zstandard.ZstdDecompressor()
            for frames in unpacker.read_to_iter(b"".join(held), write_size=_UNPACKED_BYTES):
                yield frames
        except zstandard.ZstdError as error:
            raise ValueError(f"A part of a log is damaged: {error}.") from None


async def decode_stream(chunks: AsyncIterable[bytes]) -> AsyncIterator[Entry]:
    """Yield the entries of a stored part as it arrives, packed or not. Raises ValueError when it is damaged."""
    rest = b""
    async for chunk in _unpacked(chunks):
        rest += chunk
        used = 0
        for entry in decode(rest):
            used = rest.index(b"\n", used) + 1 + len(entry.data)
            yield entry
        rest = rest[used:]


def entry_of(head: bytes, data: bytes) -> Entry:
    """Read an entry of the live stream: `head` is "<attempt> <line> <count> <channel>"."""
    attempt, line, count, channel = head.split(b" ")
    return Entry(int(attempt), int(line), int(count), channel.decode("ascii"), data)


def unpacked(packed: bytes) -> Iterator[tuple[int, Entry]]:
    """Yield the entries of a log that was packed into its job's record (_packed.lua), each with its time (ms).

    What somebody else wrote there ends it.
    """
    at = 0
    while (end := packed.find(b"\n", at)) >= 0:
        words = packed[at:end].split(b" ")
        if len(words) != 6 or not all(word.isdigit() for word in (*words[:4], words[5])):
            return
        at = end + 1 + int(words[5])
        yield int(words[0]), entry_of(b" ".join(words[1:5]), packed[end + 1 : at])


# Reading


def look(
    job_id: str, *, after: int = 0, limit_bytes: int | None = None, mark: tuple[str, str] = ("", "")
) -> Call[Snapshot | None]:
    """Describe reading a job and its live log from line `after` on, all at one instant; None if unknown.

    With `limit_bytes`, the newest entries of about that size. `mark` is a channel and a message that is published
    at that very instant: what a follower hears before it is in the snapshot, what it hears after is not.
    """
    limit = "" if limit_bytes is None else limit_bytes
    return script("log", job_id, after, limit, *mark, read=lambda reply: _looked(job_id, reply))


def _looked(job_id: str, reply: list[Any]) -> Snapshot | None:
    if not reply:
        return None
    event_id, record, parts, entries, whole = reply
    names = ("state", "attempt", "worker", "lines", "dropped", "reason", "exit", "progress", "started")
    row = {name: decoded(value) for name, value in zip(names, record, strict=True)}
    live = [entry_of(head, data) for head, data in reversed(entries)]
    return _snapshot(job_id, row, pairs(parts), live, event_id=decoded(event_id), whole=whole == b"1")


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
    from storage import archive, jobs  # noqa: PLC0415  archive reads logs

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


class _Lines:
    """Puts whole lines together out of entries, which may end in the middle of one."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[int, int, bytes]] = {}  # of each channel: attempt, number, what there is

    def add(self, entry: Entry) -> Iterator[Line]:
        yield from self._ended_by(entry.attempt)
        _, _, begun = self.open.pop(entry.channel, (0, 0, b""))
        *whole, rest = (begun + entry.data).split(b"\n")
        if rest and len(whole) < entry.count:  # the end of the output ended it
            whole, rest = [*whole, rest], b""
        for number, line in enumerate(whole, entry.line + 1):
            yield Line(number, entry.attempt, entry.stream, line.decode("utf-8", "replace"))
        if rest:
            self.open[entry.channel] = (entry.attempt, entry.stop + 1, rest)

    def _ended_by(self, attempt: int | None) -> Iterator[Line]:
        """Yield what attempts before `attempt` left unfinished."""
        for channel, (since, number, begun) in list(self.open.items()):
            if since != attempt:
                del self.open[channel]
                yield Line(number, since, STREAMS[channel], begun.decode("utf-8", "replace"))

    def end(self) -> Iterator[Line]:
        yield from self._ended_by(None)


async def read(
    store: Store, job_id: str, *, after: int = 0, limit_lines: int = 1000, limit_bytes: int = 1024 * 1024
) -> Log:
    """Return the lines that follow the `seq` given as `after`, up to a number and a size. Raises NotFound.

    Stops before a gap, unless it begins with one. The line that a running job has not ended yet is left out.
    """
    found = await snapshot(store, job_id, after=after)
    assembled = _Lines()
    log = Log([], after, None, more=False, state=found.state)
    size_bytes = 0

    def passed(entry: Entry) -> None:
        for _ in assembled.add(entry):
            pass

    def keep(lines: Iterable[Line]) -> None:
        nonlocal size_bytes
        for line in lines:
            if line.seq <= after:
                continue
            if log.lines and (len(log.lines) >= limit_lines or size_bytes >= limit_bytes):
                log.more = True
                return
            log.lines.append(line)
            log.next = line.seq
            size_bytes += len(line.text)

    async with aclosing(pieces(store, found, Place(after), passed=passed)) as log_pieces:
        async for piece in log_pieces:
            if isinstance(piece, Entry):
                keep(assembled.add(piece))
            elif log.lines:
                log.more = True
            else:
                log.gap, log.next = piece, piece.last
                assembled.open.clear()
            if log.more:
                return log
    if found.finished:
        keep(assembled.end())
    return log


async def tail(store: Store, job_id: str, *, limit_bytes: int, lines: int | None = None) -> Tail:
    """Return the newest output of a job's last attempt as `stdout` and `stderr`, and whether some was left out.

    One round trip; none where `lines`, as the job's record counts them, is 0. Raises NotFound.
    """
    found = None if lines == 0 else await store.call(look(job_id, limit_bytes=limit_bytes))
    if found is None and lines != 0:
        found = await snapshot(store, job_id)  # it has left Redis
    return _tail(found, limit_bytes)


def with_packed_tail(job_id: str, *, limit_bytes: int) -> Call[tuple[Job, Tail | None]]:
    """Describe reading a job by one plain command, with its newest output where its record holds all of it.

    That is so once it has ended and its log is short, or as long as it has said nothing; else there is no output.
    Raises NotFound.
    """

    def read(reply: list[Any]) -> tuple[Job, Tail | None]:
        job = jobs.read(job_id, reply)
        held = dict(zip(reply[::2], reply[1::2], strict=True))
        packed = held.get(b"log", b"")
        if not packed and held.get(b"bytes", b"0") not in {
            b"",
            b"0",
        }:  # perhaps of a line that has no end yet
            return job, None
        live = [entry for _, entry in unpacked(packed)]
        return job, _tail_of(live, limit_bytes, truncated=False)

    return command("HGETALL", f"h:job:{jobs.known(job_id)}", read=read)


async def with_tail(store: Store, job_id: str, *, limit_bytes: int) -> tuple[Job, Tail]:
    """Return a job and its newest output, as `tail` does, in one round trip while it is in Redis. Raises NotFound."""

    def read(reply: list[Any]) -> tuple[Job, Snapshot | None]:
        return jobs.read(job_id, reply[0]), _looked(job_id, reply[1])

    try:
        job, found = await store.call(script("seen", jobs.known(job_id), limit_bytes, read=read))
    except NotFound:
        job = await jobs.get(store, job_id)  # it may have left Redis
        return job, await tail(store, job_id, limit_bytes=limit_bytes, lines=job.lines)
    return job, _tail(found, limit_bytes)


def _tail(found: Snapshot | None, limit_bytes: int) -> Tail:
    if found is None:
        return _tail_of([], limit_bytes, truncated=False)
    return _tail_of(found.live, limit_bytes, truncated=not found.whole or found.dropped)


def _tail_of(live: list[Entry], limit_bytes: int, *, truncated: bool) -> Tail:
    if not live:
        return {"stdout": "", "stderr": "", "truncated": False}
    last, room = live[-1].attempt, limit_bytes
    kept: dict[str, list[bytes]] = {"o": [], "e": []}
    for entry in reversed([entry for entry in live if entry.attempt == last]):
        data = entry.data[max(0, len(entry.data) - room) :] if room else b""
        truncated = truncated or len(data) < len(entry.data)
        room -= len(data)
        kept[entry.channel].append(data)
    return {
        "stdout": b"".join(reversed(kept["o"])).decode("utf-8", "replace"),
        "stderr": b"".join(reversed(kept["e"])).decode("utf-8", "replace"),
        "truncated": truncated,
    }


async def text(store: Store, job_id: str) -> AsyncGenerator[bytes, None]:
    """Return the whole log so far, as it was printed, to be iterated; a line of ours tells of a gap.

    Raises NotFound; iterating raises Unavailable.
    """
    found = await snapshot(store, job_id)
    return _text(store, found)


async def _text(store: Store, found: Snapshot) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces(store, found, Place())) as log_pieces:
        async for piece in log_pieces:
            if isinstance(piece, Entry):
                yield piece.data
            else:
                yield b"[hostler] lines %d to %d are not kept\n" % (piece.first, piece.last)


async def live_frames(store: Store, job_id: str) -> bytes:
    """Return what the live stream holds of a job's log, as frames; nothing for an unknown job."""
    found = await store.call(look(job_id))
    live = found.live if found else []
    return b"".join(
        encode_frame(each.attempt, each.line, each.count, each.channel, each.data) for each in live
    )
