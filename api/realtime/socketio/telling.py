"""What clients of Socket.IO are told, in Cuby's words, and what they may say.

Everybody in the default namespace hears of installs, products, the system and ProcessCubes; log lines come to those who
asked for them. The namespace `/plugins/<instanceId>` exists while that app runs: its events go to those who are in it,
and theirs go to the app, as `POST <routes prefix>/socket/<event>`.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import orjson

from api import addresses
from api.cuby import words
from api.endpoint import ROLES_OF, Role
from api.errors import status_of
from api.realtime.hub import Ended, Hub
from api.realtime.socketio.server import Limits, Named, Server, Session
from storage import apps, relay
from storage.apps import App
from storage.errors import Denied, HostlerError, Invalid, NotFound, NotRunning, TooMany, Unavailable
from storage.relay import Ask
from storage.store import Store
from storage.watch import AppLines, Event

log = logging.getLogger("hostler.api")

#: Changes are gathered for so long before `products:status` is told, which names all products.
GATHER_S = 0.1
_PLUGINS = "/plugins/"
#: An app is there for its namespace while it is said to be one of these; it is entered while it is `running`.
_UP = frozenset({"running", "starting"})
#: Names that are Socket.IO's own.
_RESERVED = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
MOST_LOGS = 100  # subscriptions of one session
MOST_CALLS = 8  # events of one session that apps have not answered yet
_CALL_S = 30.0


def plugin_of(namespace: str) -> str | None:
    """Return the app that a namespace belongs to; None for any other namespace."""
    name = unquote(namespace.removeprefix(_PLUGINS)) if namespace.startswith(_PLUGINS) else ""
    return name or None


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


#: What an app's phase is called while it is installed; in any other phase, it has been.
_INSTALL_WORDS = frozenset({"installing", "needs_config", "updating", "failed"})


def _install(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return what words.install_entry tells of the app, as it was when this happened."""
    status = fields.get("status", "")
    status = status if status in _INSTALL_WORDS else "installed"
    progress, message = fields.get("progress", ""), fields.get("message", "")
    under_way = status in {"installing", "updating", "failed"} and progress.isdecimal()
    said = {
        "productId": fields.get("product", ""),
        "instanceId": fields.get("app", ""),
        "status": status,
        "progress": int(progress) if under_way else 100,
        "message": message,
    }
    return {**said, "error": fields.get("error") or message} if status == "failed" else said


def _system(fields: Mapping[str, str]) -> dict[str, Any]:
    return {name: value if name == "message" else _json(value) for name, value in fields.items()}


def _cube(fields: Mapping[str, str]) -> dict[str, Any]:
    said = {name: _json(value) if name in _LISTS else value for name, value in fields.items()}
    links = said.pop("links", None)
    return {"instanceId": said.pop("app", ""), **said, **(links if isinstance(links, dict) else {})}


#: What holds JSON in the events of ProcessCubes.
_LISTS = frozenset({"links", "lowcodeUrls"})


#: Events that are told to everybody as they come, and how Cuby calls them.
_TOLD = {
    "app.install": ("install:status", _install),
    "system.status": ("system:status", _system),
    "processcube.registered": ("processcube:registered", _cube),
    "processcube.unregistered": ("processcube:unregistered", _cube),
}


class Telling:
    """The Socket.IO of one process: `server` takes its requests."""

    def __init__(self, store: Store, hub: Hub, *, limits: Limits) -> None:
        self.store, self.hub = store, hub
        self.server = Server(store, may_enter=self._may_enter, limits=limits)
        self.server.entered, self.server.emptied = self._entered, self._rest
        self.server.on("subscribe:logs", self._subscribe, namespace="/")
        self.server.on("unsubscribe:logs", self._unsubscribe, namespace="/")
        self.server.on("*", self._heard, namespace="*")
        self._apps: dict[str, App] = {}
        self._stale: set[str] | None = None  # apps to be read again; None for all
        self._gathering: asyncio.Event = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._logs: dict[str, asyncio.Task[None]] = {}
        self._heeded: dict[str, asyncio.Event] = {}  # set while no line of a log can be missed

    async def leave(self) -> None:
        """End all connections, so that clients go on elsewhere. Safe to repeat."""
        await self.server.leave()
        await self._rest()

    async def close(self) -> None:
        """Stop what still runs. Safe to run twice."""
        await self.server.close()
        await self._rest()

    async def _rest(self) -> None:
        ending = [*self._tasks, *self._logs.values()]
        self._tasks, self._logs, self._heeded, self._apps = [], {}, {}, {}
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    # Entering

    async def _may_enter(self, namespace: str) -> None:
        """Raise NotFound or NotRunning for a namespace that does not exist now."""
        self._listen()
        if namespace == "/":
            return
        name = plugin_of(namespace)
        if name is None:
            raise NotFound("There is no such namespace.")
        app = await apps.get(self.store, name)
        if app.status != "running":
            raise NotRunning(f"{name} is not running.")
        self._apps[name] = app

    async def _entered(self, session: Session, sid: str, named: Named) -> None:
        if named.namespace == "/":
            with contextlib.suppress(HostlerError):
                if not self._apps:
                    await self._read(None)
                await self.server.emit("products:status", self._statuses(), to=sid)
        elif (app := self._apps.get(plugin_of(named.namespace) or "")) is None or app.status not in _UP:
            await self.server.disconnect(sid, namespace=named.namespace)  # it ended meanwhile

    def _listen(self) -> None:
        if not self._tasks and not self.server.leaving:
            self._tasks = [asyncio.create_task(way()) for way in (self._follow, self._keep_telling_statuses)]

    # Telling

    async def _follow(self) -> None:
        """Tell what happens, as long as there is anybody to tell it to."""
        while not self.server.leaving:
            try:
                async with self.hub.follow(output=False) as feed:
                    self._mark(None)
                    while True:
                        items = await feed.take()
                        if items is None:
                            feed.start_anew()
                            self._mark(None)
                            continue
                        for item in items:
                            if isinstance(item, Event):
                                await self._happened(item)
            except Ended:
                return
            except Unavailable:
                await asyncio.sleep(random.uniform(0.2, 0.5))  # noqa: S311  jitter
            except Exception:
                log.exception("telling clients of Socket.IO broke")
                await asyncio.sleep(1)

    async def _happened(self, event: Event) -> None:
        if event.name in _TOLD:
            name, payload = _TOLD[event.name]
            await self.server.emit(name, payload(event.fields), namespace="/")
        app = event.fields.get("app", "")
        if event.name == "plugin.emit":
            await self._emit(app, event.fields)
        elif event.name in {"app.status", "app.removed", "app.install"}:
            ended = event.name == "app.status" and event.fields.get("status") not in _UP
            if ended or event.name == "app.removed":
                await self._close_namespace(app)
            self._mark(app)

    async def _emit(self, app: str, fields: Mapping[str, str]) -> None:
        """Tell those in an app's namespace what the app has said."""
        name = fields.get("event", "")
        if name and name not in _RESERVED:
            data = _json(fields.get("data", "null"))
            for namespace in self._namespaces(app):
                await self.server.emit(name, data, namespace=namespace)

    def _namespaces(self, app: str) -> list[str]:
        """Return how those who are connected spell an app's namespace."""
        return [each for each in list(self.server.manager.get_namespaces()) if plugin_of(each) == app]

    async def _close_namespace(self, app: str) -> None:
        for namespace in self._namespaces(app):
            for sid, _ in list(self.server.manager.get_participants(namespace, None)):
                await self.server.disconnect(sid, namespace=namespace)

    def _mark(self, app: str | None) -> None:
        """Note that an app, or with None every app, is to be read again."""
        if app is None:
            self._stale = None
        elif self._stale is not None:
            self._stale.add(app)
        self._gathering.set()

    async def _keep_telling_statuses(self) -> None:
        while True:
            await self._gathering.wait()
            await asyncio.sleep(GATHER_S)
            self._gathering.clear()
            stale, self._stale = self._stale, set()
            try:
                await self._read(stale)
                self._follow_newcomers()
                await self.server.emit("products:status", self._statuses(), namespace="/")
                for name in {plugin_of(each) for each in self.server.manager.get_namespaces()} - {None}:
                    if name and ((app := self._apps.get(name)) is None or app.status not in _UP):
                        await self._close_namespace(name)
            except HostlerError:
                self._mark(None)
                await asyncio.sleep(random.uniform(0.5, 1))  # noqa: S311  jitter
            except Exception:
                log.exception("telling what products do broke")
                self._mark(None)
                await asyncio.sleep(1)

    async def _read(self, stale: Iterable[str] | None) -> None:
        """Read apps again, all of them with None. Raises Unavailable."""
        if stale is None:
            self._apps = {app.instance_id: app for app in await apps.every(self.store)}
            return
        await asyncio.gather(*(self._read_one(name) for name in stale))

    async def _read_one(self, name: str) -> None:
        try:
            self._apps[name] = await apps.get(self.store, name)
        except NotFound:
            self._apps.pop(name, None)

    def _statuses(self) -> dict[str, Any]:
        return {name: words.process_entry(app) for name, app in self._apps.items()}

    # Logs

    async def _subscribe(self, sid: str, data: Any = None) -> dict[str, Any]:
        """Begin to tell a client what a product prints, or one instance of it."""
        session = self._session("/", sid)
        if session is None:
            return {"ok": False, "error": "This connection is about to end."}
        try:
            name = _product_id(data)
            followed: set[str] = session.state.setdefault("logs", set())
            if len(followed) >= MOST_LOGS:
                raise TooMany(f"A connection follows at most {MOST_LOGS} logs.")
            if not (found := self._instances(name)):  # the news of it may be on its way
                await self._read(None)
                found = self._instances(name)
            if not found:
                raise NotFound(f"There is no product {name!r}.")
            followed.add(name)
            await self.server.enter_room(sid, f"logs {name}")
            for each in found:
                self._follow_log(each)
            async with asyncio.timeout(_HEEDED_S):
                for each in found:
                    await self._heeded[each].wait()
        except (HostlerError, TimeoutError, KeyError) as error:
            return {"ok": False, "error": str(error) or "Logs cannot be followed for now."}
        return {"ok": True}

    async def _unsubscribe(self, sid: str, data: Any = None) -> dict[str, Any]:
        """Tell a client no more of what a product prints."""
        session = self._session("/", sid)
        try:
            name = _product_id(data)
        except HostlerError as error:
            return {"ok": False, "error": str(error)}
        if session is not None:
            session.state.get("logs", set()).discard(name)
            await self.server.leave_room(sid, f"logs {name}")
        return {"ok": True}

    def _session(self, namespace: str, sid: str) -> Session | None:
        return self.server.sessions.get(self.server.manager.eio_sid_from_sid(sid, namespace))

    def _instances(self, name: str) -> list[str]:
        """Return the instances that a name means: that of an instance, or of a product."""
        return [each for each, app in self._apps.items() if name in {each, app.product}]

    def _follow_newcomers(self) -> None:
        """Follow instances that have come since somebody asked for their product's logs."""
        for name, app in self._apps.items():
            if self._rooms(name, app.product):
                self._follow_log(name)

    def _follow_log(self, instance_id: str) -> None:
        known = self._logs.get(instance_id)
        if (known is None or known.done()) and not self.server.leaving:
            self._heeded[instance_id] = asyncio.Event()
            task = self._logs[instance_id] = asyncio.create_task(self._tell_log(instance_id))
            task.add_done_callback(lambda done: self._log_ended(instance_id, done))

    def _log_ended(self, instance_id: str, task: asyncio.Task[None]) -> None:
        if self._logs.get(instance_id) is task:
            del self._logs[instance_id], self._heeded[instance_id]

    def _rooms(self, instance_id: str, product: str) -> list[str]:
        """Return the rooms of those who follow an instance."""
        rooms = self.server.manager.rooms.get("/", {})
        return [room for name in {instance_id, product} if (room := f"logs {name}") in rooms]

    async def _tell_log(self, instance_id: str) -> None:
        """Tell what an instance prints for as long as anybody follows it."""
        with contextlib.suppress(Ended):
            while True:
                try:
                    async with self.hub.follow_app_logs(instance_id) as feed:
                        self._heeded[instance_id].set()
                        while True:
                            items: list[AppLines] | None = []
                            with contextlib.suppress(TimeoutError):
                                async with asyncio.timeout(_LOOK_S):
                                    items = await feed.take()
                            if items is None:  # some were lost on the way; the log has them
                                feed.start_anew()
                            for item in items or ():
                                await self._tell_lines(item)
                            app = self._apps.get(instance_id)
                            if not self._rooms(instance_id, app.product if app else ""):
                                return
                except Unavailable as error:
                    if isinstance(error, Ended):
                        raise
                    await asyncio.sleep(random.uniform(0.2, 0.5))  # noqa: S311  jitter
                except Exception:
                    log.exception("telling what an app prints broke")
                    await asyncio.sleep(1)

    async def _tell_lines(self, item: AppLines) -> None:
        app = self._apps.get(item.instance_id)
        product = app.product if app is not None else ""
        rooms = self._rooms(item.instance_id, product)
        for line in item.lines if rooms else ():
            payload = {
                "productId": product, "instanceId": item.instance_id, "line": line.get("text", ""),
                "process": line.get("process"), "stream": line.get("stream"), "timestamp": line.get("at_ms"),
            }  # fmt: skip
            await self.server.emit("product:log", payload, room=rooms if len(rooms) > 1 else rooms[0])

    # Hearing

    async def _heard(self, event: str, namespace: str, sid: str, *arguments: Any) -> Any:
        """Hand an event in an app's namespace to the app, and its answer back; no other event means anything."""
        name = plugin_of(namespace)
        session = self._session(namespace, sid)
        if name is None or session is None:
            return None
        if session.state.get("calls", 0) >= MOST_CALLS:
            return {"error": "Too many events are waiting for the app.", "code": TooMany.code}
        session.state["calls"] = session.state.get("calls", 0) + 1
        try:
            return await self._call(session, session.names[sid], name, event, arguments)
        except HostlerError as error:
            return {"error": str(error), "code": error.code, "status": status_of(type(error))}
        finally:
            session.state["calls"] -= 1

    async def _call(
        self, session: Session, named: Named, name: str, event: str, arguments: tuple[Any, ...]
    ) -> Any:
        """Return what an app answers to an event. Raises HostlerError."""
        identity = await session.gate.admit(named.req, None, optional=False)  # counts it
        if identity is None or not ROLES_OF[identity.role] & Role.OPERATOR:
            raise Denied("This needs the operator role.")
        app = await apps.get(self.store, name)
        routes = app.manifest.routes if app.manifest is not None else None
        if app.status not in _UP:
            raise NotRunning(f"{name} is not running.")
        if routes is None:
            raise NotFound(f"{name} takes no events: its manifest names no routes.")
        try:
            body = orjson.dumps({"event": event, "args": arguments})
        except TypeError:
            raise Invalid("An event to an app holds JSON, no binary data.") from None
        answer = await relay.request(
            self.store,
            app.node,
            Ask(
                app=name, method="POST", path=f"{routes.prefix.rstrip('/')}/socket/{quote(event, safe='')}", body=body,
                headers=(("content-type", "application/json"), ("accept", "application/json")),
                caller=relay.caller(identity), timeout_s=_CALL_S, limit_bytes=_ANSWER_LIMIT_BYTES,
                forwarded={"for": addresses.peer(named.req, self.store.settings)},
            ),
        )  # fmt: skip
        said = _json(answer.body.decode("utf-8", "replace")) if answer.body else None
        if answer.status >= 400:
            return {"error": said, "status": answer.status}
        return said


#: How often it is looked whether a log is still followed.
_LOOK_S = 5.0
_HEEDED_S = 4.0
_ANSWER_LIMIT_BYTES = 1024 * 1024


def _product_id(data: Any) -> str:
    """Return the product that a client names, as `{productId}` or by itself. Raises Invalid."""
    name = data.get("productId") or data.get("instanceId") if isinstance(data, Mapping) else data
    if not isinstance(name, str) or not 0 < len(name) <= 256:
        raise Invalid("productId is required")
    return name
