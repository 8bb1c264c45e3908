"""The configuration of a product, and the React components that it brings for it and for its details."""

import contextlib
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from falcon.asgi import Request, Response
from marshmallow import Schema, fields

from api import body as bodies
from api.cuby.product import Accepted, accepted
from api.dialect import CUBY
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import apps, relay
from storage.apps import App, Phase
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
from storage.manifests import Components
from storage.relay import Ask

group = Group("Cuby: Product configuration", "/api/products/{instance_id}", CUBY)

_JAVASCRIPT = "text/javascript"
_READ = (Unauthenticated, Denied, NotFound)
_FETCH = (*_READ, Unavailable, BadGateway, GatewayTimeout)
#: More than any component needs, React not being in it.
COMPONENT_LIMIT_BYTES = 5 * 1024 * 1024
_CONFIG_BYTES = 256 * 1024
#: An install that has told how it went may still watch whether the app comes up; it is waited for so long.
SETTLED_WITHIN_S = 10.0


class HasConfig(Schema):
    """Whether a product has a dialog for its configuration, and whether it has a schema of one."""

    hasConfig = fields.Boolean(required=True)
    hasSchema = fields.Boolean(required=True)


class HasDetail(Schema):
    """Whether a product brings a component that shows its details."""

    hasDetail = fields.Boolean(required=True)


class Configuration(Schema):
    """How a product is configured, its secrets masked, and what its configuration may hold."""

    instanceId = fields.String(required=True)
    productId = fields.String(required=True)
    configured = fields.Boolean(required=True)
    config = fields.Dict(required=True)
    schema = fields.Dict(required=True, allow_none=True)


@group.endpoint("GET /has-config", role=Role.VIEWER, returns=HasConfig(), raises=_READ)
async def has_config(context: Context, instance_id: str) -> dict[str, Any]:
    """Tell whether a product has a dialog for its configuration: one that it brings, or ours for its schema."""
    app = await apps.get(context.store, instance_id)
    has_schema = app.config_schema is not None
    return {"hasConfig": _components(app).config is not None or has_schema, "hasSchema": has_schema}


@group.endpoint("GET /config", role=Role.VIEWER, returns=Configuration(), raises=_READ)
async def read_config(context: Context, instance_id: str) -> dict[str, Any]:
    """Get how a product is configured, and the JSON Schema of that. A secret that is set reads `********`."""
    app = await apps.get(context.store, instance_id)
    return {
        "instanceId": app.instance_id,
        "productId": app.product,
        "configured": app.configured,
        "config": app.masked_config(context.store.seal),
        "schema": app.config_schema,
    }


@group.endpoint(
    "POST /configure",
    role=Role.OPERATOR,
    returns=Accepted(),
    status=HTTPStatus.ACCEPTED,
    raw=True,
    takes="application/json",
    raises=(*_READ, Conflict, Invalid),
)
async def configure(context: Context, req: Request, resp: Response, *, instance_id: str) -> None:
    """Store the configuration of a product and deploy it: it restarts with it, or starts for the first time.

    The body is the configuration, or `{"config": …}` around it. It is held against the product's JSON Schema first;
    `********` in the place of a secret leaves that as it is.
    """
    given = await bodies.json_object(req, _CONFIG_BYTES)
    app = await apps.get(context.store, instance_id)
    config = _unwrapped(app, given)
    if app.job and app.phase in {Phase.NEEDS_CONFIG, Phase.READY}:
        # clients configure as soon as they hear `needs_config` or `installed`, which is before that job has ended
        with contextlib.suppress(NotFound):
            await apps.finished(context.store, app.job, SETTLED_WITHIN_S)
    submitted = await apps.change(
        context.store, context.caller.actor, instance_id, "configure", config=config
    )
    endpoint = next(each for each in group.endpoints if each.handler is configure)
    endpoint.render(req, resp, await accepted(context, instance_id, "deployment", submitted.id))


def _unwrapped(app: App, given: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that a body holds, whether or not it stands below `config`."""
    own = (app.config_schema or {}).get("properties", {})
    inner = given.get("config")
    return inner if list(given) == ["config"] and isinstance(inner, dict) and "config" not in own else given


@group.endpoint("GET /has-detail", role=Role.VIEWER, returns=HasDetail(), raises=_READ)
async def has_detail(context: Context, instance_id: str) -> dict[str, Any]:
    """Tell whether a product brings a component that shows its details."""
    app = await apps.get(context.store, instance_id)
    return {"hasDetail": _components(app).detail is not None}


@group.endpoint("GET /config-component.js", role=Role.VIEWER, raw=True, media_type=_JAVASCRIPT, raises=_FETCH)
async def config_component(context: Context, req: Request, resp: Response, *, instance_id: str) -> None:
    """Get the React component that configures a product, as an ES module of its active release.

    For a product that has a schema and brings no component it is a form made from that.
    """
    app = await apps.get(context.store, instance_id)
    path = _components(app).config
    if path is None and app.config_schema is not None:
        _answer(req, resp, _form())
    else:
        await _serve(context, req, resp, app, path)


@group.endpoint("GET /detail-component.js", role=Role.VIEWER, raw=True, media_type=_JAVASCRIPT, raises=_FETCH)
async def detail_component(context: Context, req: Request, resp: Response, *, instance_id: str) -> None:
    """Get the React component that shows a product's details, as an ES module of its active release."""
    app = await apps.get(context.store, instance_id)
    await _serve(context, req, resp, app, _components(app).detail)


def _components(app: App) -> Components:
    found = app.manifest.components if app.manifest is not None else None
    return found or Components()


async def _serve(context: Context, req: Request, resp: Response, app: App, path: str | None) -> None:
    """Answer with a file of the app's release: its path is the manifest's, never the client's."""
    if path is None:
        raise NotFound(f"Product {app.instance_id!r} brings no such component.")
    ask = Ask(app=app.instance_id, kind="file", path=f"/{path}", limit_bytes=COMPONENT_LIMIT_BYTES)
    _answer(req, resp, (await relay.request(context.store, app.node, ask)).body)


@cache
def _form() -> bytes:
    return (Path(__file__).parent / "form.js").read_bytes()


def _answer(req: Request, resp: Response, content: bytes) -> None:
    resp.etag = tag = hashlib.sha256(content).hexdigest()[:32]
    # a page asks each time, for an update changes what lies here
    resp.set_header("Cache-Control", "private, no-cache")
    resp.set_header("Cross-Origin-Resource-Policy", "same-origin")
    if tag in (req.if_none_match or ()):
        resp.status = 304
        return
    resp.content_type = f"{_JAVASCRIPT}; charset=utf-8"
    resp.data = content
