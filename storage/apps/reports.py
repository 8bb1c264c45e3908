"""What nodes say of their apps; a node that has been registered anew since, or that the app is not on, is refused."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson

from storage import manifests
from storage.apps.changes import change_of
from storage.apps.reading import get
from storage.apps.records import KEPT_RELEASES, PASSING, App, Instance, Phase, Release, ScheduleState
from storage.attempts import Holder, Unregistered, rq_time
from storage.calls import Call, script, text
from storage.errors import Conflict, NotFound, Stale
from storage.manifests import Manifest, configuration
from storage.store import Store

_ATTEMPTS = 50
#: What of an instance is told to others when it changes; its figures are read when somebody asks.
_TOLD = (
    "id",
    "state",
    "pid",
    "started_ms",
    "restart_count",
    "exit_code",
    "health",
    "port",
    "socket",
    "message",
)


def answered(holder: Holder, instance_id: str, reply: bytes) -> None:
    """Raise Unregistered, NotFound, Stale or Conflict where a node's word was refused."""
    standing = text(reply)
    if standing == "unregistered":
        raise Unregistered(f"Worker {holder.worker!r} has been registered anew, or removed, since.")
    if standing == "unknown":
        raise NotFound(f"Node {holder.worker!r} has no app {instance_id!r}.")
    if standing == "stale":
        raise Stale(f"The job that works on app {instance_id!r} is no longer this node's.")
    if standing == "changed":
        raise Conflict(f"What is wished of app {instance_id!r} has changed.")


def observe(
    holder: Holder,
    app: App,
    instances: Sequence[Instance],
    *,
    schedules: Mapping[str, ScheduleState] | None = None,
    message: str = "",
) -> Call[None]:
    """Report what there is of an app, as seen by who acts on the wish `app`. Raises Unregistered, NotFound."""
    seen = replace(
        app, instances=tuple(instances), observed_generation=app.generation, online=True, phase=Phase.READY
    )
    told = [[getattr(each, name) for name in _TOLD] for each in instances]
    found = {name: asdict(each) for name, each in (schedules or {}).items()}
    return script(
        "app_observe", holder.worker, holder.registration, app.instance_id, app.generation,
        orjson.dumps([asdict(each) for each in instances]), orjson.dumps(found), seen.ready_status.value,
        orjson.dumps([told, message, [each["executing"] for each in found.values()]]), message,
        read=lambda reply: answered(holder, app.instance_id, reply),
    )  # fmt: skip


def installing(
    holder: Holder,
    instance_id: str,
    *,
    job: tuple[str, int],
    phase: Phase | None = None,
    progress: int | None = None,
    message: str | None = None,
    error: str | None = None,
) -> Call[None]:
    """Report how far a job (id and attempt) has come with an app, or by `error` why it comes no further.

    Raises Unregistered, NotFound, Stale.
    """
    status = "failed" if error else None
    said = {"phase": phase, "progress": progress, "message": message, "error": error, "status": status}
    return _report(holder, instance_id, {**said, "job": job[0], "attempt": job[1]})


def _report(holder: Holder, instance_id: str, said: Mapping[str, Any]) -> Call[None]:
    given = {name: each for name, each in said.items() if each is not None}
    return script(
        "app_report", holder.worker, holder.registration, instance_id, orjson.dumps(given),
        read=lambda reply: answered(holder, instance_id, reply),
    )  # fmt: skip


async def released(
    store: Store,
    holder: Holder,
    instance_id: str,
    *,
    job: tuple[str, int],
    version: str,
    directory: str,
    source: Mapping[str, Any],
    manifest: Manifest,
    phase: Phase | None = None,
    discard: Collection[str] = (),
    message: str = "",
) -> tuple[App, list[str]]:
    """Make a release that lies on the node the active one: manifest, version and what follows for phase and processes.

    The app is then `needs_config`, or `ready` where it shall run, or `installed`, unless `phase` says that more is to
    be done, such as to wait for its health. `discard` names directories of releases that were no good. Answers the app,
    and the directories that are kept no longer. Safe to run twice. Raises Unregistered, NotFound, Stale.
    """
    release = Release(version, directory, store.now_ms(), dict(source), manifests.as_json(manifest))
    for _ in range(_ATTEMPTS):
        before = await get(store, instance_id)
        # a release that is only tried does not take the place of one that is kept
        most = KEPT_RELEASES + (phase is Phase.UPDATING)
        after, dropped = _with_release(store, before, release, manifest, discard=discard, most=most)
        then = phase or _phase_of(before, after)
        change = change_of(store, before, replace(after, phase=then), audit="")
        said = {
            "job": job[0], "attempt": job[1], "from": change["from"], "wish": change["wish"],
            "generation": after.generation, "shown": change["shown"], "phase": then.value, "message": message,
            "error": "", "progress": 100 if phase is None else None, "installed": True, "cube": _cube(manifest),
            "status": _install_status(then),
        }  # fmt: skip
        try:
            await store.call(_report(holder, instance_id, said))
        except Stale:
            raise
        except Conflict:
            continue
        return await get(store, instance_id), dropped
    raise Conflict(f"App {instance_id!r} is being changed by others.")


def _with_release(
    store: Store, before: App, release: Release, manifest: Manifest, *, discard: Collection[str], most: int
) -> tuple[App, list[str]]:
    """Return the app with another active release, and the directories that it then keeps no longer."""
    earlier = (each for each in before.releases if each.dir not in {release.dir, *discard})
    releases = (release, *earlier)
    after = replace(
        before, version=release.version, source=release.source, manifest=manifest,
        releases=releases[:most], generation=before.generation + 1,
    )  # fmt: skip
    if manifest.config is None:
        after = replace(after, configured=True)
    else:
        config = {**configuration.defaults(manifest.config), **before.config(store.seal)}
        after = after.with_config(store.seal, config)
    for process in manifest.processes if not before.releases else ():
        if process.initial == "stopped" and process.name not in after.wishes:
            after = after.with_wish(process.name, desired="stopped")
    return after, [each.dir for each in releases[most:]]


def _cube(manifest: Manifest) -> str | None:
    """Return what makes a product a ProcessCube, as events tell it, in JSON."""
    links = manifest.links
    if links is None:
        return None
    urls = orjson.dumps(list(links.lowcode_urls)).decode()
    told = {
        "name": manifest.title, "engineUrl": links.engine_url, "lowcodeUrls": urls,
        "authorityUrl": links.authority_url or "",
    }  # fmt: skip
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode()


def _install_status(phase: Phase) -> str:
    """Return how Cuby calls what an install has come to."""
    return phase.value if phase in {*PASSING, Phase.NEEDS_CONFIG} else "installed"


def _phase_of(before: App, after: App) -> Phase:
    if not after.configured:
        return Phase.NEEDS_CONFIG
    started = Phase.READY in {before.phase, before.phase_before}
    return Phase.READY if started or after.desired == "running" else Phase.INSTALLED


async def configured(
    store: Store, holder: Holder, instance_id: str, *, job: tuple[str, int], message: str = ""
) -> App:
    """Report that an app's configuration has been put in place; it then starts, if it shall run.

    Raises Unregistered, NotFound, Stale.
    """
    app = await get(store, instance_id)
    phase = app.phase
    if app.configured and phase is Phase.NEEDS_CONFIG:
        phase = Phase.READY if app.desired == "running" else Phase.INSTALLED
    elif not app.configured:
        phase = Phase.NEEDS_CONFIG
    said = {
        "job": job[0], "attempt": job[1], "phase": phase.value, "progress": 100, "message": message, "error": "",
        "status": _install_status(phase),
    }  # fmt: skip
    await store.call(_report(holder, instance_id, said))
    return await get(store, instance_id)


async def rest(store: Store, holder: Holder, instance_id: str) -> App:
    """Stop wishing an app to run: its node has been rebooted, and it is not to start by itself.

    Raises Unregistered, NotFound.
    """
    for _ in range(_ATTEMPTS):
        before = await get(store, instance_id)
        if before.desired == "stopped":
            return before
        after = replace(before, desired="stopped", generation=before.generation + 1)
        change = change_of(store, before, after, audit="")
        said = {
            "from": change["from"],
            "wish": change["wish"],
            "generation": after.generation,
            "shown": change["shown"],
        }
        try:
            await store.call(_report(holder, instance_id, said))
        except Conflict:
            continue
        return await get(store, instance_id)
    raise Conflict(f"App {instance_id!r} is being changed by others.")


def forget(holder: Holder, instance_id: str) -> Call[None]:
    """Report that an app is gone from its node: nothing of it is kept. Raises Unregistered, NotFound."""
    return script(
        "app_forget", holder.worker, holder.registration, instance_id,
        read=lambda reply: answered(holder, instance_id, reply),
    )  # fmt: skip


async def abandon(store: Store, actor: str, instance_id: str) -> None:
    """Drop the record of an app whose node is away for good. Raises NotFound, or Conflict while it is online.

    Should the node come back, it stops what it still runs of it.
    """
    outcome = text(await store.call(script("app_abandon", instance_id, actor, rq_time())))
    if outcome == "missing":
        raise NotFound(f"There is no app {instance_id!r}.")
    if outcome == "online":
        raise Conflict(f"The node of app {instance_id!r} is online; uninstall it there.")


def say(holder: Holder, event: str, fields: Mapping[str, str], *, instance_id: str = "") -> Call[None]:
    """Tell everybody who watches: `system.status` of a node, or `plugin.emit` of an app on it.

    Raises Unregistered, NotFound.
    """
    words = [word for pair in fields.items() for word in pair]
    return script(
        "app_say", holder.worker, holder.registration, instance_id, event, *words,
        read=lambda reply: answered(holder, instance_id, reply),
    )  # fmt: skip
