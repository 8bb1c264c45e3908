"""Platforms: how each kind of machine starts a command, keeps it apart and kills it whole."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.errors import HostlerError


class CommandNotStarted(HostlerError):
    """The command of a job could not be started; the message says why."""

    code = "COMMAND_NOT_STARTED"


class IsolationUnavailable(HostlerError):
    """This machine lacks the isolation that was asked for."""

    code = "ISOLATION_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Command:
    """A command to start.

    `environment` is all that it gets and holds HOSTLER_JOB_ID, by which leftovers are recognised. `slot`
    counts from 0, those of followers come after all others; two commands never run in one slot at a time, for the end
    of one kills whatever runs there.
    `memory_limit_bytes` bounds the address space of each of its processes.
    """

    argv: list[str]
    environment: dict[str, str]
    directory: Path
    slot: int
    job_id: str
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the main process of a command ended: by itself with `exit_code`, or by `signal`.

    `cpu_s` and `max_rss_bytes` are those of the main process and of the descendants that it waited for. The
    peak is never below that of the process that forked it (about 8 MB on Linux).
    """

    exit_code: int | None
    signal: int | None
    cpu_s: float
    max_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Obituary:
    """How the main process of a job ended that its worker did not outlive: `by-itself`, or killed `with-its-worker`."""

    job_id: str
    attempt: int
    how: str
    signal: int | None
    max_rss_bytes: int


class Output(Protocol):
    """The reading end of a command's output, for a selector."""

    @property
    def closed(self) -> bool:
        """Whether it was closed here."""

    @property
    def room_bytes(self) -> int:
        """Return how much can lie in it, waiting to be read."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""

    def read(self, size: int) -> bytes | None:
        """Return up to `size` bytes without waiting: None when there is nothing yet, b"" at the end."""

    def widen(self) -> None:
        """Have room for more where that is possible. Safe to run twice."""

    def close(self) -> None:
        """Let go of it."""


class Child(Protocol):
    """A command that was started."""

    @property
    def command(self) -> Command:
        """What was started."""

    @property
    def stdout(self) -> Output:
        """What it prints."""

    @property
    def stderr(self) -> Output:
        """What it complains about."""

    @property
    def given_back(self) -> bool:
        """Whether it was to follow another command and was not started after all."""

    def outcome(self) -> Outcome:
        """Return how it ended, once `Platform.pump` has returned it and it was not given back.

        Raises CommandNotStarted when it never ran.
        """

    def terminate(self) -> None:
        """Send SIGTERM to its process group; nothing when it has ended."""

    def kill(self) -> None:
        """Kill its main process and everything that it has started; nothing when it has ended."""

    def recall(self) -> None:
        """Have it given back unless what it follows has ended: `pump` returns whichever comes first."""

    def close(self) -> None:
        """Close its outputs. Safe to run twice."""


class Platform(Protocol):
    """Starts commands on this machine. All calls belong to one thread.

    A selector watches `fileno()`; when it is readable, `pump()` returns the children whose main process is
    gone. By then their leftovers have been killed and all that they wrote is in the outputs: read until None
    or b"", and do not wait for an end.
    """

    @property
    def isolation(self) -> str:
        """What keeps commands apart: "uid", "landlock" or "none"."""

    @property
    def warnings(self) -> list[str]:
        """What this machine cannot guarantee, a sentence each."""

    @property
    def followers(self) -> int:
        """How many commands can be laid ready to follow others: so many slots there are beyond those asked for."""

    def fileno(self) -> int:
        """Return the descriptor to watch; it stays the same."""

    def pump(self) -> list[Child]:
        """Return the children that have ended since the last call, without waiting."""

    def make_ready(self) -> None:
        """Have what a command to come needs, so that its start waits for less. Safe to repeat."""

    def spawn(self, command: Command, *, after: Child | None = None, until_s: float = 0.0) -> Child:
        """Start a command, without waiting until it runs.

        With `after`, where there are followers, it starts as soon as that command has ended and what it left is
        killed: it has been started once `pump` has returned that one. Where that is not before `until_s` of the
        monotonic clock, or something is wrong with it, it is given back, and `pump` returns it before that one.

        What is wrong with the command itself shows in `Child.outcome`, for only its own user in its own
        directory can tell. Raises CommandNotStarted when this machine can start nothing at all.
        """

    def watch(self, output: Output, ready: Callable[[], object]) -> None:
        """Have `ready` called from the running event loop whenever `output` can be read.

        Whoever does so watches `fileno()` and calls `pump()`; it may call `ready` before it returns.
        """

    def unwatch(self, output: Output) -> None:
        """Watch an output no more for now. Safe to run twice."""

    def forget(self, output: Output) -> None:
        """Watch an output no more, and close it. Safe to run twice."""

    def left_something(self, slot: int) -> bool:
        """Tell whether the slot's last command, which has ended, may have left what had to be killed.

        What was killed may still carry out the system call that it was in.
        """

    def make_directory(self, path: Path, slot: int) -> None:
        """Make a directory that is not there yet, for the commands of one slot alone.

        Raises OSError, and IsolationUnavailable when those commands could not reach it.
        """

    def prepare_directory(self, path: Path, slot: int) -> None:
        """Give a directory, made if it is missing, and all that lies in it to the commands of one slot alone.

        Raises IsolationUnavailable when those commands could not reach it.
        """

    def withhold_directory(self, path: Path) -> None:
        """Keep the slot's next command out of a directory that its last one had; cheap, unlike what follows."""

    def reclaim_directory(self, path: Path) -> None:
        """Take a directory back after a command, so that the worker can read and remove what lies in it."""

    def sweep(self, job_id: str) -> int:
        """Kill what an earlier worker left of a job, told by HOSTLER_JOB_ID; return how many processes."""

    def obituaries(self) -> list[Obituary]:
        """Return how the jobs ended that an earlier worker in this directory did not outlive."""

    def forget_obituaries(self) -> None:
        """Drop what `obituaries` returned, once it has been told."""

    def close(self) -> None:
        """Kill every command that runs and let go of everything."""


def choose(
    isolation: str,
    *,
    slots: int,
    followers: int = 0,
    directory: Path | None = None,
    readable: Iterable[Path] = (),
) -> Platform:
    """Return the platform for this machine, isolating commands by "uid", "landlock" or "none".

    "auto" takes the first of them that there is. There are as many of the `followers` asked for as this machine has
    users for. `directory` is where the job directories will be: "auto" passes over "uid" when the slots' users could
    not reach it. `readable` are places that Landlock leaves open to reading, besides the system's own. Raises
    IsolationUnavailable when a mode is asked for that this machine lacks.
    """
    if sys.platform == "linux":
        from workers.platforms.linux import LinuxPlatform  # noqa: PLC0415  it imports what only Linux has

        return LinuxPlatform.choose(
            isolation, slots=slots, followers=followers, directory=directory, readable=readable
        )
    from workers.platforms.portable import PortablePlatform  # noqa: PLC0415  for symmetry

    if isolation not in {"auto", "none"}:
        raise IsolationUnavailable(f"Isolation by {isolation} needs Linux; this machine runs {sys.platform}.")
    return PortablePlatform()


def protect_this_process() -> None:
    """Close this process's memory and environment, which hold secrets, to other processes of the same user.

    Only Linux needs and knows this; elsewhere it does nothing.
    """
    if sys.platform == "linux":
        from workers.platforms.linux import make_undumpable  # noqa: PLC0415  it imports what only Linux has

        make_undumpable()
