"""What the tasks of installs share: the job and its app, how both are told of, and the wait for health."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from settings import process_environment
from storage import apps, manifests
from storage.apps import App, Instance, Phase
from storage.attempts import Holder
from storage.calls import Call
from storage.errors import HostlerError, Unavailable
from storage.manifests import Manifest
from storage.store import Store
from workers.insisting import insist
from workers.installs import updating
from workers.installs.building import Building, Job, Site
from workers.installs.releases import Note, Releases
from workers.lines import Offer
from workers.supervisor.places import Places
from workers.supervisor.users import Users
from workers.threads import to_the_end

T = TypeVar("T")


class Supervisor(Protocol):
    """What these tasks need of the one who keeps this node's apps running."""

    users: Users

    def places(self, instance_id: str) -> Places:
        """Return where an app lies."""

    def user(self, instance_id: str) -> int | None:
        """Return the user that an app runs as; None for the worker's own."""

    def held(self, instance_id: str) -> AbstractAsyncContextManager[None]:
        """Keep an app stopped: nothing of it runs inside."""

    async def apply(self, app: App) -> None:
        """Have an app be as it is described here."""

    def observed(self, instance_id: str) -> list[Instance]:
        """Return the instances of an app as they are now."""

    async def until(
        self, instance_id: str, predicate: Callable[[Sequence[Instance]], bool], timeout_s: float
    ) -> bool:
        """Wait until the instances of an app are so; answers whether they are."""

    async def forget(self, instance_id: str) -> None:
        """Stop an app and remember nothing of it."""


class Context(Protocol):
    """What a task is given beside its offer."""

    store: Store
    supervisor: Supervisor
    isolation: str
    why_stopped: str | None  # cancelled, released, lost

    @property
    def holder(self) -> Holder:
        """Who this node is by now."""

    def hear(self, channel: str, data: bytes) -> None:
        """Take a piece of the job's output."""

    def say(self, message: str) -> None:
        """Add a line of the worker's own to the job's output."""

    def step(self, name: str) -> None:
        """Take note that a step begins."""


#: So long does a job wait, at most, until everybody can see what its node sees.
SHOWN_WITHIN_S = 5.0


class NotWell(HostlerError):
    """An app runs, or ran, and did not get well."""

    code = "NOT_WELL"


class Flow:
    """One task under way."""

    def __init__(self, offer: Offer, context: Context) -> None:
        self.offer, self.context, self.spec = offer, context, offer.spec
        self.store, self.supervisor = context.store, context.supervisor
        self.app_id = str(offer.spec["app"])
        self.job = (offer.job_id, offer.attempt)
        self.places = self.supervisor.places(self.app_id)
        self.releases = Releases(self.places.root)
        self.uid = self.supervisor.user(self.app_id)

    def cancelled(self) -> bool:
        """Tell whether this attempt is to end."""
        return self.context.why_stopped is not None

    async def app(self) -> App:
        """Return the app as it is wished now. Raises NotFound."""
        return await insist(lambda: apps.get(self.store, self.app_id))

    async def call(self, call: Callable[[Holder], Call[T]]) -> T:
        """Make a call as this node, trying again as `insist` does."""
        return await insist(lambda: self.store.call(call(self.context.holder)))

    async def tell(self, progress: int, message: str) -> None:
        """Say how far this is, for all to see; not now is as good as later. Raises Stale, NotFound."""
        self.context.say(message)
        with contextlib.suppress(Unavailable):
            step = apps.installing(
                self.context.holder, self.app_id, job=self.job, progress=progress, message=message
            )
            await self.store.call(step)

    async def announce(self, message: str) -> None:
        """Say something about this node, for all to see."""
        self.context.say(message)
        with contextlib.suppress(Unavailable):
            fields = {"message": message, "node": self.context.holder.worker}
            await self.store.call(apps.say(self.context.holder, "system.status", fields))

    async def build(self, release: Mapping[str, Any], given: Manifest | None) -> tuple[str, Note]:
        """Build a release beside what there is. Raises HostlerError, OSError."""
        settings = self.store.settings
        site = Site(
            objects=self.store.objects, apps_dir=self.places.root.parent, isolation=self.context.isolation,
            limit_bytes=settings.upload_limit_bytes, environ=process_environment(), announce=self.announce,
            step=self.context.step,
        )  # fmt: skip
        job = Job(
            id=self.offer.job_id, app=self.app_id, hear=self.context.hear, tell=self.tell, cancelled=self.cancelled
        )  # fmt: skip
        await asyncio.to_thread(self.places.make, self.uid)
        return await Building(site, job, self.releases, self.uid).build(release, given)

    async def released(
        self,
        name: str,
        note: Note,
        source: Mapping[str, Any],
        *,
        phase: Phase | None = None,
        discard: tuple[str, ...] = (),
    ) -> App:
        """Make a release the active one, for all to see, and remove those that are kept no longer."""
        self.context.step("released")
        app, dropped = await insist(
            lambda: apps.released(
                self.store, self.context.holder, self.app_id, job=self.job, version=note.version, directory=name,
                source=source, manifest=manifests.load(note.manifest), phase=phase, discard=discard,
            )
        )  # fmt: skip
        for each in {*dropped, *discard} - {name}:
            await to_the_end(self.releases.discard, each)
        return app

    async def well(self, app: App) -> str:
        """Wait for the health of what shall run; answers "" or why it did not come."""
        if app.manifest is None or not app.configured or not updating.runs(app):
            return ""
        found: list[str | None] = [None]

        def decided(instances: Sequence[Instance]) -> bool:
            found[0] = updating.why_not_well(as_ready, instances)
            return found[0] is not None

        as_ready = replace(app, phase=Phase.READY)
        while not await self.supervisor.until(self.app_id, decided, updating.patience_s(app.manifest)):
            if updating.under_way(app.manifest, self.supervisor.observed(self.app_id)):
                continue
            return updating.why_late(self.supervisor.observed(self.app_id))
        if not found[0] and any(each.health is None for each in app.processes):
            await self.supervisor.until(
                self.app_id, lambda all_of_it: decided(all_of_it) and bool(found[0]), updating.STEADY_S
            )
        return found[0] or ""

    async def shown(self, app: App) -> None:
        """Wait until everybody can see what this node sees of the app; who asks after the job must not see older."""
        with contextlib.suppress(TimeoutError, HostlerError):
            async with asyncio.timeout(SHOWN_WITHIN_S):
                while not _is_shown(await apps.get(self.store, self.app_id), app.generation):
                    await asyncio.sleep(0.05)

    async def clear(self) -> None:
        """Take away everything of an app that never came to be, except data that an earlier one left here."""
        await self.supervisor.forget(self.app_id)
        with contextlib.suppress(FileNotFoundError):
            keep_data = self.places.data.is_dir() and any(self.places.data.iterdir())
            await to_the_end(self.places.remove, keep_data=keep_data)
            if not keep_data:
                self.supervisor.users.forget(self.app_id)


def _is_shown(app: App, generation: int) -> bool:
    passing = {apps.Status.STARTING, apps.Status.STOPPING}
    return app.observed_generation >= generation and app.ready_status not in passing
