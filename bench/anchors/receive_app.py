"""The upload path as far as the object store: a form is split, cut into parts and hashed, and the parts are dropped."""

import dataclasses
from typing import Any

import falcon.asgi

from api import body, multipart
from settings import Settings
from storage.objects import Objects

_LIMIT_BYTES = 1 << 40


class _Taker:
    """An S3 client that takes everything at once and keeps nothing."""

    def __getattr__(self, operation: str) -> Any:
        return lambda **_: {"UploadId": "nowhere", "ETag": '"nothing"'}


class _Nowhere(Objects):
    def _client(self, kind: str = "work") -> Any:
        return _Taker()


class _Upload:
    def __init__(self) -> None:
        self.objects = _Nowhere(dataclasses.replace(Settings(), s3_bucket="nowhere"))

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Receive one file."""
        form = multipart.FormReader(body.Incoming(req).read_into, multipart.boundary_of(req.content_type))
        part = await form.file("file")
        uploaded = await self.objects.upload(
            "dropped", form.read_into, content_type=part.content_type, limit_bytes=_LIMIT_BYTES
        )
        resp.media = {"size": uploaded.size_bytes, "sha256": uploaded.sha256}


def create() -> falcon.asgi.App[Any, Any]:
    """Return the application."""
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App()
    app.add_route("/upload", _Upload())
    return app
