"""What worker and agent do alike at their start: a place for jobs on this machine, and work there until a signal."""

import asyncio
import contextlib
import os
import platform as machine
import re
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from integrations import tracing
from settings import Settings, __version__, process_environment
from storage.errors import Invalid
from workers import platforms
from workers.backups import engine
from workers.executor import MOST_FOLLOWERS, Beside, Executor
from workers.lines import Line
from workers.log import log
from workers.platforms import Platform
from workers.run import Circumstances
from workers.workspace import Workspace

#: What a command inherits of this process's own environment; everything else, credentials first, stays out.
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT", "PATHEXT", "COMSPEC", "TERM")
#: Descriptors that may be open at once: of a slot, whose user is held by two, whose command prints into two, and whose
#: output and files have some; of what lies ready to follow; and of all else, apps among it.
DESCRIPTORS_OF_SLOT, DESCRIPTORS_OF_FOLLOWER, DESCRIPTORS_BESIDE = 8, 4, 128


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the jobs of one worker run: the directory of its own, and the platform that starts commands."""

    settings: Settings
    name: str
    slots: int
    root: Path
    platform: Platform
    workspace: Workspace

    async def work(
        self,
        line: Line,
        *,
        heartbeat_s: float,
        stopping: Callable[[], None] = lambda: None,
        beside: Beside | None = None,
    ) -> None:
        """Carry out what comes over `line` until SIGINT or SIGTERM, then drain; `stopping` is called at its begin.

        `beside` works over the same line, beside the slots.
        """
        self.workspace.sweep()
        self.workspace.sweep_after_the_dead()
        traces = tracing.start(self.settings.otlp_endpoint, "hostler-worker", __version__)
        executor = Executor(
            Circumstances(
                line=line, platform=self.platform, workspace=self.workspace, environment=inherited(),
                spool=str(self.root), kill_grace_s=self.settings.kill_grace_s,
                log_limit_bytes=self.settings.job_log_limit_bytes,
                live_bytes=self.settings.job_log_live_bytes,
                tracing=traces,
            ),
            slots=self.slots, heartbeat_s=heartbeat_s, drain_s=self.settings.drain_s, beside=beside,
        )  # fmt: skip

        def stop() -> None:
            stopping()
            executor.stop()

        with contextlib.closing(traces), _on_signals(stop):
            log.info(
                "ready",
                extra={"worker": self.name, "slots": self.slots, "isolation": self.platform.isolation},
            )
            await executor.work()


@contextlib.contextmanager
def workplace(settings: Settings, *, name: str, slots: int) -> Iterator[Workplace]:
    """Make the place where the worker `name` runs its jobs, and say what this machine cannot guarantee.

    Raises IsolationUnavailable, and Invalid where this process may not have as many open files as its slots need.
    """
    platforms.protect_this_process()
    root, followers = settings.work_dir / name, min(slots, MOST_FOLLOWERS)
    _allow_descriptors(slots, followers)
    platform = platforms.choose(settings.isolation, slots=slots, followers=followers, directory=root)
    try:
        workspace = Workspace(
            root, platform, fetch_limit_bytes=settings.fetch_limit_bytes, allow=settings.outbound_allow
        )
        for warning in platform.warnings:
            log.warning(warning)
        with workspace.in_use():
            yield Workplace(settings, name, slots, root, platform, workspace)
    finally:
        platform.close()


def make_work_dir(work_dir: Path) -> None:
    """Make the directory that holds those of workers. Raises Invalid where it cannot be made or written to."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Invalid(f"HOSTLER_WORK_DIR: {work_dir} cannot be made: {error.strerror}.") from None
    if not os.access(work_dir, os.W_OK | os.X_OK):
        raise Invalid(f"HOSTLER_WORK_DIR: {work_dir} cannot be written to.")


def _allow_descriptors(slots: int, followers: int) -> None:
    """See to it that this process, and the launcher, may open what their slots need; else jobs would fail for it.

    Commands inherit that, so it is no more than that: some programs take a while to close all that they may have open.
    """
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  Windows has it not

    needed = DESCRIPTORS_BESIDE + DESCRIPTORS_OF_SLOT * slots + DESCRIPTORS_OF_FOLLOWER * followers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise Invalid(
            f"A worker of {slots} slots may need {needed} open files, and this one may have {hard}: "
            "raise that (LimitNOFILE= of its unit, ulimit -n), or give it fewer slots."
        ) from None


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on the event loop that suits this machine."""
    factory: Callable[[], asyncio.AbstractEventLoop] = (
        asyncio.SelectorEventLoop
    )  # Windows: it can watch sockets
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415  not to be had on Windows

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    if sys.platform != "win32":
        for number in numbers:
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
        return
    # the loop of Windows knows no signals; it wakes often enough to hear of one
    before = [signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def name_of_this_machine(work_dir: Path) -> tuple[str, BinaryIO]:
    """Return a name for a worker that was given none, and the file that keeps it from other workers while it is open.

    Apps belong to a node by its name: after a restart a worker takes up the name that none uses any more.
    """
    import fcntl  # noqa: PLC0415  Windows has it not, and no such workers

    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip(".")[:40] or "node"
    names = work_dir / ".names"
    names.mkdir(parents=True, exist_ok=True)
    known = sorted(path.name for path in names.glob(f"{host}-*"))
    for name in (*known, f"{host}-{secrets.token_hex(3)}"):
        file = (names / name).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        return name, file
    raise AssertionError("A name that was just made up is taken.")


def problem_with_name(name: str) -> str | None:
    """Return what is wrong with the name of a worker, or None; it names a folder, too."""
    if name == "apps":  # its folder lies beside those of workers
        return "--name must not be apps"
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        return None
    return "--name must be 1 to 64 letters, digits, dots, underscores or hyphens, no dot first"


def inherited() -> dict[str, str]:
    """Return the part of this process's environment that commands get."""
    return {name: value for name, value in process_environment().items() if name in INHERITED}


def metadata(platform: Platform, tags: tuple[str, ...]) -> dict[str, Any]:
    """Return what a worker tells of its machine."""
    return {
        "osType": machine.system(), "arch": machine.machine(), "pythonVersion": machine.python_version(),
        "tags": list(tags), "warnings": list(platform.warnings), "backupEngine": engine.described(),
    }  # fmt: skip


def memory_mb() -> int:
    """Return how much memory this machine has, in MiB; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)
    except (ValueError, OSError, AttributeError):
        return 0
