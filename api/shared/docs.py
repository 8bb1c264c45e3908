"""The API's own description: as an OpenAPI document, and as a page for people."""

from functools import cache
from pathlib import Path

import orjson
from falcon.asgi import Request, Response

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.shared.folder import Folder
from storage.errors import NotFound

group = Group("Description", "/api", CONTEXTBAY)

_FOLDER = Folder(
    Path(__file__).resolve().parent.parent / "docs",
    {
        "reference.css": "text/css; charset=utf-8",
        "reference.js": "text/javascript; charset=utf-8",
        "rapidoc-min.js": "text/javascript; charset=utf-8",
    },
    # see api/docs/VENDORED.md: the renderer's templates carry style attributes
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
)


@cache
def _description() -> bytes:
    from api import openapi  # noqa: PLC0415  it reads all groups, this one too
    from api.app import groups  # noqa: PLC0415  as above

    return orjson.dumps(openapi.document(groups()))


@group.endpoint("GET /openapi.json", role=Role.PUBLIC, raw=True, media_type="application/json")
async def describe(context: Context, req: Request, resp: Response) -> None:
    """Describe this API as an OpenAPI 3.1 document."""
    resp.content_type = "application/json"
    resp.data = _description()


@group.endpoint("GET /docs", role=Role.PUBLIC, raw=True, media_type="text/html")
async def page(context: Context, req: Request, resp: Response) -> None:
    """Show the description as a page."""
    _FOLDER.page(resp)


@group.endpoint(
    "GET /docs/{name}", role=Role.PUBLIC, raw=True, media_type="application/octet-stream", raises=(NotFound,)
)
async def asset(context: Context, req: Request, resp: Response, *, name: str) -> None:
    """Serve a part of the page."""
    _FOLDER.part(resp, name)
