"""The keeper: a small process that stands over one instance of an app, so that it outlives the worker.

It is run by path (`python -I -S keeper.py RECORD LOG RULESET`), imports a few modules of the standard library and knows
no secret but the instance's own. Standard input holds what to start. It forks the instance, is the subreaper of all
that comes from it, passes a SIGTERM on as the instance's own stop signal and kills everything when the time for
stopping is over (at once upon SIGUSR1), and notes in the record how the instance ended.

RECORD is a file that the worker has locked: the lock is shared with this process and lasts exactly as long, so that any
later worker can tell an instance that lives from one that does not. When this process is killed, the kernel kills the
instance (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import marshal
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False  # as in typing, which is too large to import here
if TYPE_CHECKING:
    from typing import Any

    from workers.platforms import launcher
elif sys.platform == "linux":
    sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "platforms"))
    import launcher

#: The record always has this length: it is written in place, so that a full disk cannot keep an end from being noted.
RECORD_BYTES = 512
#: What the keeper was doing when an instance could not start.
STAGES = ("user", "directory", "confine", "execute")
WINDING_UP_S = 5.0
#: So often is the tree killed again once the time for stopping is over.
INSIST_S = 0.5

LINUX = sys.platform == "linux"
libc = ctypes.CDLL(None, use_errno=True)


class Keeper:
    """One instance: `request` is what `processes.start` wrote."""

    def __init__(self, request: dict[str, Any], record: int, log: int, ruleset: int) -> None:
        self.request, self.record, self.log, self.ruleset = request, record, log, ruleset
        self.noted: dict[str, int | str] = {
            **request["facts"],
            "nonce": request["nonce"],
            "keeper": os.getpid(),
        }
        self.pid = 0

    def note(self, **facts: int | str) -> None:
        """Write what is known into the record, in place."""
        self.noted.update(facts)
        words = (
            f'"{name}":"{value}"' if isinstance(value, str) else f'"{name}":{value}'
            for name, value in self.noted.items()
        )
        os.pwrite(self.record, ("{" + ",".join(words) + "}").encode().ljust(RECORD_BYTES - 1) + b"\n", 0)

    def keep(self) -> int:
        """Start the instance and wait for its end; answers the exit status of this process."""
        ends, begins = os.pipe()
        os.set_blocking(ends, False)
        os.set_blocking(begins, False)
        signal.set_wakeup_fd(begins, warn_on_full_buffer=False)
        for heard in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(heard, lambda *_: None)  # its number comes through the pipe
        if LINUX:
            libc.prctl(launcher.PR_SET_DUMPABLE, 0, 0, 0, 0)
            libc.prctl(launcher.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        began_ms = now_ms()
        failure = self.start()
        if failure is not None:
            os.waitpid(self.pid, 0)
            stage, number = failure
            self.note(stage=stage, errno=number, exit_code=127, started_ms=began_ms, ended_ms=now_ms())
            return 127
        self.note(pid=self.pid, started_ms=now_ms())
        status, peak_kib = self.watch(ends)
        self.wind_up()
        code = os.waitstatus_to_exitcode(status)
        how = {"exit_code": code} if code >= 0 else {"signal": -code}
        self.note(ended_ms=now_ms(), peak_kib=peak_kib, **how)
        return 0

    def watch(self, ends: int) -> tuple[int, int]:
        """Wait for the end of the main process, and bring it about when told to; answers its wait status, its peak."""
        poll = select.poll()
        poll.register(ends, select.POLLIN)
        deadline: float | None = None
        while True:
            wait_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)
            numbers = os.read(ends, 4096) if poll.poll(wait_ms) else b""
            if signal.SIGTERM in numbers and deadline is None:
                deadline = time.monotonic() + self.request["stop_timeout_s"]
                self.signal_group(self.request["stop_signal"])
            if signal.SIGUSR1 in numbers or (deadline is not None and time.monotonic() >= deadline):
                deadline = time.monotonic() + INSIST_S
                self.kill_tree()
            if (ended := self.reap()) is not None:
                return ended

    def reap(self) -> tuple[int, int] | None:
        """Collect what has ended; answers the status and peak of the main process when it is among that."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return None
            if ended is None:
                return None
            if ended.si_pid == self.pid:
                self.signal_group(
                    signal.SIGKILL
                )  # while the zombie holds its number, the group is surely still ours
                _, status, usage = os.wait4(self.pid, 0)
                return status, usage.ru_maxrss
            os.waitpid(ended.si_pid, 0)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group of the main process."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def kill_tree(self) -> None:
        """Kill everything that came from the instance, whatever session, group or parent it has moved to."""
        self.signal_group(signal.SIGKILL)
        if LINUX:
            own = os.getpid()
            launcher.kill_found(lambda table: launcher.with_descendants({own}, table) - {own})

    def wind_up(self) -> None:
        """Kill what the main process left behind, and wait until it is gone."""
        deadline = time.monotonic() + WINDING_UP_S
        while time.monotonic() < deadline:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            self.kill_tree()
            time.sleep(0.005)

    def start(self) -> tuple[str, int] | None:
        """Fork the instance; answers the stage and errno of what kept it from starting, or None."""
        failed, failing = os.pipe()
        keeper = os.getpid()
        self.pid = os.fork()
        if self.pid:
            os.close(failing)
            with open(failed, "rb") as file:
                said = file.read()
            return marshal.loads(said) if said else None  # noqa: S302  the other end is this very program
        stage, number = STAGES[0], 0
        try:
            self.become(keeper)
            stage = STAGES[1]
            os.chdir(self.request["directory"])
            stage = STAGES[2]
            self.confine()
            stage = STAGES[3]
            self.execute()
        except OSError as error:
            number = error.errno or 0
        finally:
            os.write(failing, marshal.dumps((stage, number)))
            os._exit(127)

    def become(self, keeper: int) -> None:
        """Take the instance's session and user, and give up what it shall not have. Raises OSError."""
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        uid = self.request["uid"]
        if LINUX:
            libc.prctl(launcher.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if self.request["isolation"] != "none":
                libc.prctl(launcher.PR_CAP_AMBIENT, launcher.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
                for capability in range(64):
                    libc.prctl(launcher.PR_CAPBSET_DROP, capability, 0, 0, 0)
        if uid >= 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        if LINUX:  # after the change of user, which would clear it
            libc.prctl(launcher.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != keeper:
                os._exit(127)
        os.umask(0o077)

    def confine(self) -> None:
        """Apply the Landlock ruleset, where there is one. Raises OSError."""
        if self.ruleset >= 0 and libc.syscall(launcher.SYS_LANDLOCK_RESTRICT_SELF, self.ruleset, 0):
            raise OSError(ctypes.get_errno(), "landlock_restrict_self failed")

    def execute(self) -> None:
        """Become the instance's program. Raises OSError."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(self.log, 1)
        os.dup2(self.log, 2)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            try:
                signal.signal(number, signal.SIG_DFL)  # what is ignored here would be ignored by the instance
            except OSError:
                continue  # the C library keeps a few for itself
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        argv, environment = self.request["argv"], self.request["environment"]
        folders = [""] if "/" in argv[0] else environment.get("PATH", os.defpath).split(":")
        refused: OSError | None = None
        for folder in folders:  # not os.execvpe: it imports, as a user who may not be allowed to read that
            try:
                os.execve(os.path.join(folder, argv[0]), argv, environment)  # noqa: S606  this is what it is for
            except OSError as error:
                # of a program that is there, the reason says more than that others are not
                refused = error if refused is None or refused.errno == errno.ENOENT else refused
        raise refused or OSError(errno.ENOENT, "no PATH")


def now_ms() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def main() -> int:
    """Keep the instance that standard input describes."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(
                number, signal.SIG_IGN if number in {signal.SIGINT, signal.SIGHUP} else signal.SIG_DFL
            )
        except OSError:
            continue
    record, log, ruleset = (int(word) for word in sys.argv[1:4])
    for fd in (record, log, ruleset):
        if fd >= 0:
            os.set_inheritable(fd, False)
    with open(0, "rb", closefd=False) as file:
        request = marshal.loads(file.read())  # noqa: S302  the worker, our parent, wrote it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir("/")
    return Keeper(request, record, log, ruleset).keep()


if __name__ == "__main__":
    sys.exit(main())
