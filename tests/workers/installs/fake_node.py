"""A node for tests of installs: releases in a folder instead of S3, and apps that only look as if they ran."""

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from engine import register

from cli.packing import pack
from settings import Settings
from storage import apps, attempts, files, manifests, products
from storage.apps import App, Instance
from storage.attempts import Holder
from storage.objects import Uploaded
from storage.read_into import Pieces, ReadInto, whole_of
from storage.store import Store
from workers.installs.tasks import TASKS
from workers.lines import Offer
from workers.run import Ending
from workers.supervisor import places
from workers.supervisor.places import Places
from workers.supervisor.users import Users

PRODUCTS = Path(__file__).parents[2] / "products"
NODE = "node-1"

MANIFEST = """
id = "thing"
name = "Thing"
version = "{version}"

[processes.main]
command = ["sleep", "1000"]
{more}
"""


class FolderObjects:
    """Stands in for the object store, in a folder that another process can use as well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def path(self, key: str) -> Path:
        return self._folder / key.replace("/", "_")

    async def upload(self, key: str, read_into: ReadInto, *, content_type: str, limit_bytes: int) -> Uploaded:
        data = await whole_of(read_into)
        self.path(key).write_bytes(data)
        return Uploaded(len(data), hashlib.sha256(data).hexdigest(), "etag")

    def get_file(
        self, key: str, path: Path, *, limit_bytes: int, cancelled: Callable[[], bool] = lambda: False
    ) -> Uploaded:
        data = self.path(key).read_bytes()
        path.write_bytes(data)
        return Uploaded(len(data), hashlib.sha256(data).hexdigest(), "etag")

    def close(self) -> None:
        """Hold nothing."""


class FakeSupervisor:
    """Stands in for the supervisor: apps run as soon as they are applied, and are sick where their release says so.

    Each start writes the release's version into the app's data, as a migration would.
    """

    def __init__(
        self, apps_dir: Path, isolation: str, report: Callable[[App, list[Instance]], Awaitable[None]]
    ) -> None:
        self.users = Users(apps_dir, isolation=isolation)
        self.apps_dir = apps_dir
        self.applied: dict[str, App] = {}
        self.holding: set[str] = set()
        self.forgotten: list[str] = []
        self._report = report

    def places(self, instance_id: str) -> Places:
        return places.of(self.apps_dir, instance_id)

    def user(self, instance_id: str) -> int | None:
        return self.users.of(instance_id)

    @contextlib.asynccontextmanager
    async def held(self, instance_id: str) -> AsyncIterator[None]:
        self.holding.add(instance_id)
        try:
            yield
        finally:
            self.holding.discard(instance_id)
            if app := self.applied.get(instance_id):
                await self._start(app)

    async def apply(self, app: App) -> None:
        self.applied[app.instance_id] = app
        if app.instance_id not in self.holding:
            await self._start(app)

    async def _start(self, app: App) -> None:
        if any(app.wanted(each).running for each in app.processes):
            release = self.places(app.instance_id).release()
            with (self.places(app.instance_id).data / "starts").open("a") as file:
                file.write(f"{(release / 'hostler.toml').exists()} {release.name}\n")
        await self._report(app, self.observed(app.instance_id))

    def observed(self, instance_id: str) -> list[Instance]:
        app = self.applied.get(instance_id)
        if app is None or instance_id in self.holding:
            return []
        release = self.places(instance_id).release()
        state, code, message = ("crashed", 9, "") if (release / "sick").exists() else ("running", None, "")
        if (release / "waits").exists():
            state, message = "starting", "It waits for 'db'."
        return [
            Instance(f"{each.name}-{index}", each.name, index, state, exit_code=code, message=message)
            for each in app.processes if app.wanted(each).running for index in range(app.wanted(each).scale)
        ]  # fmt: skip

    async def until(
        self, instance_id: str, predicate: Callable[[Sequence[Instance]], bool], timeout_s: float
    ) -> bool:
        return predicate(self.observed(instance_id))

    async def forget(self, instance_id: str) -> None:
        self.applied.pop(instance_id, None)
        self.forgotten.append(instance_id)


class Around:
    """What a task is given beside its offer, and what it says."""

    def __init__(
        self, store: Store, supervisor: Any, holder: Holder, isolation: str, step: Callable[[str], None]
    ) -> None:
        self.store, self.supervisor, self.holder, self.isolation = store, supervisor, holder, isolation
        self.why_stopped: str | None = None
        self.heard = b""
        self.said: list[str] = []
        self.steps: list[str] = []
        self._step = step

    def hear(self, channel: str, data: bytes) -> None:
        self.heard += data

    def say(self, message: str) -> None:
        self.said.append(message)

    def step(self, name: str) -> None:
        self.steps.append(name)
        self._step(name)


class Node:
    """One node: takes the jobs of its queue one at a time."""

    def __init__(self, settings: Settings, folder: Path, *, isolation: str = "none") -> None:
        self.store = Store(settings)
        self.store.objects.close()
        self.store.objects = FolderObjects(folder / "objects")  # type: ignore[assignment]
        self.folder, self.isolation = folder, isolation
        self.apps_dir = settings.apps_dir
        self.supervisor = FakeSupervisor(self.apps_dir, isolation, self._report)
        self.registration = 0
        self.job: Around | None = None

    async def register(self, proof: str = "") -> None:
        self.registration += 1
        name = f"{os.getpid()}-{self.registration}"
        self.holder = await register(self.store, NODE, name, proof=proof)

    async def _report(self, app: App, instances: list[Instance]) -> None:
        await self.store.call(apps.observe(self.holder, app, instances))

    async def publish(self, directory: Path) -> products.Release:
        """Pack a folder and publish it, as the command line and the API do."""
        packed = self.folder / "packed.zip"
        pack(directory, packed)

        async def chunks() -> AsyncIterator[bytes]:
            yield packed.read_bytes()

        file = await files.accept(
            self.store, Pieces(chunks()).read_into, filename="release.zip", content_type=None, actor="user:u"
        )
        return await products.publish(self.store, "user:u", file.id, manifests.read_directory(directory))

    async def thing(self, version: str, more: str = "", **others: str) -> products.Release:
        """Publish a version of a small product, with `others` as its files."""
        directory = self.folder / f"thing-{version}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (directory / "hostler.toml").write_text(MANIFEST.format(version=version, more=more))
        for name, content in others.items():
            (directory / name).write_text(content)
        return await self.publish(directory)

    async def claim(self) -> Offer:
        step = attempts.claim(self.holder, [], (), most=1, startable=1, lease_s=15, own=True)
        (claim,), _ = await self.store.call(step)
        return Offer(claim.job_id, claim.attempt, claim.read_spec(self.store.seal), claim.lines)

    async def work(self, *, step: Callable[[str], None] = lambda _: None, settle: bool = True) -> Ending:
        """Carry out the next job of this node's queue, as its worker would."""
        offer = await self.claim()
        self.job = Around(self.store, self.supervisor, self.holder, self.isolation, step)
        ending = await TASKS[offer.spec["task"]](offer, self.job)
        if settle:
            await self.settle(offer, ending)
        return ending

    async def settle(self, offer: Offer, ending: Ending) -> None:
        step = attempts.settle(
            self.holder, offer.job_id, offer.attempt, ending.outcome, ending.reason, ending.exit_code, ending.facts
        )  # fmt: skip
        await self.store.call(step)

    async def install(self, product: str = "thing", **how: Any) -> Ending:
        await apps.install(self.store, "user:u", product=product, **how)
        return await self.work()

    async def change(self, action: str, app: str = "thing", **how: Any) -> Ending:
        await apps.change(self.store, "user:u", app, action, **how)
        return await self.work()

    async def app(self, name: str = "thing") -> App:
        return await apps.get(self.store, name)

    def root(self, name: str = "thing") -> Path:
        return self.apps_dir / name

    def files(self) -> set[str]:
        """Return what lies in the directory of apps, the node's own things excepted."""
        return {path.name for path in self.apps_dir.iterdir() if not path.name.startswith((".", "users"))}


def leftovers(job_id: str) -> list[str]:
    """Return the processes that bear a job's id."""
    listed = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"HOSTLER_JOB_ID={job_id}" in line]
