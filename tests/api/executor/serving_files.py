"""The file endpoints, and a client of theirs."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from forms import BOUNDARY, DATA

from storage.store import Store

from .files_app import around


class Served:
    """The endpoints, and a client that calls them without a network between."""

    def __init__(self, store: Store) -> None:
        self.store, self.app = store, around(store)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://hostler")

    async def upload(
        self, data: bytes = DATA, name: str = "project.zip", media_type: str = "application/zip"
    ) -> Any:
        answer = await self.client.post("/api/files/upload", files={"file": (name, data, media_type)})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def raw(self, body: bytes, *, content_type: str | None = None, **headers: str) -> httpx.Response:
        sent = {
            "Content-Type": content_type or f"multipart/form-data; boundary={BOUNDARY.decode()}",
            **headers,
        }
        return await self.client.post("/api/files/upload", content=body, headers=sent)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.02)
