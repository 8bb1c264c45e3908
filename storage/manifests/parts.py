"""The parts of a manifest: what a product consists of, how each process runs, and how one tells that it is well."""

from dataclasses import dataclass, field
from typing import Any, Literal

#: cbox-init's figures (see docs/manifest.md): no process may be scaled beyond the second.
DEFAULT_MAX_SCALE, HARD_MAX_SCALE = 100, 1000

#: A program and its arguments, or a line for a shell.
Command = tuple[str, ...] | str


@dataclass(frozen=True, slots=True)
class Restart:
    """When a process that ended is started again, and how patiently.

    The pause is backoff_s * factor ** restarts, at most max_s; after `attempts` restarts in a row it has failed.
    Who has run for stability_s has its attempts back.
    """

    policy: Literal["always", "on-failure", "never"] = "on-failure"
    attempts: int = 3
    backoff_s: float = 5.0
    factor: float = 2.0
    max_s: float = 60.0
    stability_s: float = 60.0

    def delay_s(self, restarts: int) -> float:
        """Return the pause before the next start, after `restarts` of them."""
        return min(self.backoff_s * self.factor ** min(restarts, 64), self.max_s)


@dataclass(frozen=True, slots=True)
class Health:
    """How to ask an instance whether it is well: a GET that succeeds, a port that opens, a command that exits 0.

    An http check goes to the instance's own port or socket unless `port` names another.
    """

    kind: Literal["http", "tcp", "exec"]
    path: str = "/"
    port: int | None = None
    command: Command | None = None
    delay_s: float = 5.0
    period_s: float = 10.0
    timeout_s: float = 3.0
    failures: int = 3
    successes: int = 1
    expected_status: int | None = None  # None: any from 200 to 399


@dataclass(frozen=True, slots=True)
class Process:
    """One named command of a product. `port` is the first instance's, which the others count up from; 0: any free."""

    name: str
    command: Command
    type: Literal["longrun", "oneshot", "scheduled"] = "longrun"
    scale: int = 1
    max_scale: int = DEFAULT_MAX_SCALE
    port: int | None = None
    socket: bool = False
    env: dict[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    stop_signal: str = "TERM"
    stop_timeout_s: float = 30.0
    memory_limit_bytes: int | None = None
    health: Health | None = None
    restart: Restart | None = None
    schedule: str | None = None
    timezone: str = "UTC"
    max_concurrent: int = 1  # runs of a schedule at once; 0: any number
    timeout_s: float | None = None  # of one run of a scheduled or oneshot process
    working_directory: str | None = None
    initial: Literal["running", "stopped"] = "running"
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Install:
    """What is run once in the unpacked release before anything is started."""

    command: Command
    timeout_s: float = 900.0
    network: bool = True


@dataclass(frozen=True, slots=True)
class Routes:
    """Which process answers the requests that are forwarded, and the path they are put under."""

    process: str
    prefix: str = "/"


@dataclass(frozen=True, slots=True)
class Components:
    """React components as ES modules, by their paths in the release."""

    config: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Links:
    """What makes a product a ProcessCube: where its engine, its low-code editors and its authority answer."""

    engine_url: str
    lowcode_urls: tuple[str, ...] = ()
    authority_url: str | None = None


@dataclass(frozen=True, slots=True)
class Frontend:
    """A static frontend: a directory of the release, and the name people read."""

    path: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a product is and how it is run. `restart` holds for processes that have none of their own."""

    id: str
    processes: tuple[Process, ...]
    name: str = ""
    version: str = "0.0.0"
    description: str = ""
    kind: Literal["hostler", "squareberg", "cbox"] = "hostler"
    install: Install | None = None
    restart: Restart = Restart()
    config: dict[str, Any] | None = None
    routes: Routes | None = None
    components: Components | None = None
    links: Links | None = None
    frontends: dict[str, Frontend] = field(default_factory=dict)
    active_frontends: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return the name people read."""
        return self.name or self.id

    def process(self, name: str) -> Process | None:
        """Return the process called `name`."""
        return next((each for each in self.processes if each.name == name), None)

    def restart_of(self, process: Process) -> Restart:
        """Return how a process is restarted."""
        return process.restart or self.restart
