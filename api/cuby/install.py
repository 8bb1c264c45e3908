"""Installs: begin some, cancel one, see how one goes."""

from typing import Any

from marshmallow import Schema, fields, validate

from api.cuby import catalogue, words
from api.dialect import CUBY
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import apps, jobs, marketplace, products
from storage.apps import App, Phase
from storage.errors import Conflict, Denied, Invalid, NotFound, Unauthenticated

group = Group("Cuby: Installation", "/api/install", CUBY)

MOST_AT_ONCE = 50


class Wanted(Schema):
    """A product to install; with an alias beside the one without."""

    productId = fields.String(required=True, validate=validate.Length(1, 64))
    alias = fields.String(allow_none=True, validate=validate.Length(1, 64))
    version = fields.String(validate=validate.Length(1, 64))
    node = fields.String(validate=validate.Length(1, 128))
    tags = fields.List(fields.String(validate=validate.Length(1, 64)), validate=validate.Length(0, 16))


class CubyInstall(Schema):
    """The products to install."""

    products = fields.List(fields.Nested(Wanted), required=True, validate=validate.Length(1, MOST_AT_ONCE))


class Begun(Schema):
    """An install that has begun, and the job that carries it out."""

    productId = fields.String(required=True)
    instanceId = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(words.INSTALL_WORDS))
    jobId = fields.String(required=True)


class InstallAnswer(Schema):
    """The installs that have begun."""

    message = fields.String(required=True)
    products = fields.List(fields.Nested(Begun), required=True)


class CancelBody(Schema):
    """Which install to cancel."""

    instanceId = fields.String(required=True, validate=validate.Length(1, 200))


class Cancelled(Schema):
    """That an install ends, or has ended."""

    instanceId = fields.String(required=True)
    message = fields.String(required=True)


class StatusQuery(Schema):
    """A product, or an instance of one."""

    productId = fields.String(required=True, validate=validate.Length(1, 200))


class InstallStatus(Schema):
    """How an install goes; `error` is there only of one that failed."""

    productId = fields.String(required=True)
    instanceId = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(words.INSTALL_WORDS))
    progress = fields.Integer(required=True, validate=validate.Range(0, 100))
    message = fields.String(required=True)
    error = fields.String()


@group.endpoint(
    "POST ",
    role=Role.OPERATOR,
    body=CubyInstall(),
    returns=InstallAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=(Unauthenticated, Denied, Invalid, NotFound, Conflict),
)
async def install(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Install products: each is a job on a node, and starts once it is installed and configured.

    Either all are known and none of them is installed yet, or nothing is begun. An install that failed may be asked
    for again. `version`, `node` and `tags` say more than Cuby's own clients do: which release, and where.
    """
    wanted = {_instance_id(each): each for each in body["products"]}
    if len(wanted) < len(body["products"]):
        raise Invalid("products: the same product is named twice; give one an alias.")
    failed = {}
    for instance_id, each in wanted.items():
        await catalogue.take(context, each["productId"])
        if "version" in each:
            await products.get(context.store, each["productId"], each["version"])
        if (app := await _found(context, instance_id)) is not None:
            if app.phase is not Phase.FAILED or app.releases:
                raise Conflict(f"Product {instance_id!r} is installed already; give the new one an alias.")
            failed[instance_id] = app
    autostart = await marketplace.autostart(context.store)
    begun = [
        await _again(context, instance_id)
        if instance_id in failed
        else await _install(context, each, autostart=autostart)
        for instance_id, each in wanted.items()
    ]
    return {"message": "Installation started", "products": begun}


def _instance_id(wanted: dict[str, Any]) -> str:
    return apps.instance_id_of(wanted["productId"], wanted.get("alias"))


async def _found(context: Context, instance_id: str) -> App | None:
    try:
        return await apps.get(context.store, instance_id)
    except NotFound:
        return None


async def _install(context: Context, wanted: dict[str, Any], *, autostart: bool) -> dict[str, Any]:
    app, submitted = await apps.install(
        context.store, context.caller.actor, product=wanted["productId"], alias=wanted.get("alias"),
        version=wanted.get("version"), node=wanted.get("node"), tags=wanted.get("tags", ()), autostart=autostart,
    )  # fmt: skip
    return {
        "productId": app.product, "instanceId": app.instance_id, "status": words.install_entry(app)["status"],
        "jobId": submitted.id,
    }  # fmt: skip


async def _again(context: Context, instance_id: str) -> dict[str, Any]:
    submitted = await apps.change(context.store, context.caller.actor, instance_id, "install")
    entry = words.install_entry(await apps.get(context.store, instance_id))
    return {**{name: entry[name] for name in ("productId", "instanceId", "status")}, "jobId": submitted.id}


@group.endpoint(
    "POST /cancel",
    role=Role.OPERATOR,
    body=CancelBody(),
    returns=Cancelled(),
    raises=(Unauthenticated, Denied, Invalid, NotFound, Conflict),
)
async def cancel(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Cancel an install that has not ended; nothing of it stays. Its status is not found once it has."""
    app = await apps.get(context.store, body["instanceId"])
    if app.phase is not Phase.INSTALLING or not app.job:
        raise Conflict(f"Product {app.instance_id!r} is not being installed; it is {words.status_of(app)}.")
    state = await jobs.cancel(context.store, context.caller.actor, app.job)
    message = "Installation cancelled" if state is jobs.State.CANCELLED else "Installation is being cancelled"
    return {"instanceId": app.instance_id, "message": message}


@group.endpoint(
    "GET /status",
    role=Role.VIEWER,
    query=StatusQuery(),
    returns=InstallStatus(),
    raises=(Unauthenticated, Denied, Invalid, NotFound),
)
async def status(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """See how an install goes. `productId` names an instance, or a product: then it is the newest install of that."""
    asked = query["productId"]
    if (app := await _found(context, asked)) is None:
        of_product = [each for each in await apps.every(context.store) if each.product == asked]
        if not of_product:
            raise NotFound(f"Product {asked!r} is not installed, nor being installed.")
        app = of_product[-1]
    return words.install_entry(app)
