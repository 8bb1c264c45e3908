"""A long body of a known length: read past the HTTP parser into pieces of its own, copied by nobody on the way.

Through the parser each read of the socket is copied three times and wakes the request: most of what receiving a large
file took. Here the loop reads into the piece itself, and a piece is handed on once it is full, or after a moment.
"""

import asyncio
import sys
from typing import Any, Protocol

#: Bodies from here on are read so.
LONG_BYTES = 256 * 1024
#: What is handed on at once.
PIECE_BYTES = 256 * 1024
#: A piece that does not fill up is handed on after so long.
GATHER_S = 0.002

#: What is read at a time of a body that was answered before its end.
_UNWANTED_BYTES = 4096
#: So many pieces are used again: one is read into, one waits, one is being used.
_MOST_KEPT = 3
#: References to a piece that only the list of pieces holds: the list's, and the one that is counted with.
_OURS_ALONE = 2


class Taking(Protocol):
    """What takes a body: the exchange of api/exchange.py."""

    body: Any
    response_complete: bool
    message_event: asyncio.Event
    wants: Any


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


class LongBody(asyncio.BufferedProtocol):
    """Takes the connection over from `receiving` for the `left` bytes of a body that are still to come."""

    def __init__(self, receiving: Receiving, exchange: Taking, left: int) -> None:
        self._receiving, self._exchange, self._left = receiving, exchange, left
        self._pieces: list[bytearray] = []
        self._piece, self._used = self._free(), 0
        self._timer: asyncio.TimerHandle | None = None
        self.pause_writing, self.resume_writing = receiving.pause_writing, receiving.resume_writing  # type: ignore[method-assign]

    def take_over(self) -> None:
        """Begin."""
        transport, paused = self._receiving.transport, self._receiving.flow.read_paused
        if not paused:
            transport.pause_reading()
        transport.set_protocol(self)
        if not paused:
            transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return what is free of the piece; it never holds anything beyond the body."""
        if self._exchange.response_complete:  # nobody wants what is in it any more
            self._discard()
        elif self._used == len(self._piece):  # the answer before this one let reading go on
            self._exchange.body = self._exchange.body + self._piece
            self._piece, self._used = self._free(), 0
        return memoryview(self._piece)[self._used : self._used + self._left]

    def _discard(self) -> None:
        """Read on with little: of connections that wait for such an end there may be many."""
        self._used = 0
        if len(self._piece) > _UNWANTED_BYTES:
            self._pieces.clear()
            self._piece, self._exchange.body = bytearray(_UNWANTED_BYTES), b""

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read; hand it on if it is enough."""
        self._left -= nbytes
        if self._exchange.response_complete:
            self._receiving.body_unwanted(nbytes)
        else:
            self._used += nbytes
            self._receiving.body_moves()
        if self._left == 0:
            self._end()
        elif self._used == len(self._piece):
            self._hand_on()
        elif self._timer is None and self._used:
            self._timer = self._receiving.loop.call_later(GATHER_S, self._hand_on)

    def _hand_on(self) -> None:
        """Give the piece to the request, or stop reading until it has taken the one before."""
        self._stop_timer()
        exchange = self._exchange
        if exchange.body:
            if self._used == len(self._piece):
                self._receiving.flow.pause_reading()
            exchange.wants = self._hand_on
            return
        exchange.wants = None
        if self._used:
            exchange.body = self._taken()
            self._piece, self._used = self._free(), 0
            exchange.message_event.set()

    def _taken(self) -> bytearray:
        return self._piece if self._used == len(self._piece) else self._piece[: self._used]

    def _free(self) -> bytearray:
        """Return a piece that nobody else holds any more, nor a view of it: fresh memory costs more than its use."""
        for number in range(len(self._pieces)):
            if sys.getrefcount(self._pieces[number]) == _OURS_ALONE:
                return self._pieces[number]
        piece = bytearray(min(PIECE_BYTES, self._left))
        if len(self._pieces) < _MOST_KEPT:
            self._pieces.append(piece)
        return piece

    def _end(self) -> None:
        self._stop_timer()
        exchange, receiving = self._exchange, self._receiving
        exchange.wants = None
        if not exchange.response_complete:
            rest = self._taken()
            exchange.body = exchange.body + rest if exchange.body else rest
        transport, paused = receiving.transport, receiving.flow.read_paused
        if not paused:
            transport.pause_reading()
        transport.set_protocol(receiving)
        if not paused and not transport.is_closing():
            transport.resume_reading()
        receiving.body_ends()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def eof_received(self) -> Any:
        """Tell the connection."""
        return self._receiving.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection."""
        self._stop_timer()
        self._exchange.wants = None
        self._receiving.connection_lost(exc)
