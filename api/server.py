"""The gunicorn worker: uvicorn, with the limits and the manners that neither brings by itself.

Under uvicorn gunicorn's limits on header count, size and time do not apply, and its graceful timeout is not handed
on, so that parked connections hold a deploy for the whole timeout. Both are mended here.
"""

import asyncio
import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import httptools
from gunicorn.arbiter import Arbiter
from uvicorn import Server
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from uvicorn_worker import UvicornWorker

from api.exchange import WHOLE, Exchange
from api.long_body import IN_PLACE, LONG_BYTES, LongBody
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
#: Most clients write a head and its short body separately: a body up to so long is waited for, from each of its pieces
#: to the next, before its request is served in the ordinary way.
HELD_BODY_BYTES, HELD_S = 16 * 1024, 0.2
#: What is read on of a body that was answered before its end, so that its sender hears the answer and no reset.
LINGER_LIMIT_BYTES = 64 * 1024
LINGER_S = 5.0
#: Deadlines are looked at no more often than this.
TICK_S = 0.25
#: Who takes nothing for so long of what waits for them is cut off: as by nginx (`send_timeout`), and sooner at the end.
STALL_S, GOODBYE_S = 60.0, 10.0
#: Fields that say whom a message is for and where it ends.
_DECIDING = frozenset({b"host", b"expect", b"content-length", b"transfer-encoding"})
#: The offer to go on in HTTP/2, which Java's client and `curl --http2` make over cleartext.
_HTTP2_OFFER = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class _Phase(Enum):
    """What a connection is waiting for, and what happens when it has waited too long."""

    HEAD = auto()  #: its first head, or the rest of one: 408, or closed without a word where nothing has come
    BODY = auto()  #: more of a body: closed, unless it is we who do not read
    LINGER = auto()  #: the end of a body that was answered before it: closed
    SERVING = auto()  #: an answer, which has no deadline here
    IDLE = auto()  #: another request: closed


class _Clock:
    """One timer for all connections of a process; one each, set anew by every request, took a tenth of its time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.watched: set[GuardedProtocol] = set()
        #: No deadline is earlier than this, but for what the pause between two looks takes.
        self.looks_at = inf
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, due: float) -> None:
        """Look at the deadlines of all connections by `due`, which is earlier than the next look."""
        if self._timer is not None:
            self._timer.cancel()
        self.looks_at = due
        self._timer = self.loop.call_at(max(due, self.loop.time() + TICK_S), self._look)

    def _look(self) -> None:
        now, self._timer, self.looks_at = self.loop.time(), None, inf
        for connection in [each for each in self.watched if each.due <= now]:
            connection.out_of_time()
        due = min((each.due for each in self.watched), default=inf)
        if due < self.looks_at:
            self.expect(due)


_clocks: WeakKeyDictionary[ServerState, _Clock] = WeakKeyDictionary()


class _SendTimeout:
    """Cuts a connection off whose client takes nothing of what waits for it; the transport itself waits for ever.

    While it is begun, nothing is to be written.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop, self._transport = loop, transport
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, patience_s: float) -> None:
        """Cut it off after so long without progress, from now on."""
        self.end()
        waiting_bytes = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(patience_s, self._look, patience_s, waiting_bytes)

    def end(self) -> None:
        """Let it be. Safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, patience_s: float, before_bytes: int) -> None:
        self._timer = None
        waiting_bytes = self._transport.get_write_buffer_size()
        if waiting_bytes >= before_bytes > 0:
            self._transport.abort()
        elif waiting_bytes:
            self.begin(patience_s)


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, refusing heads that are too long, too many, too slow or ambiguous."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        # what came since the head, or a piece of the body: sizes of chunks, and trailers
        self._framing_bytes = 0
        self._long_left = 0  # what a LongBody will read
        self._in_head = True
        self._linger_bytes = 0  # what may still come of a body that nobody wants
        self._phase = _Phase.HEAD
        self.due = inf  #: by the loop's clock
        clock = _clocks.get(self.server_state)
        if clock is None or clock.loop is not self.loop:
            clock = _clocks[self.server_state] = _Clock(self.loop)
        self._clock = clock
        self._serving: Exchange | None = None  # whose turn it is; those behind it wait in the pipeline
        self._at_once: Any = getattr(self.config.app, "at_once", None)  # api/at_once.py
        self._held: Callable[[], None] | None = (
            None  # serves a request of which the body may be there in a moment
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the clock on the first head."""
        super().connection_made(transport)
        self._send_timeout = _SendTimeout(self.loop, transport)
        self._clock.watched.add(self)
        self._await(_Phase.HEAD, HEAD_DEADLINE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell the request that is being served, which may not be the last one that came."""
        self._clock.watched.discard(self)
        self._send_timeout.end()
        self._let_go_of_held()
        if self._serving is not None and not self._serving.response_complete:
            self._serving.disconnected = True
            self._serving.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives before a head is complete."""
        if self._in_head:
            if self._phase is not _Phase.HEAD:
                self._await(_Phase.HEAD, HEAD_DEADLINE_S)
            if not self._head_bytes and b"h2c" in data:
                data = _without_offer(data)
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)
            if self._phase is _Phase.BODY:
                self._await(_Phase.BODY, BODY_IDLE_S)
        super().data_received(data)
        if self._held is not None:
            if self.expect_100_continue or not 0 < self._body_bytes <= HELD_BODY_BYTES:
                self._start_held()
            else:
                self._await(_Phase.BODY, HELD_S)
        if self._long_left and not self._in_head and not self.transport.is_closing():
            exchange: Any = self.cycle
            left, self._long_left = self._long_left, 0
            body = LongBody(self, exchange, left)
            exchange.scope["extensions"][IN_PLACE] = body.read_into
            body.take_over()
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(431, "Request Header Fields Too Large")
        elif not self._in_head and self._framing_bytes > HEAD_LIMIT_BYTES:
            self._close()  # an answer may be under way

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True
        self._fields_bytes = self._hosts = self._lengths = self._long_left = self._body_bytes = 0
        self._odd_coding = self._has_body = False

    def on_url(self, url: bytes) -> None:
        """Refuse a URI that is too long."""
        self.url += url
        if len(self.url) > URI_LIMIT_BYTES:
            self._refuse(414, "URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field of a head, and note what decides where the message ends and whom it is for."""
        # what comes after a body says nothing of who asks, or for what (RFC 9110, 6.5.1)
        if not self._in_head:
            return
        name = name.lower()
        self.headers.append((name, value))
        self._fields_bytes += len(name) + len(value)
        if name not in _DECIDING:
            return
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self.expect_100_continue = self.expect_100_continue or value.lower() == b"100-continue"
        else:
            self._lengths += 1
            self._has_body |= name == b"transfer-encoding" or value.strip(b"0") != b""
            if name == b"content-length" and value.isdigit():
                self._body_bytes = int(value)
                if self._body_bytes >= LONG_BYTES:
                    self._long_left = self._body_bytes  # of which the rest of this read is still the parser's
            self._odd_coding |= name == b"transfer-encoding" and value.lower() != b"chunked"

    def on_headers_complete(self) -> None:
        """End a head; refuse it where it is too long or ambiguous, else begin to serve it."""
        self._in_head, self._head_bytes, self._framing_bytes = False, 0, 0
        self._await(
            _Phase.BODY, BODY_IDLE_S
        )  # called off at once where there is none: the message is then complete
        version = self.parser.get_http_version()
        if len(self.headers) > MOST_HEADERS or self._fields_bytes > HEAD_LIMIT_BYTES:
            self._refuse(431, "Request Header Fields Too Large")
        elif not self._is_plain(version):
            self._refuse(400, "Bad Request")
        if self.transport.is_closing():
            return
        if self.scheme != "http" or self.parser.should_upgrade():
            self._long_left = 0
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        url = self.url
        if url[:1] == b"/" and b"#" not in url:
            raw_path, _, scope["query_string"] = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, scope["query_string"] = parsed.path, parsed.query or b""
        path = raw_path.decode("ascii")
        scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path if self.root_path else raw_path
        before = self.cycle
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self.cycle = exchange = Exchange(self, keep_alive=keep_alive)
        scope["extensions"] = {WHOLE: exchange.answer}  # type: ignore[dict-item]  # one the standard does not know
        if before is None or before.response_complete:
            self._serving = exchange
            # this one, whatever else has come by the time that it turns out to be served in the ordinary way
            start = partial(self._start_asgi_task, self.cycle, self.app)
            if self._may_be_an_order():
                self._held = start
            elif not self._may_be_a_look() or not self._at_once.look(self.cycle, start):
                start()
        else:  # pipelined: in turn
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _may_be_an_order(self) -> bool:
        return (
            self._at_once is not None
            and self.scope["method"] == "POST"
            and not self.flow.write_paused
            and self._at_once.accepts(self.scope["path"])
        )

    def _start_held(self) -> None:
        """Serve in the ordinary way what may have been answered at once, had all of it come in time."""
        start = self._let_go_of_held()
        if start is not None and not self.transport.is_closing():
            start()

    def _let_go_of_held(self) -> Callable[[], None] | None:
        start, self._held = self._held, None
        return start

    def _may_be_a_look(self) -> bool:
        return (
            self._at_once is not None
            and self._lengths == 0
            and self.scope["method"] == "GET"
            and not self.flow.write_paused
        )

    def _is_plain(self, version: str) -> bool:
        """Tell whether the head is one that everybody reads alike: its version, its host, where its body ends."""
        return (
            version in {"1.0", "1.1"}
            and self._hosts <= 1
            and (self._hosts == 1 or version == "1.0")  # RFC 9112, section 3.2
            and self._lengths <= 1
            and not self._odd_coding
            # a body behind an upgrade is what the parser takes for the next message
            and not (self._has_body and self.parser.should_upgrade())
        )

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of a body; count what comes of one that nobody wants."""
        self._framing_bytes = 0
        if self.cycle is None or self.transport.is_closing():
            return  # of a head that was refused
        super().on_body(body)
        if self._long_left:
            self._long_left -= len(body)
        if self._phase is _Phase.LINGER:
            self.body_unwanted(len(body))

    def read_on(self) -> None:
        """Read on, unless a long body is under way that nobody asks for."""
        last: Any = self.cycle
        (last.long or self.flow).resume_reading()

    def body_moves(self) -> None:
        """Wait for more of a body from now on."""
        if self._phase is _Phase.BODY:
            self._await(_Phase.BODY, BODY_IDLE_S)

    def body_unwanted(self, size_bytes: int) -> None:
        """Count what comes of a body that was answered before its end; more than a little of it is not waited for."""
        self._linger_bytes -= size_bytes
        if self._linger_bytes < 0:
            self._close()

    def body_ends(self) -> None:
        """Go on with the next head after a body that was read past the parser, which has not seen its end."""
        if self.parser is None:  # the connection is gone
            return
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request; set a limit to what is read of a body that was answered before its end."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.read_on()
        if self.pipeline:
            exchange, app = self.pipeline.pop()
            self._serving = exchange  # type: ignore[assignment]  # all that wait there are Exchanges
            self._start_asgi_task(exchange, app)
        elif self.cycle.more_body:
            self._linger_bytes = LINGER_LIMIT_BYTES
            self._await(_Phase.LINGER, LINGER_S)
        elif self._phase is _Phase.SERVING:
            self._await(_Phase.IDLE, self.timeout_keep_alive)

    def on_message_complete(self) -> None:
        """Wait for the answer, and for the next head."""
        if self.cycle is None or self.transport.is_closing():
            return  # of a head that was refused
        super().on_message_complete()
        start = self._let_go_of_held()  # by now: what is behind it in this read is another's
        if start is not None and not self._at_once.accept(self.cycle, self.cycle.body, start):
            start()
        self._in_head = True
        if self._phase is _Phase.LINGER:
            self.cycle.more_body = False
            self._await(_Phase.IDLE, self.timeout_keep_alive)
        else:
            self._phase, self.due = _Phase.SERVING, inf

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the WebSocket protocol, which has a clock of its own."""
        self._clock.watched.discard(self)
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        """Wait until the client has taken what was written, but not for ever."""
        super().pause_writing()
        self._send_timeout.begin(STALL_S)

    def resume_writing(self) -> None:
        """Go on: it has."""
        self._send_timeout.end()
        super().resume_writing()

    def out_of_time(self) -> None:
        """Do what the connection's phase says: its deadline has passed."""
        self.due = inf
        if self.transport.is_closing():
            return
        if self._phase is _Phase.HEAD and self._head_bytes:
            self._refuse(408, "Request Timeout")
        elif self._phase is _Phase.BODY and (self._held is not None or self.flow.read_paused):
            self._start_held()
            self._await(_Phase.BODY, BODY_IDLE_S)
        else:
            self._close()

    def _await(self, phase: _Phase, patience_s: float) -> None:
        self._phase, self.due = phase, self.loop.time() + patience_s
        if self.due < self._clock.looks_at:
            self._clock.expect(self.due)

    def _refuse(self, status: int, phrase: str) -> None:
        if self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        self.transport.write(head.encode())
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._send_timeout.begin(GOODBYE_S)


def _without_offer(data: bytes) -> bytes:
    """Return what came without the offer, in its first head, to go on in HTTP/2, which nobody need accept.

    The parser would take the message's body for what is spoken from then on.
    """
    end = data.find(b"\r\n\r\n") + 2
    return _HTTP2_OFFER.sub(b"", data[:end]) + data[end:] if end > 1 else data


class FramesProtocol(WebSocketsSansIOProtocol):
    """A WebSocket that also takes frames already encoded, so that one encoding and one write serve for many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Serve a connection that was upgraded."""
        super().connection_made(transport)
        self._send_timeout = _SendTimeout(self.loop, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the connection."""
        self._send_timeout.end()
        super().connection_lost(exc)

    async def send(self, message: ASGISendEvent) -> None:
        """Send an event; who takes neither a goodbye nor what was written before it is cut off."""
        if message["type"] != "websocket.close":
            await super().send(message)
            return
        self._send_timeout.begin(GOODBYE_S)
        with suppress(ClientDisconnected):  # which is what it asks for
            await super().send(message)

    def keepalive_timeout(self) -> None:
        """Close on a client that answers no ping."""
        super().keepalive_timeout()
        self._send_timeout.begin(GOODBYE_S)

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
        gc.freeze()  # what was read before the first request lives as long as the process: never looked through again
        gc.set_threshold(10_000, 20, 50)
        self._install_sigquit_handler()
        watch = asyncio.create_task(self._leave_with_master(server))
        # not gunicorn's wrappers of them: uvloop would close those a second time as it ends
        await server.serve(sockets=[each.sock for each in self.sockets])
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
