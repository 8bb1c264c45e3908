"""What tests of apps share: manifests, and a node that does what a real one would, step by step."""

from collections.abc import Mapping
from typing import Any

from engine import register

from storage import apps, attempts, manifests
from storage.apps import App, Instance
from storage.attempts import Claim, Holder
from storage.manifests import Manifest
from storage.store import Store

HELLO: Mapping[str, Any] = {
    "id": "hello",
    "version": "1.0",
    "processes": {"web": {"command": ["serve"], "port": 8000}},
}


def manifest(**changes: Any) -> Manifest:
    """Return the manifest of a small product with a process `web`."""
    return manifests.load({**HELLO, **changes})


class Node:
    """A node whose worker is the test."""

    def __init__(self, store: Store, holder: Holder) -> None:
        self.store, self.holder = store, holder

    @classmethod
    async def online(cls, store: Store, name: str = "node-1", **facts: Any) -> "Node":
        return cls(store, await register(store, name, **facts))

    async def claim(self) -> Claim:
        """Take the next job of this node."""
        step = attempts.claim(self.holder, [], [], most=1, startable=1, lease_s=15, own=True)
        (claimed,), _ = await self.store.call(step)
        return claimed

    async def settle(self, claimed: Claim, outcome: str = "completed", reason: str = "") -> None:
        step = attempts.settle(self.holder, claimed.job_id, claimed.attempt, outcome, reason)
        await self.store.call(step)

    async def release(self, claimed: Claim, given: Manifest, directory: str = "", **how: Any) -> App:
        """Report a release of the job that was claimed as the active one."""
        spec = claimed.read_spec(self.store.seal)
        source = spec.get("release", {}).get("source", {"kind": "inline"})
        app, _ = await apps.released(
            self.store, self.holder, spec["app"], job=(claimed.job_id, claimed.attempt), version=given.version,
            directory=directory or given.version, source=source, manifest=given, **how,
        )  # fmt: skip
        return app

    async def install(self, given: Manifest, **how: Any) -> App:
        """Install a manifest as a node would, to the end of the job."""
        app, _ = await apps.install(self.store, "user:u", inline=given, **how)
        claimed = await self.claim()
        await self.release(claimed, given)
        await self.settle(claimed)
        return await apps.get(self.store, app.instance_id)

    async def observe(self, instance_id: str, *states: str, process: str = "web", **more: Any) -> App:
        """Report instances of one process, one for each state."""
        app = await apps.get(self.store, instance_id)
        seen = [Instance(f"{process}-{i}", process, i, state, **more) for i, state in enumerate(states)]
        await self.store.call(apps.observe(self.holder, app, seen))
        return await apps.get(self.store, instance_id)
