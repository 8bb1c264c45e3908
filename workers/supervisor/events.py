"""What an app tells its watchers: a socket of its own that takes POST /emit {"event": ..., "data": ...}."""

import asyncio
import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

import h11
import orjson

from storage.errors import HostlerError, Unavailable
from workers.log import log
from workers.supervisor.reports import ControlPlane

#: What one event may hold, how many an app may tell a second, how many at once after a pause.
BODY_BYTES, PER_S, BURST = 64 * 1024, 50, 100
CONNECTIONS = 32
#: A request that is not whole by then is given up.
PATIENCE_S = 10.0
_EVENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/-]{0,99}")


class Refused(Exception):
    """The request is not taken: the status and a sentence."""


class Emitter:
    """The socket of one app."""

    def __init__(self, app: str, path: Path, uid: int | None, control: ControlPlane) -> None:
        self._app, self._path, self._uid, self._control = app, path, uid, control
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._allowance, self._looked_s = float(BURST), time.monotonic()

    async def open(self) -> None:
        """Listen, for the app's own user alone. Raises OSError."""
        self._path.unlink(missing_ok=True)
        # it serves in a step of its own, since who is cancelled within the first one holds no server to close
        self._server = await asyncio.start_unix_server(
            self._serve, self._path, limit=BODY_BYTES, start_serving=False
        )
        self._path.chmod(0o600)
        if self._uid is not None:  # the directory is ours: nothing else can be in its place
            os.chown(self._path, self._uid, self._uid)
        await self._server.start_serving()

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            for task in list(self._clients):
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= CONNECTIONS:
            writer.close()
            return
        self._clients.add(task)
        try:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16 * 1024)
            while await self._answer_one(connection, reader, writer):
                connection.start_next_cycle()
        except (OSError, TimeoutError, h11.ProtocolError):
            pass
        except Exception:
            log.exception("an event could not be taken", extra={"app": self._app})
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer_one(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Take one request and answer it; False when there is none, or none after it. Raises h11.ProtocolError."""
        status, said = 204, b""
        try:
            async with asyncio.timeout(PATIENCE_S):
                request, body = await _request(connection, reader)
            if request is None:
                return False
            await self._take(request, body)
        except Refused as error:
            status, said = error.args[0], orjson.dumps({"error": error.args[1]})
        headers = [("content-length", str(len(said))), ("content-type", "application/json")] if said else []
        if connection.our_state is h11.ERROR or connection.their_state is h11.ERROR:
            return False
        parts: list[Any] = [h11.Response(status_code=status, headers=headers)]
        parts += [h11.Data(data=said)] if said else []
        for part in [*parts, h11.EndOfMessage()]:
            writer.write(connection.send(part) or b"")
        await writer.drain()
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    async def _take(self, request: h11.Request, body: bytes) -> None:
        """Pass an event on. Raises Refused."""
        if request.method != b"POST" or request.target != b"/emit":
            raise Refused(404, "Only POST /emit is taken here.")
        event, data = _read(body)
        now = time.monotonic()
        self._allowance = min(float(BURST), self._allowance + (now - self._looked_s) * PER_S)
        self._looked_s = now
        if self._allowance < 1:
            raise Refused(429, f"More than {PER_S} events a second.")
        self._allowance -= 1
        try:
            await self._control.emit(self._app, event, data)
        except Unavailable as error:
            raise Refused(503, str(error)) from None
        except HostlerError as error:
            raise Refused(409, str(error)) from None


async def _request(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> tuple[h11.Request | None, bytes]:
    """Return the next request with its body; None at the end. Raises Refused, h11.ProtocolError."""
    request: h11.Request | None = None
    body = b""
    while True:
        part = connection.next_event()
        if part is h11.NEED_DATA:
            connection.receive_data(await reader.read(16 * 1024))
        elif isinstance(part, h11.Request):
            request = part
        elif isinstance(part, h11.Data):
            body += part.data
            if len(body) > BODY_BYTES:
                raise Refused(413, f"An event may hold {BODY_BYTES} bytes.")
        elif isinstance(part, h11.EndOfMessage):
            return request, body
        else:  # closed, or paused after what we cannot answer
            return None, b""


def _read(body: bytes) -> tuple[str, str]:
    """Return the name of an event and its data as JSON. Raises Refused."""
    try:
        given = orjson.loads(body)
    except ValueError:
        raise Refused(400, "The body is no JSON.") from None
    if not isinstance(given, dict) or not isinstance(given.get("event"), str):
        raise Refused(400, 'The body must be {"event": "...", "data": ...}.')
    if not _EVENT.fullmatch(given["event"]):
        raise Refused(400, "event: 1 to 100 letters, digits and :._/-")
    return given["event"], orjson.dumps(given.get("data")).decode()
