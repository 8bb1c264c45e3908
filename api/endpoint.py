"""The one declaration of an endpoint, from which authorisation, validation, rendering and documentation follow."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Flag
from functools import cache
from http import HTTPStatus
from typing import Any, TypeVar

import falcon
import falcon.asgi
import orjson
from falcon.asgi import Request, Response, WebSocket
from marshmallow import Schema, ValidationError

from api import body as bodies
from api import compiled
from api.dialect import Dialect, InvalidQuery
from api.errors import invalid, refuse
from storage.calls import Call
from storage.carrying import Carrier, Changed
from storage.errors import Denied, HostlerError, Invalid, NotFound, Unauthenticated, Unavailable
from storage.identity import Identity
from storage.jobs import Order, Submitted
from storage.store import Store

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


class Role(Flag):
    """Who may call an endpoint; a set, so `Role.VIEWER | Role.WORKER` admits both."""

    PUBLIC = 1  #: anybody; no credentials are looked at
    VIEWER = 2  #: users and keys that may read (`r`), and all above
    OPERATOR = 4  #: users and keys that may change things (`w`), and admins
    ADMIN = 8  #: admins (`a`)
    WORKER = 16  #: a worker's token; not a rung on the ladder above
    SELF = 32  #: the bearer of a session token that may have expired; the handler checks it
    ENROLL = 64  #: operators, holders of the enrolment secret, or anybody where that is allowed; the handler checks it


#: What each letter that users and keys carry admits to.
ROLES_OF = {
    "r": Role.VIEWER,
    "w": Role.VIEWER | Role.OPERATOR,
    "a": Role.VIEWER | Role.OPERATOR | Role.ADMIN,
    "worker": Role.WORKER,
}


class ModuleDisabled(NotFound):
    """The endpoint belongs to a part of Hostler that is switched off here."""

    code = "MODULE_DISABLED"


#: So long does a request that anybody may make wait to be counted, while Redis is silent: with what the endpoint itself
#: waits for it is answered within 5 s.
_PUBLIC_PATIENCE_S = 0.9
#: Roles that need no identity before the handler runs.
OPEN = Role.PUBLIC | Role.SELF | Role.ENROLL


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may know about the request it serves."""

    store: Store
    identity: Identity | None
    request: Request
    response: Response | None = None  #: for headers and cookies beside the answer; a WebSocket has none

    @property
    def caller(self) -> Identity:
        """Return who is asking, where the endpoint's role guarantees that somebody is."""
        if self.identity is None:
            raise Unauthenticated("Authentication is required.")
        return self.identity


@dataclass(frozen=True)
class Look:
    """How an endpoint that reads one record can be answered at once (api/at_once.py).

    `asks` makes of the query one command that only reads; `shows` makes of what it found what the handler would
    return, or None where the handler has to see to it.
    """

    asks: Callable[[dict[str, Any]], Call[Any]]
    shows: Callable[[Any], dict[str, Any] | None]


@dataclass(frozen=True)
class Accepting:
    """How an endpoint that accepts one job can do so at once (api/at_once.py).

    `orders` makes an order of a valid body, or None where the handler has to see to it; `shows` makes of what was
    promised what the handler would return.
    """

    orders: Callable[[dict[str, Any]], Order | None]
    shows: Callable[[Submitted], dict[str, Any]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path: who may call it, what it takes, what it answers."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    group: "Group"
    role: Role
    body: Schema | None
    query: Schema | None
    returns: Schema | None
    status: HTTPStatus
    raises: tuple[type[HostlerError], ...]
    body_limit_bytes: int
    raw: bool
    media_type: str | None
    counted: bool = True
    takes: str | None = None
    otherwise: HTTPStatus | None = None
    carries: bool = False
    look: Look | None = None
    accepting: Accepting | None = None

    @property
    def letters(self) -> frozenset[str]:
        """Return the letters of users and keys that may call it."""
        return _letters(self.role)

    @property
    def name(self) -> str:
        """Return a name that no other endpoint has."""
        return f"{self.handler.__module__.rpartition('.')[2]}_{self.handler.__name__}"

    async def __call__(self, req: Request, resp: Response, **arguments: Any) -> None:
        """Serve one request: authenticate, authorise, validate, run the handler, render its answer."""
        req.context.dialect = self.group.dialect
        carrying = await self._carrying(req, resp) if self.carries else None
        if carrying is not None:
            await self._serve_carrying(carrying, req, resp, arguments)
            return
        context = await self._admitted(req, resp)
        await self._understand(req, arguments)
        if self.raw:
            resp.status = self.status.value
            await self.handler(context, req, resp, **arguments)
        else:
            self._answer(req, resp, await self.handler(context, **arguments))

    async def _serve_carrying(
        self, context: Context, req: Request, resp: Response, arguments: dict[str, Any]
    ) -> None:
        """Serve a caller whose admission goes along with the handler's first step.

        Who turns out not to be admitted hears of that before anything else, as without it.
        """
        try:
            await self._understand(req, arguments)
            result = await self.handler(context, **arguments)
        except Changed:  # nothing has happened yet
            result = await self.handler(await self._admitted(req, resp), **arguments)
        except Exception:
            await self._admit_late(context, req, resp)
            raise
        else:
            await self._admit_late(context, req, resp)
        self._answer(req, resp, result)

    async def _admit_late(self, context: Context, req: Request, resp: Response) -> None:
        if isinstance(context.store, Carrier) and context.store.pending:
            await self._admitted(req, resp)

    async def _understand(self, req: Request, arguments: dict[str, Any]) -> None:
        """Read query and body as their schemas have them. Raises Invalid, TooLarge, UnsupportedMediaType."""
        if self.query is not None:
            arguments["query"] = self._query(self.query, req)
        if self.body is not None:
            arguments["body"] = load(self.body, await self._body(req))

    def _answer(self, req: Request, resp: Response, result: Any) -> None:
        resp.status = self.status.value
        if result is None and self.returns is not None and self.status is HTTPStatus.OK:
            resp.status = HTTPStatus.NO_CONTENT.value
        elif self.returns is not None:
            self.render(req, resp, result)

    @staticmethod
    def _query(schema: Schema, req: Request) -> Any:
        try:
            return load(schema, req.params)
        except Invalid as error:
            raise InvalidQuery(str(error), details=error.details) from None

    async def _body(self, req: Request) -> dict[str, Any]:
        any_type = self.group.dialect.any_type
        return await bodies.json_object(req, self.body_limit_bytes, any_type=any_type)

    def render(self, req: Request, resp: Response, result: Any) -> None:
        """Write `result` into `resp` as the declared schema and the dialect spell it."""
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self.rendered(result, getattr(req.context, "check_response", None))

    def rendered(self, result: Any, check: Any) -> bytes:
        """Return `result` as the body of an answer; a `check` is shown it before."""
        if self.returns is None:
            raise TypeError(f"{self.method} {self.path} declares no schema for its answer.")
        media = self.group.dialect.success(_dumper(self.returns)(result))
        if check is not None:
            check(self, media)
        return orjson.dumps(media)

    async def websocket(self, req: Request, ws: WebSocket, **arguments: Any) -> None:
        """Serve one WebSocket: refuse the handshake as an HTTP request would be refused, else run the handler."""
        req.context.dialect = self.group.dialect
        try:
            context = await self._admitted(req, None)
            if self.query is not None:
                arguments["query"] = self._query(self.query, req)
        except HostlerError as error:
            await refuse(ws, error)
            return
        await self.handler(context, ws, **arguments)

    async def _admitted(self, req: Request, resp: Response | None) -> Context:
        """Return the context once the caller may call this. Raises Unauthenticated, Denied or TooMany."""
        identity = await self._known(req, resp)
        if identity is not None and identity.scope not in {"", self.group.dialect.name}:
            if self.role is not Role.PUBLIC:
                raise Denied(f"These credentials are for the {identity.scope} API alone.")
            identity = None
        context = Context(req.context.store, identity, req, resp)
        if not self.role & OPEN and not ROLES_OF[context.caller.role] & self.role:
            names = " or ".join(role.name.lower() for role in self.role if role.name)
            raise Denied(f"This needs the {names} role.")
        if self.group.module and self.group.module in context.store.settings.modules_off:
            raise ModuleDisabled(f"The module '{self.group.module}' is switched off here.")
        return context

    async def _carrying(self, req: Request, resp: Response) -> Context | None:
        """Return the context of a caller who is known and may call this, yet to be admitted; None for all others."""
        found = await req.context.carrier(req, resp)
        if found is None:
            return None
        carrier, identity = found
        if identity.scope not in {"", self.group.dialect.name} or identity.role not in _letters(self.role):
            return None
        return Context(carrier, identity, req, resp)

    async def _known(self, req: Request, resp: Response | None) -> Identity | None:
        if not self.counted:
            return None
        admitting = req.context.admit(req, resp, optional=bool(self.role & OPEN))
        if self.role is not Role.PUBLIC:
            identity: Identity | None = await admitting
            return identity
        try:
            async with asyncio.timeout(_PUBLIC_PATIENCE_S):
                identity = await admitting
        except (Unavailable, TimeoutError):
            return None  # limits live in Redis; what needs neither it nor an identity goes on without
        return identity


@cache
def _letters(role: Role) -> frozenset[str]:
    """Return the letters of users and keys that `role` admits; flags are slow to compare."""
    return frozenset(letter for letter, roles in ROLES_OF.items() if roles & role)


_loader = cache(compiled.loader)
_dumper = cache(compiled.dumper)


def load(schema: Schema, data: Any) -> Any:
    """Return `data` as `schema` reads it. Raises Invalid, naming each field."""
    try:
        return _loader(schema)(data)
    except ValidationError as error:
        raise invalid(error) from None


class Group:
    """Endpoints that share a path prefix, a dialect and a heading in the docs, and perhaps the `module` they are of.

    A module is one of settings.MODULES; while it is switched off its endpoints answer ModuleDisabled.
    """

    def __init__(self, title: str, prefix: str, dialect: Dialect, *, module: str | None = None) -> None:
        self.title, self.prefix, self.dialect, self.module = title, prefix, dialect, module
        self.raises: tuple[type[HostlerError], ...] = (ModuleDisabled,) if module else ()
        self.endpoints: list[Endpoint] = []

    def endpoint(
        self,
        route: str,
        *,
        role: Role,
        body: Schema | None = None,
        query: Schema | None = None,
        returns: Schema | None = None,
        status: HTTPStatus = HTTPStatus.OK,
        raises: tuple[type[HostlerError], ...] = (),
        body_limit_bytes: int = 1024 * 1024,
        raw: bool = False,
        media_type: str | None = None,
        counted: bool = True,
        takes: str | None = None,
        otherwise: HTTPStatus | None = None,
        carries: bool = False,
        look: Look | None = None,
        accepting: Accepting | None = None,
    ) -> Callable[[Handler], Handler]:
        """Declare the decorated coroutine as the handler of `route`, e.g. "POST /{name}/start" or "WS /stream".

        A `raw` handler gets the Falcon request and response and writes its own answer, of `media_type`; a body that it
        reads by itself is of the type `takes`. What is not `counted` is public, has no limit of its rate, and asks
        nothing of Redis. `otherwise` is a second status under which a raw handler answers the same.

        A handler that `carries` admits its caller with its first step in Redis, in one round trip: before that it may
        only compute, and whatever it does first must be one call of `context.store`. One that is a `look`, or is
        `accepting` jobs, may not even be called.
        """
        method, _, path = route.partition(" ")

        def declare(handler: Handler) -> Handler:
            if not counted and role is not Role.PUBLIC:
                raise TypeError(f"{handler.__qualname__} needs an identity, so its requests are counted.")
            if carries and (raw or role & OPEN or self.module):
                raise TypeError(f"{handler.__qualname__} cannot carry an admission.")
            if look is not None and not (carries and method == "GET" and query is not None and body is None):
                raise TypeError(f"{handler.__qualname__} is no look at one record.")
            if accepting is not None and not (
                carries and method == "POST" and body is not None and query is None
            ):
                raise TypeError(f"{handler.__qualname__} does not accept one job.")
            if not inspect.getdoc(handler):
                raise TypeError(f"{handler.__qualname__} has no docstring, which is its documentation.")
            self.endpoints.append(
                Endpoint(
                    method, self.prefix + path, handler, self, role, body, query, returns, status,
                    (*raises, *self.raises), body_limit_bytes, raw, media_type, counted, takes, otherwise, carries,
                    look, accepting,
                )
            )  # fmt: skip
            return handler

        return declare

    def alias(self, route: str, of: Callable[..., Awaitable[Any]]) -> None:
        """Serve an endpoint of this group under a second, absolute route, e.g. "POST /jobs/create"."""
        method, _, path = route.partition(" ")
        original = next(endpoint for endpoint in self.endpoints if endpoint.handler is of)
        self.endpoints.append(Endpoint(**{**vars(original), "method": method, "path": path}))


class _Resource:
    """One path, with a responder for each method declared on it."""


def mount(app: falcon.asgi.App[Any, Any], groups: Iterable[Group]) -> None:
    """Give Falcon one resource a path, with one responder a method. Raises ValueError on a duplicate."""
    resources: dict[str, _Resource] = {}
    spelled: dict[str, str] = {}
    for endpoint in (endpoint for group in groups for endpoint in group.endpoints):
        shape = re.sub(r"{[^}]+}", "{}", endpoint.path)
        if spelled.setdefault(shape, endpoint.path) != endpoint.path:
            raise ValueError(f"{endpoint.path} and {spelled[shape]} name the same place differently.")
        resource = resources.setdefault(endpoint.path, _Resource())
        responder = "on_websocket" if endpoint.method == "WS" else f"on_{endpoint.method.lower()}"
        if hasattr(resource, responder):
            raise ValueError(f"{endpoint.method} {endpoint.path} is declared twice.")
        setattr(resource, responder, _bound(endpoint))
    for path, resource in resources.items():
        app.add_route(path, resource)


def _bound(endpoint: Endpoint) -> Callable[..., Awaitable[None]]:
    if endpoint.method == "WS":

        async def on_websocket(req: Request, ws: WebSocket, **arguments: Any) -> None:
            await endpoint.websocket(req, ws, **arguments)

        return on_websocket

    async def respond(req: Request, resp: Response, **arguments: Any) -> None:
        await endpoint(req, resp, **arguments)

    return respond


__all__ = ["Context", "Endpoint", "Group", "HTTPStatus", "Invalid", "Role", "load", "mount"]
