"""A node as the tasks of backups see one, driven step by step."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import quick_repositories

from storage import attempts, backups, jobs
from storage.attempts import Claim, Holder
from storage.backups import Backup, Record
from storage.store import Store
from workers.backups.engine import password_of
from workers.backups.tasks import TASKS
from workers.lines import Offer
from workers.run import Ending
from workers.supervisor import places
from workers.supervisor.places import Places


class Supervised:
    """What stands for the supervisor: where apps lie, and which of them were held."""

    name = "w"

    def __init__(self, apps_dir: Path) -> None:
        self.apps_dir = apps_dir
        self.held_apps: list[str] = []

    def places(self, instance_id: str) -> Places:
        return places.of(self.apps_dir, instance_id)

    def user(self, instance_id: str) -> int | None:
        return None

    @contextlib.asynccontextmanager
    async def held(self, instance_id: str) -> AsyncIterator[None]:
        self.held_apps.append(instance_id)
        yield


class Context:
    """One attempt, whose log is kept."""

    def __init__(self, node: "Node") -> None:
        self.store, self.supervisor, self.holder = node.store, node.supervisor, node.holder
        self.why_stopped: str | None = None
        self.said: list[str] = []
        self.steps: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def step(self, name: str) -> None:
        self.steps.append(name)


class Node:
    """One node and its jobs."""

    def __init__(self, store: Store, holder: Holder, s3: Any, directory: Path) -> None:
        self.store, self.holder, self.s3, self.directory = store, holder, s3, directory
        self.supervisor = Supervised(store.settings.apps_dir)

    @property
    def bucket(self) -> str:
        return self.store.settings.s3_bucket

    def keys(self, backup: Backup, kind: str) -> list[tuple[str, int]]:
        """Return the objects of one kind in a repository, with their sizes, the largest first."""
        prefix = f"{backup.prefix}/{kind}"
        page = self.s3.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        found = [(each["Key"], each["Size"]) for each in page.get("Contents", ())]
        return sorted(found, key=lambda each: -each[1])

    def flip(self, key: str) -> bytes:
        """Turn one bit in the middle of an object around, and return what it was."""
        whole: bytes = self.s3.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        changed = bytearray(whole)
        changed[len(changed) // 2] ^= 1
        self.put(key, bytes(changed))
        return whole

    def put(self, key: str, data: bytes) -> None:
        self.s3.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    async def backup(self, *, begun: bool = True, **given: Any) -> Backup:
        """Create a backup job; its repository opens at once, unless the first run shall make it as the engine does."""
        wish = {"name": "nightly", "node": "w", **given}
        backup = await backups.create(self.store, "user:u", wish, admin=True)
        if begun:
            made = quick_repositories.objects_of(password_of(self.store.seal, backup.id))
            for name, content in made.items():
                self.put(f"{backup.prefix}/{name}", content)
        return backup

    async def offer(self) -> tuple[Claim, Offer]:
        step = attempts.claim(self.holder, [], [], most=1, startable=1, lease_s=60, own=True)
        (claimed,), _ = await self.store.call(step)
        spec = claimed.read_spec(self.store.seal)
        return claimed, Offer(claimed.job_id, claimed.attempt, spec, claimed.lines)

    async def carry_out(self) -> tuple[Ending, Context]:
        """Carry out the job that waits, as the lane does, to its settled end."""
        claimed, offer = await self.offer()
        context = Context(self)
        ending = await TASKS[str(offer.spec["task"])](offer, context)
        await self.settle(claimed, ending)
        return ending, context

    async def settle(self, claimed: Claim, ending: Ending) -> None:
        await self.store.call(
            attempts.settle(
                self.holder, claimed.job_id, claimed.attempt, ending.outcome, ending.reason, ending.exit_code,
                ending.facts,
            )
        )  # fmt: skip

    async def ran(self, backup: Backup) -> Record:
        """Have a backup run, and return the record that it must have made."""
        submitted = await backups.run(self.store, "user:u", backup.id)
        ending, context = await self.carry_out()
        assert ending.outcome == "completed", context.said
        return await backups.record(self.store, backup.id, submitted.id)

    async def verified(self, backup: Backup, record: Record, share: float = 1.0) -> tuple[Ending, Record]:
        await backups.verify(self.store, "user:u", backup.id, record.id, share=share)
        ending, _ = await self.carry_out()
        return ending, await backups.record(self.store, backup.id, record.id)

    async def restored(self, backup: Backup, record: Record, **how: Any) -> tuple[Ending, Context]:
        await backups.restore(self.store, "user:u", backup.id, record.id, admin=True, **how)
        return await self.carry_out()

    async def cancel_all(self) -> None:
        """Cancel the jobs that wait to be tried again."""
        waiting, _ = await jobs.page(self.store, limit=10, offset=0, state="queued")
        for each in waiting:
            await jobs.cancel(self.store, "user:u", each.id)

    async def cut_off(self, when: str) -> str:
        """Carry out the job that waits until its log says `when`, then have the attempt lose it; answers the job."""
        claimed, offer = await self.offer()
        context = Context(self)
        task = asyncio.ensure_future(TASKS[str(offer.spec["task"])](offer, context))
        async with asyncio.timeout(60):
            while not any(when in each for each in [*context.said, *context.steps]) and not task.done():
                await asyncio.sleep(0.005)
        context.why_stopped = "released"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.settle(claimed, Ending("released"))
        assert not (await jobs.get(self.store, claimed.job_id)).finished
        return claimed.job_id
