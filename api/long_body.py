"""A long body of a known length: read past the HTTP parser, straight into the memory of whoever reads it.

Through the parser each read of the socket is copied three times and wakes the request: most of what receiving a large
file took. Here the loop reads in place; and as long as a body comes fast, one of a few threads does, which wakes nobody
until the memory is full. Each thread has left after a moment of which nothing came, so that no sender keeps one.
"""

import asyncio
import os
import select
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

#: The extension in a scope that reads the body in place: `read_into` of its LongBody.
IN_PLACE = "hostler.in-place"

#: Bodies from here on are read so.
LONG_BYTES = 256 * 1024
#: What the loop reads at once; a body of which so much has come in one go is left to a thread.
PIECE_BYTES = 256 * 1024
#: A piece that does not fill up is handed on after so long.
GATHER_S = 0.002

#: Bodies of a process that threads receive at a time; the loop reads those that come fast beyond them.
MOST_THREADS = 2
#: A thread is woken for so much; where it has not come after so long, the loop goes on.
_WAKE_BYTES = 1024 * 1024
_WAKE_MS = 40
#: A thread receives no more before it has it looked at: what its core has cached.
_LOOK_BYTES = 2 * 1024 * 1024
#: How much later than others a thread that receives gets its turn: what has come is looked at before more is received.
_NICENESS = 5

#: What is read at a time of a body that was answered before its end.
_UNWANTED_BYTES = 4096


class Taking(Protocol):
    """What takes a body: the exchange of api/exchange.py."""

    response_complete: bool
    message_event: asyncio.Event
    long: Any


class Receiving(Protocol):
    """The connection that a body comes by: the protocol of api/server.py."""

    transport: Any
    flow: Any
    loop: Any

    def body_moves(self) -> None:
        """Wait for more of the body from now on."""

    def body_unwanted(self, size_bytes: int) -> None:
        """Count what comes of a body that was answered before its end."""

    def body_ends(self) -> None:
        """Go on with the next head."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the connection."""

    def eof_received(self) -> Any:
        """Take the end of what the client sends."""

    def pause_writing(self) -> None:
        """Wait with writing."""

    def resume_writing(self) -> None:
        """Go on writing."""


class _Received(NamedTuple):
    """What a thread has received, whether the rest comes fast too, and what `look` failed with."""

    size: int
    fast: bool
    failure: Exception | None = None


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere it would slow down the whole process
        os.nice(_NICENESS)


_threads = ThreadPoolExecutor(MOST_THREADS, "receive", initializer=_give_way)
_by_threads: set["LongBody"] = set()


class LongBody(asyncio.BufferedProtocol):
    """Takes the connection over from `receiving` for the `left` bytes of a body that are still to come.

    Nothing is read while nobody asks for it: what has come waits in the socket.
    """

    def __init__(self, receiving: Receiving, exchange: Taking, left: int) -> None:
        self._receiving, self._exchange, self._left = receiving, exchange, left
        self._room: memoryview | None = None  # what the loop reads into, while somebody waits for it
        self._used = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fast = False
        self._stopped = False  # by whom it was for, or with the connection; a thread looks at it
        self.pause_writing, self.resume_writing = receiving.pause_writing, receiving.resume_writing  # type: ignore[method-assign]

    def take_over(self) -> None:
        """Begin."""
        self._receiving.flow.pause_reading()
        self._receiving.transport.set_protocol(self)
        self._exchange.long = self

    async def piece(self) -> bytearray:
        """Return the next piece, empty when no more will come."""
        piece = bytearray(min(PIECE_BYTES, self._left))
        size = await self.read_into(piece, 0, len(piece), lambda _: True)
        return piece if size == len(piece) else piece[:size]

    async def read_into(self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
        """Read into `buffer[start:end]` as ReadInto (storage/read_into.py) has it.

        Who is cancelled meanwhile cannot go on with the body.
        """
        if self._is_over():
            return 0
        size = 0
        try:
            with memoryview(buffer) as whole, whole[start : min(end, start + self._left)] as room:
                if self._fast and len(room) >= _WAKE_BYTES and len(_by_threads) < MOST_THREADS:
                    size = await self._read_by_thread(room, lambda size: look(start + size))
                if not size and not self._is_over():
                    size = await self._read_by_loop(room[:PIECE_BYTES])
                    look(start + size)
        except asyncio.CancelledError:
            self._stopped = True
            raise
        if not self._left:
            self._exchange.message_event.clear()  # its end was told
        return size

    def _is_over(self) -> bool:
        return not self._left or self._stopped or self._exchange.response_complete

    async def _read_by_loop(self, room: memoryview) -> int:
        flow = self._receiving.flow
        self._room, self._used = room, 0
        self._waiter = self._receiving.loop.create_future()
        flow.resume_reading()
        try:
            await self._waiter
        finally:
            self._stop_timer()
            self._room = None
            if self._left:  # otherwise what is read now is the next request
                flow.pause_reading()
        if len(room) == PIECE_BYTES:
            self._fast = self._used == PIECE_BYTES
        return self._used

    async def _read_by_thread(self, room: memoryview, look: Callable[[int], bool]) -> int:
        loop = self._receiving.loop
        try:  # the loop may close its own while the thread reads, and open another by the same number
            descriptor = os.dup(self._receiving.transport.get_extra_info("socket").fileno())
        except OSError:  # there are no more to be had
            return 0
        parcel = [(descriptor, room[:])]  # whoever takes it out reads on
        try:
            reading = loop.run_in_executor(_threads, self._receive, parcel, look)
        except RuntimeError:  # none could be started; if one runs one day, it finds nothing to do
            try:
                parcel.pop()[1].release()
            except IndexError:  # it does, by now
                self._stopped = True
                raise
            os.close(descriptor)
            self._fast = False
            return 0
        _by_threads.add(self)
        reading.add_done_callback(self._thread_has_read)
        received: _Received = await asyncio.shield(reading)
        if received.failure is not None:
            raise received.failure
        return received.size

    def _receive(self, parcel: list[tuple[int, memoryview]], look: Callable[[int], bool]) -> _Received:
        """Receive until the room is full, `look` says no, or a moment passes in which not enough comes."""
        size, fast, least = 0, True, 0
        try:
            descriptor, room = parcel.pop()
        except IndexError:
            return _Received(0, fast=False)
        try:
            with room, socket.socket(fileno=descriptor) as connection:
                ready = select.poll()
                ready.register(connection, select.POLLIN)
                try:
                    while fast and size < len(room) and not self._stopped:
                        with room[size : size + _LOOK_BYTES] as rest:
                            if least != min(len(rest), _WAKE_BYTES):
                                least = min(len(rest), _WAKE_BYTES)
                                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
                            fast = bool(ready.poll(_WAKE_MS))
                            came = connection.recv_into(rest)
                        fast = fast and came > 0
                        size += came
                        if came and not look(size):
                            break
                finally:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError:  # nothing has come, or it is one that the loop will see too
            fast = False
        except Exception as failure:
            return _Received(size, fast, failure)
        return _Received(size, fast)

    def _thread_has_read(self, reading: "asyncio.Future[_Received]") -> None:
        """Count what a thread has received, whether or not anybody waits for it any more."""
        _by_threads.discard(self)
        if reading.cancelled():
            return
        size, self._fast, _ = reading.result()
        self._left -= size
        if self._exchange.response_complete:
            self._receiving.body_unwanted(size)
            self.resume_reading()
        else:
            self._receiving.body_moves()
        if self._left == 0:
            self._end()

    def resume_reading(self) -> None:
        """Read to the end of a body that has been answered; an answer to the request before it changes nothing."""
        if self._exchange.response_complete and self not in _by_threads:
            self._room = None
            self._wake()
            self._receiving.flow.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return what is read into next; it never holds anything beyond the body."""
        if self._room is None:
            return memoryview(bytearray(min(_UNWANTED_BYTES, self._left)))
        return self._room[self._used :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read; hand it on if it is enough."""
        self._left -= nbytes
        if self._room is None:
            self._receiving.body_unwanted(nbytes)
        else:
            self._used += nbytes
            self._receiving.body_moves()
        if self._left == 0:
            self._end()
        elif self._room is not None and self._used == len(self._room):
            self._wake()
        elif self._room is not None and self._timer is None:
            self._timer = self._receiving.loop.call_later(GATHER_S, self._wake)

    def _wake(self) -> None:
        self._stop_timer()
        if self._waiter is not None and not self._waiter.done():
            self._receiving.flow.pause_reading()
            self._waiter.set_result(None)

    def _end(self) -> None:
        self._wake()
        receiving = self._receiving
        self._exchange.long = None
        receiving.flow.pause_reading()
        receiving.transport.set_protocol(receiving)
        receiving.flow.resume_reading()
        receiving.body_ends()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def eof_received(self) -> Any:
        """Tell the connection."""
        return self._receiving.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection, and who waits for more."""
        self._stopped = True
        self._receiving.connection_lost(exc)
        self._wake()
