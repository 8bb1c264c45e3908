"""Stored objects handed to clients: whole or in part, as attachments, for as long as the client is there."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from falcon import secure_filename, uri
from falcon.asgi import Request, Response

from api import ranges
from storage.objects import Reading

#: Types that a browser cannot be made to run; all others are served as bytes without a meaning.
PLAIN_TYPES = {
    "application/gzip", "application/json", "application/pdf", "application/x-tar", "application/zip",
    "application/zstd", "image/gif", "image/jpeg", "image/png", "image/webp", "text/csv", "text/plain",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Content:
    """What is handed out: `read` opens its bytes from the first to the last one inclusive."""

    filename: str
    content_type: str
    size_bytes: int
    sha256: str
    read: Callable[[int, int], Awaitable[Reading]]


def unchanged(req: Request, resp: Response, sha256: str) -> bool:
    """Tell the client the content's tag; answer 304 if it holds that already."""
    resp.set_header("ETag", f'"{sha256}"')
    if not ranges.unchanged(req, sha256):
        return False
    resp.status = 304
    return True


async def serve(req: Request, resp: Response, content: Content) -> None:
    """Stream `content`, or the part that Range names, as an attachment. Raises RangeNotSatisfiable, Unavailable."""
    resp.set_header("Content-Disposition", _attachment(content.filename))
    plain = content.content_type in PLAIN_TYPES
    resp.content_type = content.content_type if plain else "application/octet-stream"
    first, last = ranges.span(req, resp, content.size_bytes, content.sha256) or (0, content.size_bytes - 1)
    resp.content_length = last + 1 - first
    if req.method == "HEAD" or not resp.content_length:
        return
    resp.stream = _WhileWanted(await content.read(first, last), left(req))


def _attachment(filename: str) -> str:
    """Return the Content-Disposition (RFC 6266) that says exactly this name.

    Falcon's own writes quotes and backslashes of an ASCII name as they are, and the name could say more than itself.
    """
    if filename.isascii() and '"' not in filename and "\\" not in filename:
        return f'attachment; filename="{filename}"'
    return f"attachment; filename={secure_filename(filename)}; filename*=UTF-8''{uri.encode_value(filename)}"


def left(req: Request) -> "asyncio.Future[None]":
    """Return a future that is done once the client has left; cancel it when that no longer matters.

    To be asked only when the request's body is not, or no longer, of interest.
    """

    async def wait() -> None:
        # Falcon offers no public way to hear this, and the server swallows what is sent after
        while (await req._receive())["type"] != "http.disconnect":
            pass

    return asyncio.ensure_future(wait())


class _WhileWanted:
    """The chunks of an object for as long as the client is there."""

    def __init__(self, reading: Reading, gone: "asyncio.Future[None]") -> None:
        self._reading, self._gone = reading, gone

    def __aiter__(self) -> "_WhileWanted":
        return self

    async def __anext__(self) -> Any:
        if self._gone.done():
            raise StopAsyncIteration
        return await anext(self._reading)

    async def close(self) -> None:
        """Stop watching, and give the connection to the object store up."""
        self._gone.cancel()
        await self._reading.close()
