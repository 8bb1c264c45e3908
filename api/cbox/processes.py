"""Processes as cbox-init's clients list, start, stop, restart, scale, create and remove them."""

from http import HTTPStatus
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from api.cbox import words
from api.cbox.words import Named, ProcessAnswer, Refused
from api.dialect import CBOX
from api.endpoint import Context, Group, Role
from storage import apps, manifests
from storage.errors import Conflict, Invalid, NotFound, Unavailable
from storage.manifests import cbox
from storage.manifests.parts import HARD_MAX_SCALE

group = Group("Processes", "/api/v1/processes", CBOX)

_RAISES = (NotFound, Conflict, Unavailable)


class UnknownAction(Invalid):
    """The path names no action."""

    code = "UNKNOWN_ACTION"


class ProcessList(Schema):
    """All processes."""

    processes = fields.List(fields.Nested(ProcessAnswer), required=True)


class ActionTaken(Schema):
    """The action is on its way; GET /api/v1/processes shows what becomes of it."""

    message = fields.String(required=True)
    process = fields.String(required=True)


class ScaleTaken(ActionTaken):
    """The process is being scaled."""

    scale = fields.Integer(required=True)


class Scale(Schema):
    """How many instances there shall be: `scale`, or `desired`, which means the same, or `delta` more or fewer."""

    scale = fields.Integer(strict=True, validate=validate.Range(0, HARD_MAX_SCALE))
    desired = fields.Integer(strict=True, validate=validate.Range(0, HARD_MAX_SCALE))
    delta = fields.Integer(strict=True, validate=validate.Range(-HARD_MAX_SCALE, HARD_MAX_SCALE))

    @validates_schema
    def _one(self, data: dict[str, Any], **_: Any) -> None:
        if len(data) != 1:
            raise ValidationError("One of scale, desired and delta is required.", "scale")


class CboxProcess(Schema):
    """A process as cbox-init.yaml describes it."""

    process = fields.Dict(keys=fields.String(), required=True)


class NewCboxProcess(CboxProcess):
    """A process with its name."""

    name = fields.String(required=True)


class ProcessConfig(Schema):
    """How a process was asked for, and what it does now."""

    process = fields.String(required=True)
    config = fields.Dict(required=True)
    status = fields.Nested(ProcessAnswer, required=True)


class ProcessChanged(Schema):
    """What was done."""

    status = fields.String(required=True)
    process = fields.String(required=True)
    message = fields.String(required=True)


@group.endpoint("GET ", role=Role.VIEWER, returns=ProcessList(), raises=(Unavailable,))
async def list_processes(context: Context) -> dict[str, Any]:
    """List all processes of all apps, with their instances.

    An app with one process is called by its id, a process of several `<app>.<process>`.
    """
    found = [each for app in await apps.every(context.store) for each in words.named(app)]
    return {"processes": [words.process_answer(each) for each in found]}


@group.endpoint("GET /{name}", role=Role.VIEWER, returns=ProcessConfig(), raises=(NotFound, Unavailable))
async def show_process(context: Context, name: str) -> dict[str, Any]:
    """Show how a process is configured, and what it does. Viewers are not shown the values of its environment."""
    each = await words.find(context.store, name)
    status = words.process_answer(each)
    return {
        "process": each.name,
        "config": config_of(each, secrets=context.caller.role != "r"),
        "status": status,
    }


async def act(context: Context, name: str, action: str, **how: Any) -> Named:
    """Ask for an action of a process. Raises NotFound, Conflict, Refused."""
    each = await words.find(context.store, name)
    given = {"process": each.narrowed, **how}
    try:
        await apps.change(context.store, context.caller.actor, each.app.instance_id, action, **given)
    except Invalid as error:
        raise Refused(f"{action} failed: {error}") from None
    return each


def _taken(action: str, name: str) -> dict[str, Any]:
    return {"message": f"{action} initiated", "process": name}


@group.endpoint(
    "POST /{name}/restart",
    role=Role.OPERATOR,
    returns=ActionTaken(),
    status=HTTPStatus.ACCEPTED,
    raises=_RAISES,
)
async def restart_process(context: Context, name: str) -> dict[str, Any]:
    """Restart a process; one that is stopped is started."""
    await act(context, name, "restart")
    return _taken("restart", name)


@group.endpoint(
    "POST /{name}/stop", role=Role.OPERATOR, returns=ActionTaken(), status=HTTPStatus.ACCEPTED, raises=_RAISES
)
async def stop_process(context: Context, name: str) -> dict[str, Any]:
    """Stop all instances of a process, and whatever they have started."""
    await act(context, name, "stop")
    return _taken("stop", name)


@group.endpoint(
    "POST /{name}/start",
    role=Role.OPERATOR,
    returns=ActionTaken(),
    status=HTTPStatus.ACCEPTED,
    raises=_RAISES,
)
async def start_process(context: Context, name: str) -> dict[str, Any]:
    """Start a process; one that has failed gets its attempts back."""
    await act(context, name, "start")
    return _taken("start", name)


@group.endpoint(
    "POST /{name}/scale",
    role=Role.OPERATOR,
    body=Scale(),
    returns=ScaleTaken(),
    status=HTTPStatus.ACCEPTED,
    raises=_RAISES,
)
async def scale_process(context: Context, name: str, body: dict[str, int]) -> dict[str, Any]:
    """Have a process run as often as said; 0 stops it.

    `{"scale": 5}` and `{"desired": 5}` mean the same, `{"delta": -1}` one fewer than is wished now.
    """
    if "delta" in body:
        each = await act(context, name, "scale", delta=body["delta"])
        scale = max(0, each.app.wanted(each.process).scale + body["delta"])
    else:
        scale = body.get("scale", body.get("desired", 0))
        each = await words.find(context.store, name)
        await act(context, name, "scale", scale={each.process.name: scale})
    return {**_taken("scale", name), "scale": scale}


_ACTIONS = "start|stop|restart|scale|schedule/pause|schedule/resume|schedule/trigger"


@group.endpoint(
    "POST /{name}/{action}", role=Role.OPERATOR, returns=ActionTaken(), raises=(Invalid, NotFound)
)
async def unknown_action(context: Context, name: str, action: str) -> dict[str, Any]:
    """Refuse an action that there is not."""
    raise UnknownAction(f"unknown action: {action} (valid: {_ACTIONS})")


@group.endpoint("POST /{name}", role=Role.OPERATOR, returns=ActionTaken(), raises=(Invalid, NotFound))
async def missing_action(context: Context, name: str) -> dict[str, Any]:
    """Refuse a request that names no action."""
    raise UnknownAction("action required (start|stop|restart|scale)")


@group.endpoint(
    "POST ",
    role=Role.OPERATOR,
    body=NewCboxProcess(),
    returns=ProcessChanged(),
    status=HTTPStatus.CREATED,
    raises=_RAISES,
)
async def create_process(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Create a process as an app of its own, on the least loaded node: `{"name": …, "process": {"command": […]}}`.

    `process` is spelled as in cbox-init.yaml. What of it has no meaning here is refused.
    """
    name = body["name"]
    manifest = _manifest(name, body["process"])
    try:
        await apps.install(context.store, context.caller.actor, inline=manifest)
    except Invalid as error:
        raise Refused(f"failed to add process: {error}") from None
    return {"status": "created", "process": name, "message": "Process added successfully"}


@group.endpoint(
    "PUT /{name}", role=Role.OPERATOR, body=CboxProcess(), returns=ProcessChanged(), raises=_RAISES
)
async def update_process(context: Context, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Replace how a process is configured; it is restarted with that, and goes back where it does not come up.

    That is for processes which were created here or imported; products are updated by their releases.
    """
    each = _own(await words.find(context.store, name))
    manifest = _manifest(each.app.product, body["process"])
    try:
        await apps.change(
            context.store, context.caller.actor, each.app.instance_id, "update", inline=manifest
        )
    except Invalid as error:
        raise Refused(f"failed to update process: {error}") from None
    return {"status": "updated", "process": name, "message": "Process updated successfully"}


@group.endpoint("DELETE /{name}", role=Role.OPERATOR, returns=ProcessChanged(), raises=_RAISES)
async def remove_process(context: Context, name: str) -> dict[str, Any]:
    """Stop a process and remove the app that it is, with its data."""
    each = await words.find(context.store, name)
    if each.narrowed is not None:
        raise Conflict(f"process {name} belongs to app {each.app.instance_id}, which is removed as a whole")
    await apps.change(context.store, context.caller.actor, each.app.instance_id, "uninstall")
    return {"status": "removed", "process": name, "message": "Process removed successfully"}


def _own(each: Named) -> Named:
    """Return a process that was configured here. Raises Conflict for one of a product."""
    if each.app.source.get("kind") != "inline":
        raise Conflict(f"process {each.name} is part of product {each.app.product}; update that instead")
    return each


def _manifest(name: str, described: dict[str, Any]) -> manifests.Manifest:
    """Return a described process as a manifest. Raises Refused."""
    try:
        manifest, ignored = cbox.one(name, described)
    except Invalid as error:
        raise Refused(f"invalid process configuration: {error}") from None
    if ignored:
        raise Refused(f"not supported here: {', '.join(ignored)}")
    return manifest


def config_of(each: Named, *, secrets: bool) -> dict[str, Any]:
    """Return a process as cbox-init.yaml would describe it; without `secrets`, its environment by name alone."""
    process = each.process
    restart = each.app.manifest.restart_of(process) if each.app.manifest is not None else None
    described = {
        "enabled": process.enabled,
        "type": process.type,
        "initial_state": process.initial,
        "command": list(process.command)
        if not isinstance(process.command, str)
        else ["sh", "-c", process.command],
        "restart": restart.policy if restart is not None else None,
        "scale": process.scale,
        "max_scale": process.max_scale,
        "depends_on": list(process.depends_on),
        "env": {name: value if secrets else "***" for name, value in process.env.items()},
        "shutdown": {"signal": f"SIG{process.stop_signal}", "timeout": process.stop_timeout_s},
        "port_base": process.port,
        "max_memory_mb": process.memory_limit_bytes and process.memory_limit_bytes // (1024 * 1024),
        "schedule": process.schedule,
        "schedule_timezone": process.timezone if process.schedule else None,
        "schedule_max_concurrent": process.max_concurrent if process.schedule else None,
        "schedule_timeout": process.timeout_s,
        "health_check": _health_check(process),
    }
    return {name: value for name, value in described.items() if value is not None}


def _health_check(process: manifests.Process) -> dict[str, Any] | None:
    check = process.health
    if check is None:
        return None
    port = check.port or process.port or 0
    where: dict[str, Any] = {"command": check.command}
    if check.kind == "http":
        where = {"url": f"http://127.0.0.1:{port}{check.path}"}
    elif check.kind == "tcp":
        where = {"address": f"127.0.0.1:{port}"}
    described = {
        "type": check.kind,
        **where,
        "initial_delay": check.delay_s,
        "period": check.period_s,
        "timeout": check.timeout_s,
        "failure_threshold": check.failures,
        "success_threshold": check.successes,
        "expected_status": check.expected_status,
    }
    return {name: value for name, value in described.items() if value is not None}
