"""What a command prints: numbered by line, kept within its quota, sent on in order, spooled while nobody listens.

Nothing a command prints can block it for long or fill the worker's memory: what is not yet delivered waits in a file
beside the job's directory. Delivery may repeat a piece after a lost reply; the line numbers make that harmless.
"""

import asyncio
import errno
import os
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import IO

from storage import progress
from storage.errors import Conflict, NotFound, Unavailable
from storage.logs import encode_frame
from workers.insisting import insist_unless
from workers.lines import Line, Offer
from workers.log import log

#: A line longer than this is broken into several, so that no reader has to hold more and every piece has its number.
PIECE_BYTES = 64 * 1024
#: While so many pieces wait, the one under way among them, lines are put together into longer ones: what a piece
#: costs here, in Redis and for each follower hardly depends on its length, and it would have to wait anyway.
MOST_WAITING = 1
#: So much of one log is held in memory; beyond, it is in a file.
MEMORY_BYTES = 256 * 1024
#: The log goes to the object store in parts of this size.
PART_BYTES = 8 * 1024 * 1024
#: … or half of what the live log keeps, so that a reader finds each line in one or the other.
LIVE_SHARE = 2
#: What the script leaves of the live log when it trims it: what is sent runs ahead of what is stored by no more.
LIVE_KEPT = 0.75
#: While the object store is away, so long between two tries in the middle of a log.
STORE_PAUSE_S = 5.0
#: So long does a result wait for a log that is too long for Redis.
STORE_PATIENCE_S = 300.0


@dataclass(slots=True)
class _Piece:
    """Lines of one channel, waiting to be sent; `offset` is where its frame is."""

    channel: str
    first: int
    count: int
    offset: int
    data: bytes | None
    size: int
    header: int


class Spool:
    """The frames of one log, in memory while it is short and in a file once it is long."""

    def __init__(self, directory: str) -> None:
        self.size_bytes = 0
        self._directory = directory
        self._memory: bytearray | None = bytearray()
        self._file: IO[bytes] | None = None

    def append(self, frame: bytes) -> int:
        """Add a frame; answers where it begins. Raises OSError when the disk is full."""
        offset = self.size_bytes
        if self._memory is not None:
            if len(self._memory) + len(frame) <= MEMORY_BYTES:
                self._memory += frame
                self.size_bytes += len(frame)
                return offset
            file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115  closed by close()
            try:
                _write(file, bytes(self._memory), 0)
            except OSError:
                file.close()
                raise
            self._file, self._memory = file, None
        if self._file is None:
            raise ValueError("The spool is closed.")
        _write(self._file, frame, offset)
        self.size_bytes += len(frame)
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`."""
        if self._memory is not None:
            return bytes(self._memory[offset : offset + size])
        if self._file is None:
            raise ValueError("The spool is closed.")
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        """Forget everything. Safe to run twice."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            self._file = None


def _write(file: IO[bytes], data: bytes, offset: int) -> None:
    """Write past no buffer: what a full disk did not take must not be in the way of reading and closing.

    Raises OSError.
    """
    file.seek(offset)
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Output:
    """The output of one attempt on its way to the control plane.

    `gone` is called when the control plane says that the attempt is no longer ours, `cancel` when it wants its end.
    """

    def __init__(
        self, line: Line, offer: Offer, *, directory: str, limit_bytes: int, live_bytes: int,
        gone: Callable[[], None], cancel: Callable[[], None],
    ) -> None:  # fmt: skip
        self._line, self._offer = line, offer
        self._limit_bytes, self._live_bytes = limit_bytes, live_bytes
        self._gone, self._cancel = gone, cancel
        self._part_bytes = min(PART_BYTES, live_bytes // LIVE_SHARE)
        self._spool = Spool(directory)
        self._tails = {"o": b"", "e": b""}
        self._waiting: deque[_Piece] = deque()
        self._waiting_bytes = 0
        self._batch, self._batch_channel = bytearray(), "o"
        self._sender: asyncio.Task[None] | None = None
        self._storer: asyncio.Task[None] | None = None
        self._next = offer.lines
        self._marks: deque[tuple[int, int]] = deque()  # where the next parts of the log end: byte and line
        self._store_after = 0.0
        self._parts_until = (0, offer.lines)  # bytes of the spool and lines that are in the object store
        self._percent: int | None = None
        self.bytes_kept = 0
        self.truncated = False
        self.lost = False

    def feed(self, channel: str, data: bytes) -> None:
        """Take what was read from a pipe; whole lines go on at once, the rest of a line waits for its end."""
        data = self._tails[channel] + data
        start = 0
        while stop := data.rfind(b"\n", start, start + PIECE_BYTES) + 1 or _full(data, start):
            self._add(channel, data[start:stop])
            start = stop
        self._tails[channel] = data[start:]

    def end(self) -> None:
        """Take what is left as the last lines."""
        for channel, tail in self._tails.items():
            if tail:
                self._add(channel, tail)
            self._tails[channel] = b""

    def say(self, message: str) -> None:
        """Add a line of the worker's own to the log, marked as such."""
        self._add("e", f"[hostler] {message}\n".encode())

    def _add(self, channel: str, data: bytes) -> None:
        if self.truncated or self.lost:
            return
        if (percent := progress.last(data)) is not None and percent != self._percent:
            self._percent = percent
        whole = self._batch[-1:] == b"\n"  # else a broken line ends there, and keeps its number
        if channel != self._batch_channel or not whole or len(self._batch) + len(data) > PIECE_BYTES:
            self._flush()
        if len(self._waiting) >= MOST_WAITING:
            self._batch_channel = channel
            self._batch += data
        else:
            self._flush()
            self._enqueue(channel, data)

    def _flush(self) -> None:
        """Make one piece of the lines that came while many pieces were waiting."""
        data, self._batch = bytes(self._batch), bytearray()
        if data:
            self._enqueue(self._batch_channel, data)

    def _enqueue(self, channel: str, data: bytes) -> None:
        if self.truncated:
            return
        room = self._limit_bytes - self.bytes_kept
        if len(data) > room:
            if end := data.rfind(b"\n", 0, max(0, room)) + 1:  # the lines that still fit
                self._append(channel, data[:end])
            self.truncated = True
            mark = b"[hostler] output limit of %d bytes reached; what follows is not kept\n"
            channel, data = "e", mark % self._limit_bytes
        self._append(channel, data)

    def _append(self, channel: str, data: bytes) -> None:
        count = data.count(b"\n") + (not data.endswith(b"\n"))
        self.bytes_kept += len(data)
        frame = encode_frame(self._offer.attempt, self._next, count, channel, data)
        try:
            offset = self._spool.append(frame)
        except OSError as error:
            self.truncated = True
            log.error(
                "the log can no longer be spooled", extra={"job": self._offer.job_id, "why": str(error)}
            )
            return
        if offset - (self._marks[-1] if self._marks else self._parts_until)[0] >= self._part_bytes:
            self._marks.append((offset, self._next))
        kept = data if self._waiting_bytes < MEMORY_BYTES else None
        header = len(frame) - len(data)
        self._waiting.append(_Piece(channel, self._next, count, offset, kept, len(data), header))
        self._waiting_bytes += len(data) if kept else 0
        self._next += count
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        """Send what waits, in order, trying again while the control plane is away."""
        try:
            await self._send_all()
        except Exception:  # a log that cannot be delivered must not keep the result from being so
            log.exception("output could not be delivered", extra={"job": self._offer.job_id})
            self.truncated = True
            self._waiting.clear()
        self._sender = None

    async def _send_all(self) -> None:
        while self._waiting and not self.lost:
            piece = self._waiting[0]
            data = piece.data
            if data is None:
                data = self._spool.read(piece.offset + piece.header, piece.size)
            else:
                self._waiting_bytes -= piece.size
                piece.data = None
            await self._deliver(partial(self._send_piece, piece, data))
            self._waiting.popleft()
            if len(self._waiting) < MOST_WAITING:
                self._flush()
            if self._percent is not None:
                percent, self._percent = self._percent, None
                await self._deliver(partial(self._line.progress, self._offer, percent))
            await self._store_beside()

    async def _send_piece(self, piece: _Piece, data: bytes) -> None:
        received = await self._line.output(
            self._offer, piece.channel, data, first_line=piece.first, line_count=piece.count
        )
        if received.cancel:
            self._cancel()

    async def _deliver(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take one step until it is done, or until the attempt is not ours any more."""
        try:
            await insist_unless(lambda: self.lost, step)
        except (Conflict, NotFound):
            self.lost = True
            self._gone()

    @property
    def _sent(self) -> int:
        return self._waiting[0].offset if self._waiting else self._spool.size_bytes

    async def _store_beside(self) -> None:
        """Have parts that are complete stored while sending goes on, for as long as the live log has what they lack.

        While the store is away, the live log goes on.
        """
        loop = asyncio.get_running_loop()
        while True:
            due = self._marks and self._marks[0][0] <= self._sent
            if due and self._storer is None and loop.time() >= self._store_after:
                self._storer = loop.create_task(self._store_parts())
                self._storer.add_done_callback(self._stored)
            if self._storer is None or self._sent - self._parts_until[0] <= LIVE_KEPT * self._live_bytes:
                return
            await asyncio.wait((self._storer,))

    def _stored(self, storer: "asyncio.Task[None]") -> None:
        self._storer = None
        if not storer.cancelled() and (error := storer.exception()) is not None:
            log.error(
                "a part of the log could not be stored", exc_info=error, extra={"job": self._offer.job_id}
            )
            self._store_after = asyncio.get_running_loop().time() + STORE_PAUSE_S

    async def _store_parts(self) -> None:
        """Store the parts of the log that are complete and sent."""
        try:
            while self._marks and self._marks[0][0] <= self._sent:
                await self._store_until(*self._marks[0])
                self._marks.popleft()
        except Unavailable:
            self._store_after = asyncio.get_running_loop().time() + STORE_PAUSE_S
        except (Conflict, NotFound):
            self.lost = True
            self._gone()

    async def _store_until(self, stop: int, next_line: int) -> None:
        start, first = self._parts_until
        if stop > start:
            frames = self._spool.read(start, stop - start)
            await self._line.put_log(self._offer, frames, first_line=first, next_line=next_line)
        self._parts_until = (stop, next_line)

    async def delivered(self) -> None:
        """Return once everything has arrived; a log too long for Redis is then whole in the object store.

        When the store stays away, the result goes without the rest of the log, whose gap readers are told of.
        """
        if self._sender is not None:
            await self._sender
        if self._storer is not None:
            await asyncio.wait((self._storer,))
        attempts = 1 + int(self._offer.spec.get("retries") or 0)  # they share what is kept in Redis
        if self.bytes_kept > self._live_bytes // attempts and not self.lost:
            try:
                async with asyncio.timeout(STORE_PATIENCE_S):
                    await self._store_rest()
            except TimeoutError:
                log.error("the log could not be stored whole", extra={"job": self._offer.job_id})
                self.truncated = True

    async def _store_rest(self) -> None:
        for mark in [*self._marks, (self._spool.size_bytes, self._next)]:
            await self._deliver(partial(self._store_until, *mark))
        self._marks.clear()

    async def close(self) -> None:
        """Drop what is not delivered. Safe to run twice."""
        for task in (self._sender, self._storer):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        self._spool.close()
        self._gone = self._cancel = _nothing  # what holds this, too, and would wait for the garbage collector


def _nothing() -> None:
    """Be called by nobody any more."""


def _full(data: bytes, start: int) -> int:
    """Return where a line that is too long is broken; 0 while its end may still come."""
    return start + PIECE_BYTES if len(data) - start >= PIECE_BYTES else 0
