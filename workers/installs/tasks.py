"""The tasks that change what an app consists of: install, update, rollback, configure, uninstall.

Each may be cut off anywhere and begun again by a later attempt, on the same node: what it finds on the disk and in the
record decides what is left to do. Only a cancel takes back what was done.
"""

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from settings import process_environment
from storage import apps, manifests
from storage.apps import App, Instance, Phase
from storage.attempts import Holder, Unregistered
from storage.calls import Call
from storage.errors import Conflict, HostlerError, NotFound, Stale, Unavailable
from storage.manifests import Manifest
from storage.store import Store
from workers.installs import updating
from workers.installs.building import PROGRESS, Building, Job, Site, StepFailed, sentence_of
from workers.installs.releases import Note, Releases
from workers.installs.updating import BACK, STOPPING, SWITCHING, TRYING, Data, Journal, JournalFile
from workers.lines import IntegrityError, Offer
from workers.log import log
from workers.run import Ending
from workers.supervisor.places import Places
from workers.supervisor.users import Users

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
#: Tasks of one app wait for one another: a cancelled install clears up before the app is removed.
_LOCKS: "weakref.WeakValueDictionary[str, asyncio.Lock]" = weakref.WeakValueDictionary()


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
        return await self.insist(lambda: apps.get(self.store, self.app_id))

    async def insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step in Redis, trying again for as long as it is away. Raises what the step's rules refuse with."""
        pause_s = 0.1
        while True:
            try:
                return await step()
            except Unavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)

    async def call(self, call: Callable[[Holder], Call[T]]) -> T:
        """Make a call as this node, trying again as `insist` does."""
        return await self.insist(lambda: self.store.call(call(self.context.holder)))

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
        app, dropped = await self.insist(
            lambda: apps.released(
                self.store, self.context.holder, self.app_id, job=self.job, version=note.version, directory=name,
                source=source, manifest=manifests.load(note.manifest), phase=phase, discard=discard,
            )
        )  # fmt: skip
        for each in {*dropped, *discard} - {name}:
            await asyncio.to_thread(self.releases.discard, each)
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
        if not await self.supervisor.until(self.app_id, decided, updating.patience_s(app.manifest)):
            return "It did not get healthy in time."
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
            await asyncio.to_thread(self.places.remove, keep_data=keep_data)
            if not keep_data:
                self.supervisor.users.forget(self.app_id)


def _is_shown(app: App, generation: int) -> bool:
    passing = {apps.Status.STARTING, apps.Status.STOPPING}
    return app.observed_generation >= generation and app.ready_status not in passing


# ---- install --------------------------------------------------------------------------------------


async def _install(flow: Flow) -> str:
    app = await flow.app()
    if not app.releases:
        release = flow.spec["release"]
        name, note = await flow.build(release, app.manifest)
        flow.context.step("switch")
        flow.releases.switch(name)
        app = await flow.released(name, note, release["source"])
    await flow.supervisor.apply(app)
    if app.phase is Phase.READY:
        flow.context.step("start")
        if why := await flow.well(app):
            raise NotWell(f"{flow.app_id!r} is installed, but {why}")
        await flow.shown(app)
    return "Installed." if app.phase is not Phase.NEEDS_CONFIG else "Installed; it needs its configuration."


async def _install_failed(flow: Flow, sentence: str) -> None:
    await flow.clear()
    await flow.call(
        lambda holder: apps.installing(
            holder, flow.app_id, job=flow.job, phase=Phase.FAILED, error=sentence, message=sentence
        )
    )


async def _install_cancelled(flow: Flow) -> None:
    await flow.clear()
    with contextlib.suppress(NotFound):
        await flow.call(lambda holder: apps.forget(holder, flow.app_id))


# ---- update and rollback --------------------------------------------------------------------------


async def _update(flow: Flow) -> str:
    release = flow.spec["release"]

    async def target(app: App) -> tuple[str, bool]:
        before = set(flow.releases.whole())
        given = release.get("manifest")
        name, _ = await flow.build(release, manifests.load(given) if given else None)
        return name, name not in before

    return await _replace(flow, target, lambda app: app.source == release["source"])


async def _rollback(flow: Flow) -> str:
    name = str(flow.spec["dir"])

    async def target(app: App) -> tuple[str, bool]:
        _note(flow, name)
        return name, False

    return await _replace(flow, target, lambda app: flow.releases.current() == name)


async def _replace(
    flow: Flow, target: Callable[[App], Awaitable[tuple[str, bool]]], done: Callable[[App], bool]
) -> str:
    """Replace the current release, going on from where an earlier attempt was cut off."""
    file = JournalFile(flow.places)
    journal = file.read()
    app = await flow.app()
    if (
        journal is not None and journal.job != flow.offer.job_id
    ):  # a job that was given up after its node died
        if journal.stage == BACK:
            await _go_back(flow, file, journal)
        await asyncio.to_thread(updating.clear_up, flow.releases, flow.places)
        journal = None
    if journal is None:
        if app.phase is not Phase.UPDATING:  # an earlier attempt came to the end, and could not say so
            if done(app):
                return "It was done by an earlier attempt."
            raise NotWell(app.error or f"The update of {flow.app_id!r} was taken back.")
        name, built = await target(app)
        journal = await _begin(flow, file, name, built=built)
    return await _go_through(flow, file, journal)


async def _begin(flow: Flow, file: JournalFile, name: str, *, built: bool) -> Journal:
    current = flow.releases.current()
    if current is None:
        raise Conflict(f"{flow.app_id!r} has no release on this node that could be replaced.")
    return file.write(Journal(flow.offer.job_id, current, name, STOPPING, built))


async def _go_through(flow: Flow, file: JournalFile, journal: Journal) -> str:
    """Go from where the journal says to the end. Raises NotWell when the old release runs again instead."""
    data = Data(flow.places)
    app = await flow.app()
    if journal.origin == journal.target:  # the same bytes under another name: nothing runs differently
        return await _settle(flow, file, data, journal, app)
    if journal.stage in {STOPPING, SWITCHING}:
        await flow.tell(PROGRESS["whole"], "Stopping the release that runs.")
        flow.context.step("stop")
        async with flow.supervisor.held(flow.app_id):
            if journal.stage == STOPPING:
                flow.context.step("snapshot")
                await data.keep(flow.cancelled)
                journal = file.write(replace(journal, stage=SWITCHING))
            flow.context.step("switch")
            flow.releases.switch(journal.target)
            app = await flow.released(
                journal.target, _note(flow, journal.target), _target_source(flow, app, journal), phase=Phase.UPDATING
            )  # fmt: skip
            journal = file.write(replace(journal, stage=TRYING))
            await flow.supervisor.apply(replace(app, phase=Phase.READY))
    elif journal.stage == TRYING:
        await flow.supervisor.apply(replace(app, phase=Phase.READY))
    if journal.stage == TRYING:
        await flow.tell(PROGRESS["start"], "Waiting for the new release to get healthy.")
        flow.context.step("try")
        why = await flow.well(app)
        if not why:
            return await _settle(flow, file, data, journal, app)
        journal = file.write(replace(journal, stage=BACK, why=why))
    await _go_back(flow, file, journal)
    raise NotWell(f"The update of {flow.app_id!r} was taken back: {journal.why}")


async def _settle(flow: Flow, file: JournalFile, data: Data, journal: Journal, app: App) -> str:
    flow.context.step("settle")
    note = _note(flow, journal.target)
    app = await flow.released(journal.target, note, _target_source(flow, app, journal))
    await flow.supervisor.apply(app)
    await data.drop()
    file.remove()
    flow.releases.prune(each.dir for each in app.releases)
    await flow.shown(app)
    return f"{flow.app_id!r} runs release {note.version}."


async def _go_back(flow: Flow, file: JournalFile, journal: Journal) -> None:
    """Have everything as it was before the update. Safe to repeat."""
    flow.context.step("back")
    flow.context.say(f"taking the update back: {journal.why}")
    app = await flow.app()
    data = Data(flow.places)
    async with flow.supervisor.held(flow.app_id):
        await data.put_back()
        flow.releases.switch(journal.origin)
        discard = (journal.target,) if journal.built else ()
        app = await flow.released(
            journal.origin, _note(flow, journal.origin), _source(app, journal.origin), discard=discard
        )
        await flow.supervisor.apply(app)
    await data.drop()
    file.remove()
    await flow.well(app)
    await flow.shown(app)


async def _update_failed(flow: Flow, sentence: str) -> None:
    """Leave what there was, which runs on; an update that has begun to switch goes back first."""
    file = JournalFile(flow.places)
    journal = file.read()
    if journal is not None and journal.stage != STOPPING and journal.origin != journal.target:
        await _go_back(flow, file, file.write(replace(journal, stage=BACK, why=sentence)))
    elif journal is not None:
        if journal.built:
            await asyncio.to_thread(flow.releases.discard, journal.target)
        await asyncio.to_thread(updating.clear_up, flow.releases, flow.places)
        await flow.supervisor.apply(replace(await flow.app(), phase=Phase.READY))
    await _say_why(flow, sentence)


async def _update_cancelled(flow: Flow) -> None:
    await _update_failed(flow, "The update was cancelled.")


def _note(flow: Flow, name: str) -> Note:
    note = flow.releases.note(name)
    if note is None:
        raise NotFound(f"Release {name!r} of {flow.app_id!r} is no longer on this node.")
    return note


def _target_source(flow: Flow, app: App, journal: Journal) -> Mapping[str, Any]:
    """Return where the release that shall run comes from."""
    release = flow.spec.get("release")
    return release["source"] if release else _source(app, journal.target)


def _source(app: App, name: str) -> Mapping[str, Any]:
    """Return where a release on this node came from."""
    return next((each.source for each in app.releases if each.dir == name), app.source)


# ---- configure and uninstall ----------------------------------------------------------------------


async def _configure(flow: Flow) -> str:
    flow.context.step("configure")
    async with flow.supervisor.held(flow.app_id):  # what runs starts anew, with what it now finds
        app = await flow.insist(
            lambda: apps.configured(flow.store, flow.context.holder, flow.app_id, job=flow.job)
        )
        await flow.supervisor.apply(app)
    if app.phase is Phase.READY:
        if why := await flow.well(app):
            raise NotWell(f"{flow.app_id!r} is configured, but {why}")
        await flow.shown(app)
    return "Configured."


async def _uninstall(flow: Flow) -> str:
    flow.context.step("stop")
    await flow.supervisor.forget(flow.app_id)
    flow.context.step("remove")
    keep_data = bool(flow.spec.get("keep_data"))
    with contextlib.suppress(FileNotFoundError):
        await asyncio.to_thread(flow.places.remove, keep_data=keep_data)
    if not keep_data:  # else they stay their user's
        flow.supervisor.users.forget(flow.app_id)
    flow.context.step("forget")
    with contextlib.suppress(NotFound):  # it was forgotten by an earlier attempt
        await flow.call(lambda holder: apps.forget(holder, flow.app_id))
    return "Removed; its data stay." if keep_data else "Removed."


async def _say_why(flow: Flow, sentence: str) -> None:
    """Leave everything as it is, and say why it failed, for all to see."""
    with contextlib.suppress(NotFound):
        await flow.call(
            lambda holder: apps.installing(
                holder, flow.app_id, job=flow.job, error=sentence, message=sentence
            )
        )


async def _leave(flow: Flow) -> None:
    del flow


# ---- what all of them share -----------------------------------------------------------------------


class NotWell(HostlerError):
    """An app runs, or ran, and did not get well."""

    code = "NOT_WELL"


_Work = Callable[[Flow], Awaitable[str]]
_Failed = Callable[[Flow, str], Awaitable[None]]
_Cancelled = Callable[[Flow], Awaitable[None]]


async def _carry_out(
    offer: Offer, context: Context, work: _Work, failed: _Failed, cancelled: _Cancelled
) -> Ending:
    flow = Flow(offer, context)
    lock = _LOCKS.setdefault(flow.app_id, asyncio.Lock())
    async with lock:
        try:
            context.say(await work(flow))
            return Ending("completed")
        except (Stale, Unregistered):  # it is another's by now, who goes on from what is on the disk
            return Ending("released")
        except (asyncio.CancelledError, InterruptedError) as error:
            if context.why_stopped == "cancelled":
                await _shielded(_tidied(cancelled(flow), flow))
                return Ending("cancelled", "cancelled")
            if context.why_stopped == "timeout":
                await _shielded(_tidied(failed(flow, "It took too long."), flow))
                return Ending("failed", "timeout")
            if isinstance(error, InterruptedError):
                return Ending("released")
            raise
        except (HostlerError, OSError) as error:
            sentence = sentence_of(error)
            context.say(sentence)
            await _shielded(
                _tidied((_say_why if isinstance(error, NotWell) else failed)(flow, sentence), flow)
            )
            reason = "integrity" if isinstance(error, IntegrityError) else "invalid"
            exit_code = error.exit_code if isinstance(error, StepFailed) else None
            return Ending(
                "failed", "exit_code" if exit_code else reason, exit_code, {"message": sentence[:1000]}
            )


async def _tidied(work: Awaitable[None], flow: Flow) -> None:
    """Clear up after a failure; what cannot be cleared up must not hide why it was needed."""
    try:
        await work
    except (HostlerError, OSError) as error:
        log.error("cannot clear up after an install", extra={"app": flow.app_id, "why": str(error)})


async def _shielded(work: Awaitable[None]) -> None:
    """See something through, however often this is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()


def _task(
    work: _Work, failed: _Failed, cancelled: _Cancelled
) -> Callable[[Offer, Context], Awaitable[Ending]]:
    async def task(offer: Offer, context: Context) -> Ending:
        return await _carry_out(offer, context, work, failed, cancelled)

    return task


TASKS: Mapping[str, Callable[[Offer, Any], Awaitable[Ending]]] = {
    "app.install": _task(_install, _install_failed, _install_cancelled),
    "app.update": _task(_update, _update_failed, _update_cancelled),
    "app.rollback": _task(_rollback, _update_failed, _update_cancelled),
    "app.configure": _task(_configure, _say_why, _leave),
    "app.uninstall": _task(_uninstall, _say_why, _leave),
}
