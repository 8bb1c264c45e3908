"""Products as Cuby's clients see them, on a node that reports but runs nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from machines import Machine, machine
from whole import Hostler

from storage import manifests, products, relay
from storage.calls import command
from storage.relay import Handle
from storage.store import Store

SCHEMA = {
    "type": "object",
    "required": ["greeting"],
    "additionalProperties": False,
    "properties": {
        "greeting": {"type": "string", "minLength": 1},
        "token": {"type": "string", "x-secret": True},
    },
}
COMPONENTS = {"config": "ui/config.js", "detail": "ui/detail.js"}
LINKS = {"engine_url": "http://127.0.0.1:8000", "lowcode_urls": ["http://127.0.0.1:1880"]}


@dataclass
class Fleet:
    """The API, clients of each role, and one node."""

    hostler: Hostler
    node: Machine
    admin: httpx.AsyncClient
    operator: httpx.AsyncClient
    viewer: httpx.AsyncClient

    @property
    def store(self) -> Store:
        """Return a store beside the API's own."""
        return self.hostler.store

    async def offer(self, product: str = "processcube-engine", version: str = "1.0.0", **rest: Any) -> None:
        """Publish a release of a product."""
        described = {
            "id": product,
            "version": version,
            "processes": {"web": {"command": ["run"], "port": 0}},
            **rest,
        }
        source = {"kind": "npm", "package": f"@processcube/{product}.cuby", "version": version}
        await products.name(self.store, "user:t", product, source, manifest=manifests.load(described))

    async def install(
        self, product: str = "processcube-engine", alias: str | None = None, **rest: Any
    ) -> str:
        """Publish a product and install it, which the node does at once."""
        await self.offer(product, **rest)
        body = {"products": [{"productId": product, **({"alias": alias} if alias else {})}]}
        answer = await self.operator.post("/api/install", json=body)
        assert answer.status_code == 202, answer.text
        await self.node.carry_out()
        return str(answer.json()["products"][0]["instanceId"])

    @contextlib.asynccontextmanager
    async def answering(self, handle: Handle) -> AsyncIterator[None]:
        """Have the node answer questions for as long as the context lasts."""
        name = self.node.holder.worker
        task = asyncio.create_task(relay.serve(self.store, name, handle))
        while not await self.store.call(command("EXISTS", f"h:relay:session:{name}")):
            assert not task.done(), task
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def status(self, instance_id: str) -> str:
        """Return the status that the list tells of a product."""
        return str((await self.viewer.get("/api/products/status")).json()[instance_id]["status"])


@pytest.fixture
async def fleet(hostler: Hostler) -> Fleet:
    roles = [await hostler.user(role) for role in ("a", "w", "r")]
    return Fleet(hostler, await machine(hostler.store), *roles)
