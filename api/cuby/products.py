"""All products at once: what they do, how they are, and start them."""

import asyncio
from typing import Any

import orjson
from falcon.asgi import Request, Response
from marshmallow import Schema, fields

from api.cuby import words
from api.dialect import CUBY
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import apps
from storage.apps import App, Phase
from storage.errors import Conflict, Denied, NotFound, Unauthenticated

group = Group("Cuby: Products", "/api/products", CUBY)

_JSON = "application/json"


class Left(Schema):
    """A product that was not started, and why."""

    instanceId = fields.String(required=True)
    reason = fields.String(required=True)


class AllStarted(Schema):
    """Which products were told to start, and which were left as they are."""

    started = fields.List(fields.String(), required=True)
    skipped = fields.List(fields.Nested(Left), required=True)


def answer(resp: Response, media: Any) -> None:
    """Answer with JSON whose keys are ids, which no schema lists."""
    resp.content_type = _JSON
    resp.data = orjson.dumps(media)


@group.endpoint("GET /status", role=Role.VIEWER, raw=True, media_type=_JSON, raises=(Unauthenticated, Denied))
async def statuses(context: Context, req: Request, resp: Response) -> None:
    """Get what every product does, by instance id.

    Each is `{status, pid, startedAt, restartCount}`; the status is one of running, stopped, crashed, installing,
    installed, updating, needs_config and failed.
    """
    found = await apps.every(context.store)
    answer(resp, {app.instance_id: words.process_entry(app) for app in found})


@group.endpoint("GET /health", role=Role.VIEWER, raw=True, media_type=_JSON, raises=(Unauthenticated, Denied))
async def health(context: Context, req: Request, resp: Response) -> None:
    """Get how every product is, by instance id: healthy, unhealthy, or unknown where nothing checks it."""
    found = await apps.every(context.store)
    answer(resp, {app.instance_id: words.health_entry(app) for app in found})


@group.endpoint(
    "POST /start-all",
    role=Role.OPERATOR,
    returns=AllStarted(),
    status=HTTPStatus.ACCEPTED,
    raises=(Unauthenticated, Denied),
)
async def start_all(context: Context) -> dict[str, Any]:
    """Start every product that is installed, configured and does not run. To ask again does no harm."""
    started, skipped = [], []
    idle = []
    for app in await apps.every(context.store):
        reason = _why_not(app)
        if reason:
            skipped.append({"instanceId": app.instance_id, "reason": reason})
        else:
            idle.append(app)

    async def start(app: App) -> str:
        try:
            await apps.change(context.store, context.caller.actor, app.instance_id, "start")
        except (Conflict, NotFound) as error:
            return str(error)
        return ""

    reasons = await asyncio.gather(*(start(app) for app in idle))
    for app, reason in zip(idle, reasons, strict=True):
        if reason:
            skipped.append({"instanceId": app.instance_id, "reason": reason})
        else:
            started.append(app.instance_id)
    return {"started": started, "skipped": skipped}


def _why_not(app: App) -> str:
    """Return why a product is not started; nothing where it shall be."""
    if app.phase not in {Phase.INSTALLED, Phase.READY}:
        return f"It is {words.status_of(app)}."
    if not app.configured:
        return "It is not configured."
    if app.desired == "running" and words.status_of(app) in {"running", "crashed"}:
        return f"It is {words.status_of(app)}."
    return ""
