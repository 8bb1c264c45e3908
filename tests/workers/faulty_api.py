"""The real API on loopback, with faults in between where a test plans them, and agents' lines to it."""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from api.app import create_app
from settings import Settings
from storage import logs
from storage.store import Store
from workers.control_plane import ControlPlane, Enrolment, TokenFile
from workers.http_line import HttpLine
from workers.lines import Offer

SECRET = "enrolment-secret"
PATIENCE_S = 15
GET_JOB, OUTPUT, RESULT = "/api/jobs/get-job", "/api/jobs/stream-output", "/api/jobs/submit-result"
EXCHANGE = "/api/jobs/exchange"
REGISTER, HEARTBEAT = "/api/workers/register", "/api/workers/heartbeat"

#: A fault: the request is carried out, and the connection cut before its answer.
LOST = "lost"


@dataclass
class Refused:
    """A fault: an answer that comes from something before the API."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b"<html>not now</html>"


class FaultyApi:
    """The API as an ASGI application; each fault planned for a path meets one request."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: dict[str, deque[str | Refused]] = defaultdict(deque)
        self.asked: list[str] = []
        self.url = ""

    def plan(self, path: str, *faults: str | Refused) -> None:
        """Let the next requests to `path` meet `faults`."""
        self.faults[path].extend(faults)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.asked.append(scope["path"])
        fault = self.faults[scope["path"]].popleft() if self.faults[scope["path"]] else None
        if isinstance(fault, Refused):
            head = {"type": "http.response.start", "status": fault.status, "headers": fault.headers}
            await send(head)
            await send({"type": "http.response.body", "body": fault.body})
        elif fault == LOST:

            async def swallow(message: Any) -> None:
                pass

            await self.app(scope, receive, swallow)
            receive.__self__.transport.abort()
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            await self.app(scope, receive, send)

    def count(self, path: str) -> int:
        """Return how often a path was asked for."""
        return self.asked.count(path)


@contextlib.asynccontextmanager
async def serve(settings: Settings, port: int = 0) -> AsyncIterator[FaultyApi]:
    """Run the API on a free port."""
    api = FaultyApi(create_app(settings))
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="critical", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    api.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield api
    finally:
        server.should_exit = True
        await task


class Client:
    """An agent's line with nobody behind it but the test."""

    def __init__(self, plane: ControlPlane, line: HttpLine) -> None:
        self.plane, self.line = plane, line
        self.work = asyncio.Event()
        self.listening = line.listen(lambda queue: self.work.set(), lambda job_id: None, lambda offer: None)

    async def offer(self) -> Offer:
        """Return the next job."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self.work.clear()
                if offers := await self.line.claim(most=1, startable=1):
                    return offers[0]
                await self.work.wait()

    async def beat(self, *held: Offer) -> Any:
        """Send a heartbeat."""
        return await self.line.beat(held, running=len(held), current=None)

    async def close(self) -> None:
        """Hang up."""
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)
        await self.plane.close()


def plane(url: str, directory: Path, name: str = "agent-1", **more: Any) -> ControlPlane:
    """Return a control plane for an agent that is not registered yet."""
    token_file = TokenFile(directory / f"{name}.json")
    ca_file = more.pop("ca_file", None)
    enrolment = Enrolment(name=name, **{"facts": {"slots": 2}, "secret": SECRET, **more})
    return ControlPlane(url, enrolment, token_file=token_file, ca_file=ca_file)


async def eventually(what: Callable[[], Any]) -> Any:
    """Return what `what` answers as soon as it is true; it may be a coroutine function."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = what()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


async def text_of(store: Store, job_id: str) -> str:
    """Return a job's whole log."""
    return b"".join([chunk async for chunk in await logs.text(store, job_id)]).decode()
