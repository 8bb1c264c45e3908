"""Serves the page at `/`, and its files under their digest, for as long as anybody likes to keep them."""

from falcon.asgi import Request, Response

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.page.assets import Asset, page
from storage.errors import NotFound

group = Group("Page", "", CONTEXTBAY)

_FOREVER = "public, max-age=31536000, immutable"


def serve(req: Request, resp: Response, asset: Asset) -> None:
    """Answer with a file, packed for those who take that."""
    resp.content_type = asset.content_type
    resp.set_header("Vary", "Accept-Encoding")
    if asset.packed is not None and "gzip" in (req.get_header("Accept-Encoding") or ""):
        resp.set_header("Content-Encoding", "gzip")
        resp.data = asset.packed
    else:
        resp.data = asset.content


@group.endpoint("GET /", role=Role.PUBLIC, raw=True, media_type="text/html", counted=False)
async def show(context: Context, req: Request, resp: Response) -> None:
    """Show the page, from which people use all of this."""
    found = page()
    resp.set_header("Content-Security-Policy", found.policy)
    resp.set_header("Cache-Control", "no-cache")
    resp.set_header("Cross-Origin-Opener-Policy", "same-origin")
    resp.etag = found.digest
    if {"*", found.digest} & set(req.if_none_match or ()):
        resp.status = 304
        return
    serve(req, resp, found.html)


@group.endpoint(
    "GET /page/{digest}/{name:path}",
    role=Role.PUBLIC,
    raw=True,
    media_type="application/octet-stream",
    counted=False,
    raises=(NotFound,),
)
async def file(context: Context, req: Request, resp: Response, *, digest: str, name: str) -> None:
    """Serve a file of the page; for another version's digest ours is served too, to be kept by nobody.

    While a fleet is upgraded, the page may come from one server and its files from another.
    """
    found = page()
    asset = found.assets.get(name)
    if asset is None:
        raise NotFound("The page has no such file; load it anew.")
    resp.set_header("Cache-Control", _FOREVER if digest == found.digest else "no-store")
    resp.set_header("Cross-Origin-Resource-Policy", "same-origin")
    serve(req, resp, asset)
