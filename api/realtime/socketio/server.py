"""Who may connect by Socket.IO, as whom, how often and for how long; what is told to them is next door.

A session begins without a name: Engine.IO opens it before the client says who it is. So there are few of those, and not
for long; each namespace that a session enters is entered with credentials, which are asked about again all the time.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import engineio
import orjson
import socketio
from falcon.asgi import Request
from socketio.exceptions import ConnectionRefusedError as Refused

from api import addresses, listeners
from api.auth import Gate
from api.dialect import CUBY
from api.endpoint import ROLES_OF, Role
from api.errors import status_of
from api.realtime.socketio.outbox import Outbox
from api.realtime.socketio.sticky import Receive, Send, refuse
from storage.errors import Denied, HostlerError, Unauthenticated, Unavailable
from storage.identity import Identity
from storage.store import Store

log = logging.getLogger("hostler.api")

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one process allows."""

    sessions: int = 2000
    unnamed_per_address: int = 100  # sessions that have not said who they are
    name_within_s: float = 10.0
    names_per_caller: int = 200  # entries into namespaces, of one user or key
    names_per_session: int = 32
    message_bytes: int = 60_000  # of one message; the server below takes 64 KiB from a WebSocket
    packets: int = 100  # from one session, in packets_s seconds
    packets_s: float = 5.0
    standing_s: float = 4.0  # how often it is asked whether callers may stay


class _Json:
    """JSON as the rest of Hostler reads and writes it; what is nested too deep or not JSON is a ValueError."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()

    @staticmethod
    def loads(text: str | bytes, **_: Any) -> Any:
        return orjson.loads(text)


@dataclass(slots=True)
class Named:
    """A session in one namespace: as whom, and by the credential of which request."""

    namespace: str
    req: Request
    identity: Identity


@dataclass(slots=True, eq=False)
class Session:
    """One connection, however it is carried. `names` are the namespaces it has entered, by Socket.IO's id."""

    req: Request
    gate: Gate
    address: str
    names: dict[str, Named] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)  # what those who tell and hear keep about it
    packets: int = 0
    since: float = 0.0
    timer: asyncio.TimerHandle | None = None


#: Asked when somebody enters a namespace; raises HostlerError where it may not be entered now.
MayEnter = Callable[[str], Awaitable[None]]


#: How often a client is pinged, which ends a poll: routers hang up on a request that is silent for 30 s.
PING_S = 20.0


class Server(socketio.AsyncServer):  # type: ignore[misc]  # it is not typed
    """python-socketio's server, guarded. `entered` is called once a session is in a namespace, `left` afterwards."""

    def __init__(self, store: Store, *, may_enter: MayEnter, limits: Limits) -> None:
        quiet = logging.getLogger("hostler.socketio")
        quiet.setLevel(
            logging.CRITICAL
        )  # the libraries write what clients send, and at length what they send wrongly
        super().__init__(
            async_mode="asgi", cors_allowed_origins=[], cors_credentials=False, logger=quiet, engineio_logger=quiet,
            max_http_buffer_size=limits.message_bytes, http_compression=False, namespaces="*", json=_Json,
            ping_interval=PING_S,
        )  # fmt: skip
        engineio.payload.Payload.max_decode_packets = limits.packets  # a client may batch what it has to say
        self.eio.create_queue = Outbox
        self.store, self.limits, self.may_enter = store, limits, may_enter
        self.sessions: dict[str, Session] = {}
        self.leaving = False
        self.entered: Callable[[Session, str, Named], Awaitable[None]] | None = None
        self.emptied: Callable[[], Awaitable[None]] | None = None  # called once nobody is connected any more
        self._unnamed: Counter[str] = Counter()
        self._callers: Counter[tuple[str, str]] = Counter()
        self._gates: dict[int | None, Gate] = {}
        self._standing: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[Any]] = set()
        self.on("connect", self._connect, namespace="*")
        self.on("disconnect", self._disconnect, namespace="*")

    # Requests

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request below /socket.io."""
        req = Request(scope, receive)
        query = parse_qs(scope["query_string"].decode("ascii", "replace"))
        try:
            gate = self._gate(scope)
            self._check_origin(req, gate)
            if "j" in query or req.method not in {"GET", "POST"}:
                raise Denied("Socket.IO is spoken here by GET, POST and WebSockets, without JSONP.")
            if "sid" not in query:
                scope["hostler.session"] = await self._begun(req, gate)
            elif (session := self.sessions.get(query["sid"][0])) is not None:
                self._count(session, query["sid"][0])
        except HostlerError as error:
            await refuse(scope, receive, send, status_of(type(error)), str(error), code=4)
            return
        await self.handle_request(scope, _bounded(receive, self.limits.message_bytes), _with_headers(send))

    def _gate(self, scope: Any) -> Gate:
        port = (scope.get("server") or (None, None))[1]
        listener = next((each for each in self.store.settings.listen if each.port == port), None)
        key = port if listener else None
        if key not in self._gates:
            self._gates[key] = listeners.gate(self.store, listener) if listener else Gate(self.store)
        return self._gates[key]

    def _check_origin(self, req: Request, gate: Gate) -> None:
        """Raise Denied for what a page of another site had a browser send.

        A browser leaves Origin out of a GET to its page's own site, and says so in Sec-Fetch-Site.
        """
        presented = gate.presented(req)
        if presented is None:
            gate.unnamed(req)  # a port without credentials has rules of its own
        if req.get_header("Origin") is not None:
            if not addresses.is_own_origin(req, self.store.settings):
                raise Denied("Socket.IO is open to pages of Hostler's own origin, and to programs.")
        elif presented is not None and presented.by == "cookie" and not _says_same_origin(req):
            raise Denied("A session cookie counts here only with our own Origin.")

    async def _begun(self, req: Request, gate: Gate) -> Session:
        """Return a session that may be opened. Raises Unavailable, TooMany."""
        address = addresses.counted_as(addresses.peer(req, self.store.settings))
        if self.leaving or len(self.sessions) >= self.limits.sessions:
            raise Unavailable("This process takes no more connections.")
        if self._unnamed[address] >= self.limits.unnamed_per_address:
            raise Unavailable("Too many connections from this address have not said who they are.")
        await gate.admit(
            req, None, optional=True
        )  # counts it; who it is, is asked when it enters a namespace
        return Session(req, gate, address)

    # Sessions

    async def _handle_eio_connect(self, eio_sid: str, environ: Any) -> None:
        session: Session = environ["asgi.scope"].pop("hostler.session")
        self.sessions[eio_sid] = session
        self._unnamed[session.address] += 1
        loop = asyncio.get_running_loop()
        session.timer = loop.call_later(self.limits.name_within_s, self._end_unnamed, eio_sid)
        if self._standing is None or self._standing.done():
            self._standing = loop.create_task(self._keep_asking())
        await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        session = self.sessions.get(eio_sid)
        if session is not None and self._count(session, eio_sid):
            with contextlib.suppress(ValueError):  # it is no packet
                await super()._handle_eio_message(eio_sid, data)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: Any) -> None:
        await super()._handle_eio_disconnect(eio_sid, reason)
        if (session := self.sessions.pop(eio_sid, None)) is not None:
            self._named(session)
        engine = self.eio.sockets.get(eio_sid)
        if engine is not None and reason != self.reason.SERVER_DISCONNECT:
            await engine.queue.put(None)  # a poll would stay parked for its client that has left

    def _named(self, session: Session) -> None:
        """Stop the clock of a session that has said who it is, or has ended."""
        if session.timer is not None:
            session.timer.cancel()
            session.timer = None
            self._unnamed[session.address] -= 1
            if not self._unnamed[session.address]:
                del self._unnamed[session.address]

    def _count(self, session: Session, eio_sid: str) -> bool:
        """Count what comes from a session, and end one that says too much."""
        now = time.monotonic()
        if now - session.since > self.limits.packets_s:
            session.since, session.packets = now, 0
        session.packets += 1
        if session.packets > self.limits.packets:
            self.end(eio_sid)
            return False
        return True

    def _end_unnamed(self, eio_sid: str) -> None:
        session = self.sessions.get(eio_sid)
        if session is not None and not session.names:
            self.end(eio_sid)

    def end(self, eio_sid: str) -> None:
        """End a session; its client may come back."""
        task = asyncio.get_running_loop().create_task(self._end(eio_sid))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end(self, eio_sid: str) -> None:
        engine = self.eio.sockets.get(eio_sid)
        if engine is not None and not engine.closing:
            await engine.close(wait=False)
            await engine.queue.put(None)  # ends whoever writes

    # Namespaces

    async def _connect(self, namespace: str, sid: str, environ: Any, auth: Any) -> None:
        eio_sid = self.manager.eio_sid_from_sid(sid, namespace)
        session = self.sessions.get(eio_sid)
        try:
            if session is None or self.leaving:
                raise Unavailable("This connection is about to end.")
            named = await self._admitted(session, namespace, auth)
            await self.may_enter(namespace)
        except HostlerError as error:
            raise Refused(str(error), {"code": error.code, "status": status_of(type(error))}) from None
        session.names[sid] = named
        self._callers[named.identity.kind, named.identity.id] += 1
        self._named(session)
        if self.entered is not None:
            asyncio.get_running_loop().call_soon(self._tell_entered, session, sid, named)

    def _tell_entered(self, session: Session, sid: str, named: Named) -> None:
        """Tell once the client has heard that it is connected."""
        assert self.entered is not None  # noqa: S101  asked by the caller
        task = asyncio.ensure_future(self.entered(session, sid, named))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _admitted(self, session: Session, namespace: str, auth: Any) -> Named:
        """Return as whom a session enters a namespace. Raises Unauthenticated, Denied, TooMany, Unavailable."""
        if any(each.namespace == namespace for each in session.names.values()):
            raise Denied("This connection is in that namespace already.")
        if len(session.names) >= self.limits.names_per_session:
            raise Denied(f"A connection enters at most {self.limits.names_per_session} namespaces.")
        req = _presenting(session.req, auth)
        identity = await session.gate.admit(req, None, optional=False)
        if identity is None or not ROLES_OF[identity.role] & Role.VIEWER:
            raise Denied("This needs the viewer role.")
        if identity.scope not in {"", CUBY.name}:
            raise Denied(f"These credentials are for {identity.scope} alone.")
        if self._callers[identity.kind, identity.id] >= self.limits.names_per_caller:
            raise Unavailable("Too many connections with these credentials are open.")
        return Named(namespace, req, identity)

    async def _disconnect(self, namespace: str, sid: str, reason: Any) -> None:
        eio_sid = self.manager.eio_sid_from_sid(sid, namespace)
        session = self.sessions.get(eio_sid)
        named = session.names.pop(sid, None) if session is not None else None
        if named is not None:
            key = (named.identity.kind, named.identity.id)
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]

    # Standing

    async def _keep_asking(self) -> None:
        """Ask again and again whether those who are connected still may be, while anybody is."""
        while self.sessions:
            await asyncio.sleep(self.limits.standing_s)
            try:
                await self._ask_all()
            except Exception:
                log.exception("asking whether callers may stay broke")
        if self.emptied is not None:
            await self.emptied()

    async def _ask_all(self) -> None:
        known: dict[Any, bool] = {}
        for eio_sid, session in list(self.sessions.items()):
            engine = self.eio.sockets.get(eio_sid)
            if engine is None or engine.closed or engine.queue.overflown:
                await self._gone(eio_sid, engine)
                continue
            for sid, named in list(session.names.items()):
                key = (id(session.gate), session.gate.presented(named.req), named.identity)
                if key not in known:
                    known[key] = await self._may_stay(session, named)
                if not known[key]:
                    await self.disconnect(sid, namespace=named.namespace)
                    self.end(eio_sid)

    async def _gone(self, eio_sid: str, engine: Any) -> None:
        if engine is not None and not engine.closed:
            await engine.close(wait=False, abort=True, reason=self.reason.TRANSPORT_ERROR)
            await engine.queue.put(None)  # ends whoever writes
        self.eio.sockets.pop(eio_sid, None)
        if eio_sid in self.sessions:
            await self._handle_eio_disconnect(eio_sid, self.reason.TRANSPORT_ERROR)

    async def _may_stay(self, session: Session, named: Named) -> bool:
        try:
            return await session.gate.still_admits(named.req, named.identity)
        except Unavailable:
            return True  # Redis cannot say

    async def leave(self) -> None:
        """End all sessions, so that their clients go on elsewhere, and take no more. Safe to repeat."""
        self.leaving = True
        if self._standing is not None:
            self._standing.cancel()
        await asyncio.gather(*(self._end(eio_sid) for eio_sid in list(self.sessions)), return_exceptions=True)
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def close(self) -> None:
        """Stop what still runs. Safe to run twice."""
        await self.leave()
        if self.eio.service_task_handle is not None:
            await self.shutdown()


def _says_same_origin(req: Request) -> bool:
    return req.scope["type"] == "http" and req.get_header("Sec-Fetch-Site") == "same-origin"


_CREDENTIALS = {b"authorization", b"x-api-key", b"x-worker-token", b"cookie"}


def _presenting(req: Request, auth: Any) -> Request:
    """Return the request with the credential in what a client said when it connected, if it said one.

    `auth.apiKey` and `auth.token` hold what could stand after `Bearer`. Raises Unauthenticated.
    """
    said = [auth.get(name) for name in ("apiKey", "token")] if isinstance(auth, Mapping) else []
    token = next((value for value in said if value is not None and value != ""), None)
    if token is None:
        return req
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Unauthenticated("The credentials are not valid, or no longer.")
    headers = [each for each in req.scope["headers"] if each[0].lower() not in _CREDENTIALS]
    headers.append((b"authorization", b"Bearer " + token.encode("ascii")))
    return Request({**req.scope, "headers": headers}, _nothing)


async def _nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


def _bounded(receive: Receive, limit_bytes: int) -> Receive:
    """Return `receive`, which ends a body that is longer than it may be, and a WebSocket that brings no packet.

    Engine.IO raises over what is none, and would forget to end the session.
    """
    received = 0

    async def bounded() -> Any:
        nonlocal received
        event = await receive()
        if event["type"] == "http.request":
            received += len(event.get("body") or b"")
            if received > limit_bytes:
                return {"type": "http.request", "body": b"", "more_body": False}
        if event["type"] == "websocket.receive" and not _is_packet(event):
            return {"type": "websocket.disconnect", "code": 1003}
        return event

    return bounded


def _is_packet(event: Any) -> bool:
    """Tell whether a message is a packet of Engine.IO: binary data, or text that begins with the number of its kind."""
    text = event.get("text")
    return event.get("bytes") is not None or (bool(text) and "0" <= text[0] <= "9")


def _with_headers(send: Send) -> Send:
    async def with_headers(event: Any) -> None:
        if event["type"] == "http.response.start":
            more = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
            event = {**event, "headers": [*event.get("headers", ()), *more]}
        await send(event)

    return with_headers
