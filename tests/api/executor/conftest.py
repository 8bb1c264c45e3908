"""The file endpoints on a store of the test's own, with and without a socket, and a look at what is left there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn

from settings import Settings
from storage.store import Store

from .serving_files import Served


@pytest.fixture
async def served(settings_with_s3: Settings) -> AsyncIterator[Served]:
    store = Store(settings_with_s3)
    served = Served(store)
    yield served
    await served.client.aclose()
    await store.close()


@pytest.fixture
async def port(served: Served) -> AsyncIterator[int]:
    """The same endpoints behind a server, for what only a socket shows."""
    config = uvicorn.Config(
        served.app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@pytest.fixture
def nothing_left(s3: Any, served: Served, redis_client: Any) -> Callable[[], bool]:
    """Tells whether bucket, multipart uploads and records are all empty."""
    bucket = served.store.objects.bucket

    def look() -> bool:
        objects = s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        parts = s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return not (objects or parts or redis_client.keys("h:file*"))

    return look
