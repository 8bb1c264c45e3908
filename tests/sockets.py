"""What tests of Socket.IO share: Hostler behind a server on loopback, clients of it, and a node with an app."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import argon2
import httpx
import socketio
import uvicorn
from machines import Machine, machine
from servers import NO_TLS

from api.app import create_app
from api.realtime.socketio.mount import Application
from api.realtime.socketio.server import Limits
from api.server import FramesProtocol, GuardedProtocol
from settings import Settings
from storage import api_keys, apps, manifests, users
from storage.apps import App
from storage.identity import Identity, RoleLetter
from storage.passwords import Passwords
from storage.store import Store

PATIENCE_S = 10
QUICK = Limits(standing_s=0.1, name_within_s=0.3)


@dataclass
class Client:
    """python-socketio's client, which notes what it hears."""

    url: str
    heard: list[tuple[str, Any]] = field(default_factory=list)
    io: Any = None

    async def connect(
        self, *, transports: Any = None, headers: Any = None, namespaces: Any = None, auth: Any = None
    ) -> "Client":
        """Connect. Raises socketio.exceptions.ConnectionError."""
        self.io = socketio.AsyncClient(reconnection=False)
        self.io.on("*", self._hear, namespace="*")
        self.io.on("disconnect", self._gone, namespace="*")
        self.io.on("connect_error", self._refused, namespace="*")
        await self.io.connect(
            self.url, transports=transports, headers=headers or {}, auth=auth, namespaces=namespaces or ["/"],
            wait_timeout=5,
        )  # fmt: skip
        return self

    async def _hear(self, event: str, namespace: str, *arguments: Any) -> None:
        self.heard.append((event, arguments[0] if arguments else None))

    async def _gone(self, namespace: str, *reason: Any) -> None:
        self.heard.append(("gone", namespace))

    async def _refused(self, namespace: str, said: Any) -> None:
        self.heard.append(("refused", said))

    def all(self, event: str) -> list[Any]:
        """Return what was heard of one event."""
        return [payload for name, payload in self.heard if name == event]

    async def hears(self, event: str, which: Callable[[Any], bool] = lambda _: True) -> Any:
        """Wait for an event, and return what it said."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for payload in self.all(event):
                    if which(payload):
                        return payload
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Disconnect."""
        await self.io.disconnect()
        await self.io.shutdown()


@dataclass
class Site:
    """One process of the web on a port of its own, with its admin and a node."""

    settings: Settings
    store: Store
    application: Application
    server: uvicorn.Server
    port: int
    admin: Identity
    node: Machine
    clients: list[Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def key(self, role: RoleLetter = "r", *, scope: str = "") -> str:
        """Return a fresh API key."""
        if scope:
            secret = f"chosen-elsewhere-{scope}"
            await api_keys.adopt(self.store, self.admin, secret, name="k", role=role, scope=scope)
            return secret
        return (await api_keys.create(self.store, self.admin, name="k", role=role))[1]

    async def client(self, *, role: RoleLetter = "r", **how: Any) -> Client:
        """Return a client that is connected; by `auth` or `headers`, else with a fresh key."""
        if "auth" not in how and "headers" not in how:
            how["auth"] = {"apiKey": await self.key(role)}
        self.clients.append(client := Client(self.url))
        return await client.connect(**how)

    async def refused(self, **how: Any) -> Any:
        """Return what a client is told whose connection to a namespace is refused."""
        with contextlib.suppress(socketio.exceptions.ConnectionError):
            await self.client(**how)
        return await self.clients[-1].hears("refused")

    def http(self, **headers: str) -> httpx.AsyncClient:
        """Return a plain client of the same port."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.AsyncClient(base_url=self.url, headers=given, timeout=10, trust_env=False, verify=NO_TLS)

    async def app(self, instance_id: str = "web", state: str = "running", **more: Any) -> App:
        """Install an app whose node says that it is in `state`."""
        routes = {"prefix": "/p", "process": "web"}
        given = {"id": instance_id, "processes": {"web": {"command": "x"}}, "routes": routes, **more}
        app, _ = await apps.install(self.store, "test", inline=manifests.load(given))
        await self.node.carry_out()
        return await self.becomes(app.instance_id, state)

    async def becomes(self, instance_id: str, state: str) -> App:
        """Have the node report another state of an app."""
        await self.node.observe(await apps.get(self.store, instance_id), state=state)
        return await apps.get(self.store, instance_id)

    async def emit(self, instance_id: str, event: str, data: str) -> None:
        """Say something in the name of an app."""
        fields = {"event": event, "data": data}
        await self.store.call(apps.say(self.node.holder, "plugin.emit", fields, instance_id=instance_id))


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, *, limits: Limits = QUICK, directory: Path | None = None, node: str = "n1"
) -> AsyncIterator[Site]:
    """Run the whole web of one process, as gunicorn's worker would."""
    store = Store(settings)
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    application = Application(create_app(settings), directory=directory, limits=limits)
    config = uvicorn.Config(
        application, port=0, log_level="critical", timeout_graceful_shutdown=2, http=GuardedProtocol, ws=FramesProtocol,
        ws_per_message_deflate=False, ws_max_size=64 * 1024, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    site = Site(settings, store, application, server, port, await _admin(store), await machine(store, node))
    try:
        yield site
    finally:
        for client in site.clients:
            await client.close()
        await application.leave()
        server.should_exit = True
        await task
        await store.close()


async def _admin(store: Store) -> Identity:
    given = {"username": "root", "email": "root@example.org", "password": "correct horse"}
    user = await users.named(store, "root") or await users.create(store, actor="test", role="a", **given)
    return Identity("user", user.id, "a", user.username, "t", user_id=user.id)
