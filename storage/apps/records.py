"""What is kept of an app: the wish, signed as a whole, and beside it what its node reports.

A node acts upon the wish alone. Whoever can write to Redis without the secret key can neither make nor alter one; put
back an older one they can, which is why a node refuses any whose `age` is less than that of one it has acted on.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import orjson

from storage import manifests
from storage.calls import text
from storage.manifests import Manifest, Process, configuration
from storage.records import opened, signed, understood
from storage.seal import Forged, Seal

log = logging.getLogger("hostler.storage")


class Phase(StrEnum):
    """What becomes of an app as a whole; once it is `ready` its instances say more."""

    INSTALLING = "installing"
    NEEDS_CONFIG = "needs_config"
    INSTALLED = "installed"  #: whole, and never started
    UPDATING = "updating"
    REMOVING = "removing"
    FAILED = "failed"  #: the install, or the removal, has failed
    READY = "ready"


#: Phases that belong to a job and end with it.
PASSING = frozenset({Phase.INSTALLING, Phase.UPDATING, Phase.REMOVING})

Desired = Literal["running", "stopped"]


class Status(StrEnum):
    """What a person is told of a ready app or of one process; an app that is not ready shows its phase."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"  #: it ended by itself, and its restart is pending
    FAILED = "failed"  #: it ended by itself, and is not started again
    COMPLETED = "completed"
    UNKNOWN = "unknown"  #: its node is silent


#: States of an instance in which there is a process.
ALIVE = frozenset({"starting", "running", "stopping"})


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of the operating system as its node sees it, or the last one there was. Times are in ms."""

    id: str
    process: str
    index: int
    state: str
    pid: int | None = None
    started_ms: int | None = None
    restart_count: int = 0
    exit_code: int | None = None
    signal: int | None = None
    cpu_percent: float | None = None
    memory_rss_bytes: int | None = None
    memory_percent: float | None = None
    port: int | None = None
    socket: str | None = None
    health: str = "unknown"
    message: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """How a scheduled process has done so far, as its node counts. Times are in ms."""

    executing: int = 0
    next_ms: int | None = None
    last_ms: int | None = None
    run_count: int = 0
    success_rate: float | None = None
    last_exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What was said of one process; what was not is as the manifest says."""

    desired: Desired | None = None
    scale: int | None = None
    restarts: int = 0
    triggers: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be of one process now. More `restarts` or `triggers` than were acted on ask for one more of them."""

    running: bool
    scale: int
    restarts: int
    triggers: int
    paused: bool


@dataclass(frozen=True, slots=True)
class Release:
    """A release that lies on the node: its directory's name under `releases`, and since when."""

    version: str
    dir: str
    at_ms: int
    source: dict[str, Any]
    manifest: dict[str, Any]


#: How many releases a node keeps, the active one among them.
KEPT_RELEASES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    """One installed product. The fields up to `created_ms` are the wish; the others are what its node reports."""

    instance_id: str
    product: str
    alias: str | None
    node: str
    version: str
    source: dict[str, Any]
    releases: tuple[Release, ...]  # the active one first
    manifest: Manifest | None
    desired: Desired
    generation: int
    restarts_asked: int
    wishes: dict[str, Wish]
    sealed_config: str | None
    configured: bool
    autostart: bool
    created_ms: int

    wish: bytes = b""  # the signed record that the fields above were read from
    phase: Phase = Phase.INSTALLING
    phase_before: str = ""  # what it was in before a passing one
    message: str = ""
    error: str = ""
    progress: int = 0
    job: str = ""
    installed_ms: int | None = None
    updated_ms: int = 0
    observed_generation: int = 0
    observed_ms: int | None = None
    instances: tuple[Instance, ...] = ()
    schedules: dict[str, ScheduleState] = field(default_factory=dict)
    online: bool = True

    @property
    def age(self) -> tuple[int, int]:
        """Return what orders the wishes of one instance id, also across a removal and a new install."""
        return self.created_ms, self.generation

    @property
    def name(self) -> str:
        """Return the name people read."""
        return self.manifest.title if self.manifest is not None else self.product

    @property
    def kind(self) -> str:
        """Return whose manifest it came with: hostler, squareberg or cbox."""
        return self.manifest.kind if self.manifest is not None else "hostler"

    @property
    def processes(self) -> tuple[Process, ...]:
        """Return the processes of the active release that are not switched off."""
        return tuple(each for each in self.manifest.processes if each.enabled) if self.manifest else ()

    def process(self, name: str) -> Process | None:
        """Return the process called `name`."""
        return next((each for each in self.processes if each.name == name), None)

    def wanted(self, process: Process) -> Wanted:
        """Return what shall be of one process."""
        wish = self.wishes.get(process.name, Wish())
        scale = min(process.scale if wish.scale is None else wish.scale, process.max_scale)
        running = self.desired == "running" and (wish.desired or "running") == "running" and scale > 0
        return Wanted(
            running=running and bool(self.releases) and self.configured and self.phase not in _HELD,
            scale=scale,
            restarts=self.restarts_asked + wish.restarts,
            triggers=wish.triggers,
            paused=wish.paused,
        )

    @property
    def scale(self) -> dict[str, int]:
        """Return how many instances of each process are wished."""
        return {each.name: self.wanted(each).scale for each in self.processes}

    def instances_of(self, process: str) -> tuple[Instance, ...]:
        """Return the instances of one process, in order."""
        return tuple(each for each in self.instances if each.process == process)

    @property
    def ready_status(self) -> Status:
        """Return what is shown of the app while it is ready, from what its node reports."""
        statuses = [self.process_status(each) for each in self.processes]
        if self.desired == "stopped":
            return Status.STOPPING if Status.STOPPING in statuses else Status.STOPPED
        for status in _TELLING:
            if status in statuses:
                return status
        return Status.STOPPED

    @property
    def status(self) -> str:
        """Return what a person is told: the phase, or once it is ready what its instances do."""
        if self.phase is not Phase.READY:
            return self.phase.value
        return (self.ready_status if self.online else Status.UNKNOWN).value

    def process_status(self, process: Process) -> Status:
        """Return what one process does."""
        if not self.online:
            return Status.UNKNOWN
        wanted, states = self.wanted(process), [each.state for each in self.instances_of(process.name)]
        if not wanted.running:
            return Status.STOPPING if ALIVE & set(states) else Status.STOPPED
        for state in ("failed", "crashed"):
            if state in states:
                return Status(state)
        if process.type == "scheduled":
            return Status.RUNNING  # armed, whether or not a run is under way
        if "completed" in states and not ALIVE & set(states):
            return Status.COMPLETED
        up = [state for state in states if state in {"running", "completed"}]
        return Status.RUNNING if len(up) >= wanted.scale else Status.STARTING

    @property
    def settled(self) -> bool:
        """Tell whether the node has done what is wished, or given up."""
        return (
            self.observed_generation >= self.generation
            and self.phase not in PASSING
            and self.ready_status not in {Status.STARTING, Status.STOPPING, Status.CRASHED}
        )

    def config(self, seal: Seal) -> dict[str, Any]:
        """Return the configuration in the clear: for the node that needs it. Raises Forged."""
        if self.sealed_config is None:
            return {}
        config: dict[str, Any] = seal.decrypt_json(
            "app configuration", self.sealed_config, bound_to=self.instance_id
        )
        return config

    def masked_config(self, seal: Seal) -> dict[str, Any]:
        """Return the configuration with its secrets hidden."""
        return configuration.masked(self.config_schema, self.config(seal))

    @property
    def config_schema(self) -> dict[str, Any] | None:
        """Return the JSON Schema of its configuration."""
        return self.manifest.config if self.manifest is not None else None

    def with_config(self, seal: Seal, config: Mapping[str, Any]) -> "App":
        """Return the app configured so."""
        sealed = seal.encrypt_json("app configuration", dict(config), bound_to=self.instance_id)
        complete = configuration.is_complete(self.config_schema, config)
        return replace(self, sealed_config=sealed, configured=complete)

    def with_wish(self, process: str, **changes: Any) -> "App":
        """Return the app with another wish for one process."""
        wish = replace(self.wishes.get(process, Wish()), **changes)
        return replace(self, wishes={**self.wishes, process: wish})

    def signed_wish(self, seal: Seal) -> str:
        """Return the wish as it lies in Redis."""
        fields = {name: getattr(self, name) for name in _WISH}
        fields["manifest"] = None if self.manifest is None else manifests.as_json(self.manifest)
        fields["releases"] = [{**asdict(each), "manifest": dict(each.manifest)} for each in self.releases]
        fields["hidden"] = _hide(seal, self.instance_id, fields)
        fields["wishes"] = {name: asdict(each) for name, each in self.wishes.items()}
        return signed(seal, "app", self.instance_id, fields)


#: Phases in which nothing of an app runs.
_HELD = frozenset({Phase.NEEDS_CONFIG, Phase.INSTALLING, Phase.REMOVING})

#: Of the statuses of its processes, an app shows the first that occurs.
_TELLING = (
    Status.FAILED, Status.CRASHED, Status.STARTING, Status.STOPPING, Status.UNKNOWN, Status.RUNNING, Status.COMPLETED,
)  # fmt: skip

_WISH = (
    "instance_id", "product", "alias", "node", "version", "source", "releases", "manifest", "desired", "generation",
    "restarts_asked", "wishes", "sealed_config", "configured", "autostart", "created_ms",
)  # fmt: skip

#: What the scripts hand out of a record, in this order; then whether its node is online.
FIELDS = (
    "wish", "phase", "before", "message", "error", "progress", "job", "installed", "updated", "observed", "observed_at",
    "instances", "schedules",
)  # fmt: skip


def _manifests(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the manifests of a wish as JSON: the active one, then those of the releases that are kept."""
    return [fields["manifest"] or {}, *(each["manifest"] for each in fields["releases"])]


def _hide(seal: Seal, instance_id: str, fields: Mapping[str, Any]) -> str | None:
    """Take the environments out of the manifests of a wish and return them sealed: they may hold secrets."""
    environments = []
    for manifest in _manifests(fields):
        processes = manifest.get("processes", {})
        environments.append({name: each["env"] for name, each in processes.items() if each.get("env")})
        if processes:
            manifest["processes"] = {name: {**each, "env": {}} for name, each in processes.items()}
    if not any(environments):
        return None
    return seal.encrypt_json("app environments", environments, bound_to=instance_id)


def _bring_back(seal: Seal, instance_id: str, fields: dict[str, Any]) -> None:
    """Put the environments back that `_hide` took out. Raises Forged."""
    sealed = fields.pop("hidden", None)
    if sealed is None:
        return
    environments = seal.decrypt_json("app environments", sealed, bound_to=instance_id)
    for manifest, found in zip(_manifests(fields), environments, strict=True):
        for name, env in found.items():
            manifest["processes"][name]["env"] = env


def read_wish(seal: Seal, instance_id: str, raw: bytes) -> App:
    """Return the app of a signed wish, without what its node reports. Raises Forged.

    The same bytes may be answered with the same App, which nobody changes.
    """
    return (_read_known if len(raw) <= _KNOWN_BYTES else _read_anew)(seal, instance_id, raw)


def _read_anew(seal: Seal, instance_id: str, raw: bytes) -> App:
    fields = opened(seal, "app", instance_id, raw)
    _bring_back(seal, instance_id, fields)
    fields["manifest"] = None if fields["manifest"] is None else manifests.load(fields["manifest"])
    fields["releases"] = tuple(understood(Release, each) for each in fields["releases"])
    fields["wishes"] = {name: understood(Wish, each) for name, each in fields["wishes"].items()}
    return understood(App, fields | {"wish": raw})


#: To check and read a wish takes 2 ms, and lists show hundreds that seldom change: so many are kept, of this size.
_KNOWN, _KNOWN_BYTES = 2048, 16 * 1024
_read_known = functools.lru_cache(maxsize=_KNOWN)(_read_anew)


def read(seal: Seal, instance_id: str, values: Sequence[Any]) -> App:
    """Return an app as the scripts hand it out. Raises Forged."""
    row = dict(zip((*FIELDS, "online"), values, strict=True))
    app = read_wish(seal, instance_id, row["wish"])

    def number(name: str) -> int | None:
        return int(row[name]) if row[name] else None

    try:
        return replace(
            app,
            phase=Phase(text(row["phase"])),
            phase_before=text(row["before"]),
            message=text(row["message"]),
            error=text(row["error"]),
            progress=number("progress") or 0,
            job=text(row["job"]),
            installed_ms=number("installed"),
            updated_ms=number("updated") or app.created_ms,
            observed_generation=number("observed") or 0,
            observed_ms=number("observed_at"),
            instances=tuple(understood(Instance, each) for each in orjson.loads(row["instances"] or b"[]")),
            schedules={
                name: understood(ScheduleState, each)
                for name, each in orjson.loads(row["schedules"] or b"{}").items()
            },
            online=bool(row["online"]),
        )
    except (ValueError, TypeError) as error:  # reports are not signed: what is no report of ours is none
        raise Forged(f"What is reported of app {instance_id!r} cannot be read: {error}") from None


def readable(seal: Seal, rows: Sequence[Sequence[Any]]) -> list[App]:
    """Return the apps of `rows` (id, values); those that somebody else wrote are left out and told of."""
    found = []
    for name, values in rows:
        if values[0] is None:
            continue
        try:
            found.append(read(seal, text(name), values))
        except Forged as error:
            log.error("an app is not believed", extra={"app": text(name), "why": str(error)})
    return found
