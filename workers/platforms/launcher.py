"""The launcher: a small process that forks the commands of jobs and kills what they leave behind.

It is run by path (`python -I -S launcher.py FD ISOLATION [UID...]`), imports a few modules of the standard
library and has one thread, so that a fork costs little. FD is a SOCK_SEQPACKET socket to the worker; when
that closes, the worker is dead, and the launcher kills every process below itself and ends. The UIDs are the
users of the slots. It starts with an empty environment and knows no secret.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False  # as in typing, which is too large to import here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

JOB_ID_VARIABLE = b"HOSTLER_JOB_ID"

#: kind, token, number, stage, CPU seconds, peak resident KiB
REPLY = struct.Struct("=cQiidQ")
EXITED, FAILED = b"X", b"F"  # number: the wait status, or the errno of a command that never started
SPAWN, TERMINATE, KILL = "S", "T", "K"
MESSAGE_LIMIT_BYTES = (
    64 * 1024
)  # a longer request travels in a memfd: the kernel bounds what one packet holds

#: What a child was doing when it could not start, in the order in which it does it.
FORK, USER, DIRECTORY, CONFINE, LIMIT, EXECUTE = range(6)

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
SYS_LANDLOCK_RESTRICT_SELF = 446  # one number on every architecture, as for all system calls since Linux 5.1

KILL_PASSES = 200  # so often is a fork bomb chased; each pass kills whole process groups at one stroke
PROBED_PIDS = 64  # when more pids than that are new, listing /proc is cheaper than asking for each
WINDING_UP_S = 5.0  # how long the launcher waits for what it killed, after its worker's death


class Process:
    """One line of the process table; `started_s` counts from boot."""

    __slots__ = ("alive", "group", "parent", "session", "started_s")

    def __init__(self, stat: bytes) -> None:
        fields = stat[
            stat.rfind(b")") + 2 :
        ].split()  # the name before it may hold anything (proc_pid_stat(5))
        self.alive = fields[0] not in {b"Z", b"X"}
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Request:
    """A command to start; `uid` is its own user, or -1 when it shares the worker's; -1 is also no limit."""

    __slots__ = ("argv", "directory", "environment", "job_id", "memory_limit_bytes", "token", "uid")

    def __init__(
        self, fields: tuple[str, int, bytes, list[bytes], dict[bytes, bytes], bytes, int, int]
    ) -> None:
        _, self.token, self.job_id, self.argv, self.environment, *_ = fields
        self.directory, self.uid, self.memory_limit_bytes = fields[5:]

    def programs(self) -> list[bytes]:
        """Return the paths where the command's program may be, as execvp(3) would try them."""
        if b"/" in self.argv[0]:
            return [self.argv[0]]
        path = self.environment.get(b"PATH", os.fsencode(os.defpath))
        return [folder + b"/" + self.argv[0] for folder in path.split(b":") if folder]


class Job:
    """A command that runs."""

    __slots__ = ("job_id", "pid", "started_s", "token", "uid")

    def __init__(self, request: Request, pid: int) -> None:
        self.token, self.job_id, self.uid, self.pid = request.token, request.job_id, request.uid, pid
        self.started_s = time.clock_gettime(time.CLOCK_BOOTTIME)


def read_process(pid: int) -> Process | None:
    """Read one process of /proc; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return Process(file.read())
    except (OSError, IndexError):  # gone, before or while it was read
        return None


def read_processes(pids: Iterable[int] | None = None) -> dict[int, Process]:
    """Read the process table, or the part of it that `pids` names."""
    if pids is None:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {pid: found for pid in pids if (found := read_process(pid))}


def read_job_id(pid: int) -> bytes | None:
    """Return the HOSTLER_JOB_ID that a process was started with, if it has one and lets it be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = b"\0" + file.read()
    except OSError:
        return None
    _, found, rest = variables.partition(b"\0" + JOB_ID_VARIABLE + b"=")
    return rest.partition(b"\0")[0] if found else None


def is_anybody(uid: int) -> bool:
    """Tell whether a user has any process."""
    try:
        os.getpriority(os.PRIO_USER, uid)
    except ProcessLookupError:
        return False
    return True


def with_descendants(roots: set[int], table: dict[int, Process]) -> set[int]:
    """Return `roots` and everything below them."""
    children: dict[int, list[int]] = {}
    for pid, one in table.items():
        children.setdefault(one.parent, []).append(pid)
    found, waiting = set(roots), list(roots)
    while waiting:
        new = [pid for pid in children.get(waiting.pop(), ()) if pid not in found]
        found.update(new)
        waiting += new
    return found


def signal_if_there(send: Callable[[int, int], None], target: int, number: int) -> None:
    """Send a signal to a process or group that may be gone, or may have become another user's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(target, number)


def kill_found(find: Callable[[dict[int, Process]], set[int]]) -> int:
    """Kill what `find` picks from the process table until it finds nothing new; return how many were killed.

    Whole process groups are killed too, since no fork can slip through that.
    """
    killed: set[tuple[int, float]] = set()
    for _ in range(KILL_PASSES):
        table = read_processes()
        members = {pid for pid in find(table) if pid in table and table[pid].alive}
        new = {pid for pid in members if (pid, table[pid].started_s) not in killed}
        if not new:
            break
        killed.update((pid, table[pid].started_s) for pid in new)
        own = os.getpgid(0)
        for group in {table[pid].group for pid in new} - {0, 1, own}:
            if all(pid in members or not one.alive for pid, one in table.items() if one.group == group):
                signal_if_there(os.killpg, group, signal.SIGKILL)
        for pid in new:
            signal_if_there(os.kill, pid, signal.SIGKILL)
    return len(killed)


class Launcher:
    """The commands that run, and the socket to the worker."""

    def __init__(self, sock: socket.socket, isolation: str) -> None:
        self.sock = sock
        self.jobs: dict[int, Job] = {}  # by pid
        self.pid = os.getpid()
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # a job that became another user could not be killed
        self.libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        if isolation != "none":  # commands of root lose root's powers, some of which see through Landlock
            self.libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
            for capability in range(64):
                self.libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o077)
        os.chdir("/")

    def serve(self) -> None:
        """Answer the worker until it is gone; then kill everything."""
        ends, begins = os.pipe()
        os.set_blocking(ends, False)
        os.set_blocking(begins, False)
        signal.set_wakeup_fd(begins, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(ends, select.POLLIN)
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection in a child would touch, and so copy, every page
        worker_lives = True
        while worker_lives:
            for fd, _ in poll.poll():
                if fd == ends:
                    os.read(ends, 4096)
                    self.reap()
                else:
                    worker_lives = self.receive()
        self.wind_up()

    def receive(self) -> bool:
        """Carry out one request; False when the worker is gone."""
        try:
            # not socket.recv_fds: it drops the flag that keeps the descriptors from being inherited
            data, ancillary, _, _ = self.sock.recvmsg(
                MESSAGE_LIMIT_BYTES, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return False
        if not data:
            return False
        fds = [fd for _, _, packed in ancillary for fd in memoryview(packed).cast("i")]
        try:
            if data == b"memfd":
                with open(fds.pop(), "rb") as file:
                    data = file.read()
            request = marshal.loads(data)  # noqa: S302  the other end is the parent, and nobody else holds the socket
            if request[0] == SPAWN:
                self.spawn(Request(request), fds)
            else:
                self.signal(*request)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def spawn(self, request: Request, fds: list[int]) -> None:
        """Fork a child that becomes the command; `fds`: stdout, stderr, perhaps a Landlock ruleset."""
        programs = request.programs()
        try:
            pid = os.fork()
        except OSError as error:
            self.reply(FAILED, request.token, error.errno or 0, stage=FORK)
            self.reply(EXITED, request.token, 127 << 8)
            return
        if pid == 0:
            self.become(request, programs, fds)
        self.jobs[pid] = Job(request, pid)

    def become(self, request: Request, programs: list[bytes], fds: list[int]) -> NoReturn:
        """Turn this child into the command. Every step here is paid for in copied pages: keep them few."""
        uid = request.uid
        stage = USER
        try:
            os.setsid()
            if uid >= 0:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user would clear it
            if os.getppid() != self.pid:
                os._exit(127)
            stage = DIRECTORY
            os.chdir(request.directory)
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
            if len(fds) > 2:
                stage = CONFINE
                if self.libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, fds[2], 0):
                    raise OSError(ctypes.get_errno(), "landlock_restrict_self")
            if request.memory_limit_bytes >= 0:
                stage = LIMIT
                resource.setrlimit(resource.RLIMIT_AS, (request.memory_limit_bytes,) * 2)
            stage = EXECUTE
            execute(programs, request.argv, request.environment)
        except OSError as error:
            self.reply(FAILED, request.token, error.errno or 0, stage=stage)
        except (ValueError, MemoryError):
            self.reply(FAILED, request.token, 0, stage=stage)
        finally:
            os._exit(127)

    def signal(self, action: str, token: int) -> None:
        """Ask a job to end, or kill it whole; nothing when it has ended meanwhile."""
        for job in self.jobs.values():
            if job.token == token:
                signal_if_there(os.killpg, job.pid, signal.SIGTERM if action == TERMINATE else signal.SIGKILL)
                if action == KILL:
                    self.kill_rest(job)
                return

    def reap(self) -> None:
        """Collect every child that has ended; report the main processes among them."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            job = self.jobs.get(ended.si_pid)
            if job:
                # while the zombie holds its number, the group is surely still this job's
                signal_if_there(os.killpg, job.pid, signal.SIGKILL)
            _, status, usage = os.wait4(ended.si_pid, 0)
            if job:
                del self.jobs[job.pid]
                if self.left_something(job):
                    self.kill_rest(job)
                cpu_s = usage.ru_utime + usage.ru_stime
                self.reply(EXITED, job.token, status, cpu_s=cpu_s, peak_kib=usage.ru_maxrss)

    def left_something(self, job: Job) -> bool:
        """Tell whether a process of an ended job may be alive; cheap, since every job pays for it.

        Where the job has a user of its own, one call tells. Else only processes younger than the job come
        into question, and as pids are given out in ascending order, those are few after a short job.
        """
        if job.uid >= 0:
            return is_anybody(job.uid)
        with open("/proc/loadavg", "rb", buffering=0) as file:
            newest = int(file.read().rsplit(None, 1)[1])
        few = 0 <= newest - job.pid <= PROBED_PIDS
        table = read_processes(range(job.pid + 1, newest + 1)) if few else read_processes()
        return any(one.parent == self.pid and pid not in self.jobs for pid, one in table.items())

    def kill_rest(self, job: Job) -> None:
        """Kill every process of a job, whatever session, group or parent it has moved to."""
        if job.uid >= 0:
            self.kill_user(job.uid)
        else:
            kill_found(lambda table: self.members(job, table))

    def kill_user(self, uid: int) -> None:
        """Kill all processes of a slot's user: done as that user, kill(-1) reaches just them, at once."""
        pid = os.fork()
        if pid == 0:
            try:
                os.setresuid(uid, uid, uid)
                if os.getuid() == uid > 0:
                    os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def members(self, job: Job, table: dict[int, Process]) -> set[int]:
        """Return the processes of one job among those that share a user.

        Orphans become children of this subreaper, so each process is below a main process or an orphan. An
        orphan is the job's if its session or environment says so; one that hides both is, when no other job
        that runs is old enough to have started it.
        """
        roots = {job.pid}
        others = [other for other in self.jobs.values() if other.pid != job.pid]
        for pid, one in table.items():
            if job.pid in {one.session, one.group}:
                roots.add(pid)
            elif one.parent == self.pid and pid not in self.jobs and one.alive:
                job_id = read_job_id(pid)
                # a tick of the kernel's clock may lie between the two ways of telling the time
                possible = {other.job_id for other in others if other.started_s <= one.started_s + 0.02}
                if job_id == job.job_id or (job_id not in possible and (job_id or not possible)):
                    roots.add(pid)
        return with_descendants(roots, table)

    def wind_up(self) -> None:
        """Kill everything below this process and wait until it is gone."""
        deadline = time.monotonic() + WINDING_UP_S
        for job in self.jobs.values():
            signal_if_there(os.killpg, job.pid, signal.SIGKILL)
            if job.uid >= 0:
                self.kill_user(job.uid)
        while time.monotonic() < deadline:
            kill_found(lambda table: with_descendants({self.pid}, table) - {self.pid})
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.005)

    def reply(
        self,
        kind: bytes,
        token: int,
        number: int,
        *,
        stage: int = 0,
        cpu_s: float = 0.0,
        peak_kib: int = 0,
    ) -> None:
        """Tell the worker; if it is gone, the next read says so."""
        with contextlib.suppress(ConnectionError):
            # without the flag, the worker's death would end this process before it has cleaned up
            self.sock.send(REPLY.pack(kind, token, number, stage, cpu_s, peak_kib), socket.MSG_NOSIGNAL)


def execute(programs: list[bytes], argv: list[bytes], environment: dict[bytes, bytes]) -> NoReturn:
    """Execute the first of `programs` that can be, as execvp(3) does; raise what stood in the way."""
    reason: OSError = FileNotFoundError(2, "not found")
    for program in programs:
        try:
            os.execve(program, argv, environment)  # noqa: S606  running it is what it is for
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            reason = error
    raise reason


def main() -> None:
    """Serve the worker at the other end of the descriptor that the first argument names."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)  # what is ignored here would be ignored in every job
        except OSError:
            continue  # the C library keeps a few for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in os.listdir("/proc/self/fd"):
        try:
            os.set_inheritable(int(name), int(name) <= 2)  # what this process was given, no job is given
        except OSError:
            continue  # the listing's own
    users = [int(word) for word in sys.argv[3:]]
    if users:
        os.setgroups([])
    launcher = Launcher(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
    for uid in users:
        if is_anybody(uid):  # a worker and its launcher were killed at once
            launcher.kill_user(uid)
    launcher.serve()


if __name__ == "__main__":
    main()
