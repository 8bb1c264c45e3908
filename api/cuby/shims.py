"""React as ES modules: one copy for our own pages and for the components that plugins bring (vendored/build.mjs)."""

import gzip
import hashlib
from functools import cache
from pathlib import Path

from falcon.asgi import Request, Response

from api.dialect import CUBY
from api.endpoint import Context, Group, Role

group = Group("Cuby: Shims", "/api/shim", CUBY)

_FOLDER = Path(__file__).resolve().parent / "vendored"
#: A browser asks again after an hour, and is then told that nothing has changed: the addresses bear no version.
_CACHED = "public, max-age=3600"
_JAVASCRIPT = "text/javascript"


@cache
def _module(name: str) -> tuple[bytes, bytes, str]:
    """Return a module, the same packed, and its entity tag."""
    content = (_FOLDER / name).read_bytes()
    return content, gzip.compress(content, 9, mtime=0), hashlib.sha256(content).hexdigest()[:32]


def _serve(req: Request, resp: Response, name: str) -> None:
    content, packed, tag = _module(name)
    resp.etag = tag
    resp.set_header("Cache-Control", _CACHED)
    resp.set_header("Cross-Origin-Resource-Policy", "same-origin")
    if {"*", tag} & set(req.if_none_match or ()):
        resp.status = 304
        return
    resp.content_type = f"{_JAVASCRIPT}; charset=utf-8"
    resp.set_header("Vary", "Accept-Encoding")
    if "gzip" in (req.get_header("Accept-Encoding") or ""):
        resp.set_header("Content-Encoding", "gzip")
        content = packed
    resp.data = content


@group.endpoint("GET /react.js", role=Role.PUBLIC, raw=True, media_type=_JAVASCRIPT, counted=False)
async def react(context: Context, req: Request, resp: Response) -> None:
    """Get React 19, with every name it exports and as the default."""
    _serve(req, resp, "react.js")


@group.endpoint(
    "GET /react-jsx-runtime.js", role=Role.PUBLIC, raw=True, media_type=_JAVASCRIPT, counted=False
)
async def jsx_runtime(context: Context, req: Request, resp: Response) -> None:
    """Get what compiled JSX calls: jsx, jsxs and Fragment."""
    _serve(req, resp, "react-jsx-runtime.js")


@group.endpoint("GET /react-dom.js", role=Role.PUBLIC, raw=True, media_type=_JAVASCRIPT, counted=False)
async def react_dom(context: Context, req: Request, resp: Response) -> None:
    """Get ReactDOM, createRoot and hydrateRoot among its names; it imports ./react.js, so there is one React."""
    _serve(req, resp, "react-dom.js")
