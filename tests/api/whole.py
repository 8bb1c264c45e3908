"""The whole API without a server between: clients of each role, and agents that have registered."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import argon2
import falcon.asgi
import httpx

from api.app import create_app
from api.endpoint import Endpoint
from settings import Settings
from storage import sessions, users
from storage.passwords import Passwords
from storage.store import Store

ORIGIN = "http://hostler.test"


def check_response(endpoint: Endpoint, media: Any) -> None:
    """Hold an answer against the schema that its endpoint declares: nothing missing, nothing else in it."""
    assert endpoint.returns is not None
    known = {each.data_key or name for name, each in endpoint.returns.fields.items()}
    shown = {name: value for name, value in media.items() if name != "success" or name in known}
    assert endpoint.returns.validate(shown) == {}, shown


@dataclass
class Hostler:
    """An application, the store beneath it, and clients of it."""

    settings: Settings
    store: Store
    app: falcon.asgi.App[Any, Any]
    _clients: list[httpx.AsyncClient] = field(default_factory=list)
    _tokens: dict[str, str] = field(default_factory=dict)

    def client(self, **headers: str) -> httpx.AsyncClient:
        """Return a client that sends `headers` with each request, `_` standing for `-`."""
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app),
            base_url=ORIGIN,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            timeout=30,
        )
        self._clients.append(client)
        return client

    async def user(self, role: Any = "w") -> httpx.AsyncClient:
        """Return a client with the session of a user of that role."""
        if role not in self._tokens:
            user = await users.create(
                self.store, actor="t", username=f"user-{role}", email=f"{role}@example.org", password="pass word",
                role=role,
            )  # fmt: skip
            self._tokens[role] = await sessions.issue(self.store, user)
        return self.client(Authorization=f"Bearer {self._tokens[role]}")

    async def agent(self, worker_id: str = "worker-001", **body: Any) -> httpx.AsyncClient:
        """Register an agent and return a client with its token."""
        operator = await self.user("w")
        given = {"workerId": worker_id, "hostname": "desktop-pc", "cpuCount": 8, **body}
        answer = await operator.post("/api/workers/register", json=given)
        assert answer.status_code == 201, answer.text
        return self.client(X_Worker_Token=answer.json()["token"])

    async def close(self) -> None:
        """Close every client and the store."""
        for client in self._clients:
            await client.aclose()
        await self.store.close()


async def run_lifespan(app: Any) -> Callable[[], Any]:
    """Start an ASGI application's life; return what ends it."""
    inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    task = asyncio.ensure_future(app(scope, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"

    async def end() -> None:
        await inbox.put({"type": "lifespan.shutdown"})
        await task

    return end


async def running(settings: Settings) -> AsyncIterator[Hostler]:
    store = Store(settings)
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    app = create_app(settings, check_response=check_response)
    end = await run_lifespan(app)
    hostler = Hostler(settings, store, app)
    yield hostler
    await hostler.close()
    await end()
