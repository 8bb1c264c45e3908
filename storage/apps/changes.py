"""Which changes of an app are allowed, and how each is accepted: new wish, job, event and audit entry at once."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import orjson

from storage import jobs, manifests, tasks
from storage.apps import placement
from storage.apps.reading import get
from storage.apps.records import App, Phase
from storage.apps.wishes import WISHES, release_for
from storage.calls import script, text
from storage.errors import Conflict, HostlerError, Invalid, NotFound, Unavailable
from storage.jobs import Job, Order, Submitted, Work
from storage.manifests import Manifest, configuration
from storage.store import Store

T = TypeVar("T")

_ATTEMPTS = 50
#: What is installed, and may be started.
_WHOLE = (Phase.INSTALLED, Phase.READY)


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done with an app: the task that carries it out, and the phases that allow it.

    `alone`: it works on the app's files, so that only one such job is alive at a time. `anyway`: it ends such a job
    first. `overtakes`: it makes an earlier start, stop, restart or scale pointless.
    """

    task: tasks.Task
    phases: tuple[Phase, ...]
    timeout_s: int
    alone: bool = False
    anyway: bool = False
    overtakes: bool = False
    phase: Phase | None = None  # what the app is in until the job ends


ACTIONS: Mapping[str, Action] = {
    "install": Action(tasks.INSTALL, (Phase.FAILED,), 3600, alone=True, phase=Phase.INSTALLING),
    "update": Action(
        tasks.UPDATE, (*_WHOLE, Phase.NEEDS_CONFIG), 3600, alone=True, overtakes=True, phase=Phase.UPDATING
    ),
    "rollback": Action(
        tasks.ROLLBACK, (*_WHOLE, Phase.NEEDS_CONFIG), 900, alone=True, overtakes=True, phase=Phase.UPDATING
    ),
    "configure": Action(tasks.CONFIGURE, (*_WHOLE, Phase.NEEDS_CONFIG), 900, alone=True),
    "uninstall": Action(
        tasks.UNINSTALL,
        tuple(each for each in Phase if each is not Phase.REMOVING),
        900, alone=True, anyway=True, overtakes=True, phase=Phase.REMOVING,
    ),
    "start": Action(tasks.START, _WHOLE, 600, overtakes=True),
    "stop": Action(tasks.STOP, (*_WHOLE, Phase.NEEDS_CONFIG), 3900, overtakes=True),
    "restart": Action(tasks.RESTART, _WHOLE, 3900, overtakes=True),
    "scale": Action(tasks.SCALE, _WHOLE, 3900),
    "pause": Action(tasks.SCHEDULE, _WHOLE, 300),
    "resume": Action(tasks.SCHEDULE, _WHOLE, 300),
    "trigger": Action(tasks.TRIGGER, _WHOLE, 3600),
}  # fmt: skip

#: Why an action is refused in a phase, where the phase alone does not say it.
_NEEDS_CONFIG = "App {app!r} needs its configuration before it can {action}."


def instance_id_of(product: str, alias: str | None = None) -> str:
    """Return the id of an app: `id`, or `id__alias`. Raises Invalid."""
    for field, word in (("product", product), ("alias", alias or "")):
        if word and not manifests.is_name(word):
            message = "Must be 1 to 63 letters, digits, '.', '_' or '-', without '__' or '..'."
            raise Invalid(f"{field}: {message}", details={field: message})
    return f"{product}__{alias}" if alias else product


async def install(
    store: Store,
    actor: str,
    *,
    product: str = "",
    version: str | None = None,
    alias: str | None = None,
    node: str | None = None,
    tags: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    inline: Manifest | None = None,
    autostart: bool = True,
    start: bool = True,
    idempotency_key: str | None = None,
) -> tuple[App, Submitted]:
    """Install a product on a node: the named one, or the least loaded that has all `tags`.

    Without `version` it is the newest release. `inline` is a manifest that needs no release. `autostart`: it comes back
    after a reboot; `start`: it starts once it is installed and configured. Raises NotFound, Invalid, Unprocessable, or
    Conflict where the instance exists or no node can take it.
    """
    if inline is not None:
        product = inline.id
    instance_id = instance_id_of(product, alias)
    release, source, manifest = await release_for(store, product, version, inline)
    created_ms = store.now_ms()
    app = App(
        instance_id=instance_id, product=product, alias=alias, node="", version=release, source=source, releases=(),
        manifest=manifest, desired="running" if start else "stopped", generation=1, restarts_asked=0, wishes={},
        sealed_config=None, configured=manifest is not None and manifest.config is None, autostart=autostart,
        created_ms=created_ms, updated_ms=created_ms,
    )  # fmt: skip
    app = app.with_config(store.seal, _first_config(manifest, config))
    for process in manifest.processes if manifest is not None else ():
        if process.initial == "stopped":
            app = app.with_wish(process.name, desired="stopped")
    idempotency = None
    if idempotency_key is not None:
        described = inline and manifests.as_json(inline)
        asked = [product, version, alias, node, sorted(tags), config, described, autostart, start]
        idempotency = (idempotency_key, jobs.digest_of(asked))
    app = replace(app, node=await placement.choose(store, node=node, tags=tags))
    arguments = {"release": {"product": product, "version": release, "source": source}}
    submitted = await _accept(store, actor, "install", None, app, arguments, idempotency=idempotency)
    return await get(store, instance_id), submitted


def _first_config(manifest: Manifest | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an app is configured with at first. Raises Invalid for a configuration that is given and wrong."""
    schema = manifest.config if manifest is not None else None
    whole = {**configuration.defaults(schema), **(config or {})}
    if config and manifest is not None:  # without a manifest, it is judged once the package has brought one
        configuration.check(schema, whole)
    return whole


async def change(
    store: Store,
    actor: str,
    instance_id: str,
    action: str,
    *,
    process: str | None = None,
    scale: Mapping[str, int] | None = None,
    delta: int | None = None,
    version: str | None = None,
    config: Mapping[str, Any] | None = None,
    inline: Manifest | None = None,
    keep_data: bool = False,
    idempotency_key: str | None = None,
) -> Submitted:
    """Do one of ACTIONS with an app; the job that carries it out ends once it is done.

    `process` narrows start, stop, restart, scale, pause, resume and trigger to one process; `scale` and `delta` belong
    to scale, `version` to update (default: the newest) and rollback (default: the one before), `config` to configure,
    `inline` to the update of an app without a release, `keep_data` to uninstall. Raises NotFound, Invalid,
    Unprocessable, or Conflict where the app's state does not allow it.
    """
    if action not in ACTIONS:
        known = ", ".join(ACTIONS)
        raise Invalid(f"unknown action: {action} (valid: {known})", details={"action": f"one of {known}"})
    given = {
        "process": process, "scale": None if scale is None else dict(scale), "delta": delta, "version": version,
        "config": None if config is None else dict(config), "keep_data": keep_data,
        "inline": None if inline is None else manifests.as_json(inline),
    }  # fmt: skip
    idempotency = None
    if idempotency_key is not None:
        idempotency = (idempotency_key, jobs.digest_of([instance_id, action, given]))

    async def once(before: App) -> Submitted:
        after, arguments = await WISHES[action](store, before, {**given, "inline": inline})
        return await _accept(store, actor, action, before, after, arguments, idempotency=idempotency)

    return await _unless_changed(store, instance_id, once)


class _Changed(HostlerError):
    """The wish has changed since it was read: the change has to be made from the new one."""


async def _unless_changed(store: Store, instance_id: str, once: Callable[[App], Awaitable[T]]) -> T:
    for _ in range(_ATTEMPTS):
        try:
            return await once(await get(store, instance_id))
        except _Changed:
            continue
    raise Conflict(f"App {instance_id!r} is being changed by others; try again.")


def change_of(  # the words of _app.lua
    store: Store,
    before: App | None,
    after: App,
    *,
    audit: str,
    action: Action | None = None,
    phase: Phase | None = None,
) -> dict[str, Any]:
    """Return what _app.lua takes: the wish as it was and as it shall be, and what allows the change."""
    shown = replace(after, phase=Phase.READY).status if after.online else "unknown"
    phases = tuple(Phase) if action is None else action.phases
    described = {
        "id": after.instance_id, "fresh": before is None, "from": None if before is None else text(before.wish),
        "wish": after.signed_wish(store.seal), "phases": list(phases), "phase": phase, "shown": shown,
        "product": after.product, "node": after.node, "audit": audit, "generation": after.generation,
        "alone": action is not None and action.alone, "anyway": action is not None and action.anyway,
        "overtakes": action is not None and action.overtakes,
    }  # fmt: skip
    return {name: each for name, each in described.items() if each is not None and each is not False}


async def _accept(  # noqa: PLR0917  who does what: before, after, and how
    store: Store,
    actor: str,
    name: str,
    before: App | None,
    after: App,
    arguments: Mapping[str, Any],
    *,
    idempotency: tuple[str, str] | None,
) -> Submitted:
    action = ACTIONS[name]
    if before is not None:
        after = replace(after, generation=before.generation + 1)
    phase = action.phase
    if name in {"start", "restart"}:
        phase = Phase.READY

    def refusal(why: str, detail: str) -> Exception:
        return _refusal(after.instance_id, name, why, detail)

    said = {"app": after.instance_id, "action": name, "generation": after.generation, **arguments}
    hidden, release = {}, said.get("release", {})
    if (
        "manifest" in release and release["source"].get("kind") == "inline"
    ):  # its environment may hold secrets
        hidden["release"] = said.pop("release")
    work = Work(
        action.task, after.node, said, hidden,
        change_of(store, before, after, audit=f"app.{name}", action=action, phase=phase), refusal,
    )  # fmt: skip
    order = Order(name=f"{name} {after.instance_id}", timeout_s=action.timeout_s)
    return await store.call(
        jobs.submission(store, actor, order, job_id=store.new_id("job"), idempotency=idempotency, work=work)
    )


def _refusal(instance_id: str, action: str, why: str, detail: str) -> HostlerError:
    """Return the error for what _app.lua refused with."""
    if why == "changed":
        return _Changed(why)
    if why == "exists":
        return Conflict(f"App {instance_id!r} is installed already.")
    if why == "missing":
        return NotFound(f"There is no app {instance_id!r}.")
    if why == "busy":
        return Conflict(f"App {instance_id!r} cannot {action} while job {detail} works on it.")
    if detail == Phase.NEEDS_CONFIG:
        return Conflict(_NEEDS_CONFIG.format(app=instance_id, action=action))
    return Conflict(f"App {instance_id!r} cannot {action} while it is {detail}.")


async def set_autostart(store: Store, actor: str, instance_id: str, autostart: bool) -> App:
    """Say whether an app comes back after a reboot of its node. Raises NotFound, Conflict."""

    async def once(before: App) -> App:
        after = replace(before, autostart=autostart, generation=before.generation + 1)
        await amend(store, actor, before, after, audit="app.autostart")
        return after

    return await _unless_changed(store, instance_id, once)


async def amend(store: Store, actor: str, before: App, after: App, *, audit: str) -> None:
    """Change a wish without a job. Raises NotFound, and what `_unless_changed` tries again."""
    change = change_of(store, before, after, audit=audit)
    outcome, *detail = map(text, await store.call(script("app_change", actor, orjson.dumps(change))))
    if outcome != "ok":
        raise _refusal(after.instance_id, audit.removeprefix("app."), outcome, detail[0])


async def again(store: Store, actor: str, job: Job) -> Submitted:
    """Ask once more for what a finished job did with an app. Raises NotFound, Invalid, Conflict."""
    spec = job.spec
    app = await get(store, spec["app"])
    if spec["action"] == "update" and app.source.get("kind") == "inline":
        raise Conflict("The update of an app without a product is not repeated; give its manifest again.")
    version = spec.get("version") or spec.get("release", {}).get("version")
    if spec["action"] == "configure":
        raise Conflict("A configuration is not given twice; configure the app again.")
    return await change(
        store, actor, spec["app"], spec["action"], process=spec.get("process"), scale=spec.get("scale"),
        version=version if spec["action"] in {"update", "rollback"} else None,
        keep_data=bool(spec.get("keep_data")),
    )  # fmt: skip


async def finished(store: Store, job_id: str, timeout_s: float) -> Job | None:
    """Return a job once it is over, or None when it is not after `timeout_s`. Raises NotFound."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    pause_s = 0.02
    while True:
        try:
            job = await jobs.get(store, job_id)
        except Unavailable:
            job = None
        if job is not None and job.finished:
            return job
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            return None
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, 0.25)
