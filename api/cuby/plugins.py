"""The routes that a plugin registers: forwarded to the app wherever it runs, and held at arm's length."""

from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import unquote

from falcon.asgi import Request, Response

from api import forwarding
from api.dialect import CUBY
from api.endpoint import Context, Group, Role
from storage import apps, relay
from storage.errors import (
    BadGateway,
    Denied,
    GatewayTimeout,
    Invalid,
    NotFound,
    NotRunning,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from storage.relay import Answer

group = Group("Cuby: Plugin routes", "/api/plugins/{instance_id}", CUBY)

_ANY = "application/octet-stream"
_RAISES = (
    Unauthenticated, Denied, NotFound, Invalid, TooLarge, NotRunning, Unavailable, BadGateway, GatewayTimeout,
)  # fmt: skip

_PREFIX = "/api/plugins/"
#: Headers by which an answer would have the browser fetch, run or remember something under our name.
_LEADING_AWAY = frozenset(
    {"location", "content-location", "link", "refresh", "sourcemap", "speculation-rules", "set-login"}
)
#: What a plugin answers comes from our origin: shown as a page it gets an origin of its own, in which no cookie of ours
#: is sent or seen, nothing may be fetched or submitted, and which only our own pages may frame.
PAGE_POLICY = (
    "sandbox allow-scripts allow-popups allow-downloads; default-src 'self' 'unsafe-inline' data: blob:; "
    "connect-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)


@group.endpoint("GET /{path:path}", role=Role.VIEWER, raw=True, media_type=_ANY, raises=_RAISES)
async def get_route(
    context: Context, req: Request, resp: Response, *, instance_id: str, path: str = ""
) -> None:
    """Get what the plugin answers at one of its routes.

    The request goes to the plugin without your credentials and with a signed header that tells who asks
    (docs/cuby.md); its answer comes back without cookies. At most 10 MiB either way, and 25 seconds.
    """
    await _forward(context, req, resp, instance_id)


@group.endpoint("POST /{path:path}", role=Role.OPERATOR, raw=True, media_type=_ANY, raises=_RAISES)
async def post_route(
    context: Context, req: Request, resp: Response, *, instance_id: str, path: str = ""
) -> None:
    """Post to a route of the plugin."""
    await _forward(context, req, resp, instance_id)


@group.endpoint("PUT /{path:path}", role=Role.OPERATOR, raw=True, media_type=_ANY, raises=_RAISES)
async def put_route(
    context: Context, req: Request, resp: Response, *, instance_id: str, path: str = ""
) -> None:
    """Put to a route of the plugin."""
    await _forward(context, req, resp, instance_id)


@group.endpoint("DELETE /{path:path}", role=Role.OPERATOR, raw=True, media_type=_ANY, raises=_RAISES)
async def delete_route(
    context: Context, req: Request, resp: Response, *, instance_id: str, path: str = ""
) -> None:
    """Delete at a route of the plugin."""
    await _forward(context, req, resp, instance_id)


for method, handler in {
    "GET": get_route,
    "POST": post_route,
    "PUT": put_route,
    "DELETE": delete_route,
}.items():
    group.alias(f"{method} /api/plugins/{{instance_id}}", handler)


async def _forward(context: Context, req: Request, resp: Response, instance_id: str) -> None:
    app = await apps.get(context.store, instance_id)
    routes = app.manifest.routes if app.manifest is not None else None
    if routes is None:
        raise NotFound(f"Product {instance_id!r} has no routes.")
    path = _below(forwarding.encoded_path(req), instance_id)
    ask = await forwarding.ask(
        context,
        app=app.instance_id,
        process=routes.process,
        path=f"{routes.prefix.rstrip('/')}/{path}",
        prefix=f"{_PREFIX}{app.instance_id}",
    )
    answer = await relay.request(context.store, app.node, ask)
    forwarding.write(resp, replace(answer, headers=tuple(_kept(answer, app.instance_id, routes.prefix))))
    resp.set_header("Content-Security-Policy", PAGE_POLICY)
    resp.set_header("X-Frame-Options", "SAMEORIGIN")
    resp.set_header("Cross-Origin-Resource-Policy", "same-origin")


def _kept(answer: Answer, instance_id: str, prefix: str) -> Iterable[tuple[str, str]]:
    """Yield the headers of a plugin's answer that lead a browser nowhere but to routes of the same plugin."""
    within = f"{prefix.rstrip('/')}/"
    for name, value in answer.headers:
        if (
            name == "location"
            and value.startswith(within)
            and not value.startswith("//")
            and "\\" not in value
        ):
            yield name, f"{_PREFIX}{instance_id}/{value.removeprefix(within)}"
        elif name not in _LEADING_AWAY:
            yield name, value


def _below(encoded: str, instance_id: str) -> str:
    """Return what stands behind `/api/plugins/<instance>/` of a path, still encoded.

    Raises Invalid for one that leads upwards, or whose encoding hides where its parts end: the app, or a server before
    it, would take it for another route.
    """
    _, _, _, instance, *parts = encoded.split("/")
    if unquote(instance) != instance_id:
        raise Invalid("The path names a product in an ambiguous way.")
    for part in parts:
        plain = unquote(unquote(part))
        if plain.partition(";")[0] in {".", ".."} or {"/", "\\", "\0"} & set(plain):
            raise Invalid("The path of a plugin's route leads elsewhere, or hides a '/'.")
    return "/".join(parts)
