"""What each action makes of the wish of an app, and what its job is told besides."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from storage import manifests, products
from storage.apps.records import App, Phase
from storage.errors import Conflict, Invalid, NotFound
from storage.manifests import Manifest, Process, configuration
from storage.store import Store

Given = Mapping[str, Any]
Wished = tuple[App, dict[str, Any]]


async def release_for(
    store: Store, product: str, version: str | None, inline: Manifest | None
) -> tuple[str, dict[str, Any], Manifest | None]:
    """Return version, source and manifest of what is asked for. Raises NotFound."""
    if inline is not None:
        return inline.version, {"kind": "inline"}, inline
    release = await (products.get(store, product, version) if version else products.newest(store, product))
    return release.version, release.source, release.manifest


def _process(app: App, name: str | None) -> Process | None:
    """Return the process that an action is narrowed to. Raises NotFound."""
    if name is None:
        return None
    process = app.process(name)
    if process is None:
        raise NotFound(f"App {app.instance_id!r} has no process {name!r}.")
    return process


def _narrowed(app: App, given: Given) -> dict[str, Any]:
    return {"process": given["process"]} if given["process"] is not None else {}


def _started(app: App, name: str) -> App:
    """Return the app with one process running; of one that was stopped as a whole, the others stay stopped."""
    if app.desired == "stopped":
        for other in app.processes:
            app = app.with_wish(other.name, desired="stopped")
    return replace(app.with_wish(name, desired="running"), desired="running")


def _stopped(app: App, name: str) -> App:
    """Return the app with one process stopped; with the last one, it is stopped as a whole."""
    app = app.with_wish(name, desired="stopped")
    running = any(app.wanted(each).running for each in app.processes)
    return app if running else replace(app, desired="stopped")


async def _start(store: Store, app: App, given: Given) -> Wished:
    app = replace(app, phase=Phase.READY) if app.phase is Phase.INSTALLED else app
    if process := _process(app, given["process"]):
        wish = app.wishes.get(process.name)
        if wish is not None and wish.scale == 0:
            app = app.with_wish(process.name, scale=None)
        return _retried(_started(app, process.name), process.name), _narrowed(app, given)
    for each in app.processes:
        app = app.with_wish(each.name, desired="running")
        if app.wishes[each.name].scale == 0:
            app = app.with_wish(each.name, scale=None)
    return _retried(replace(app, desired="running"), None), {}


def _retried(app: App, process: str | None) -> App:
    """Return the app with one more start asked of what has failed: a start gives spent attempts back."""
    for each in app.processes:
        states = {one.state for one in app.instances_of(each.name)}
        if process in {None, each.name} and states & {"failed", "crashed", "completed"}:
            wish = app.wishes.get(each.name)
            app = app.with_wish(each.name, restarts=(wish.restarts if wish else 0) + 1)
    return app


async def _stop(store: Store, app: App, given: Given) -> Wished:
    if process := _process(app, given["process"]):
        return _stopped(app, process.name), _narrowed(app, given)
    return replace(app, desired="stopped"), {}


async def _restart(store: Store, app: App, given: Given) -> Wished:
    if process := _process(app, given["process"]):
        wish = app.wishes.get(process.name)
        app = app.with_wish(process.name, restarts=(wish.restarts if wish else 0) + 1)
        return _started(app, process.name), _narrowed(app, given)
    if app.desired == "stopped":
        return await _start(store, app, given)
    return replace(app, restarts_asked=app.restarts_asked + 1), {}


async def _scale(store: Store, app: App, given: Given) -> Wished:
    wanted = dict(given["scale"] or {})
    if given["delta"] is not None:
        narrowed = _process(app, given["process"]) or _only(app)
        wanted[narrowed.name] = max(0, app.wanted(narrowed).scale + given["delta"])
    if not wanted:
        raise Invalid("scale: is required", details={"scale": "is required"})
    for name, count in wanted.items():
        process = _process(app, name)
        if process is None:
            raise NotFound(f"App {app.instance_id!r} has no process {name!r}.")
        _check_scale(process, count)
        app = app.with_wish(name, scale=count)
        app = _started(app, name) if count else _stopped(app, name)
    return app, {"scale": wanted}


def _only(app: App) -> Process:
    """Return the process of an app that has one. Raises Invalid."""
    if len(app.processes) != 1:
        raise Invalid("process: is required", details={"process": "is required"})
    return app.processes[0]


def _check_scale(process: Process, count: int) -> None:
    if process.type != "longrun" and count > 1:
        message = f"{process.name!r} is {process.type}; it cannot be scaled."
    elif not 0 <= count <= process.max_scale:
        message = f"{process.name!r} can have from 0 to {process.max_scale} instances."
    elif process.port and process.port + count - 1 > 65_535:
        message = f"{process.name!r} has no ports for {count} instances."
    else:
        return
    raise Invalid(f"scale: {message}", details={"scale": message})


def _scheduled(app: App, given: Given, types: tuple[str, ...]) -> list[Process]:
    """Return the processes that an action on schedules means. Raises NotFound, Invalid."""
    process = _process(app, given["process"])
    meant = [each for each in ([process] if process else app.processes) if each.type in types]
    if not meant:
        message = f"App {app.instance_id!r} has no {' or '.join(types)} process of that name."
        raise Invalid(message, details={"process": message})
    return meant


async def _pause(store: Store, app: App, given: Given) -> Wished:
    for each in _scheduled(app, given, ("scheduled",)):
        app = app.with_wish(each.name, paused=True)
    return app, _narrowed(app, given)


async def _resume(store: Store, app: App, given: Given) -> Wished:
    for each in _scheduled(app, given, ("scheduled",)):
        app = app.with_wish(each.name, paused=False)
    return app, _narrowed(app, given)


async def _trigger(store: Store, app: App, given: Given) -> Wished:
    meant = _scheduled(app, given, ("scheduled", "oneshot"))
    if len(meant) > 1:
        raise Invalid("process: is required", details={"process": "is required"})
    wish = app.wishes.get(meant[0].name)
    number = (wish.triggers if wish else 0) + 1
    return app.with_wish(meant[0].name, triggers=number), {"process": meant[0].name, "trigger": number}


async def _reinstall(store: Store, app: App, given: Given) -> Wished:
    if app.releases:  # what failed was its removal, or an update: there is something to run
        raise Conflict(f"App {app.instance_id!r} is installed already; uninstall it first.")
    return app, {"release": {"product": app.product, "version": app.version, "source": app.source}}


async def _update(store: Store, app: App, given: Given) -> Wished:
    inline = given["inline"]
    if app.source.get("kind") == "inline" and inline is None:
        raise Conflict(f"App {app.instance_id!r} has no product to update from; give its new manifest.")
    if inline is not None and inline.id != app.product:
        message = f"The manifest is of {inline.id!r}, not of {app.product!r}."
        raise Invalid(message, details={"manifest": message})
    version, source, manifest = await release_for(store, app.product, given["version"], inline)
    if version == app.version and source == app.source and version != products.LATEST and inline is None:
        raise Conflict(f"App {app.instance_id!r} has release {version} already.")
    shown = None if manifest is None else manifests.as_json(manifest)
    return app, {"release": {"product": app.product, "version": version, "source": source, "manifest": shown}}


async def _rollback(store: Store, app: App, given: Given) -> Wished:
    earlier = app.releases[1:]
    if given["version"] is not None:
        earlier = tuple(each for each in earlier if given["version"] in {each.version, each.dir})
    if not earlier:
        kept = ", ".join(each.version for each in app.releases[1:]) or "none"
        which = "" if given["version"] is None else f" {given['version']}"
        message = f"App {app.instance_id!r} has no earlier release{which} (kept: {kept})."
        raise Conflict(message, details={"version": message})
    return app, {"version": earlier[0].version, "dir": earlier[0].dir}


async def _configure(store: Store, app: App, given: Given) -> Wished:
    if given["config"] is None:
        raise Invalid("config: is required", details={"config": "is required"})
    if app.manifest is None:
        raise Conflict(f"App {app.instance_id!r} is not installed yet.")
    kept = app.config(store.seal)
    config = configuration.unmasked(app.config_schema, given["config"], kept)
    configuration.check(app.config_schema, config)
    return app.with_config(store.seal, config), {}


async def _uninstall(store: Store, app: App, given: Given) -> Wished:
    return replace(app, desired="stopped"), {"keep_data": bool(given["keep_data"])}


#: By the names of changes.ACTIONS.
WISHES: Mapping[str, Callable[[Store, App, Given], Awaitable[Wished]]] = {
    "install": _reinstall, "update": _update, "rollback": _rollback, "configure": _configure,
    "uninstall": _uninstall, "start": _start, "stop": _stop, "restart": _restart, "scale": _scale,
    "pause": _pause, "resume": _resume, "trigger": _trigger,
}  # fmt: skip
