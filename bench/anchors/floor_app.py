"""The floor of a web path: Falcon, one command to Redis, no authentication, no limit, nothing kept beside."""

import json
from typing import Any

import falcon
import falcon.asgi
import redis.asyncio


class _Push:
    def __init__(self, client: Any) -> None:
        self.client = client

    async def on_post(self, req: Any, resp: Any) -> None:
        await self.client.lpush("jobs", json.dumps(await req.get_media()))
        resp.status, resp.media = falcon.HTTP_201, {"id": "x"}


class _Get:
    def __init__(self, client: Any) -> None:
        self.client = client

    async def on_get(self, req: Any, resp: Any) -> None:
        resp.content_type, resp.data = falcon.MEDIA_JSON, await self.client.get("job")


def create(redis_url: str) -> "falcon.asgi.App[Any, Any]":
    """Return the application: POST /push, GET /get."""
    client = redis.asyncio.Redis.from_url(redis_url)
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App()
    app.add_route("/push", _Push(client))
    app.add_route("/get", _Get(client))
    return app
