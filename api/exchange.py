"""One request and its answer over HTTP/1.1, as ASGI has it: uvicorn's, with fewer steps on the usual way."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

if TYPE_CHECKING:
    from api.long_body import LongBody
    from api.server import GuardedProtocol

#: The extension in a scope that takes a whole answer at once: `await answer(status, lines, body)`.
WHOLE = "hostler.whole"

#: The extension in a scope that holds what is known of the caller already: its Admission, or what Redis failed with.
ADMITTED = "hostler.admitted"

#: The extension in a scope that holds the id that a request has been given already, and when it came (perf_counter, s).
BEGUN = "hostler.begun"

#: A head waits for a body of up to this size, to leave in one piece with it.
_TOGETHER_BYTES = 64 * 1024

#: Fields of an answer that decide where it ends and what becomes of the connection.
_DECIDING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


class Exchange(RequestResponseCycle):
    """A request whose body arrives, and the answer to it, written in as few pieces as it comes in."""

    body: Any  # uvicorn: a bytearray

    def __init__(self, protocol: "GuardedProtocol", *, keep_alive: bool) -> None:
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.server_state = protocol.server_state
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.read_on = protocol.read_on
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = b""  # nearly always one piece, which is then handed on as it is
        self.long: LongBody | None = None  # what reads the rest of a long body
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0
        self._held = b""

    async def receive(self) -> Any:
        """Return the next piece of the body, or that the client has gone."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        over = self.disconnected or self.response_complete
        if not over and self.long is not None:
            self.body = self.body or await self.long.piece()
            over = not self.body
        elif not over:
            self.read_on()
            await self.message_event.wait()
        self.message_event.clear()
        if over or self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """Take an ASGI message of the answer. Raises RuntimeError for one that does not fit those before it."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"The answer cannot begin with {kind!r}.")
            self._start(message["status"], message.get("headers", ()))
        elif self.response_complete or kind != "http.response.body":
            raise RuntimeError(f"The answer cannot go on with {kind!r}.")
        else:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))

    async def answer(self, status: int, lines: bytes, body: bytes | None) -> None:
        """Write a whole answer: `lines` are its header fields, valid, each with its line's end, without its length.

        `body` is None for an answer that has none, such as 204.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        self.answer_at_once(status, lines, body)

    def answer_at_once(self, status: int, lines: bytes, body: bytes | None) -> None:
        """Write a whole answer, as `answer` does, without a look at how much the client has not taken yet."""
        if self.disconnected:
            return
        self.response_started = True
        self.waiting_for_100_continue = False
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        length = b"content-length: %d\r\n" % len(body) if body is not None else b""
        defaults = _encoded(self.server_state.default_headers)
        self.transport.write(b"".join((STATUS_LINE[status], defaults, lines, length, end, body or b"")))
        self._complete()

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        fields = [(name.lower(), value) for name, value in headers]
        # all at once: what no name may hold is in one of them, or it is not
        if HEADER_RE.search(b"".join([name for name, _ in fields])):
            raise RuntimeError("A header's name holds what none may hold.")
        if HEADER_VALUE_RE.search(b"".join([value for _, value in fields])):
            raise RuntimeError("A header's value holds what none may hold.")
        self.response_started = True
        self.waiting_for_100_continue = False
        closes = False
        content = [STATUS_LINE[status], _encoded(self.server_state.default_headers)]
        for name, value in fields:
            if name in _DECIDING:
                if name == b"content-length" and self.chunked_encoding is None:
                    self.expected_content_length, self.chunked_encoding = int(value), False
                elif name == b"transfer-encoding" and value.lower() == b"chunked":
                    self.expected_content_length, self.chunked_encoding = 0, True
                elif name == b"connection":
                    closes |= b"close" in [token.strip() for token in value.lower().split(b",")]
            content += (name, b": ", value, b"\r\n")
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            content.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in {204, 304}:
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"\r\n")
        head = b"".join(content)
        if 0 < self.expected_content_length <= _TOGETHER_BYTES and self.scope["method"] != "HEAD":
            self._held = head
        else:
            self.transport.write(head)

    def _go_on(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            pieces = [b"%x\r\n" % len(body), body, b"\r\n"] if body else []
            if not more:
                pieces.append(b"0\r\n\r\n")
            self.transport.write(b"".join(pieces))
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("The body is longer than the Content-Length says.")
            self.transport.write(self._held + body if self._held else body)
            self._held = b""
        if not more:
            if self.expected_content_length:
                raise RuntimeError("The body is shorter than the Content-Length says.")
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


_last: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")


def _encoded(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the server's own header fields, which it makes anew once a second, as lines."""
    global _last  # noqa: PLW0603  one server a process
    if headers is not _last[0]:
        _last = headers, b"".join([b"%s: %s\r\n" % pair for pair in headers])
    return _last[1]
