"""A control plane in memory for a supervisor, and apps for it: they are wished here, and told of here."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from servers import SECRET_KEY

from settings import Settings
from storage import manifests
from storage.apps import App, Instance, LogLine, Phase, Release, Run, Sample, ScheduleState, Wish
from storage.errors import NotFound, Unavailable
from storage.seal import Seal
from workers.supervisor import supervisor as module
from workers.supervisor.supervisor import Supervisor

SEAL = Seal(SECRET_KEY)
#: So quick that tests need not wait, and slow enough to be seen.
QUICK = {"policy": "always", "attempts": 3, "backoff_s": 0.05, "max_s": 0.1, "stability_s": 60}


class FakeControl:
    """Stands in for RedisReports. `away` makes every call raise Unavailable."""

    def __init__(self) -> None:
        self.apps: dict[str, App] = {}
        self.told: dict[str, tuple[int, list[Instance], Mapping[str, ScheduleState], str]] = {}
        self.lines: list[LogLine] = []
        self.batches: set[tuple[str, str, int]] = set()
        self.runs: dict[str, Run] = {}
        self.sampled: list[Sample] = []
        self.emitted: list[tuple[str, str, str]] = []
        self.away = self.lose_replies = False
        self.registrations = 0
        self.wake: Callable[[], None] = lambda: None

    def _check(self) -> None:
        if self.away:
            raise Unavailable("Redis cannot be reached.")

    def wish(self, app: App) -> None:
        self.apps[app.instance_id] = signed(app)
        self.wake()

    def change(self, name: str, **changes: Any) -> App:
        before = self.apps[name]
        self.wish(replace(before, generation=before.generation + 1, **changes))
        return self.apps[name]

    def listen(self, wake: Callable[[], None]) -> "asyncio.Task[None]":
        self.wake = wake
        self.registrations += 1  # as each worker has one of its own
        return asyncio.create_task(asyncio.sleep(3600))

    async def wished(self) -> list[App]:
        self._check()
        return list(self.apps.values())

    async def observe(
        self, app: App, instances: Sequence[Instance], schedules: Mapping[str, ScheduleState], message: str
    ) -> None:
        self._check()
        if app.instance_id not in self.apps:
            raise NotFound("no such app")
        self.told[app.instance_id] = (app.generation, list(instances), schedules, message)

    async def append(self, instance_id: str, lines: Sequence[LogLine], batch: int) -> None:
        self._check()
        if (instance_id, self.session(), batch) not in self.batches:
            self.batches.add((instance_id, self.session(), batch))
            self.lines += lines
        if self.lose_replies:
            self.lose_replies = False
            raise Unavailable("The reply was lost.")

    def session(self) -> str:
        return f"r{self.registrations}"

    async def sample(self, instance_id: str, samples: Sequence[Sample]) -> None:
        self._check()
        self.sampled += samples

    async def ran(self, instance_id: str, run: Run) -> None:
        self._check()
        self.runs[run.id] = run

    async def rest(self, instance_id: str) -> App:
        self._check()
        return self.change(instance_id, desired="stopped")

    async def emit(self, instance_id: str, event: str, data: str) -> None:
        self._check()
        self.emitted.append((instance_id, event, data))

    @property
    def text(self) -> list[str]:
        return [line.text for line in self.lines]

    def instance(self, app: str, name: str) -> Instance | None:
        """Return what was told last of an instance."""
        return next((each for each in self.told.get(app, (0, [], {}, ""))[1] if each.id == name), None)

    def message(self, app: str, name: str) -> str | None:
        found = self.instance(app, name)
        return None if found is None else found.message

    def state(self, app: str, name: str) -> str | None:
        found = self.instance(app, name)
        return None if found is None else found.state


def signed(app: App) -> App:
    """Return the app as Redis hands it out."""
    return replace(app, wish=app.signed_wish(SEAL).encode())


def app_of(name: str, processes: Mapping[str, Any], *, node: str = "node", **more: Any) -> App:
    """Return a wish for an app that runs these processes."""
    given = {name: each for name, each in more.items() if name in {"restart", "kind", "config", "routes"}}
    manifest = manifests.load(
        {"id": name, "version": "1.0.0", "restart": QUICK, "processes": dict(processes), **given}
    )
    app = App(
        instance_id=name, product=name, alias=None, node=node, version="1.0.0", source={"kind": "inline"},
        releases=(Release("1.0.0", "1.0.0", 1000, {"kind": "inline"}, manifests.as_json(manifest)),),
        manifest=manifest, desired="running", generation=1, restarts_asked=0, wishes={}, sealed_config=None,
        configured=True, autostart=True, created_ms=1000, phase=Phase.READY,
    )  # fmt: skip
    return signed(replace(app, **{name: each for name, each in more.items() if name not in given}))


def wished(app: App, process: str, **wish: Any) -> dict[str, Wish]:
    """Return the wishes of an app with those of one process changed."""
    return {**app.wishes, process: replace(app.wishes.get(process, Wish()), **wish)}


def python(code: str) -> list[str]:
    """Return a command that runs a piece of Python."""
    return [sys.executable, "-I", "-S", "-u", "-c", code]


def shell(line: str) -> list[str]:
    return ["/bin/sh", "-c", line]


def lay_out(apps_dir: Path, name: str, release: str = "1.0.0") -> Path:
    """Put an empty release of an app where installs would; return its directory."""
    directory = apps_dir / name / "releases" / release
    directory.mkdir(parents=True, exist_ok=True)
    beside = apps_dir / name / ".current.new"
    beside.symlink_to(Path("releases") / release)
    beside.replace(apps_dir / name / "current")
    for each in (apps_dir, apps_dir / name, apps_dir / name / "releases", directory):
        each.chmod(0o755)
    return directory


def supervisor_for(
    settings: Settings, control: FakeControl, isolation: str = "none", name: str = "node"
) -> Supervisor:
    environment = {"PATH": os.defpath}
    return Supervisor(settings, SEAL, control, name=name, isolation=isolation, environment=environment)


async def soon(condition: Callable[[], Any], what: str, patience_s: float = 20) -> Any:
    """Wait until a condition holds; return what it answered."""
    deadline = time.monotonic() + patience_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"This did not come true within {patience_s} s: {what}."
        await asyncio.sleep(0.01)
    return answer


def alive(pid: int | None) -> bool:
    """Tell whether a process is there, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


__all__ = [
    "SEAL", "FakeControl", "alive", "app_of", "lay_out", "module", "python", "shell", "signed", "soon",
    "supervisor_for", "wished",
]  # fmt: skip


SLEEP = shell("exec sleep 600")
#: Serves 204 on PORT, or on HOSTLER_SOCKET.
SERVE = python(
    "import os,socket\n"
    "path=os.environ.get('HOSTLER_SOCKET')\n"
    "s=socket.socket(socket.AF_UNIX) if path else socket.socket()\n"
    "path or s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n"
    "s.bind(path or ('127.0.0.1',int(os.environ['PORT'])))\n"
    "s.listen()\n"
    "while 1:\n"
    "  c,_=s.accept()\n"
    "  if not c.recv(9999): continue\n"
    "  up=not os.path.exists(os.environ['HOSTLER_DATA_DIR']+'/ill')\n"
    "  c.sendall(b'HTTP/1.1 %d X\\r\\nContent-Length: 0\\r\\n\\r\\n' % (204 if up else 500)); c.close()\n"
)
CHECK = {"kind": "http", "path": "/", "delay_s": 0.0, "period_s": 0.1, "timeout_s": 1, "failures": 2}


class Running:
    """Supervisors that follow one another, as workers do."""

    def __init__(self, settings: Settings, control: FakeControl) -> None:
        self.settings, self.control = settings, control
        self.now: Supervisor | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, **how: Any) -> Supervisor:
        self.now = supervisor_for(self.settings, self.control, **how)
        self._task = asyncio.create_task(self.now.run())
        return self.now

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def again(self) -> Supervisor:
        await self.end()
        self.control.told.clear()
        return self.start()

    def install(self, name: str, given: Any, **more: Any) -> None:
        lay_out(self.settings.apps_dir, name)
        self.control.wish(app_of(name, given, **more))


def pids(control: FakeControl, app: str) -> dict[str, int]:
    return {each.id: each.pid for each in control.told[app][1] if each.pid is not None}


def has(control: FakeControl, name: str, **states: str) -> Callable[[], bool]:
    """Whether these instances, and no others, were told to be in these states."""
    wanted = {each.replace("_", "-"): word for each, word in states.items()}
    return lambda: name in control.told and {each.id: each.state for each in control.told[name][1]} == wanted
