"""The way to an app: requests to its backend, and the files of its frontend."""

from typing import Any

from falcon.asgi import Request, Response

from api import forwarding
from api.dialect import SQUAREBERG
from api.endpoint import Context, Group, HTTPStatus, Role
from api.squareberg import words
from api.squareberg.registry import running
from api.squareberg.words import INDEX
from storage import relay
from storage.errors import BadGateway, GatewayTimeout, NotFound, TooLarge, Unavailable
from storage.relay import Ask

group = Group("App requests", "/apps", SQUAREBERG)

_READING, _CHANGING = ("GET", "HEAD", "OPTIONS"), ("POST", "PUT", "PATCH", "DELETE")
#: On a port of Squareberg's own, whose pages share their origin with nothing but apps; elsewhere nothing runs.
_OWN_PORT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'"
)
_RAISES = (NotFound, Unavailable, BadGateway, GatewayTimeout, TooLarge)


async def forward(context: Context, req: Request, resp: Response, name: str, **_: Any) -> None:
    """Pass a request on to an app's backend, and its answer back.

    The app gets neither credentials nor cookies: a signed X-Hostler-Identity tells it who asks. Viewers read; what may
    change something is for operators. The app has 25 s.
    """
    app = await running(context, name)
    # as the client wrote it: /apps/<name>/api/<rest>
    below = forwarding.encoded_path(req).split("/", 3)[3]
    ask = await forwarding.ask(context, app=name, path=f"/{below}", prefix=f"/apps/{name}")
    forwarding.write(resp, await relay.request(context.store, app.node, ask))
    _let_run(req, resp)


for _methods, _role in ((_READING, Role.VIEWER), (_CHANGING, Role.OPERATOR)):
    for _method in _methods:
        for _path in ("/{name}/api", "/{name}/api/{path:path}"):
            group.endpoint(
                f"{_method} {_path}",
                role=_role,
                media_type="application/octet-stream",
                raises=_RAISES,
                raw=True,
            )(forward)


@group.endpoint(
    "GET /{name}", role=Role.VIEWER, media_type="application/octet-stream", raises=_RAISES, raw=True
)
async def frontend_start(context: Context, req: Request, resp: Response, name: str) -> None:
    """Hand out the start page of an app's frontend."""
    await words.find(context.store, name)
    written = forwarding.encoded_path(req)
    if not written.endswith("/"):  # or what the page refers to would be looked for beside it
        resp.status = HTTPStatus.TEMPORARY_REDIRECT.value
        resp.location = f"{written.rpartition('/')[2]}/"
        return
    await _frontend(context, req, resp, name, INDEX)


@group.endpoint(
    "GET /{name}/{path:path}",
    role=Role.VIEWER,
    media_type="application/octet-stream",
    raises=_RAISES,
    raw=True,
)
async def frontend_file(context: Context, req: Request, resp: Response, name: str, path: str) -> None:
    """Hand out a file of an app's frontend, its start page for a path that no file has.

    Scripts of it run on a port of Squareberg's own alone (`--listen squareberg=…`): nowhere else would they be kept
    apart from Hostler's own pages.
    """
    await _frontend(context, req, resp, name, path)


async def _frontend(context: Context, req: Request, resp: Response, name: str, path: str) -> None:
    app = await words.find(context.store, name)
    directory = await words.frontend_path(context.store, app)
    if directory is None:
        raise NotFound(f"App '{name}' has no frontend.")
    ask = Ask(app=name, kind="file", within=directory, path=path or INDEX, fallback=INDEX)
    try:
        answer = await relay.request(context.store, app.node, ask)
    except NotFound:
        raise NotFound(f"Frontend for '{name}' has not been built.") from None
    forwarding.write(resp, answer)
    _let_run(req, resp)


def _let_run(req: Request, resp: Response) -> None:
    if req.context.own_port:
        resp.set_header("Content-Security-Policy", _OWN_PORT_POLICY)
        resp.set_header("X-Frame-Options", "SAMEORIGIN")
