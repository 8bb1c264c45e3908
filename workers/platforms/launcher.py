"""The launcher: a small process that forks the commands of jobs and kills what they leave behind.

It is run by path (`python -I -S launcher.py FD OBITUARIES ISOLATION [UID...]`), imports a few modules of the
standard library and has one thread, so that a fork costs little. FD is a SOCK_SEQPACKET socket to the worker; when
that closes, the worker is dead, and the launcher kills every process below itself and ends, having written how the
jobs ended to the descriptor OBITUARIES, for the next worker to read. The UIDs are the users of the slots. It starts
with an empty environment and knows no secret.

Its parent, forked from the same program, is the guardian, which does nothing but wait: when the launcher is
killed, the kernel hands it everything that was below the launcher (PR_SET_CHILD_SUBREAPER), and it kills that.
When the guardian is killed, the launcher notices (PR_SET_PDEATHSIG) and does so itself.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
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
    from collections.abc import Callable, Iterable, Iterator

JOB_ID_VARIABLE = b"HOSTLER_JOB_ID"
ATTEMPT_VARIABLE = b"HOSTLER_ATTEMPT"

#: kind, token, number, stage, CPU seconds, peak resident KiB, whether it left something to kill
REPLY = struct.Struct("=cQiidQ?")
EXITED, FAILED = b"X", b"F"  # number: the wait status, or the errno of a command that never started
GIVEN_BACK = b"B"  # a command that was to follow another one, and is not going to
SPAWN, TERMINATE, KILL, RECALL = "S", "T", "K", "R"
#: How a job came to its end that its worker did not live to see: before it, or killed with it.
BY_ITSELF, WITH_ITS_WORKER = "by-itself", "with-its-worker"
#: A longer request travels in a memfd: the kernel bounds what one packet holds.
MESSAGE_LIMIT_BYTES = 64 * 1024

#: What the launcher was doing when a command could not start.
USER, DIRECTORY, CONFINE, EXECUTE = range(4)

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
M_ARENA_MAX, THREAD_STACK_BYTES = -8, 256 * 1024  # malloc.h
SYS_LANDLOCK_RESTRICT_SELF = 446  # one number on every architecture, as for all system calls since Linux 5.1

FIRST = -15  # the launcher's nice value
PROGRAM_KNOWN_S = (
    1.0  # so long is a program not searched for again, though one before it in PATH may have come
)
MOST_PROGRAMS = 256
KILL_PASSES = 200  # so often is a fork bomb chased; each pass kills whole process groups at one stroke
PROBED_PIDS = 64  # when more pids than that are new, listing /proc is cheaper than asking for each
SIGNALS = tuple(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
SIGNAL_INFO_BYTES = 128  # struct signalfd_siginfo
WINDING_UP_S = 5.0  # how long the launcher waits for what it killed, after its worker's death


libc = ctypes.CDLL(None)


def signal_descriptor(numbers: set[signal.Signals]) -> int:
    """Return a descriptor that tells of signals, which no longer interrupt anything (signalfd(2)). Raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    mask = (ctypes.c_uint64 * 16)(sum(1 << (number - 1) for number in numbers))  # sigset_t has 1024 bits
    descriptor: int = libc.signalfd(-1, ctypes.byref(mask), os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        raise OSError("There is no descriptor for signals.")
    return descriptor


def signals_told(descriptor: int) -> set[int]:
    """Return the numbers of the signals that have come."""
    told = os.read(descriptor, 16 * SIGNAL_INFO_BYTES)
    return {int.from_bytes(told[at : at + 4], sys.byteorder) for at in range(0, len(told), SIGNAL_INFO_BYTES)}


class NotConfined(Exception):
    """The kernel refused a Landlock ruleset."""


class Process:
    """One line of the process table; `started_s` counts from boot."""

    __slots__ = ("alive", "group", "parent", "session", "started_s")

    def __init__(self, stat: bytes) -> None:
        # the name before it may hold anything (proc_pid_stat(5))
        fields = stat[stat.rfind(b")") + 2 :].split()
        self.alive = fields[0] not in {b"Z", b"X"}
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Request:
    """A command to start; `uid` is its own user, or -1 when it shares the worker's; -1 is also no limit.

    One that is to follow another command, whose token is `after`, is started once that has ended, but not later than
    at `until_s` of the monotonic clock; 0 is for one that is to start at once. `fds` are its stdout, its stderr and
    perhaps a Landlock ruleset.
    """

    __slots__ = (
        "after", "argv", "directory", "environment", "fds", "job_id", "memory_limit_bytes", "token", "uid", "until_s",
    )  # fmt: skip

    #: Where programs were found, until when that holds: by name, PATH and user.
    programs: dict[tuple[bytes, bytes, int], tuple[bytes, float]] = {}  # noqa: RUF012  typing is not imported here

    def __init__(
        self,
        fields: tuple[str, int, bytes, list[bytes], dict[bytes, bytes], bytes, int, int, int, float],
        fds: list[int],
    ) -> None:
        self.fds = fds
        _, self.token, self.job_id, self.argv, self.environment, *_ = fields
        self.directory, self.uid, self.memory_limit_bytes, self.after, self.until_s = fields[5:]

    def execute(self) -> int:
        """Start the command as the real user of this process and return its pid.

        Raises OSError, ValueError or MemoryError.
        """
        if self.memory_limit_bytes < 0:
            return self.execute_found()
        with memory_limited(self.memory_limit_bytes):
            return self.execute_found()

    def execute_found(self) -> int:
        """Start the program that execvp(3) would find."""
        program = self.program()
        try:
            return self.spawn(program)
        except (FileNotFoundError, PermissionError):
            # also where the interpreter that its first line names is missing, or Landlock forbids a program, of
            # which access(2) knows nothing: execvp(3) goes on with the next one
            for another in self.others(program):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    pid = self.spawn(another)
                    self.remember(another)
                    return pid
            raise

    def spawn(self, program: bytes) -> int:
        """Start `program` as the command."""
        # resetids: the effective user becomes the real one; executing the program makes it the saved one
        return os.posix_spawn(
            program,
            self.argv,
            self.environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, self.fds[0], 1), (os.POSIX_SPAWN_DUP2, self.fds[1], 2)],
            setsid=True,
            setsigmask=(),  # this process takes its signals from a descriptor
            setsigdef=SIGNALS,  # they have no handlers as it is, but posix_spawn(3) would ask for that of each
            resetids=self.uid >= 0,
        )

    def program(self) -> bytes:
        """Return the path of the program, the one that execvp(3) would try first. Raises FileNotFoundError."""
        if b"/" in self.argv[0]:
            return self.argv[0]
        known = self.programs.get(self.sought)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        found = self.found(os.X_OK) or self.found(os.F_OK)  # one that is there, to fail for that reason
        if not found:
            raise FileNotFoundError(2, "not found")
        self.remember(found[0])
        return found[0]

    @property
    def sought(self) -> tuple[bytes, bytes, int]:
        """Return what decides which program it is."""
        return self.argv[0], self.environment.get(b"PATH", os.fsencode(os.defpath)), self.uid

    def remember(self, program: bytes) -> None:
        """Keep where the program was found for a moment."""
        if len(self.programs) >= MOST_PROGRAMS:
            self.programs.clear()
        if program.startswith(b"/"):  # else it depends on the job's directory
            self.programs[self.sought] = program, time.monotonic() + PROGRAM_KNOWN_S

    def found(self, mode: int) -> list[bytes]:
        """Return the files of that name to which this process's real user has access, in the order of PATH."""
        name, path, _ = self.sought
        programs = [folder + b"/" + name for folder in path.split(b":") if folder]
        return [
            program for program in programs if os.access(program, mode)
        ]  # access(2) asks for the real user

    def others(self, tried: bytes) -> list[bytes]:
        """Return the programs that execvp(3) would go on with."""
        return [] if b"/" in self.argv[0] else [each for each in self.found(os.X_OK) if each != tried]


class Job:
    """A command that runs; `fds` are its outputs.

    They stay open until its end was told: else the worker would wake up for the ends of both, a moment before that.
    """

    __slots__ = ("attempt", "fds", "job_id", "pid", "started_s", "token", "uid")

    def __init__(self, request: Request, pid: int) -> None:
        self.token, self.job_id, self.uid, self.pid = request.token, request.job_id, request.uid, pid
        self.fds, request.fds = request.fds[:2], request.fds[2:]
        self.attempt = request.environment.get(ATTEMPT_VARIABLE, b"")
        self.started_s = time.clock_gettime(time.CLOCK_BOOTTIME)


def close(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


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


def kill_user(uid: int) -> None:
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


@contextlib.contextmanager
def memory_limited(limit_bytes: int) -> Iterator[None]:
    """Give this process, and so what it starts meanwhile, a soft limit of memory; -1 is none.

    The hard limit stays, so that it can be lifted again; a child could lift it too, until it gets a hard one.
    """
    if limit_bytes < 0:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= before[1] < limit_bytes:  # whoever started the worker allows less
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def wind_up(users: list[int], ended: Callable[[int, int, int, str], None] = lambda *_: None) -> None:
    """Kill everything below this process, and everything of the slots' users, and wait until it is gone.

    `ended` is told of each child: its pid, its wait status, its peak resident KiB, and whether it had ended by itself.
    """
    deadline = time.monotonic() + WINDING_UP_S
    if not collect(ended, BY_ITSELF):
        return
    own = os.getpid()
    for uid in users:
        if is_anybody(uid):
            kill_user(uid)
    while time.monotonic() < deadline:
        kill_found(lambda table: with_descendants({own}, table) - {own})
        if not collect(ended, WITH_ITS_WORKER):
            return
        time.sleep(0.005)


def collect(ended: Callable[[int, int, int, str], None], how: str) -> bool:
    """Collect every child that has ended; False when there is no child any more."""
    try:
        while True:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return True
            ended(pid, status, usage.ru_maxrss, how)
    except ChildProcessError:
        return False


class Launcher:
    """The commands that run, and the socket to the worker."""

    def __init__(self, sock: socket.socket, obituaries: int) -> None:
        self.sock, self.obituaries = sock, obituaries
        self.jobs: dict[int, Job] = {}  # by pid
        self.followers: dict[int, Request] = {}  # by the token of what each of them follows
        self.pid = os.getpid()
        self.empty: set[int] = (
            set()
        )  # users without a process: that was looked at, and nothing has started since

    def serve(self, guardian: int) -> None:
        """Answer the worker until it, or the guardian, is gone."""
        ends = signal_descriptor({signal.SIGCHLD, signal.SIGTERM})
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != guardian:
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(ends, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd != ends:
                    if not self.receive():
                        return
                elif signal.SIGTERM in signals_told(ends):
                    return
                else:
                    self.reap()

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
        if data == b"memfd":
            with open(fds.pop(), "rb") as file:
                data = file.read()
        request = marshal.loads(data)  # noqa: S302  the other end is the parent, and nobody else holds the socket
        if request[0] == SPAWN:
            self.take(Request(request, fds))
        elif request[0] == RECALL:
            self.recall(request[1])
        else:
            self.signal(*request)
        return True

    def take(self, request: Request) -> None:
        """Start a command, or keep it until the one that it follows has ended."""
        if self.job_of(request.after):
            self.followers[request.after] = request
        else:
            self.spawn(request)

    def recall(self, token: int) -> None:
        """Give a command back; nothing when what it follows has ended, of which the worker has been told."""
        for request in self.followers.values():
            if request.token == token:
                self.give_back(request.after)
                return

    def give_back(self, ended: int) -> None:
        """Let go of what was to follow a command, and tell the worker that it is not going to."""
        request = self.followers.pop(ended)
        close(request.fds)
        self.reply(GIVEN_BACK, request.token, 0)

    def spawn(self, request: Request) -> None:
        """Start a command.

        posix_spawn(3) shares memory with the child until it is another program, where a fork of Python costs more than
        many a command. What it cannot set for the child, this process sets for itself meanwhile.
        """
        uid = request.uid
        stage = USER
        try:
            if uid >= 0:
                if uid in self.empty:
                    self.empty.discard(uid)
                elif is_anybody(uid):  # what comes next makes this process theirs to kill
                    kill_user(uid)
                os.setresgid(uid, 0, 0)
                os.setresuid(uid, 0, 0)
            stage = DIRECTORY
            os.chdir(request.directory)
            stage = EXECUTE
            try:
                pid = self.spawn_confined(request) if len(request.fds) > 2 else request.execute()
            finally:  # before anything else, since the command could signal this process until then
                if uid >= 0:
                    os.setresuid(0, 0, 0)
            self.jobs[pid] = Job(request, pid)
            if request.memory_limit_bytes >= 0:
                with contextlib.suppress(OSError):  # it has ended, or has a lower one
                    resource.prlimit(pid, resource.RLIMIT_AS, (request.memory_limit_bytes,) * 2)
        except (OSError, ValueError, MemoryError, NotConfined) as error:
            number = (error.errno or 0) if isinstance(error, OSError) else 0
            number = errno.ENOMEM if isinstance(error, MemoryError) else number
            stage = CONFINE if isinstance(error, NotConfined) else stage
            self.reply(FAILED, request.token, number, stage=stage)
            self.reply(EXITED, request.token, 127 << 8)
        finally:
            if uid >= 0:
                os.setresuid(0, 0, 0)
                os.setresgid(0, 0, 0)
            os.chdir("/")  # the directory goes with its last user: the next spawn would wait for the disk
            close(request.fds)  # what the job does not keep

    def spawn_confined(self, request: Request) -> int:
        """Start a command from a thread that confines itself and ends: Landlock holds for a thread and its children."""
        done = _thread.allocate_lock()
        done.acquire()
        started: list[int] = []
        failed: list[Exception] = []

        def confine_and_execute() -> None:
            try:
                if libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, request.fds[2], 0):
                    raise NotConfined
                started.append(request.execute())
            except Exception as error:
                failed.append(error)
            finally:
                done.release()

        try:
            _thread.start_new_thread(confine_and_execute, ())
        except RuntimeError as error:
            raise MemoryError from error
        done.acquire()
        if failed:
            raise failed[0]
        return started[0]

    def signal(self, action: str, token: int) -> None:
        """Ask a job to end, or kill it whole; nothing when it has ended meanwhile."""
        if job := self.job_of(token):
            signal_if_there(os.killpg, job.pid, signal.SIGTERM if action == TERMINATE else signal.SIGKILL)
            if action == KILL:
                self.kill_rest(job)

    def job_of(self, token: int) -> Job | None:
        """Return the job of that token, if it runs; 0 is nobody's."""
        return next((job for job in self.jobs.values() if job.token == token), None)

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
                if left := self.left_something(job):
                    self.kill_rest(job)
                cpu_s = usage.ru_utime + usage.ru_stime
                follower = self.followers.get(job.token)
                # before the end is told, which says that its follower starts: the worker may have stood still for
                # longer than it can be sure that the follower is still its own
                if follower and follower.until_s < time.monotonic():
                    self.give_back(job.token)
                self.reply(EXITED, job.token, status, cpu_s=cpu_s, peak_kib=usage.ru_maxrss, left=left)
                close(job.fds)
                if follower := self.followers.pop(job.token, None):
                    self.spawn(follower)

    def bury(self, pid: int, status: int, peak_kib: int, how: str) -> None:
        """Write down how a job ended whose worker cannot be told any more."""
        job = self.jobs.pop(pid, None)
        if job is not None:
            line = b" ".join((job.job_id, job.attempt, b"%d %d" % (status, peak_kib), how.encode()))
            with contextlib.suppress(OSError):  # a full disk must not keep the rest from being killed
                os.write(self.obituaries, line + b"\n")

    def left_something(self, job: Job) -> bool:
        """Tell whether a process of an ended job may be alive; cheap, since every job pays for it.

        Where the job has a user of its own, one call tells. Else only processes younger than the job come
        into question, and as pids are given out in ascending order, those are few after a short job.
        """
        if job.uid >= 0:
            anybody = is_anybody(job.uid)
            if not anybody:
                self.empty.add(job.uid)
            return anybody
        with open("/proc/loadavg", "rb", buffering=0) as file:
            newest = int(file.read().rsplit(None, 1)[1])
        few = 0 <= newest - job.pid <= PROBED_PIDS
        table = read_processes(range(job.pid + 1, newest + 1)) if few else read_processes()
        return any(one.parent == self.pid and pid not in self.jobs for pid, one in table.items())

    def kill_rest(self, job: Job) -> None:
        """Kill every process of a job, whatever session, group or parent it has moved to."""
        if job.uid >= 0:
            kill_user(job.uid)
        else:
            kill_found(lambda table: self.members(job, table))

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

    def reply(
        self,
        kind: bytes,
        token: int,
        number: int,
        *,
        stage: int = 0,
        cpu_s: float = 0.0,
        peak_kib: int = 0,
        left: bool = False,
    ) -> None:
        """Tell the worker; if it is gone, the next read says so."""
        with contextlib.suppress(ConnectionError):
            # without the flag, the worker's death would end this process before it has cleaned up
            self.sock.send(REPLY.pack(kind, token, number, stage, cpu_s, peak_kib, left), socket.MSG_NOSIGNAL)


def give_up_powers(isolation: str) -> None:
    """Keep this process's memory to itself, and what no command shall have from all of them."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # a job that became another user could not be killed
    if isolation != "none":  # commands of root lose root's powers, some of which see through Landlock
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if isolation == "uid":
        os.setgroups([])
    libc.mallopt(M_ARENA_MAX, 1)  # with a thread, another arena would count against jobs' limits of memory
    _thread.stack_size(THREAD_STACK_BYTES)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")


def go_first() -> None:
    """Let this process run before the commands, which do not inherit that; nothing where it is not allowed.

    It has little to do, all slots wait for it, and a command that runs before it is back to being root could signal it.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) != 0:  # the commands would no longer inherit that
        return
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)
        with open("/proc/self/autogroup", "wb", buffering=0) as file:  # sched(7): there, the session's counts
            file.write(b"%d" % FIRST)


def guard(launcher: int) -> None:
    """Wait for the launcher's end; a SIGTERM, which says that it hangs, brings it about."""
    signal.signal(signal.SIGTERM, lambda *_: signal_if_there(os.kill, launcher, signal.SIGKILL))
    while os.waitpid(-1, 0)[0] != launcher:
        pass


def main() -> None:
    """Serve the worker at the other end of the descriptor that the first argument names."""
    for number in SIGNALS:
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
    obituaries, isolation, users = int(sys.argv[2]), sys.argv[3], [int(word) for word in sys.argv[4:]]
    give_up_powers(isolation)
    for uid in users:
        if is_anybody(uid):  # a worker was killed together with launcher and guardian
            kill_user(uid)
    guardian = os.getpid()
    pid = os.fork()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if pid == 0:
        with socket.socket(fileno=int(sys.argv[1])) as sock:
            launcher = Launcher(sock, obituaries)
            go_first()
            launcher.serve(guardian)
            wind_up(users, launcher.bury)  # before the worker hears of it
        os._exit(0)
    os.close(int(sys.argv[1]))
    guard(pid)
    wind_up(users)


if __name__ == "__main__":
    main()
