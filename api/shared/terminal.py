"""The page on which somebody who is signed in lets the command line in (`hostler login`)."""

from pathlib import Path

from falcon.asgi import Request, Response

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.shared.folder import Folder
from storage.errors import NotFound

group = Group("Login of the command line", "/api/auth/terminal", CONTEXTBAY)

_FOLDER = Folder(
    Path(__file__).resolve().parent.parent / "terminal",
    {"terminal.css": "text/css; charset=utf-8", "terminal.js": "text/javascript; charset=utf-8"},
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


@group.endpoint("GET ", role=Role.PUBLIC, raw=True, media_type="text/html")
async def page(context: Context, req: Request, resp: Response) -> None:
    """Show the page that asks whether `hostler login` may have a session of yours.

    `port` and `state` in the query name the one that listens on the browser's own machine, which is then sent a token
    as POST /api/auth/token makes it; without them the page shows the token to be copied.
    """
    _FOLDER.page(resp)


@group.endpoint(
    "GET /{name}", role=Role.PUBLIC, raw=True, media_type="application/octet-stream", raises=(NotFound,)
)
async def asset(context: Context, req: Request, resp: Response, *, name: str) -> None:
    """Serve a part of that page."""
    _FOLDER.part(resp, name)
