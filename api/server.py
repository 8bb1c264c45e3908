"""The gunicorn worker: uvicorn, with the limits and the manners that neither brings by itself.

Under uvicorn gunicorn's limits on header count, size and time do not apply, and its graceful timeout is not handed
on, so that parked connections hold a deploy for the whole timeout. Both are mended here.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from gunicorn.arbiter import Arbiter
from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn_worker import UvicornWorker

from api.realtime.frames import FRAMES

MOST_HEADERS = 100
HEAD_LIMIT_BYTES = 32 * 1024  # request line and headers together
URI_LIMIT_BYTES = 8 * 1024
#: The head of a request must have arrived by then.
HEAD_DEADLINE_S = 15.0
#: A body of which nothing arrives for so long, while somebody waits for it, is given up.
BODY_IDLE_S = 30.0
#: How often a worker looks whether its master is still there.
MASTER_CHECK_S = 1.0
#: What is read on of a body that was answered before its end, so that its sender hears the answer and no reset.
LINGER_LIMIT_BYTES = 64 * 1024
LINGER_S = 5.0


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, refusing heads that are too long, too many or too slow."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._linger_bytes: int | None = None  # what may still come of a body that nobody wants

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the clock on the first head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives before a head is complete."""
        if self._in_head:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._head_too_slow)
            self._head_bytes += len(data)
        if self._body_timer is not None and self._linger_bytes is None:
            self._expect_body()
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(431, "Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Refuse a URI that is too long."""
        super().on_url(url)
        if len(self.url) > URI_LIMIT_BYTES:
            self._refuse(414, "URI Too Long")

    def on_headers_complete(self) -> None:
        """End a head; refuse it where it has too many headers, or one that makes its length ambiguous."""
        self._in_head, self._head_bytes = False, 0
        self._stop_clock()
        self._expect_body()  # called off at once where there is none: the message is then complete
        names = [name for name, _ in self.headers]
        size_bytes = sum(len(name) + len(value) for name, value in self.headers)
        if len(names) > MOST_HEADERS or size_bytes > HEAD_LIMIT_BYTES:
            self._refuse(431, "Request Header Fields Too Large")
        elif not self._is_plain(names):
            self._refuse(400, "Bad Request")
        if not self.transport.is_closing():
            super().on_headers_complete()

    def _is_plain(self, names: list[bytes]) -> bool:
        """Tell whether the head is one that everybody reads alike: its version, its host, where its body ends."""
        version = self.parser.get_http_version()
        return (
            version in {"1.0", "1.1"}
            and names.count(b"host") <= 1
            and (b"host" in names or version == "1.0")  # RFC 9112, section 3.2
            and names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
            and all(
                value.lower() == b"chunked" for name, value in self.headers if name == b"transfer-encoding"
            )
        )

    def on_body(self, body: bytes) -> None:
        """Count what comes of a body that nobody wants."""
        super().on_body(body)
        if self._linger_bytes is not None:
            self._linger_bytes -= len(body)
            if self._linger_bytes < 0:
                self.transport.close()

    def on_response_complete(self) -> None:
        """Set a limit to what is read of a body that was answered before its end."""
        super().on_response_complete()
        unread = not self.pipeline and self.cycle is not None and self.cycle.more_body
        if unread and not self.transport.is_closing():
            self._stop_clock()
            self._linger_bytes = LINGER_LIMIT_BYTES
            self._body_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def on_message_complete(self) -> None:
        """Wait for the next head."""
        self._stop_clock()
        self._linger_bytes = None
        super().on_message_complete()
        self._in_head = True

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the WebSocket protocol, which has a clock of its own."""
        self._stop_clock()
        super().handle_websocket_upgrade()

    def _refuse(self, status: int, phrase: str) -> None:
        if self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        self.transport.write(head.encode())
        self.transport.close()

    def _head_too_slow(self) -> None:
        if self._in_head and self._head_bytes:
            self._refuse(408, "Request Timeout")
        elif self._in_head and not self.transport.is_closing() and self.cycle is None:
            self.transport.close()  # connected, and said nothing

    def _expect_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
        self._body_timer = self.loop.call_later(BODY_IDLE_S, self._body_too_slow)

    def _body_too_slow(self) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self._expect_body()
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_clock(self) -> None:
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._body_timer = None


class FramesProtocol(WebSocketsSansIOProtocol):
    """A WebSocket that also takes frames already encoded, so that one encoding and one write serve for many."""

    async def run_asgi(self) -> None:
        """Serve with the extension in the scope."""
        extensions: dict[str, object] = {**(self.scope["extensions"] or {}), FRAMES: self._write_frames}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]  # one that the standard does not know
        await super().run_asgi()

    def _write_frames(self, frames: bytes) -> int:
        """Write encoded frames, between those of others; answers how many bytes the client has not taken."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return 0
        self.transport.write(frames)
        return self.transport.get_write_buffer_size()


class _Server(Server):
    """Uvicorn's server, which lets long polls and streams go before it waits for connections to end."""

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Tell the application that it ends, then close down; it hears of it otherwise only when all have left."""
        if (leave := getattr(self.config.app, "leave", None)) is not None:
            await leave()
        await super().shutdown(sockets)


class Worker(UvicornWorker):
    """Uvicorn under gunicorn: no trust in forwarding headers, a bound on shutdown, SIGQUIT understood."""

    CONFIG_KWARGS = {  # noqa: RUF012  uvicorn-worker reads it as a class attribute
        "loop": "uvloop",
        "http": GuardedProtocol,
        "ws": FramesProtocol,
        "proxy_headers": False,
        "server_header": False,
        "log_level": "warning",  # at info it writes whole URLs of WebSockets, and clients put tokens there
        "date_header": True,
        "ws_max_size": 64 * 1024,
        "ws_ping_interval": 20.0,
        "ws_ping_timeout": 20.0,
        "ws_per_message_deflate": False,  # a few bytes must not unpack to gigabytes
        "timeout_keep_alive": 65,
    }

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # a little less than gunicorn's own, so that the worker leaves before it is killed
        self.config.timeout_graceful_shutdown = max(1, self.cfg.graceful_timeout - 2)

    async def _serve(self) -> None:
        """Serve as the stock worker does, with our server."""
        self.config.app = self.wsgi
        server = _Server(config=self.config)
        self._install_sigquit_handler()
        watch = asyncio.create_task(self._leave_with_master(server))
        await server.serve(sockets=self.sockets)
        watch.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _leave_with_master(self, server: Server) -> None:
        """Stop when gunicorn's master is gone: nobody else would, and the port would stay taken."""
        while os.getppid() == self.ppid:
            await asyncio.sleep(MASTER_CHECK_S)
        server.should_exit = True

    def _install_sigquit_handler(self) -> None:
        """Treat gunicorn's quick stop as SIGTERM; the stock worker notes it and waits to be killed."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, os.kill, os.getpid(), signal.SIGTERM)
