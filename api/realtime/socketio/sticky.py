"""Session affinity between the worker processes of one web server: each request reaches the one that has its session.

Long polling sends one session's requests over several connections, which the kernel hands to any worker, while only
the worker that opened the session knows it. So a session's id begins with the names of its server and its worker, and a
worker that gets a request of another's session passes the ASGI events, both ways, over the owner's Unix socket.
Several servers need a balancer that is sticky; a request that was led astray is answered with the reason.
"""

import asyncio
import base64
import contextlib
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger("hostler.api")

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

_SESSION = re.compile(rb"(?:^|&)sid=([0-9a-f]{8})([0-9a-f]{8})\.")  # hexadecimal digits: never a path
_SCOPE = (
    "type", "asgi", "http_version", "scheme", "method", "path", "raw_path", "root_path", "query_string", "headers",
    "client", "server", "subprotocols",
)  # fmt: skip
#: No message may be larger; a client's are much smaller.
_MOST_FRAME_BYTES = 8 * 1024 * 1024
_ASTRAY = (
    "This session was opened at another server, or before this one was restarted. Several servers need a balancer that "
    "is sticky for /socket.io; connect again."
)


def _coded(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return {"b64": base64.b64encode(value).decode()}
    raise TypeError(type(value))


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"b64"}:
            return base64.b64decode(value["b64"])
        return {name: _decoded(each) for name, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def _packed(event: Event) -> bytes:
    raw = orjson.dumps(event, default=_coded)
    return len(raw).to_bytes(4, "big") + raw


async def _unpacked(reader: asyncio.StreamReader) -> Event | None:
    """Return the next event; None once the other side is gone."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        size_bytes = int.from_bytes(await reader.readexactly(4), "big")
        if size_bytes <= _MOST_FRAME_BYTES:
            event: Event = _decoded(orjson.loads(await reader.readexactly(size_bytes)))
            return event
    return None


class Sticky:
    """Runs `app` on the requests of sessions that this process has opened, and has the others' owners run it."""

    def __init__(self, app: App, directory: Path | None) -> None:
        self._app, self._directory = app, directory
        self._server_id = directory.name[-8:] if directory is not None else secrets.token_hex(4)
        self._worker = secrets.token_hex(
            4
        )  # chosen anew after each fork, since the application is made in the worker
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.passed_on = 0

    def named(self, session_id: str) -> str:
        """Return a fresh session's id, which says where its session is."""
        return f"{self._server_id}{self._worker}.{session_id}"

    async def start(self) -> None:
        """Take what other workers pass on. Without a directory there are no others."""
        if self._directory is None or self._server is not None:
            return
        facts = self._directory.lstat()
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise PermissionError(f"{self._directory} must be ours alone.")
        hidden = self._directory / f".{self._worker}"
        self._server = await asyncio.start_unix_server(self._serve, str(hidden), backlog=2048)
        hidden.rename(self._socket(self._worker))  # seen only once it listens

    async def stop(self) -> None:
        """Take nothing more. Safe to run twice."""
        if self._server is None or self._directory is None:
            return
        self._socket(self._worker).unlink(missing_ok=True)
        self._server.close()
        self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket, here or where its session is."""
        owner = _SESSION.search(scope["query_string"])
        if owner is None or owner[2].decode() == self._worker:
            await self._app(scope, receive, send)
        elif owner[1].decode() != self._server_id:
            await refuse(scope, receive, send, 400, _ASTRAY)
        elif (pipe := await self._pipe(owner[2].decode())) is not None:
            await self._pass_on(pipe, scope, receive, send)
        else:
            await refuse(
                scope, receive, send, 400, "The process that had this session has ended; connect again."
            )

    def _socket(self, worker: str) -> Path:
        assert self._directory is not None  # noqa: S101  asked only where there is one
        return self._directory / f"{worker}.sock"

    async def _pipe(self, worker: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        if self._directory is None:
            return None
        try:
            return await asyncio.open_unix_connection(str(self._socket(worker)))
        except OSError as error:
            if isinstance(error, ConnectionRefusedError):  # left behind by a worker that was killed
                self._socket(worker).unlink(missing_ok=True)
            return None

    async def _pass_on(self, pipe: Any, scope: Any, receive: Receive, send: Send) -> None:
        """Run in the worker that holds the client's connection."""
        reader, writer = pipe
        last: Event | None = None
        self.passed_on += 1

        async def pump() -> None:
            with contextlib.suppress(OSError):
                while True:
                    event = await receive()
                    writer.write(_packed(event))
                    await writer.drain()
                    if event["type"].endswith(".disconnect"):
                        return

        writer.write(_packed({name: scope[name] for name in _SCOPE if name in scope}))
        up = asyncio.create_task(pump())
        try:
            while (event := await _unpacked(reader)) is not None:
                last = event
                await send(event)
            # the owner has finished, or died: then the client is told to come again
            if scope["type"] == "websocket" and (last is None or last["type"] != "websocket.close"):
                with contextlib.suppress(Exception):  # the client may have closed first
                    await send({"type": "websocket.close", "code": 1012})
            elif scope["type"] == "http" and last is None:
                await respond(send, 503, "The process that had this session has ended; connect again.")
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run in the owner, once for each request or WebSocket that is passed on."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio's streams run this in a task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        async def send(event: Event) -> None:
            writer.write(_packed(event))
            await writer.drain()

        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            scope = await _unpacked(reader)
            if scope is not None:

                async def receive() -> Event:
                    event = await _unpacked(reader)
                    return event or {"type": f"{scope['type']}.disconnect", "code": 1006}

                await self._app(scope, receive, send)


async def respond(send: Send, status: int, message: str, *, code: int = 1) -> None:
    """Answer an HTTP request as Engine.IO does: `{"code", "message"}`; 1 says that the session is not known."""
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps({"code": code, "message": message})})


async def refuse(
    scope: Any, receive: Receive, send: Send, status: int, message: str, *, code: int = 1
) -> None:
    """Refuse a request, or the handshake of a WebSocket, which a server answers with 403."""
    if scope["type"] == "http":
        await respond(send, status, message, code=code)
    else:
        await receive()
        await send({"type": "websocket.close", "code": 4000 + status, "reason": message[:120]})
