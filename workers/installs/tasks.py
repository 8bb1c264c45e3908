"""The tasks that change what an app consists of: install, update, rollback, configure, uninstall.

Each may be cut off anywhere and begun again by a later attempt, on the same node: what it finds on the disk and in the
record decides what is left to do. Only a cancel takes back what was done.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from storage import apps, manifests
from storage.apps import App, Phase
from storage.attempts import Unregistered
from storage.errors import Conflict, HostlerError, NotFound, Stale
from workers.insisting import insist
from workers.installs import updating
from workers.installs.building import PROGRESS, StepFailed, sentence_of
from workers.installs.flow import Context, Flow, NotWell
from workers.installs.releases import Note
from workers.installs.updating import BACK, STOPPING, SWITCHING, TRYING, Data, Journal, JournalFile
from workers.lines import IntegrityError, Offer
from workers.log import log
from workers.run import Ending
from workers.threads import to_the_end

#: Who is to end while it clears up goes on for so long at most.
STUBBORN_S = 10.0


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
        await to_the_end(updating.clear_up, flow.releases, flow.places)
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
    await to_the_end(flow.releases.prune, [each.dir for each in app.releases])
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
            await to_the_end(flow.releases.discard, journal.target)
        await to_the_end(updating.clear_up, flow.releases, flow.places)
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
        app = await insist(
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
        await to_the_end(flow.places.remove, keep_data=keep_data)
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


_Work = Callable[[Flow], Awaitable[str]]
_Failed = Callable[[Flow, str], Awaitable[None]]
_Cancelled = Callable[[Flow], Awaitable[None]]


async def _carry_out(
    offer: Offer, context: Context, work: _Work, failed: _Failed, cancelled: _Cancelled
) -> Ending:
    flow = Flow(offer, context)
    async with flow.places.lock:  # a cancelled install clears up before the app is removed
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
    """See something through, also when this is cancelled meanwhile, but then not for ever: Redis may be away."""
    task = asyncio.ensure_future(work)
    limit_s = None
    while not task.done():
        try:
            done, _ = await asyncio.wait([task], timeout=limit_s)
            if not done:
                task.cancel()
        except asyncio.CancelledError:
            limit_s = STUBBORN_S
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
