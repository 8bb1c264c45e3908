"""Puts the API together: the groups of endpoints, the middleware around them, the store beneath."""

import asyncio
import importlib
import logging
import pkgutil
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import falcon
import falcon.asgi
from falcon.asgi import Request, Response, WebSocket

import api
from api import auth, errors, listeners, measuring
from api.at_once import AtOnce
from api.direct import Direct, endpoints
from api.endpoint import Endpoint, Group, mount
from api.exchange import BEGUN
from api.realtime.hub import Hub
from integrations import tracing
from integrations.tracing import OFF, Tracing
from settings import Listener, Settings, __version__
from storage import cause
from storage.store import Store

log = logging.getLogger("hostler.api")

App = TypeVar("App", bound=falcon.asgi.App[Any, Any])

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")

#: On every answer: nothing is sniffed, framed, or run from an answer of the API.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


@cache
def groups() -> list[Group]:
    """Return every Group that a module of api/<room>/ declares as `group`, by path."""
    names = (module.name for module in pkgutil.walk_packages(api.__path__, "api."))
    # not the modules beside this one: api.asgi would make an application when imported
    modules = (importlib.import_module(name) for name in names if name.count(".") > 1)
    found = {
        id(module.group): module.group
        for module in modules
        if isinstance(getattr(module, "group", None), Group)
    }
    return sorted(found.values(), key=lambda group: (group.prefix, group.title))


class _Traces:
    """What traces requests: nothing, until the process that serves them starts."""

    tracing: Tracing = OFF


class _Around:
    """Middleware: what every request gets before its endpoint, and every answer after it."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        check_response: Any,
        traces: _Traces,
        *,
        listener: Listener | None = None,
    ) -> None:
        self.store, self.hub, self.check_response = store, hub, check_response
        self.gate = listeners.gate(store, listener) if listener else auth.Gate(store)
        self.dialect = listeners.DIALECTS[listener.dialect] if listener else None
        self._observe = measuring.requests().observe
        self._traces = traces
        self._says_all = log.isEnabledFor(logging.DEBUG)

    async def process_startup(self, scope: Any, event: Any) -> None:
        self._traces.tracing = tracing.start(self.store.settings.otlp_endpoint, "hostler-web", __version__)
        await self.hub.start()

    async def process_shutdown(self, scope: Any, event: Any) -> None:
        await self.hub.stop()
        await self.store.close()
        await asyncio.to_thread(self._traces.tracing.close)

    async def process_request(self, req: Request, resp: Response) -> None:
        resp.set_headers({**_HEADERS, "X-Request-Id": self.begin(req)})

    def begin(self, req: Request) -> str:
        """Give a request what its endpoint needs; answers the id by which it is known."""
        begun: tuple[str, float] | None = req.scope.get("extensions", {}).get(BEGUN)
        if begun is None:
            offered = req.get_header("X-Request-Id")
            chosen = offered if offered and _REQUEST_ID.fullmatch(offered) else secrets.token_hex(8)
            begun = chosen, time.perf_counter()
        request_id, req.context.began = begun
        req.context.request_id = request_id
        if self._traces.tracing.on:
            self._trace(req, request_id)
        else:
            cause.remember(request_id)
        self._equip(req)
        return request_id

    def _trace(self, req: Request, request_id: str) -> None:
        """Begin the span of a request, under the caller's where its `traceparent` is valid."""
        parent = cause.valid(req.get_header("traceparent"))
        span = self._traces.tracing.begin(
            "request",
            kind="server",
            parent=parent,
            http_request_method=req.method,
            hostler_request=request_id,
        )
        req.context.span = span
        cause.remember(request_id, span.traceparent)

    async def process_response(self, req: Request, resp: Response, resource: object, success: bool) -> None:
        self.end(req, resp)

    def end(self, req: Request, resp: Response) -> None:
        """Count a request whose answer is there."""
        context = req.context
        seconds, status = time.perf_counter() - context.began, resp.status_code
        trace_id = ""
        if self._traces.tracing.on:
            trace_id = context.span.traceparent[3:35]
            context.span.end(
                f"{req.method} {req.uri_template or 'nowhere'}", failed=str(status) if status >= 500 else "",
                http_route=req.uri_template or "", http_response_status__code=status,
            )  # fmt: skip
        self._observe(req.method, req.uri_template, status, seconds, context.request_id, trace_id)
        if status >= 500 or self._says_all:
            log.log(
                logging.WARNING if status >= 500 else logging.DEBUG,
                "answered",
                extra={
                    "method": req.method, "route": req.uri_template, "status": status,
                    "ms": round(seconds * 1000, 1), "request_id": context.request_id,
                },
            )  # fmt: skip

    async def process_request_ws(self, req: Request, ws: WebSocket) -> None:
        req.context.request_id = secrets.token_hex(8)
        cause.remember(req.context.request_id)
        self._equip(req)

    def _equip(self, req: Request) -> None:
        req.context.dialect = self.dialect  # of what is not there; endpoints name their own
        req.context.own_port = self.dialect is not None
        req.context.store = self.store
        req.context.hub = self.hub
        req.context.admit = self.gate.admit
        req.context.carrier = self.gate.carrier
        req.context.still_admits = self.gate.still_admits
        req.context.check_response = self.check_response


class Api(falcon.asgi.App[Request, Response]):
    """The application, which can be told that its process is about to end.

    What comes in by a port of one dialect alone is served by an application of that dialect's endpoints.
    """

    hub: Hub
    by_port: Mapping[int, falcon.asgi.App[Request, Response]]
    direct: Direct
    straight: Mapping[tuple[str, str], Endpoint] = {}
    at_once: AtOnce | None = None

    async def __call__(  # type: ignore[override]  # falcon declares that of its WSGI parent
        self, scope: Any, receive: Any, send: Any
    ) -> None:
        """Serve one connection; its port is the one of the socket that took it, whatever its headers say."""
        port: Any = (scope.get("server") or (None, None))[1]
        alone: Any = None if scope["type"] == "lifespan" else self.by_port.get(port)
        if alone is not None:
            await alone(scope, receive, send)
        elif scope["type"] == "http" and (endpoint := self.straight.get((scope["method"], scope["path"]))):
            await self.direct.serve(endpoint, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def leave(self) -> None:
        """End long polls and streams, so that their clients go on elsewhere. Safe to repeat."""
        await self.hub.stop()


def create_app(settings: Settings, *, check_response: Any = None) -> Api:
    """Return the application that serves the whole API.

    `check_response` is called with each endpoint and the body it is about to send, for tests.
    """
    store = Store(settings)
    hub = Hub(store)
    traces = _Traces()
    around = _Around(store, hub, check_response, traces)
    app = _configured(Api(middleware=[around]), groups())
    app.hub = hub
    app.direct = Direct(app, _HEADERS, around.begin, around.end)
    app.straight = endpoints(groups())
    if not (settings.otlp_endpoint or log.isEnabledFor(logging.DEBUG)):  # there, each request leaves a trace
        app.at_once = AtOnce(
            store, app.direct.lines, app.straight, measuring.requests(), check_response,
            alone={listener.port for listener in settings.listen},
        )  # fmt: skip
    app.by_port = {
        listener.port: _configured(
            falcon.asgi.App(middleware=[_Around(store, hub, check_response, traces, listener=listener)]),
            listeners.groups_of(listeners.DIALECTS[listener.dialect], groups()),
        )
        for listener in settings.listen
    }
    return app


def _configured(app: App, served: Iterable[Group]) -> App:
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.keep_blank_qs_values = True
    app.ws_options.max_receive_queue = 0  # each socket is listened to all the time; a queue is a task more
    app.add_error_handler(Exception, errors.handle)
    app.add_error_handler(falcon.HTTPError, errors.handle)
    mount(app, served)
    return app
