"""The marketplace: what can be installed, and what there is to learn and to watch."""

from typing import Any

from marshmallow import Schema, fields, validate

from api.cuby import catalogue, words
from api.cuby.catalogue import Entry
from api.dialect import CUBY
from api.endpoint import Context, Group, Role
from storage import apps, marketplace
from storage.apps import App
from storage.errors import Denied, HostlerError, Invalid, Unauthenticated

group = Group("Cuby: Marketplace", "/api/marketplace", CUBY)

_READ = (Unauthenticated, Denied)
_WEB = validate.URL(schemes={"http", "https"}, require_tld=False)


class InstalledInstance(Schema):
    """One installed instance of a product, and whether there is something newer."""

    instanceId = fields.String(required=True)
    alias = fields.String(required=True, allow_none=True)
    version = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(words.PRODUCT_WORDS))
    updateAvailable = fields.Boolean(required=True)


class MarketplaceProduct(Schema):
    """A product that can be installed, and what is installed of it."""

    id = fields.String(required=True)
    productId = fields.String(required=True)
    name = fields.String(required=True)
    description = fields.String(required=True)
    version = fields.String(required=True)
    versions = fields.List(fields.String(), required=True)
    npmPackage = fields.String(required=True, allow_none=True)
    url = fields.String(required=True, allow_none=True)
    source = fields.String(required=True, validate=validate.OneOf(["local", "marketplace"]))
    installed = fields.Boolean(required=True)
    installedVersion = fields.String(required=True, allow_none=True)
    updateAvailable = fields.Boolean(required=True)
    instances = fields.List(fields.Nested(InstalledInstance), required=True)


class UpstreamState(Schema):
    """Whether there is a marketplace above, and why it cannot be asked, if so."""

    configured = fields.Boolean(required=True)
    available = fields.Boolean(required=True)
    message = fields.String(required=True)


class ProductList(Schema):
    """All that can be installed, by id."""

    products = fields.List(fields.Nested(MarketplaceProduct), required=True)
    upstream = fields.Nested(UpstreamState, required=True)


class Shown(Schema):
    """A course or a video."""

    id = fields.String(validate=validate.Length(1, 100))
    title = fields.String(required=True, validate=validate.Length(1, 300))
    url = fields.String(required=True, validate=[_WEB, validate.Length(max=2048)])
    description = fields.String(validate=validate.Length(0, 2000))
    thumbnailUrl = fields.String(validate=[_WEB, validate.Length(max=2048)])
    language = fields.String(validate=validate.Length(0, 35))
    duration = fields.String(validate=validate.Length(0, 50))
    publishedAt = fields.String(validate=validate.Length(0, 50))


class CourseList(Schema):
    """Courses."""

    courses = fields.List(
        fields.Nested(Shown), required=True, validate=validate.Length(0, marketplace.LIST_LIMIT)
    )


class VideoList(Schema):
    """Videos."""

    videos = fields.List(
        fields.Nested(Shown), required=True, validate=validate.Length(0, marketplace.LIST_LIMIT)
    )


class KeyKnown(Schema):
    """That the key which asked is known here."""

    valid = fields.Boolean(required=True)


@group.endpoint("GET /products", role=Role.VIEWER, returns=ProductList(), raises=_READ)
async def list_products(context: Context) -> dict[str, Any]:
    """List all products that can be installed, what is installed of each, and whether there is something newer.

    They are ours, and those that the marketplace above offers if one is configured. When that cannot be asked, ours
    are listed all the same and `upstream` says why.
    """
    found, problem = await catalogue.entries(context.store)
    installed: dict[str, list[App]] = {}
    for app in await apps.every(context.store):
        installed.setdefault(app.product, []).append(app)
    configured = catalogue.upstream(context.store) is not None
    return {
        "products": [_product(entry, installed.get(entry.id, [])) for entry in found],
        "upstream": {"configured": configured, "available": configured and not problem, "message": problem},
    }


def _product(entry: Entry, installed: list[App]) -> dict[str, Any]:
    instances = [_instance(entry, app) for app in installed]
    newest, offer = (entry.releases[0] if entry.releases else None), entry.offer
    manifest = newest.manifest if newest is not None else None
    package = newest.source.get("package") if newest is not None and newest.source["kind"] == "npm" else None
    return {
        "id": entry.id,
        "productId": entry.id,
        "name": manifest.title if manifest is not None else offer.name if offer is not None else entry.id,
        "description": (manifest.description if manifest is not None else "")
        or (offer.description if offer else ""),
        "version": entry.newest,
        "versions": [each.version for each in entry.releases],
        "npmPackage": package or (offer.package if offer is not None and offer.kind == "npm" else None),
        "url": offer.url if offer is not None else None,
        "source": "local" if entry.releases else "marketplace",
        "installed": bool(instances),
        "installedVersion": instances[0]["version"] if instances else None,
        "updateAvailable": any(each["updateAvailable"] for each in instances),
        "instances": instances,
    }


def _instance(entry: Entry, app: App) -> dict[str, Any]:
    return {
        "instanceId": app.instance_id,
        "alias": app.alias,
        "version": app.version,
        "status": words.status_of(app),
        "updateAvailable": catalogue.is_newer(entry.newest, app.version),
    }


@group.endpoint("GET /courses", role=Role.VIEWER, returns=CourseList(), raises=_READ)
async def list_courses(context: Context) -> dict[str, Any]:
    """List courses: those of the marketplace above if there is one, else those that an admin keeps here."""
    return {"courses": await _shown(context, "courses")}


@group.endpoint("GET /videos", role=Role.VIEWER, returns=VideoList(), raises=_READ)
async def list_videos(context: Context) -> dict[str, Any]:
    """List the current videos: those of the marketplace above if there is one, else those that an admin keeps here."""
    return {"videos": await _shown(context, "videos")}


async def _shown(context: Context, which: marketplace.Listed) -> list[dict[str, Any]]:
    """Return a list of the marketplace above; where it has none or cannot be asked, ours."""
    ours = await marketplace.listed(context.store, which)
    above = catalogue.upstream(context.store)
    if above is None:
        return ours
    try:
        return await above.shown(which, await catalogue.key_for_upstream(context.store)) or ours
    except HostlerError:
        return ours


@group.endpoint(
    "PUT /courses", role=Role.ADMIN, body=CourseList(), returns=CourseList(), raises=(*_READ, Invalid)
)
async def keep_courses(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Replace the list of courses."""
    await marketplace.keep_list(context.store, context.caller.actor, "courses", body["courses"])
    return body


@group.endpoint(
    "PUT /videos", role=Role.ADMIN, body=VideoList(), returns=VideoList(), raises=(*_READ, Invalid)
)
async def keep_videos(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Replace the list of videos."""
    await marketplace.keep_list(context.store, context.caller.actor, "videos", body["videos"])
    return body


@group.endpoint("GET /apikey", role=Role.VIEWER, returns=KeyKnown(), raises=_READ)
async def know_key(context: Context) -> dict[str, Any]:
    """Tell a Hostler for which we are the marketplace above that its key is known here."""
    return {"valid": True}
