"""A family of child processes: started, their output prefixed, restarted when they crash, ended together."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
SETTLED_S = 60.0  # a process that was up for so long starts again with the shortest backoff
LINE_LIMIT_BYTES = 64 * 1024  # a longer line is shown in pieces
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # ANSI foreground colours, in the order of starting
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, kw_only=True, eq=False)  # one is equal to itself alone
class Process:
    """What to run, and how it wants to be ended."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    cwd: Path | None = None
    stage: int = 1  # the highest stage is ended first; processes of one stage are ended together
    grace_s: float = 25.0  # between TERM and KILL
    show_stdout: bool = True  # False: only stderr is shown
    pass_fds: tuple[int, ...] = ()  # descriptors that the child inherits
    after_exit: Callable[[], None] = lambda: None  # tidies up what an ended process left


class Processes:
    """Runs processes until told to stop. Everything happens on the event loop of the main thread.

    The main thread matters: Linux ends the children when the thread that started them ends.
    """

    def __init__(self, output: TextIO, *, colour: bool = False) -> None:
        self._output = output
        self._colour = colour
        self._keepers: dict[Process, asyncio.Task[None]] = {}
        self._running: dict[str, int] = {}  # name to process id
        self._ends: dict[str, int] = {}
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    def start(self, process: Process) -> None:
        """Start `process` and restart it whenever it ends, until `stop`."""
        self._keepers[process] = asyncio.create_task(self._keep(process))

    def pid(self, name: str) -> int | None:
        """Return the process id of `name` while it runs."""
        return self._running.get(name)

    def ends(self, name: str) -> int:
        """Return how often `name` has ended by itself, or could not be started at all."""
        return self._ends.get(name, 0)

    def most_ends(self) -> tuple[str, int]:
        """Return the process that ended most often, and how often; ('', 0) when none has."""
        return max(self._ends.items(), key=lambda item: item[1], default=("", 0))

    async def stop(self) -> None:
        """End all processes, the highest stage first: TERM, grace, KILL. Safe to call twice."""
        self._stopping.set()
        for stage in sorted({process.stage for process in self._keepers}, reverse=True):
            await asyncio.gather(*(self._end(p) for p in self._keepers if p.stage == stage))
        self._keepers.clear()

    async def finish(self, process: Process, in_a_hurry: Process) -> None:
        """Run `process`, which ends by itself, once all others have ended; `in_a_hurry` instead after `hurry`."""
        if not self._hurry.is_set():
            work = asyncio.create_task(self._run(process))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait([work, hurry], return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not work.done() and (pid := self._running.get(process.name)):
                _signal_group(pid, signal.SIGTERM)
            await work
        if self._hurry.is_set():
            await self._run(in_a_hurry)

    def hurry(self) -> None:
        """Cut every grace short: what still runs is killed."""
        self._hurry.set()

    def say(self, name: str, line: str) -> None:
        """Write one line under the name of a process."""
        prefix = f"{name:<9} |"
        if self._colour:
            names = [process.name for process in self._keepers]
            number = COLOURS[names.index(name) % len(COLOURS)] if name in names else 1
            prefix = f"\x1b[{number}m{prefix}\x1b[0m"
        # The terminal or the reader of a pipe may be gone: the processes are worth more than their output.
        with contextlib.suppress(OSError, ValueError):
            self._output.write(f"{prefix} {line}\n")
            self._output.flush()

    async def _keep(self, process: Process) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            how = await self._run(process)
            if self._stopping.is_set():
                break
            self._ends[process.name] = self.ends(process.name) + 1
            if time.monotonic() - started >= SETTLED_S:
                backoff_s = FIRST_BACKOFF_S
            self.say(process.name, f"{how}; starting again in {backoff_s:g} s.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    async def _run(self, process: Process) -> str:
        """Run `process` once and return how it ended, as the beginning of a sentence."""
        reading, writing = os.pipe()
        try:
            child = await asyncio.create_subprocess_exec(
                *process.command,
                env=dict(process.environ),
                cwd=process.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing if process.show_stdout else asyncio.subprocess.DEVNULL,
                stderr=writing,
                start_new_session=True,  # Ctrl+C reaches the parent alone, which ends the others in order
                pass_fds=process.pass_fds,
                preexec_fn=_die_with(os.getpid()),
            )
        except OSError as error:
            os.close(reading)
            return f"Could not be started: {error}"
        finally:
            os.close(writing)
        self._running[process.name] = child.pid
        if (
            self._stopping.is_set() and process in self._keepers
        ):  # while it was being made: no other can end it
            _signal_group(child.pid, signal.SIGTERM)
        pump = asyncio.create_task(self._pump(process.name, reading))
        try:
            code = await child.wait()
        finally:
            del self._running[process.name]
            _signal_group(child.pid, signal.SIGKILL)  # what the process itself left behind
            # A descendant in a session of its own may hold the pipe open for as long as it likes.
            await asyncio.wait([pump], timeout=1)
            pump.cancel()
            process.after_exit()
        return f"Exited with code {code}" if code >= 0 else f"Ended by {signal.Signals(-code).name}"

    async def _pump(self, name: str, descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await reader.read(LINE_LIMIT_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) >= LINE_LIMIT_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self.say(name, line.decode(errors="replace").rstrip("\r"))
        finally:
            if rest:
                self.say(name, rest.decode(errors="replace"))
            transport.close()

    async def _end(self, process: Process) -> None:
        keeper = self._keepers[process]
        if pid := self._running.get(process.name):  # else it is between two starts, and will not start
            _signal_group(pid, signal.SIGTERM)
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([keeper, hurry], timeout=process.grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if pid := self._running.get(process.name):
            self.say(process.name, "Still running after its time to end; killed.")
            _signal_group(pid, signal.SIGKILL)
        await keeper


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return what a child calls before it becomes the command, so that it ends when `parent` is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before prctl: no signal will come
            os._exit(1)

    return ask
