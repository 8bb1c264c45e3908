"""Logs: what a job printed, pieced together from the live stream in Redis and the parts in the object store.

Lines are numbered from 0 inside and from 1 (`seq`) for readers, over all attempts of a job. An entry is what one
read of the worker brought: `count` lines end in it, none when it is a piece of a long line, which the next entry of
its channel goes on with. What neither Redis nor the object store has is a stated gap, never a silent one.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from storage import jobs
from storage.calls import Call, command, script
from storage.errors import NotFound
from storage.jobs import Job
from storage.logs.entries import (
    STREAMS,
    Entry,
    Gap,
    Place,
    decode,
    decode_stream,
    encode_frame,
    entry_of,
    pack,
    unpacked,
)
from storage.logs.snapshots import Snapshot, look, looked, pieces, snapshot
from storage.store import Store


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
        return jobs.read(job_id, reply[0]), looked(job_id, reply[1])

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


__all__ = [
    "Entry",
    "Gap",
    "Line",
    "Log",
    "Place",
    "Snapshot",
    "Tail",
    "decode",
    "decode_stream",
    "encode_frame",
    "entry_of",
    "live_frames",
    "pack",
    "pieces",
    "read",
    "snapshot",
    "tail",
    "text",
    "unpacked",
    "with_packed_tail",
    "with_tail",
]
