"""Squareberg's registry: the apps there are, their state, their OpenAPI documents, their start and stop."""

import asyncio
import html
from typing import Any

import orjson
from falcon.asgi import Request, Response
from marshmallow import Schema, fields

from api.dialect import SQUAREBERG
from api.endpoint import Context, Group, Role
from api.squareberg import words
from api.squareberg.words import RegisteredApp, StartFailed, StopFailed
from storage import apps, relay
from storage.apps import App
from storage.errors import BadGateway, Conflict, GatewayTimeout, NotFound, NotRunning, Unavailable
from storage.relay import Answer, Ask

group = Group("Registry", "/registry", SQUAREBERG)

#: The hub waits so long for an app's socket, and so long for its end before it kills it (the page's figures).
START_S, STOP_S = 10.0, 5.0
#: Routers of platforms hang up on a request that nothing has been heard of for 30 s.
MOST_STOP_S = 25.0
#: What the way to the node and back may take beside that.
WAY_S = 3.0
SPEC_LIMIT_BYTES = 4 * 1024 * 1024
SPEC_S = 10.0

_RAISES = (NotFound, Conflict, Unavailable)


class Done(Schema):
    """What was done with an app."""

    status = fields.String(required=True)
    app = fields.String(required=True)
    message = fields.String(required=True)


class Scanned(Schema):
    """The names of all apps."""

    status = fields.String(required=True)
    apps = fields.List(fields.String(), required=True)


_APPS = RegisteredApp(many=True)


@group.endpoint("GET ", role=Role.VIEWER, media_type="application/json", raises=(Unavailable,), raw=True)
async def list_registry(context: Context, req: Request, resp: Response) -> None:
    """List all apps, those with a manifest of Squareberg's and all others, as an array.

    What an app has none of is null: a module in `backend_module` is Squareberg's own.
    """
    found = await apps.every(context.store)
    resp.content_type = "application/json"
    shown = await asyncio.gather(*(_shown(context, app) for app in found))
    resp.data = orjson.dumps(_APPS.dump(shown))


async def _shown(context: Context, app: App) -> dict[str, Any]:
    frontend = await words.frontend_path(context.store, app)
    return words.app_answer(context.store.settings, app, frontend)


@group.endpoint("GET /{name}", role=Role.VIEWER, returns=RegisteredApp(), raises=_RAISES)
async def show_app(context: Context, name: str) -> dict[str, Any]:
    """Show one app."""
    return await _shown(context, await words.find(context.store, name))


@group.endpoint("POST /scan", role=Role.OPERATOR, returns=Scanned(), raises=(Unavailable,))
async def scan_registry(context: Context) -> dict[str, Any]:
    """Name all apps. There is no folder to look through: an app is known as soon as it is installed."""
    return {"status": "ok", "apps": [app.instance_id for app in await apps.every(context.store)]}


@group.endpoint("POST /{name}/start", role=Role.OPERATOR, returns=Done(), raises=(*_RAISES, StartFailed))
async def start_app(context: Context, name: str) -> dict[str, str]:
    """Start an app and wait up to 10 s for its socket; one that runs is left alone.

    500 tells that it ended at once or did not come up in time; its status is `error` then.
    """
    app = await words.find(context.store, name)
    if words.status(app) != "running":
        submitted = await apps.change(context.store, context.caller.actor, name, "start")
        job = await apps.finished(context.store, submitted.id, START_S + WAY_S)
        app = await words.find(context.store, name)
        if words.status(app) != "running":
            why = _why(app) or ("" if job is not None else f" It did not come up within {START_S:.0f} s.")
            raise StartFailed(f"App '{name}' failed to start; check app logs.{why}")
    return {"status": "ok", "app": name, "message": f"App '{name}' started."}


def _why(app: App) -> str:
    said = next((each.message for each in app.instances if each.message), app.error)
    return f" {said}" if said else ""


@group.endpoint("POST /{name}/stop", role=Role.OPERATOR, returns=Done(), raises=(*_RAISES, StopFailed))
async def stop_app(context: Context, name: str) -> dict[str, str]:
    """Stop an app: SIGTERM, after 5 s SIGKILL, for it and all that it started. One that is stopped is left alone."""
    app = await words.find(context.store, name)
    if not _is_still(app):
        submitted = await apps.change(context.store, context.caller.actor, name, "stop")
        grace_s = max([STOP_S, *(each.stop_timeout_s for each in app.processes)])
        patience_s = min(MOST_STOP_S, grace_s + WAY_S)
        await apps.finished(context.store, submitted.id, patience_s)
        if not _is_still(await words.find(context.store, name)):
            raise StopFailed(f"App '{name}' has not ended within {patience_s:.0f} s.")
    return {"status": "ok", "app": name, "message": f"App '{name}' stopped."}


def _is_still(app: App) -> bool:
    """Tell whether an app is stopped and shall be, so that stopping it is nothing."""
    alive = any(each.state in apps.ALIVE for each in app.instances)
    never = app.phase in {apps.Phase.INSTALLED, apps.Phase.NEEDS_CONFIG}
    return never or (app.desired == "stopped" and not alive and app.observed_generation >= app.generation)


@group.endpoint("DELETE /{name}", role=Role.OPERATOR, returns=Done(), raises=_RAISES)
async def remove_app(context: Context, name: str) -> dict[str, str]:
    """Stop an app and uninstall it, with its data. The answer does not wait for that."""
    await words.find(context.store, name)
    await apps.change(context.store, context.caller.actor, name, "uninstall")
    return {"status": "ok", "app": name, "message": f"App '{name}' removed from registry."}


@group.endpoint(
    "GET /{name}/spec",
    role=Role.VIEWER,
    media_type="application/json",
    raises=(*_RAISES, BadGateway),
    raw=True,
)
async def app_spec(context: Context, req: Request, resp: Response, name: str) -> None:
    """Hand out an app's own OpenAPI document: what it answers to GET /openapi.json."""
    answer = await _spec(context, name)
    resp.status = answer.status
    resp.content_type = "application/json"
    resp.data = answer.body


async def _spec(context: Context, name: str) -> Answer:
    """Return an app's document. Raises NotFound, NotRunning, BadGateway."""
    app = await running(context, name)
    ask = Ask(
        app=name, path="/openapi.json", headers=(("accept", "application/json"),),
        caller=relay.caller(context.identity), limit_bytes=SPEC_LIMIT_BYTES, timeout_s=SPEC_S,
    )  # fmt: skip
    try:
        answer = await relay.request(context.store, app.node, ask)
    except GatewayTimeout as error:
        raise BadGateway(str(error)) from None
    try:
        orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        raise BadGateway(f"App '{name}' answered its OpenAPI document with something else.") from None
    return answer


async def running(context: Context, name: str) -> App:
    """Return an app that runs. Raises NotFound, NotRunning."""
    app = await words.find(context.store, name)
    if words.status(app) != "running":
        raise NotRunning(f"App '{name}' is not running. Start it first via POST /registry/{name}/start")
    return app


@group.endpoint(
    "GET /{name}/view", role=Role.VIEWER, media_type="text/html", raises=(*_RAISES, BadGateway), raw=True
)
async def view_app(context: Context, req: Request, resp: Response, name: str) -> None:
    """Show an app's endpoints as a page for people."""
    app = await words.find(context.store, name)
    rows = ""
    if words.status(app) == "running":
        document = orjson.loads((await _spec(context, name)).body)
        rows = "".join(_row(*each) for each in _operations(document))
    else:
        rows = "<tr><td>The app is not running.</td></tr>"
    title = html.escape(app.name)
    resp.content_type = "text/html; charset=utf-8"
    resp.text = f"<!DOCTYPE html><title>{title}</title><h1>{title}</h1><table>{rows}</table>"


def _operations(document: Any) -> list[tuple[str, str, str]]:
    paths = document.get("paths") if isinstance(document, dict) else None
    found = []
    for path, item in paths.items() if isinstance(paths, dict) else ():
        for method, operation in item.items() if isinstance(item, dict) else ():
            if isinstance(operation, dict):
                found.append((method.upper(), str(path), str(operation.get("summary") or "")))
    return found


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
