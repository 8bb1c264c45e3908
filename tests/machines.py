"""A node as the rest of Hostler knows it: it claims what is queued for it and reports, but runs nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from engine import register

from storage import apps, attempts, manifests
from storage.apps import App, Instance, LogLine
from storage.attempts import Claim, Holder
from storage.store import Store

POLL_S = 0.005


@dataclass
class Machine:
    """One node; with `answers` it does what it is asked at once, as `behaviour` says for an app (default: running)."""

    store: Store
    holder: Holder
    behaviour: dict[str, str] = field(default_factory=dict)
    done: list[tuple[str, str]] = field(default_factory=list)
    pids: int = 1000

    async def claim(self) -> list[Claim]:
        """Take what is queued for this node."""
        step = attempts.claim(self.holder, (), (), most=8, startable=8, lease_s=60, own=True)
        return (await self.store.call(step))[0]

    async def carry_out(self) -> int:
        """Do all that is queued; answer how many jobs that were."""
        claims = await self.claim()
        for each in claims:
            await self._do(each, each.read_spec(self.store.seal))
        return len(claims)

    async def _do(self, claim: Claim, spec: dict[str, Any]) -> None:
        app_id, action = spec["app"], spec["action"]
        await self.store.call(attempts.begin(self.holder, claim.job_id, claim.attempt))
        outcome: tuple[str, str, int | None] = ("completed", "", 0)
        if action == "uninstall":
            await self.store.call(apps.forget(self.holder, app_id))
        else:
            app = await apps.get(self.store, app_id)
            if action in {"install", "update"}:
                await self._release(claim, app, spec)
            elif action == "configure":
                job = (claim.job_id, claim.attempt)
                await apps.configured(self.store, self.holder, app_id, job=job)
            app = await apps.get(self.store, app_id)
            if self.behaviour.get(app_id) == "fails" and app.desired == "running":
                outcome = ("failed", "exit_code", 1)
            await self.observe(app)
        self.done.append((app_id, action))
        step = attempts.settle(self.holder, claim.job_id, claim.attempt, outcome[0], outcome[1], outcome[2])
        await self.store.call(step)

    async def _release(self, claim: Claim, app: App, spec: dict[str, Any]) -> None:
        shown = spec["release"].get("manifest")
        manifest = manifests.load(shown) if shown else app.manifest
        assert manifest is not None
        await apps.released(
            self.store, self.holder, app.instance_id, job=(claim.job_id, claim.attempt),
            version=spec["release"]["version"], directory=f"{spec['release']['version']}-{app.generation}",
            source=spec["release"]["source"], manifest=manifest,
        )  # fmt: skip

    async def observe(self, app: App, *, state: str = "running", **facts: Any) -> None:
        """Report every instance that is wished as being in `state`, as a failed one where the app is one that fails."""
        found = []
        for process in app.processes:
            wanted = app.wanted(process)
            if wanted.running and process.type != "scheduled":
                found += [self._instance(app, process, index, state, facts) for index in range(wanted.scale)]
        await self.store.call(apps.observe(self.holder, app, found))

    def _instance(self, app: App, process: Any, index: int, state: str, facts: dict[str, Any]) -> Instance:
        self.pids += 1
        one = Instance(
            f"{process.name}-{index}", process.name, index, state, self.pids, 1_700_000_000_000 + index * 1000,
            socket=f"/run/{app.instance_id}.sock" if process.socket else None,
        )  # fmt: skip
        if self.behaviour.get(app.instance_id) == "fails":
            one = replace(one, state="failed", pid=None, socket=None, message="It exited with code 3.")
        return replace(one, **facts)

    async def say(self, instance_id: str, process: str, *texts: str, index: int = 0) -> None:
        """Print lines in the name of an instance."""
        given = [LogLine("", self.store.now_ms(), process, index, "stdout", "info", text) for text in texts]
        await self.store.call(apps.append(self.holder, instance_id, given))

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Do what is queued for as long as the context lasts."""

        async def work() -> None:
            while True:
                await self.carry_out()
                await asyncio.sleep(POLL_S)

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def machine(store: Store, name: str = "n1") -> Machine:
    """Register a node."""
    return Machine(store, await register(store, name, f"{name}-r1", silent_s=600))
