"""ProcessCubes: the apps here that are one, and those of other Hostlers that are registered as sub-Cubies."""

from typing import Any

from falcon.asgi import Request, Response
from marshmallow import Schema, fields, validate

from api.cuby.products import answer
from api.dialect import CUBY
from api.endpoint import Context, Group, HTTPStatus, Role
from api.times import Time
from integrations import processcubes as neighbours
from storage import apps, processcubes
from storage.errors import BadGateway, Conflict, Denied, Invalid, NotFound, Unauthenticated, Unavailable
from storage.processcubes import SubCuby

group = Group("Cuby: ProcessCubes", "/api/processcubes", CUBY)

_JSON = "application/json"
_READ = (Unauthenticated, Denied)


class CubeQuery(Schema):
    """Whose: all, or those alone that are installed here."""

    scope = fields.String(load_default="all", validate=validate.OneOf(["all", "local"]))


class SubCubyBody(Schema):
    """Where another Hostler or Cuby answers, and an API key that may read there."""

    url = fields.String(required=True, validate=validate.Length(1, 2048))
    apiKey = fields.String(required=True, validate=validate.Length(1, 512))


class SubCubyEntry(Schema):
    """A registered neighbour, without its API key."""

    name = fields.String(required=True)
    url = fields.String(required=True)
    connected = fields.Boolean(required=True)
    problem = fields.String(required=True)
    processCubes = fields.Integer(required=True)
    registeredAt = Time(required=True, attribute="added_ms")
    answeredAt = Time(required=True, attribute="answered_ms", allow_none=True)


class SubCubyList(Schema):
    """All registered neighbours, by name."""

    subCubies = fields.List(fields.Nested(SubCubyEntry), required=True)


@group.endpoint(
    "GET ", role=Role.VIEWER, query=CubeQuery(), raw=True, media_type=_JSON, raises=(*_READ, Invalid)
)
async def list_cubes(context: Context, req: Request, resp: Response, *, query: dict[str, Any]) -> None:
    """List all ProcessCubes: the apps here that are one, and those of registered sub-Cubies.

    Each is `{productId, name, engineUrl, lowcodeUrls, authorityUrl, instanceId, source}`; `source` is `local` or the
    name of the sub-Cuby. `scope=local` leaves the others out.
    """
    found = [
        {
            "productId": app.product,
            "name": app.name,
            "engineUrl": links.engine_url,
            "lowcodeUrls": list(links.lowcode_urls),
            "authorityUrl": links.authority_url,
            "instanceId": app.instance_id,
            "source": "local",
        }
        for app in await apps.every(context.store)
        if app.releases and app.manifest is not None and (links := app.manifest.links) is not None
    ]
    if query["scope"] == "all":
        for sub in await processcubes.every(context.store):
            found += [{**cube, "instanceId": None, "source": sub.name} for cube in sub.cubes]
    answer(resp, found)


@group.endpoint("GET /sub-cubies", role=Role.ADMIN, returns=SubCubyList(), raises=_READ)
async def list_sub_cubies(context: Context) -> dict[str, Any]:
    """List the registered sub-Cubies, and whether each answered when it was asked last."""
    return {"subCubies": [_entry(sub) for sub in await processcubes.every(context.store)]}


@group.endpoint(
    "PUT /sub-cubies/{name}",
    role=Role.ADMIN,
    body=SubCubyBody(),
    returns=SubCubyEntry(),
    raises=(*_READ, Invalid, Conflict, Unavailable, BadGateway),
)
async def register(context: Context, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Register another Hostler or Cuby whose ProcessCubes shall be shown here, or replace one of that name.

    It is asked at once, and nothing is kept unless it answers. From then on it is asked every 15 seconds; when it has
    not answered for a minute, or does not know the key any more, its ProcessCubes are taken off the list until it does.
    """
    store, url = context.store, body["url"].rstrip("/")
    processcubes.check(name, body["apiKey"])  # before anybody is asked, and told the key
    cubes = await neighbours.ask(url, body["apiKey"], allow=store.settings.outbound_allow)
    shown = [cube.shown for cube in cubes]
    return _entry(
        await processcubes.register(
            store, context.caller.actor, name, url=url, key=body["apiKey"], cubes=shown
        )
    )


@group.endpoint(
    "DELETE /sub-cubies/{name}", role=Role.ADMIN, status=HTTPStatus.NO_CONTENT, raises=(*_READ, NotFound)
)
async def unregister(context: Context, name: str) -> None:
    """Forget a sub-Cuby and its ProcessCubes."""
    await processcubes.remove(context.store, context.caller.actor, name)


def _entry(sub: SubCuby) -> dict[str, Any]:
    return {
        "name": sub.name,
        "url": sub.url,
        "connected": sub.connected,
        "problem": sub.problem,
        "processCubes": len(sub.cubes),
        "added_ms": sub.added_ms,
        "answered_ms": sub.answered_ms,
    }
