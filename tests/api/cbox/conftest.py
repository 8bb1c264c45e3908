"""Apps as cbox-init's clients see them, on a node that reports but runs nothing."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from machines import Machine, machine
from whole import Hostler

from storage import apps, manifests


@dataclass
class Fleet:
    """The API, clients of each role, and one node."""

    hostler: Hostler
    node: Machine
    operator: httpx.AsyncClient
    viewer: httpx.AsyncClient

    async def install(self, name: str, processes: dict[str, Any] | None = None, **rest: Any) -> None:
        """Install an app with those processes, and let it come up."""
        described = {"id": name, "processes": processes or {name: {"command": ["run", name]}}, **rest}
        await apps.install(self.hostler.store, "test", inline=manifests.load(described))
        await self.node.carry_out()

    async def process(self, name: str) -> dict[str, Any]:
        """Return a process as the list shows it."""
        answer = await self.viewer.get("/api/v1/processes")
        return next(each for each in answer.json()["processes"] if each["name"] == name)


@pytest.fixture
async def fleet(hostler: Hostler) -> Fleet:
    return Fleet(hostler, await machine(hostler.store), await hostler.user("w"), await hostler.user("r"))
