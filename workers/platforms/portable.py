"""Machines other than Linux: commands are plain children, each with a thread that waits for it."""

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from storage.errors import HostlerError
from workers.platforms import Child, Command, CommandNotStarted, Obituary, Outcome, Output
from workers.platforms.outputs import Pipe, Stream

_CHUNK_BYTES = 65536
_SWEEPS = 100  # so often is what multiplies meanwhile looked for


class PortableChild:
    """A command that runs as a child of this process."""

    given_back = False

    def __init__(self, command: Command) -> None:
        self.command = command
        self.stdout: Output = Pipe()
        self.stderr: Output = Pipe()
        self.process: subprocess.Popen[bytes] | None = None
        self.ending: Outcome | None = None
        self.failure: str | None = None

    def outcome(self) -> Outcome:
        """Return how it ended. Raises CommandNotStarted when it never ran."""
        if self.failure is not None:
            raise CommandNotStarted(self.failure)
        if self.ending is None:
            raise RuntimeError("The outcome of a command was asked for while it runs.")
        return self.ending

    def terminate(self) -> None:
        """Send SIGTERM to its process group; nothing when it has ended."""
        process = self.process
        if process is not None:
            if sys.platform == "win32":
                process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill its main process and everything that it has started; nothing when it has ended."""
        process = self.process
        if process is not None:
            kill_tree(process.pid, self.command.job_id)

    def recall(self) -> None:
        """Do nothing: it was started at once."""

    def close(self) -> None:
        """Close its outputs. Safe to run twice."""
        self.stdout.close()
        self.stderr.close()


class PortablePlatform:
    """Starts commands as children of this process. All calls belong to one thread."""

    isolation = "none"
    followers = 0

    def __init__(self) -> None:
        self.warnings = [
            "Commands are not isolated: they can read what the worker can, and signal it.",
            "A worker that is killed leaves its commands running until another sweeps after them.",
            "The memory limits of jobs are not enforced.",
        ]
        self._children: set[PortableChild] = set()
        self._ended: queue.SimpleQueue[PortableChild] = queue.SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to watch; it stays the same."""
        return self._bell.fileno()

    def pump(self) -> list[Child]:
        """Return the children that have ended since the last call, without waiting."""
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        ended: list[Child] = []
        with contextlib.suppress(queue.Empty):
            while True:
                child = self._ended.get_nowait()
                self._children.discard(child)
                ended.append(child)
        return ended

    def make_ready(self) -> None:
        """Do nothing: threads of this process start commands, and pay for it themselves."""

    def spawn(self, command: Command, *, after: Child | None = None, until_s: float = 0.0) -> PortableChild:
        """Start a command. Raises CommandNotStarted when nothing can be started."""
        child = PortableChild(command)
        self._children.add(child)
        try:
            if not command.argv:
                raise ValueError("it is empty")
            process = child.process = self._start(command, child)
        except (OSError, ValueError) as error:
            name = f"'{command.argv[0]}'" if command.argv else "The command"
            child.failure = f"{name} cannot be started: {getattr(error, 'strerror', None) or error}."
            self._announce(child)
        else:
            threading.Thread(target=self._wait, args=(child, process), daemon=True).start()
        return child

    def _start(self, command: Command, child: PortableChild) -> "subprocess.Popen[bytes]":
        if sys.platform == "win32":
            child.stdout, child.stderr = stdout, stderr = Stream(), Stream()
            process = subprocess.Popen(  # noqa: S603  running commands is what this is for
                command.argv,
                env=command.environment,
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
            )
            for pipe, output in ((process.stdout, stdout), (process.stderr, stderr)):
                threading.Thread(target=_pour, args=(pipe, output.writing_end), daemon=True).start()
            return process
        # no preexec_fn: there may be threads; Popen itself forks in C and touches nothing that they hold
        child.stdout, child.stderr = pipes = Pipe(), Pipe()
        ends: list[int] = []
        try:
            ends += (pipe.open() for pipe in pipes)
            return subprocess.Popen(  # noqa: S603  as above
                command.argv,
                env=command.environment,
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=ends[0],
                stderr=ends[1],
                umask=0o077,
                start_new_session=True,
            )
        finally:
            for end in ends:
                os.close(end)

    def _wait(self, child: PortableChild, process: subprocess.Popen[bytes]) -> None:
        """Wait for a command, in a thread of its own."""
        cpu_s, peak_bytes = 0.0, 0
        if sys.platform == "win32":
            code = process.wait()
            child.process = None
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            # while the zombie holds its number, the group is surely still this command's
            kill_tree(process.pid, child.command.job_id)
            child.process = None  # from here on its number may be another's
            _, status, usage = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
            cpu_s = usage.ru_utime + usage.ru_stime
            peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        ended_itself = code >= 0
        child.ending = Outcome(
            exit_code=code if ended_itself else None,
            signal=None if ended_itself else -code,
            cpu_s=cpu_s,
            max_rss_bytes=peak_bytes,
        )
        self._announce(child)

    def _announce(self, child: PortableChild) -> None:
        self._ended.put(child)
        with contextlib.suppress(OSError):  # full: it is ringing already; closed: nobody listens any more
            self._ringer.send(b"!")

    def watch(self, output: Output, ready: Callable[[], object]) -> None:
        """Have `ready` called by the running event loop whenever `output` can be read."""
        asyncio.get_running_loop().add_reader(output.fileno(), ready)

    def unwatch(self, output: Output) -> None:
        """Watch an output no more. Safe to run twice."""
        if output.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(output.fileno())

    def forget(self, output: Output) -> None:
        """Watch an output no more, and close it. Safe to run twice."""
        self.unwatch(output)
        output.close()

    def left_something(self, slot: int) -> bool:
        """Answer True: nothing tells."""
        return True

    def make_directory(self, path: Path, slot: int) -> None:
        """Make a directory that no other user can enter. Raises OSError."""
        path.mkdir(mode=0o700)

    def prepare_directory(self, path: Path, slot: int) -> None:
        """Make a directory, if it is missing, that no other user can enter."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)

    def withhold_directory(self, path: Path) -> None:
        """Do nothing: nothing keeps commands apart here."""

    def reclaim_directory(self, path: Path) -> None:
        """Make every folder in a directory open to the worker again."""
        path.chmod(0o700)
        for parent, folders, _ in os.walk(path):
            for folder in folders:
                found = Path(parent, folder)
                if not found.is_symlink():
                    found.chmod(0o700)

    def obituaries(self) -> list[Obituary]:
        """Return nothing: here the commands have no parent but the worker, which is dead."""
        return []

    def forget_obituaries(self) -> None:
        """Do nothing: there are none."""

    def sweep(self, job_id: str) -> int:
        """Kill what an earlier worker left of a job, told by HOSTLER_JOB_ID; return how many processes.

        Windows shows nobody's environment: there it finds nothing.
        """
        if sys.platform == "win32":
            return 0
        return _kill_all(_marked(job_id))

    def close(self) -> None:
        """Kill every command that runs and let go of everything. Safe to run twice."""
        for child in list(self._children):
            child.kill()
        deadline = time.monotonic() + 5
        while self._children and time.monotonic() < deadline:
            self.pump()
            time.sleep(0.005)
        self._bell.close()
        self._ringer.close()


def kill_tree(pid: int, job_id: str) -> None:
    """Kill a process, what descends from it, its group, and what bears its job's id."""
    if sys.platform == "win32":
        subprocess.run(  # noqa: S603  its only argument is a number
            ["taskkill", "/T", "/F", "/PID", str(pid)],  # noqa: S607  Windows says where it is
            capture_output=True,
            check=False,
        )
        return
    below = _descendants(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # first, or it would see its children die and end by itself
    _kill_all(below)
    for _ in range(_SWEEPS):
        if not _kill_all(_marked(job_id)):
            break


def _kill_all(pids: set[int]) -> int:
    killed = 0
    for pid in pids - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def _ps(*arguments: str) -> list[list[str]]:
    """Return the lines that ps(1) prints, as words, zombies left out."""
    try:
        shown = subprocess.run(  # noqa: S603  no argument comes from outside
            ["/bin/ps", *arguments], capture_output=True, check=True, text=True, errors="replace"
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostlerError("The processes of this machine cannot be listed: ps does not work.") from error
    lines = [line.split() for line in shown.stdout.splitlines()]
    return [words for words in lines if not words[1].startswith("Z")]


def _descendants(pid: int) -> set[int]:
    """Return what is alive below a process."""
    children: dict[int, list[int]] = {}
    for child, _, parent in _ps("-A", "-o", "pid=,stat=,ppid="):
        children.setdefault(int(parent), []).append(int(child))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def _marked(job_id: str) -> set[int]:
    """Return what is alive and was started with HOSTLER_JOB_ID set to `job_id`."""
    mark = f"HOSTLER_JOB_ID={job_id}"
    return {int(words[0]) for words in _ps("axeww", "-o", "pid=,stat=,command=") if mark in words[2:]}


def _pour(pipe: IO[bytes], output: socket.socket) -> None:
    """Carry an output from a pipe, which a selector cannot watch on Windows, to a socket."""
    with pipe, output, contextlib.suppress(OSError):
        while data := os.read(pipe.fileno(), _CHUNK_BYTES):
            output.sendall(data)
