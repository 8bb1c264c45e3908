"""How cbox-init's clients see apps: names, state words, and the fields of a process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from marshmallow import Schema, fields

from storage import apps
from storage.apps import App, Instance, Phase
from storage.errors import Invalid, NotFound
from storage.manifests import Process
from storage.store import Store

T = TypeVar("T")

#: So many apps are asked about at once.
AT_ONCE = 50
#: cbox-init has no word for a restart that is pending, nor for a node that is silent.
_STATES = {"crashed": "starting", "unknown": "failed"}
#: What a process of an app does that is not ready.
_PHASES = {
    Phase.INSTALLING: "starting",
    Phase.UPDATING: "starting",
    Phase.NEEDS_CONFIG: "stopped",
    Phase.INSTALLED: "stopped",
    Phase.REMOVING: "stopping",
    Phase.FAILED: "failed",
}
_ALIVE = {"starting", "running", "stopping"}


class Refused(Invalid):
    """The request is well-formed, and cannot be done as it is; the answer says why."""

    code = "REFUSED"


class BadParameter(Invalid):
    """A parameter of the query makes no sense."""

    code = "INVALID_PARAMETER"


@dataclass(frozen=True, slots=True)
class Named:
    """A process under the name that cbox-init's clients use for it."""

    app: App
    process: Process

    @property
    def name(self) -> str:
        """Return the app's id where it has one process, else `<app>.<process>`."""
        app = self.app
        return app.instance_id if len(app.processes) == 1 else f"{app.instance_id}.{self.process.name}"

    @property
    def narrowed(self) -> str | None:
        """Return the process that an action is narrowed to: none where it is all there is."""
        return None if len(self.app.processes) == 1 else self.process.name

    def instance_id(self, instance: Instance) -> str:
        """Return the id of an instance: `php-fpm-0`."""
        return f"{self.name}-{instance.index}"


def named(app: App) -> list[Named]:
    """Return the processes of an app."""
    return [Named(app, process) for process in app.processes]


def batches(many: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield what is asked about one by one in parts: each takes one round trip, and what comes back fits in memory."""
    for at in range(0, len(many), AT_ONCE):
        yield many[at : at + AT_ONCE]


async def find(store: Store, name: str) -> Named:
    """Return the process of that name. Raises NotFound."""
    app_id, _, process = name.rpartition(".")
    for candidate, wanted in ((name, None), (app_id, process)):
        try:
            app = await apps.get(store, candidate)
        except NotFound:
            continue
        for each in named(app):
            if each.name == name and wanted in {None, each.process.name}:
                return each
    raise NotFound(f"process not found: {name}")


def whole_number(word: str | None, *, name: str, default: int, low: int, high: int) -> int:
    """Return a number of the query. Raises BadParameter."""
    if word is None or word == "":
        return default
    if not word.isascii() or not word.isdigit() or len(word) > 9 or not low <= int(word) <= high:
        raise BadParameter(f"invalid {name} parameter (must be {low}-{high})")
    return int(word)


def rfc3339(at_ms: int | None) -> str:
    """Return a time as Go writes it, with milliseconds; the zero time where there is none."""
    if at_ms is None:
        return "0001-01-01T00:00:00Z"
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


class InstanceAnswer(Schema):
    """One instance of a process."""

    id = fields.String(required=True)
    state = fields.String(required=True)
    pid = fields.Integer(required=True)
    started_at = fields.Integer(
        required=True, metadata={"description": "Seconds since the epoch; 0 before it ever started."}
    )
    restart_count = fields.Integer(required=True)
    cpu_percent = fields.Float(required=True)
    memory_rss_bytes = fields.Integer(required=True)
    memory_percent = fields.Float(required=True)


class ProcessAnswer(Schema):
    """A process and what it does now."""

    name = fields.String(required=True)
    type = fields.String(required=True)
    state = fields.String(
        required=True,
        metadata={"description": "starting, running, stopping, stopped, failed or completed."},
    )
    scale = fields.Integer(required=True, metadata={"description": "How many instances there are."})
    desired_scale = fields.Integer(required=True)
    max_scale = fields.Integer(required=True)
    cpu_percent = fields.Float(required=True)
    memory_rss_bytes = fields.Integer(required=True)
    memory_percent = fields.Float(required=True)
    instances = fields.List(fields.Nested(InstanceAnswer), required=True)
    schedule = fields.String()
    schedule_state = fields.String(metadata={"description": "idle, executing or paused."})
    next_run = fields.Integer()
    last_run = fields.Integer()
    run_count = fields.Integer()
    success_rate = fields.Float(metadata={"description": "0 to 100."})
    last_exit_code = fields.Integer()


def process_answer(each: Named) -> dict[str, Any]:
    """Return what ProcessAnswer shows."""
    instances = each.app.instances_of(each.process.name)
    wanted = each.app.wanted(each.process)
    return {
        "name": each.name,
        "type": each.process.type,
        "state": state(each),
        "scale": sum(one.state in _ALIVE for one in instances),
        "desired_scale": wanted.scale if wanted.running else 0,
        "max_scale": each.process.max_scale,
        "cpu_percent": _sum(one.cpu_percent for one in instances),
        "memory_rss_bytes": int(_sum(one.memory_rss_bytes for one in instances)),
        "memory_percent": _sum(one.memory_percent for one in instances),
        "instances": [_instance(each, one) for one in instances],
        **(_schedule(each) if each.process.type == "scheduled" else {}),
    }


def state(each: Named) -> str:
    """Return the word for what a process does."""
    if each.app.phase is not Phase.READY:
        return _PHASES[each.app.phase]
    word = each.app.process_status(each.process).value
    return _STATES.get(word, word)


def _sum(numbers: Any) -> float:
    return round(sum(number or 0 for number in numbers), 2)


def _instance(each: Named, one: Instance) -> dict[str, Any]:
    return {
        "id": each.instance_id(one),
        "state": _STATES.get(one.state, one.state) if each.app.online else "failed",
        "pid": one.pid or 0,
        "started_at": (one.started_ms or 0) // 1000,
        "restart_count": one.restart_count,
        "cpu_percent": one.cpu_percent or 0.0,
        "memory_rss_bytes": one.memory_rss_bytes or 0,
        "memory_percent": one.memory_percent or 0.0,
    }


def schedule_state(each: Named) -> str:
    """Return the word for what a schedule does."""
    if each.app.wanted(each.process).paused:
        return "paused"
    known = each.app.schedules.get(each.process.name)
    return "executing" if known is not None and known.executing else "idle"


def _schedule(each: Named) -> dict[str, Any]:
    known = each.app.schedules.get(each.process.name)
    shown: dict[str, Any] = {"schedule": each.process.schedule, "schedule_state": schedule_state(each)}
    if known is not None:
        counted = {
            "next_run": _seconds(known.next_ms),
            "last_run": _seconds(known.last_ms),
            "run_count": known.run_count,
            "success_rate": known.success_rate,
            "last_exit_code": known.last_exit_code,
        }
        shown |= {name: value for name, value in counted.items() if value is not None}
    return shown


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
