"""Linux: the launcher forks commands apart from the worker, each as a user of its own or behind Landlock."""

import contextlib
import ctypes
import errno
import marshal
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from workers.log import log
from workers.platforms import (
    Child,
    Command,
    CommandNotStarted,
    IsolationUnavailable,
    Obituary,
    Outcome,
    Output,
    launcher,
    slot_users,
)
from workers.platforms.directories import Directories, why_unreachable
from workers.platforms.landlock import Confinement
from workers.platforms.landlock import version as landlock_version
from workers.platforms.outputs import Pipe
from workers.platforms.slot_users import SLOT_USERS

_SEND_TIMEOUT_S = 5  # a launcher that takes no request for so long is taken for dead
_END_TIMEOUT_S = 7.0  # the launcher allows itself less (WINDING_UP_S)
_EVENTS_AT_ONCE = 64
#: What os.fsencode does, which a job's environment asks for two dozen times.
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_KILLED = Outcome(exit_code=None, signal=signal.SIGKILL, cpu_s=0.0, max_rss_bytes=0)


class LinuxChild:
    """A command that the launcher has been asked to start."""

    __slots__ = (
        "_platform",
        "after",
        "command",
        "ending",
        "failure",
        "given_back",
        "stderr",
        "stdout",
        "token",
    )

    def __init__(
        self,
        platform: "LinuxPlatform",
        token: int,
        command: Command,
        outputs: tuple[Pipe, Pipe],
        *,
        after: int,
    ) -> None:
        self.command = command
        self.token, self.after = token, after  # and the token of what it follows, 0 for nothing
        self.given_back = False
        self.stdout, self.stderr = outputs
        self.ending: Outcome | None = None
        self.failure: str | None = None
        self._platform = platform

    def outcome(self) -> Outcome:
        """Return how it ended. Raises CommandNotStarted when it never ran."""
        if self.failure is not None:
            raise CommandNotStarted(self.failure)
        if self.ending is None:
            raise RuntimeError("The outcome of a command was asked for while it runs.")
        return self.ending

    def terminate(self) -> None:
        """Send SIGTERM to its process group; nothing when it has ended."""
        self._platform.ask(launcher.TERMINATE, self.token)

    def kill(self) -> None:
        """Kill its main process and everything that it has started; nothing when it has ended."""
        self._platform.ask(launcher.KILL, self.token)

    def recall(self) -> None:
        """Have it given back unless it has been started."""
        self._platform.ask(launcher.RECALL, self.token)

    def close(self) -> None:
        """Close its outputs. Safe to run twice."""
        self.stdout.close()
        self.stderr.close()


class LinuxPlatform:
    """Starts commands through the launcher. All calls belong to one thread."""

    def __init__(
        self, isolation: str, *, slots: int, followers: int = 0, warnings: list[str] | None = None,
        directory: Path | None = None, readable: Iterable[Path] = (),
    ) -> None:  # fmt: skip
        self.isolation = isolation
        self._obituaries = None if directory is None else directory / "obituaries"
        self.warnings = warnings or []
        self._claims: list[slot_users.Claim] = []
        self._users: list[int] = []
        self.followers = followers
        self._confinement: Confinement | None = None
        if isolation == "uid":
            self._claim_users(slots)
        elif isolation == "landlock":
            self._confinement = Confinement({sys.prefix, sys.base_prefix, *map(str, readable)})
            if not self._confinement.scopes_signals:
                self.warnings.append(
                    "Commands can signal the worker and one another: this kernel's Landlock is too old."
                )
            if os.getuid() == 0:
                self.warnings.append("Commands run as root behind Landlock; isolation by uid is stronger.")
        else:
            self.warnings.append(
                "Commands are not isolated: they can read what the worker can, and signal it."
            )
        self._directories = Directories(self._users)
        self._children: dict[int, LinuxChild] = {}
        self._watched: dict[int, Callable[[], object]] = {}  # by the descriptors of outputs
        self._ended: list[LinuxChild] = []
        self._left: set[int] = set()  # slots whose last command left something
        self._outputs: tuple[Pipe, Pipe, list[int]] | None = None  # of the next command
        self._token = 0
        self._bell = os.eventfd(
            0, os.EFD_CLOEXEC | os.EFD_NONBLOCK
        )  # rung when pump has something all the same
        self._ready = select.epoll()  # stays the same when the launcher is replaced
        self._ready.register(self._bell, select.EPOLLIN)
        self._launcher: subprocess.Popen[bytes] | None = None
        self._start_launcher()

    @classmethod
    def choose(
        cls,
        isolation: str,
        *,
        slots: int,
        followers: int,
        directory: Path | None,
        readable: Iterable[Path] = (),
    ) -> "LinuxPlatform":
        """Return a platform with the isolation asked for.

        Raises IsolationUnavailable when this machine lacks it.
        """
        if isolation == "none":
            return cls("none", slots=slots, followers=followers, directory=directory)
        no_uid = slot_users.why_none() or (
            why_unreachable(directory) if directory and isolation == "auto" else None
        )
        if isolation in {"uid", "auto"}:
            if no_uid is None:
                return cls("uid", slots=slots, followers=followers, directory=directory)
            if isolation == "uid":
                raise IsolationUnavailable(f"Commands cannot run as users of their own. {no_uid}")
        no_landlock = None if landlock_version() else "This kernel has no Landlock, or it is switched off."
        if no_landlock is None:
            # an ordinary user is not warned for being one
            warnings = [no_uid] if no_uid and os.getuid() == 0 else []
            return cls(
                "landlock",
                slots=slots,
                followers=followers,
                warnings=warnings,
                directory=directory,
                readable=readable,
            )
        if isolation == "landlock":
            raise IsolationUnavailable(f"Commands cannot be confined. {no_landlock}")
        return cls(
            "none", slots=slots, followers=followers, warnings=[str(no_uid), no_landlock], directory=directory
        )

    def fileno(self) -> int:
        """Return the descriptor to watch; it stays the same."""
        return self._ready.fileno()

    def pump(self) -> list[Child]:
        """Return the children that have ended since the last call, without waiting; tell who watches outputs."""
        for fd, _ in self._ready.poll(0, _EVENTS_AT_ONCE):
            # a number may belong to another by now; neither minds being read in vain
            if (ready := self._watched.get(fd)) is not None:
                try:
                    ready()
                except Exception:  # one command's accident must not end the others
                    log.exception("what a command prints could not be taken")
            elif fd != self._bell:
                self._hear()
        if not self._ended:
            return []
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        ended: list[Child] = [*self._ended]
        self._ended.clear()
        return ended

    def _hear(self) -> None:
        """Take what the launcher has said, and bury it if it is dead."""
        while self._launcher is not None:
            try:
                message = self._socket.recv(launcher.REPLY.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:  # told once, and before what the launcher said while it lived
                continue
            if message:
                self._take(launcher.REPLY.unpack(message))
            else:
                self._bury_launcher()

    def watch(self, output: Output, ready: Callable[[], object]) -> None:
        """Have `ready` called by `pump` whenever `output` can be read."""
        fd = output.fileno()
        self._watched[fd] = ready
        self._ready.register(fd, select.EPOLLIN)

    def unwatch(self, output: Output) -> None:
        """Watch an output no more. Safe to run twice."""
        fd = output.fileno()
        if self._watched.pop(fd, None) is not None:
            self._ready.unregister(fd)

    def forget(self, output: Output) -> None:
        """Watch an output no more, and close it. Safe to run twice."""
        self._watched.pop(output.fileno(), None)
        output.close()  # nothing else has it open, so that the kernel's list forgets it, too (epoll(7))

    def _take(self, reply: tuple[bytes, int, int, int, float, int, bool]) -> None:
        kind, token, number, stage, cpu_s, peak_kib, left = reply
        child = self._children.get(token)
        if child is None:
            return
        if kind == launcher.GIVEN_BACK:
            self._give_back(child)
            return
        if kind == launcher.FAILED:
            child.failure = _why_not_started(child.command, stage, number)
            return
        if left:
            self._left.add(child.command.slot)
        code = os.waitstatus_to_exitcode(number)
        child.ending = Outcome(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            cpu_s=cpu_s,
            max_rss_bytes=peak_kib * 1024,
        )
        del self._children[token]
        self._ended.append(child)

    def _give_back(self, child: LinuxChild) -> None:
        child.given_back = True
        del self._children[child.token]
        self._ended.append(child)

    def make_ready(self) -> None:
        """Open what the next command will print into."""
        if self._outputs is None:
            with contextlib.suppress(OSError):  # then its start will say so
                self._outputs = _outputs()

    def spawn(self, command: Command, *, after: Child | None = None, until_s: float = 0.0) -> LinuxChild:
        """Start a command, without waiting until it runs, or have it follow another one.

        Raises CommandNotStarted when nothing can start.
        """
        self._token += 1
        self._left.discard(command.slot)
        try:
            stdout, stderr, fds = self._outputs or _outputs()
        except OSError as error:
            raise _nothing_starts(error) from error
        self._outputs = None
        follows = after.token if isinstance(after, LinuxChild) else 0
        child = LinuxChild(self, self._token, command, (stdout, stderr), after=follows)
        try:
            if self._users:  # else /dev/stdout and /dev/stderr would be closed to it
                for fd in fds:
                    os.fchown(fd, self._users[command.slot], -1)
            child.failure = self._confine(command, fds)
            if child.failure is None:
                child.failure = self._request(child, fds, until_s)
        except OSError as error:
            child.close()
            raise _nothing_starts(error) from error
        finally:
            for fd in fds:
                os.close(fd)
        if child.failure is None:
            self._children[self._token] = child
        else:
            child.given_back = after is not None  # its own start will say what is wrong
            self._ended.append(child)
            os.eventfd_write(self._bell, 1)
        return child

    def _confine(self, command: Command, fds: list[int]) -> str | None:
        """Append what confines the command to `fds`; return why that cannot be done, or None."""
        if self._confinement is not None:
            try:
                fds.append(self._confinement.ruleset(command.directory))
            except OSError as error:
                return _why_not_started(command, launcher.DIRECTORY, error.errno or 0)
        return None

    def _request(self, child: LinuxChild, fds: list[int], until_s: float) -> str | None:
        """Ask the launcher to start the command; return why it cannot be asked, or None. Raises OSError."""
        command = child.command
        if not command.argv:
            return "The command is empty."
        try:
            request = marshal.dumps(
                (
                    launcher.SPAWN,
                    child.token,
                    command.job_id.encode(_ENCODING, _ERRORS),
                    [word.encode(_ENCODING, _ERRORS) for word in command.argv],
                    {
                        name.encode(_ENCODING, _ERRORS): value.encode(_ENCODING, _ERRORS)
                        for name, value in command.environment.items()
                    },
                    str(command.directory).encode(_ENCODING, _ERRORS),
                    self._users[command.slot] if self._users else -1,
                    -1 if command.memory_limit_bytes is None else command.memory_limit_bytes,
                    child.after,
                    until_s,
                )
            )
        except UnicodeEncodeError:
            return "The command or its environment holds characters that this machine cannot pass on."
        if len(request) > launcher.MESSAGE_LIMIT_BYTES:
            fds.append(_in_memory(request))
            request = b"memfd"
        if self._launcher is None:
            self._start_launcher()
        try:
            socket.send_fds(self._socket, [request], fds)
        except OSError:  # it is dead, or does not take anything any more
            self._hear()
            if self._launcher is not None:
                self._bury_launcher()
            os.eventfd_write(self._bell, 1)
            self._start_launcher()
            socket.send_fds(self._socket, [request], fds)
        return None

    def left_something(self, slot: int) -> bool:
        """Tell whether the slot's last command left what had to be killed: that may still end a system call."""
        return slot in self._left

    def ask(self, action: str, token: int) -> None:
        """Pass a wish about a child on to the launcher, unless the child has ended."""
        if token in self._children:
            with contextlib.suppress(OSError):  # the launcher is dead, and with it the child: pump will tell
                self._socket.send(marshal.dumps((action, token)))

    def make_directory(self, path: Path, slot: int) -> None:
        """Make a directory that is not there yet, for the commands of one slot alone.

        Raises OSError, and IsolationUnavailable when those commands could not reach it.
        """
        self._directories.make(path, slot)

    def prepare_directory(self, path: Path, slot: int) -> None:
        """Give a directory, made if it is missing, and all that lies in it to the commands of one slot alone.

        Raises IsolationUnavailable when those commands could not reach it.
        """
        self._directories.prepare(path, slot)

    def withhold_directory(self, path: Path) -> None:
        """Keep the slot's next command, of the same user, out of a directory."""
        self._directories.withhold(path)

    def reclaim_directory(self, path: Path) -> None:
        """Take a directory back after a command, so that the worker can read and remove what lies in it."""
        self._directories.reclaim(path)

    def sweep(self, job_id: str) -> int:
        """Kill what an earlier worker left of a job, told by HOSTLER_JOB_ID; return how many processes."""
        return self._sweep({os.fsencode(job_id)})

    def close(self) -> None:
        """Kill every command that runs and let go of everything. Safe to run twice."""
        if self._ready.closed:
            return
        self._ready.close()
        os.close(self._bell)
        if self._launcher is not None:
            self._end_launcher()
        for child in self._children.values():
            child.ending = _KILLED
        self._children.clear()
        if self._outputs is not None:
            stdout, stderr, fds = self._outputs
            _close(stdout, stderr, fds)
            self._outputs = None
        for claim in self._claims:
            claim.close()
        if self._confinement is not None:
            self._confinement.close()

    def _claim_users(self, slots: int) -> None:
        self._users, self._claims = slot_users.claim(slots + self.followers)
        if len(self._users) < slots:
            for claim in self._claims:
                claim.close()
            raise IsolationUnavailable(
                f"The workers of this machine have more slots together than the {len(SLOT_USERS)} users for them."
            )
        self.followers = len(self._users) - slots

    def _start_launcher(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_TIMEOUT_S, 0))
        with theirs, self._open_obituaries() as obituaries:
            self._launcher = subprocess.Popen(  # noqa: S603  this file's neighbour, run by this interpreter
                [
                    sys.executable,
                    "-I",
                    "-S",
                    launcher.__file__,
                    str(theirs.fileno()),
                    str(obituaries.fileno()),
                    self.isolation,
                    *map(str, self._users),
                ],
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), obituaries.fileno(), *(claim.fileno() for claim in self._claims)],
                start_new_session=True,  # a Ctrl-C at the worker's terminal must not reach it
            )
        self._socket = ours
        self._ready.register(ours, select.EPOLLIN)

    def _open_obituaries(self) -> BinaryIO:
        if self._obituaries is None:
            return open(os.devnull, "ab", buffering=0)
        self._obituaries.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(self._obituaries, "ab", buffering=0)

    def obituaries(self) -> list[Obituary]:
        """Return how the jobs ended that an earlier worker in this directory did not outlive."""
        if self._obituaries is None:
            return []
        found = []
        for line in self._obituaries.read_text("ascii", "replace").splitlines():
            with contextlib.suppress(ValueError):  # a disk that was full kept a part of the line
                job_id, attempt, status, peak_kib, how = line.split()
                code = os.waitstatus_to_exitcode(int(status))
                signal_number = -code if code < 0 else None
                found.append(Obituary(job_id, int(attempt), how, signal_number, int(peak_kib) * 1024))
        return found

    def forget_obituaries(self) -> None:
        """Drop what `obituaries` returned, once it has been told."""
        if self._obituaries is not None:
            os.truncate(self._obituaries, 0)

    def _end_launcher(self) -> None:
        """Let go of the launcher, which makes it kill every command and end, and wait for that."""
        self._socket.close()
        if self._launcher is not None:
            for insist in (self._launcher.terminate, self._launcher.kill):
                try:
                    self._launcher.wait(_END_TIMEOUT_S)
                    break
                except subprocess.TimeoutExpired:
                    insist()
            self._launcher.wait()
            self._launcher = None

    def _bury_launcher(self) -> None:
        """End a launcher that is dead or deaf, and with it every command."""
        self._end_launcher()
        self._sweep({os.fsencode(child.command.job_id) for child in self._children.values()})
        # first, for the end of what it follows would say that it has been started
        for child in [each for each in self._children.values() if each.after in self._children]:
            self._left.add(child.command.slot)
            self._give_back(child)
        for child in self._children.values():
            if child.failure is None:
                child.ending = _KILLED
            self._left.add(child.command.slot)
            self._ended.append(child)
        self._children.clear()

    def _sweep(self, job_ids: set[bytes]) -> int:
        spared = {os.getpid(), self._launcher.pid if self._launcher else 0}

        def find(table: dict[int, launcher.Process]) -> set[int]:
            return {pid for pid in table if pid not in spared and launcher.read_job_id(pid) in job_ids}

        return launcher.kill_found(find)


def make_undumpable() -> None:
    """Close this process's memory and environment to other processes of its user (PR_SET_DUMPABLE)."""
    ctypes.CDLL(None).prctl(launcher.PR_SET_DUMPABLE, 0, 0, 0, 0)


def _outputs() -> tuple[Pipe, Pipe, list[int]]:
    """Open what a command prints into; the last are the writing ends. Raises OSError."""
    stdout, stderr, fds = Pipe(), Pipe(), list[int]()
    try:
        for pipe in (stdout, stderr):
            fds.append(pipe.open())
    except OSError:
        _close(stdout, stderr, fds)
        raise
    return stdout, stderr, fds


def _close(stdout: Pipe, stderr: Pipe, fds: list[int]) -> None:
    stdout.close()
    stderr.close()
    for fd in fds:
        os.close(fd)


def _nothing_starts(error: OSError) -> CommandNotStarted:
    return CommandNotStarted(f"This worker can start nothing now: {error.strerror}.")


def _in_memory(data: bytes) -> int:
    """Return the descriptor of a file that holds `data`, and that no disk does."""
    fd = os.memfd_create("hostler-request")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


#: Sentences for why a command did not start, by errno, where the errno alone would mislead.
_REASONS = {
    errno.ENOENT: "there is no such program",
    errno.ENOTDIR: "there is no such program",
    errno.EACCES: "it is not a program that may be executed",
    errno.EPERM: "it is not a program that may be executed",
    errno.ENOEXEC: "it is no program of this machine, and no script whose first line names an interpreter",
    errno.E2BIG: "its arguments and environment are too long",
    errno.ENOMEM: "memory is short, or the job's limit of memory too low",
    0: "an argument or a variable holds a character that none may hold",
}


def _why_not_started(command: Command, stage: int, number: int) -> str:
    reason = os.strerror(number)
    if stage == launcher.EXECUTE:
        return f"'{command.argv[0]}' cannot be started: {_REASONS.get(number, reason)}."
    if stage == launcher.CONFINE:
        return "The command cannot be confined: the kernel refuses its Landlock ruleset."
    doing = {
        launcher.USER: "cannot get a user of its own",
        launcher.DIRECTORY: f"cannot enter its directory '{command.directory}'",
    }[stage]
    return f"The command {doing}: {reason}."
