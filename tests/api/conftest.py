"""Fixtures for the API without a server: an application of chosen groups, and clients that come from any address."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import argon2
import falcon
import falcon.asgi
import httpx
import pytest
from falcon.asgi import Request, Response, WebSocket
from whole import Hostler, running

from api import errors
from api.auth import Gate
from api.dialect import CONTEXTBAY
from api.endpoint import Context, Endpoint, Group, Role, mount
from api.shared import account, auth, keys, users
from settings import Settings
from storage import sessions
from storage import users as stored_users
from storage.identity import RoleLetter
from storage.passwords import Passwords
from storage.store import Store
from storage.users import User

PASSWORD = "correct horse"
ORIGIN = "http://hostler.test"


def check_response(endpoint: Endpoint, media: Any) -> None:
    """Hold an answer against the schema that its endpoint declares: nothing missing, nothing else in it."""
    if endpoint.returns is not None:
        shown = {name: value for name, value in media.items() if name != "success"}
        assert endpoint.returns.validate(shown) == {}, shown


def probes() -> Group:
    """Return endpoints that say whom the gate let in."""
    group = Group("Probes", "/probe", CONTEXTBAY)

    async def say(context: Context, req: Request, resp: Response) -> None:
        """Say who is asking."""
        who = context.identity
        resp.media = {"kind": who and who.kind, "id": who and who.id, "role": who and who.role}

    async def change(context: Context, req: Request, resp: Response) -> None:
        """Say who is changing something."""
        await say(context, req, resp)

    async def listen(context: Context, ws: WebSocket) -> None:
        """Say who is listening."""
        await ws.accept()
        await ws.send_text(context.caller.id)
        await ws.close()

    group.endpoint("GET /open", role=Role.PUBLIC, raw=True)(say)
    group.endpoint("POST /open", role=Role.ENROLL, raw=True)(change)
    group.endpoint("WS /viewer", role=Role.VIEWER)(listen)
    for name in ("VIEWER", "OPERATOR", "ADMIN", "WORKER"):
        group.endpoint(f"GET /{name.lower()}", role=Role[name], raw=True)(say)
        group.endpoint(f"POST /{name.lower()}", role=Role[name], raw=True)(change)
    group.endpoint("GET /both", role=Role.VIEWER | Role.WORKER, raw=True)(say)
    return group


class _Around:
    """What api.app puts around every request, as far as identity needs it."""

    def __init__(self, store: Store) -> None:
        self.store, self.gate = store, Gate(store)

    async def process_request(self, req: Request, resp: Response) -> None:
        self._equip(req)

    async def process_request_ws(self, req: Request, ws: WebSocket) -> None:
        self._equip(req)

    def _equip(self, req: Request) -> None:
        req.context.request_id = secrets.token_hex(8)
        req.context.store, req.context.admit = self.store, self.gate.admit
        req.context.check_response = check_response


@dataclass
class Site:
    """An application, the store beneath it, and clients of it."""

    store: Store
    app: falcon.asgi.App[Any, Any]
    _clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self, address: str = "203.0.113.7", *, url: str = ORIGIN, **headers: str) -> httpx.AsyncClient:
        """Return a client from `address`; it sends `headers` with each request, `_` standing for `-`."""
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app, client=(address, 50_000)),
            base_url=url,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        self._clients.append(client)
        return client

    def configure(self, **changes: Any) -> None:
        """Change settings of the running application."""
        self.store.settings = replace(self.store.settings, **changes)

    async def user(self, name: str = "ada", role: RoleLetter = "a") -> User:
        """Create a user whose password is PASSWORD."""
        email = f"{name}@example.org"
        return await stored_users.create(
            self.store, actor="test", username=name, email=email, password=PASSWORD, role=role
        )

    async def session(self, name: str = "ada", role: RoleLetter = "a") -> SimpleNamespace:
        """Return a new user, a session's token of it, and a client that sends the token as a Bearer."""
        user = await self.user(name, role)
        token = await sessions.issue(self.store, user)
        return SimpleNamespace(user=user, token=token, client=self.client(Authorization=f"Bearer {token}"))

    async def close(self) -> None:
        """Close every client and the store."""
        for client in self._clients:
            await client.aclose()
        await self.store.close()


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    """The identity endpoints and some probes, with password hashes that cost next to nothing."""
    store = Store(settings)
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    app = falcon.asgi.App(middleware=[_Around(store)])
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.keep_blank_qs_values = True
    app.add_error_handler(Exception, errors.handle)
    app.add_error_handler(falcon.HTTPError, errors.handle)
    mount(app, [auth.group, account.group, users.group, keys.group, probes()])
    site = Site(store, app)
    yield site
    await site.close()


@pytest.fixture
async def hostler(settings: Settings) -> AsyncIterator[Hostler]:
    """The whole API, without an object store."""
    async for each in running(settings):
        yield each


@pytest.fixture
async def hostler_with_s3(settings_with_s3: Settings) -> AsyncIterator[Hostler]:
    """The whole API on a real object store."""
    async for each in running(settings_with_s3):
        yield each


@pytest.fixture
def settings_for(settings: Settings) -> Any:
    """The whole API under settings of the test's choice, as a context."""
    return lambda **changes: contextlib.asynccontextmanager(running)(replace(settings, **changes))
