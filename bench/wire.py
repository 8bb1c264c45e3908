"""The least there is of an HTTP client: requests made ready beforehand, one at a time on a connection."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools


def request(method: str, url: str, headers: Mapping[str, str], body: str = "") -> bytes:
    """Return a request as it is sent; a body is JSON."""
    where = urlsplit(url)
    path = f"{where.path or '/'}{'?' + where.query if where.query else ''}"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {where.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


class Line(asyncio.Protocol):
    """One connection; calls `answered` with status and body, or `closed` when it has ended.

    `free` is called when it can be asked, and again after each answer.
    """

    def __init__(
        self,
        free: Callable[["Line"], None],
        answered: Callable[["Line", int, bytes], None],
        closed: Callable[["Line"], None],
    ) -> None:
        self.free, self.answered, self.closed = free, answered, closed
        self.asked = False
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def send(self, asked: bytes) -> None:
        """Send a request, while no other one is without its answer."""
        self.asked = True
        self._body.clear()
        self.transport.write(asked)

    def connection_made(self, transport: Any) -> None:
        """Offer this connection."""
        self.transport = transport
        self.free(self)

    def data_received(self, data: bytes) -> None:
        """Read some of an answer."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand an answer over; one that nobody asked for means that the server is about to close."""
        if self.asked:
            self.asked = False
            self.answered(self, self._parser.get_status_code(), b"".join(self._body))
            if self._parser.should_keep_alive():
                self.free(self)
            else:
                self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Tell of the end."""
        self.closed(self)


class Client:
    """A connection of one's own, opened anew when the server has closed it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._line: Line | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: str = ""
    ) -> tuple[int, bytes]:
        """Return status and body. Raises OSError when the connection ends first."""
        loop, where = asyncio.get_running_loop(), urlsplit(self.url)
        if self._line is None:
            _, self._line = await loop.create_connection(
                lambda: Line(lambda _: None, self._answered, self._closed),
                where.hostname or "",
                where.port or 80,
            )
        self._answer = loop.create_future()
        self._line.send(request(method, self.url + path, headers, body))
        return await self._answer

    @property
    def is_open(self) -> bool:
        """Tell whether there is a connection."""
        return self._line is not None

    def close(self) -> None:
        """End the connection."""
        if self._line is not None:
            self._line.transport.abort()

    def _answered(self, _: Line, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    def _closed(self, line: Line) -> None:
        if self._line is line:
            self._line = None
        if self._answer is not None and not self._answer.done():
            with contextlib.suppress(asyncio.InvalidStateError):
                self._answer.set_exception(ConnectionResetError("The server closed the connection."))
