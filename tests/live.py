"""What tests of live output share: its endpoints behind a server on loopback, a user of it, and sockets to it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import argon2
import engine
import falcon
import falcon.asgi
import httpx
import uvicorn
from falcon.asgi import Request, Response, WebSocket
from servers import NO_TLS
from websockets.asyncio.client import ClientConnection, connect

from api import errors
from api.auth import Gate
from api.endpoint import mount
from api.executor import log, stream
from api.realtime.hub import Hub
from api.server import FramesProtocol
from settings import Settings
from storage import sessions, users
from storage.passwords import Passwords
from storage.store import Store


class _Around:
    """What api.app puts around every request, as far as these endpoints need it."""

    def __init__(self, store: Store) -> None:
        self.store, self.hub, self.gate = store, Hub(store), Gate(store)

    async def process_startup(self, scope: Any, event: Any) -> None:
        await self.hub.start()

    async def process_shutdown(self, scope: Any, event: Any) -> None:
        await self.hub.stop()
        await self.store.close()

    async def process_request(self, req: Request, resp: Response) -> None:
        self._equip(req)

    async def process_request_ws(self, req: Request, ws: WebSocket) -> None:
        self._equip(req)

    def _equip(self, req: Request) -> None:
        req.context.request_id = "test"
        req.context.store, req.context.hub = self.store, self.hub
        req.context.admit, req.context.still_admits = self.gate.admit, self.gate.still_admits


def _app(around: _Around) -> falcon.asgi.App[Any, Any]:
    app = falcon.asgi.App(middleware=[around])
    app.add_error_handler(Exception, errors.handle)
    app.add_error_handler(falcon.HTTPError, errors.handle)
    assert stream.group is log.group
    mount(app, [log.group])
    return app


@dataclass
class Live:
    """A running server, the store beneath it, the token of a viewer, and its fan-out."""

    store: Store
    server: uvicorn.Server
    port: int
    token: str
    client: httpx.AsyncClient
    hub: Hub

    def socket(self, query: str = "", token: str | None = None) -> connect:
        """Open /api/jobs/stream."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return connect(f"ws://127.0.0.1:{self.port}/api/jobs/stream{query}", additional_headers=headers)

    async def running_job(self) -> SimpleNamespace:
        """Return a job that a worker has claimed."""
        job_id = await engine.submit(self.store)
        holder = await engine.register(self.store, f"worker-of-{job_id}")
        (claimed,) = await engine.claim(self.store, holder)
        return SimpleNamespace(id=job_id, holder=holder, claim=claimed)

    async def say(self, job: SimpleNamespace, data: bytes, **how: Any) -> None:
        """Have the job print."""
        await engine.output(self.store, job.holder, job.claim, data, **how)

    async def end(self, job: SimpleNamespace, outcome: str = "completed") -> None:
        """Have the job end."""
        await engine.settle(self.store, job.holder, job.claim, outcome)


@contextlib.asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[Live]:
    """Run the endpoints on a free port."""
    store = Store(settings)
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    user = await users.create(
        store, actor="test", username="ada", email="ada@example.org", password="correct horse", role="r"
    )
    token = await sessions.issue(store, user)
    around = _Around(Store(settings))
    config = uvicorn.Config(
        _app(around), port=0, log_level="critical", timeout_graceful_shutdown=2, ws=FramesProtocol,
        ws_per_message_deflate=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20, verify=NO_TLS
    ) as client:
        yield Live(store, server, port, token, client, around.hub)
    server.should_exit = True
    await task
    await store.close()


async def next_message(socket: ClientConnection) -> dict[str, Any]:
    """Return the next message as JSON."""
    return json.loads(await asyncio.wait_for(socket.recv(), 10))  # noqa: TID251


async def messages(socket: ClientConnection, until: str = "") -> list[dict[str, Any]]:
    """Return all messages to the first of type `until`, or to the end."""
    taken = []
    async with asyncio.timeout(15):
        async for raw in socket:
            taken.append(json.loads(raw))
            if taken[-1]["type"] == until:
                break
    return taken


def output(taken: list[dict[str, Any]]) -> str:
    """Return what the messages say was printed."""
    return "".join(message["data"] for message in taken if message["type"] == "job.output")


def types(taken: list[dict[str, Any]]) -> list[str]:
    """Return the messages' types, with runs of one type as one."""
    return [m["type"] for at, m in enumerate(taken) if not at or taken[at - 1]["type"] != m["type"]]
