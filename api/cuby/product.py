"""One product: what it does and says, start it, stop it, update it, remove it."""

from typing import Any

from marshmallow import Schema, fields, validate

from api.cuby import catalogue, words
from api.dialect import CUBY
from api.endpoint import Context, Group, HTTPStatus, Role
from api.times import iso
from storage import apps, relay
from storage.apps import App
from storage.errors import (
    BadGateway,
    Conflict,
    Denied,
    GatewayTimeout,
    Invalid,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from storage.relay import Ask

group = Group("Cuby: Product", "/api/products/{instance_id}", CUBY)

_READ = (Unauthenticated, Denied, NotFound)
_CHANGE = (*_READ, Conflict)


class ProductStatus(Schema):
    """What a product does."""

    instanceId = fields.String(required=True)
    productId = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(words.PRODUCT_WORDS))
    pid = fields.Integer(required=True, allow_none=True)
    startedAt = fields.String(required=True, allow_none=True)
    restartCount = fields.Integer(required=True)
    message = fields.String(required=True)


class ProductHealth(Schema):
    """How a product is."""

    instanceId = fields.String(required=True)
    productId = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(words.PRODUCT_WORDS))
    health = fields.String(required=True, validate=validate.OneOf(["healthy", "unhealthy", "unknown"]))
    healthy = fields.Boolean(required=True)
    message = fields.String(required=True)


class Accepted(Schema):
    """That a change is under way; the job tells how it goes."""

    instanceId = fields.String(required=True)
    productId = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(words.PRODUCT_WORDS))
    message = fields.String(required=True)
    jobId = fields.String(required=True)


class Entry(Schema):
    """One line that a product said."""

    timestamp = fields.String(required=True)
    process = fields.String(required=True)
    instance = fields.String(required=True)
    stream = fields.String(required=True)
    level = fields.String(required=True)
    line = fields.String(required=True)


class LogQuery(Schema):
    """How many of the last lines."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, 10_000))


class Logs(Schema):
    """The last lines of a product, the oldest first: as text, and with what is known of each."""

    instanceId = fields.String(required=True)
    productId = fields.String(required=True)
    logs = fields.List(fields.String(), required=True)
    entries = fields.List(fields.Nested(Entry), required=True)


class LogfileQuery(Schema):
    """How many of the last lines, and of which instance's file where there are several."""

    lines = fields.Integer(load_default=500, validate=validate.Range(1, 10_000))
    process = fields.String(load_default="", validate=validate.Length(0, 64))
    index = fields.Integer(load_default=0, validate=validate.Range(0, 999))


class Logfile(Schema):
    """The end of a product's log file, as lines and as it lies there."""

    instanceId = fields.String(required=True)
    productId = fields.String(required=True)
    lines = fields.List(fields.String(), required=True)
    content = fields.String(required=True)


class CubyUpdateBody(Schema):
    """Which release to update to; without one, the newest."""

    version = fields.String(validate=validate.Length(1, 64))


class UninstallQuery(Schema):
    """Whether what the product has stored stays on the node for a later install."""

    keepData = fields.Boolean(load_default=False)


@group.endpoint("GET /status", role=Role.VIEWER, returns=ProductStatus(), raises=_READ)
async def status(context: Context, instance_id: str) -> dict[str, Any]:
    """Get what a product does: running, stopped, crashed, installing, installed, updating, needs_config or failed."""
    app = await apps.get(context.store, instance_id)
    message = app.error or next((each.message for each in app.instances if each.message), "") or app.message
    return {**_named(app), **words.process_entry(app), "message": message}


@group.endpoint("GET /health", role=Role.VIEWER, returns=ProductHealth(), raises=_READ)
async def health(context: Context, instance_id: str) -> dict[str, Any]:
    """Get how a product is: what its own health checks have said last."""
    return words.health_entry(await apps.get(context.store, instance_id))


@group.endpoint(
    "POST /start", role=Role.OPERATOR, returns=Accepted(), status=HTTPStatus.ACCEPTED, raises=_CHANGE
)
async def start(context: Context, instance_id: str) -> dict[str, Any]:
    """Start a product; one that has failed gets its attempts back."""
    return await _change(context, instance_id, "start")


@group.endpoint(
    "POST /stop", role=Role.OPERATOR, returns=Accepted(), status=HTTPStatus.ACCEPTED, raises=_CHANGE
)
async def stop(context: Context, instance_id: str) -> dict[str, Any]:
    """Stop a product until it is started again."""
    return await _change(context, instance_id, "stop")


@group.endpoint(
    "POST /restart", role=Role.OPERATOR, returns=Accepted(), status=HTTPStatus.ACCEPTED, raises=_CHANGE
)
async def restart(context: Context, instance_id: str) -> dict[str, Any]:
    """Restart a product, or start it where it does not run."""
    return await _change(context, instance_id, "restart")


@group.endpoint(
    "POST /update",
    role=Role.OPERATOR,
    body=CubyUpdateBody(),
    returns=Accepted(),
    status=HTTPStatus.ACCEPTED,
    raises=(*_CHANGE, Invalid),
)
async def update(context: Context, instance_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Update a product to its newest release, or to a given one; it rolls back by itself when that does not work."""
    app = await apps.get(context.store, instance_id)
    if "version" not in body:
        await catalogue.take_newest(context, app.product)
    return await _change(context, instance_id, "update", version=body.get("version"))


@group.endpoint(
    "DELETE /uninstall",
    role=Role.OPERATOR,
    query=UninstallQuery(),
    returns=Accepted(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGE,
)
async def uninstall(context: Context, instance_id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Stop and remove a product, with its data unless `keepData=true`. It is gone when its status is not found."""
    return await _change(context, instance_id, "uninstall", keep_data=query["keepData"])


@group.endpoint("GET /logs", role=Role.VIEWER, query=LogQuery(), returns=Logs(), raises=(*_READ, Invalid))
async def logs(context: Context, instance_id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Get the last lines that a product said, 100 unless `limit` says otherwise, the oldest first."""
    app = await apps.get(context.store, instance_id)
    found = await apps.lines(context.store, instance_id, limit=query["limit"])
    entries = [
        {
            "timestamp": iso(each.at_ms),
            "process": each.process,
            "instance": each.instance,
            "stream": each.stream,
            "level": each.level,
            "line": each.text,
        }
        for each in found
    ]
    return {**_named(app), "logs": [each.text for each in found], "entries": entries}


@group.endpoint(
    "GET /logfile",
    role=Role.VIEWER,
    query=LogfileQuery(),
    returns=Logfile(),
    raises=(*_READ, Invalid, Unavailable, BadGateway, GatewayTimeout),
)
async def logfile(context: Context, instance_id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Get the end of a product's log file on its node, 500 lines unless `lines` says otherwise."""
    app = await apps.get(context.store, instance_id)
    if query["process"] and app.process(query["process"]) is None:
        raise NotFound(f"Product {instance_id!r} has no process {query['process']!r}.")
    ask = Ask(
        app=app.instance_id, kind="log", process=query["process"], index=query["index"], lines=query["lines"],
        caller=relay.caller(context.identity),
    )  # fmt: skip
    content = (await relay.request(context.store, app.node, ask)).body.decode("utf-8", "replace")
    return {**_named(app), "lines": content.splitlines(), "content": content}


def _named(app: App) -> dict[str, Any]:
    return {"instanceId": app.instance_id, "productId": app.product}


async def _change(context: Context, instance_id: str, action: str, **how: Any) -> dict[str, Any]:
    submitted = await apps.change(context.store, context.caller.actor, instance_id, action, **how)
    return await accepted(context, instance_id, action, submitted.id)


async def accepted(context: Context, instance_id: str, action: str, job_id: str) -> dict[str, Any]:
    """Return what tells that a change of a product is under way."""
    app = await apps.get(context.store, instance_id)
    return {**_named(app), "status": words.status_of(app), "message": f"{action} initiated", "jobId": job_id}
