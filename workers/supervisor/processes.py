"""The processes of apps: started under a keeper of their own, found again by a later worker, ended whole."""

import asyncio
import contextlib
import errno
import fcntl
import marshal
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from storage.errors import Conflict, HostlerError
from workers.platforms import launcher
from workers.platforms.landlock import Confinement
from workers.supervisor import keeper

#: The variable that tells an instance who it is: <app>/<process>-<index>/<nonce>.
MARK = "HOSTLER_INSTANCE"
#: The variable by which what it left behind is recognised: its record, which no other Hostler of the machine has.
RECORD = "HOSTLER_INSTANCE_RECORD"
#: A keeper that has not noted a process by then hangs.
KEEPER_PATIENCE_S = 10.0
#: Where the kernel has no pidfd, or a keeper is somebody else's child on macOS, its lock is looked at so often.
LOOK_S = 0.25

#: What a keeper can write into a record without knowing JSON's rules.
_PLAIN = re.compile(r"[A-Za-z0-9._+-]{0,100}")
_RECORD, _LOG, _RULESET = (
    13,
    14,
    15,
)  # the descriptors that a keeper finds; no low ones, so that none is in the way


class NotStarted(HostlerError):
    """An instance could not be started; the message says why."""

    code = "NOT_STARTED"


class DiskFull(NotStarted):
    """There is no room for what must be written before a start."""

    code = "DISK_FULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What to start: `mark` names the instance, `nonce` this very start of it."""

    mark: str
    nonce: str
    argv: list[str]
    environment: dict[str, str]
    directory: Path
    record: Path
    log: Path
    stop_signal: int
    stop_timeout_s: float
    uid: int | None
    writable: tuple[Path, ...]  # what Landlock lets it write, where there is no user of its own
    readable: tuple[Path, ...]
    facts: dict[str, int | str]  # what a later worker must know of this start; words are plain


@dataclass(frozen=True, slots=True)
class Ended:
    """How an instance ended; both None when nobody knows, since its keeper was killed."""

    exit_code: int | None = None
    signal: int | None = None
    message: str = ""


class Kept:
    """An instance that lives, or lived, under its keeper. `ended` is done once everything of it is gone."""

    def __init__(self, record: Path, nonce: str, keeper_pid: int) -> None:
        self.record, self.nonce, self.keeper_pid = record, nonce, keeper_pid
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.pid: int | None = None
        self.started_ms = time.time_ns() // 1_000_000  # until its keeper has said so
        self._pidfd = -1
        self._looking: asyncio.Task[None] | None = None
        try:
            self._pidfd = os.pidfd_open(keeper_pid) if hasattr(os, "pidfd_open") else -1
        except OSError:  # it is gone already
            self._finish()
            return
        if self._pidfd >= 0:
            asyncio.get_running_loop().add_reader(self._pidfd, self._finish)
            if not is_kept(record):  # it ended before its number was held fast, which may be another's by now
                self._finish()
        else:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def running(self) -> None:
        """Return once its main process is there, or has ended. Raises NotStarted when the keeper says nothing."""
        async with asyncio.timeout(KEEPER_PATIENCE_S):
            while True:
                over = self.ended.done()  # looked at first: then the record says all that it ever will
                noted = read(self.record)
                if noted.get("nonce") == self.nonce and "started_ms" in noted:
                    self.started_ms = int(noted["started_ms"])
                    self.pid = int(noted["pid"]) if "pid" in noted else None
                if over or self.pid is not None:
                    return
                await asyncio.wait([self.ended], timeout=0.01)

    def stop(self) -> None:
        """Have the keeper send the stop signal, and kill everything once the time for stopping is over."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Have the keeper kill everything at once."""
        self._signal(signal.SIGUSR1)

    def kill_keeper(self) -> None:
        """Kill a keeper that does not obey; the kernel then kills the main process."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.ended.done():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif is_kept(self.record):
                os.kill(self.keeper_pid, number)

    async def _look(self) -> None:
        while is_kept(self.record):
            await asyncio.sleep(LOOK_S)
        self._finish()

    def _finish(self) -> None:
        if self.ended.done():
            return
        self.close()
        with contextlib.suppress(ChildProcessError):  # a child of an earlier worker, and init's by now
            os.waitpid(self.keeper_pid, os.WNOHANG)
        self.ended.set_result(ending(read(self.record), self.nonce))

    def close(self) -> None:
        """Let go of it, without ending it. Safe to run twice."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None


def ending(noted: dict[str, Any], nonce: str) -> Ended:
    """Return how the start `nonce` ended, as its record says."""
    if noted.get("nonce") != nonce or "ended_ms" not in noted:
        return Ended(message="Nobody saw how it ended: what stood over it was killed.")
    if "stage" in noted:
        return Ended(127, message=_why_not_started(str(noted["stage"]), int(noted.get("errno", 0))))
    if "signal" in noted:
        return Ended(signal=int(noted["signal"]))
    return Ended(int(noted["exit_code"]))


def _why_not_started(stage: str, number: int) -> str:
    if stage == "execute":
        reasons = {errno.ENOENT: "there is no such program", errno.EACCES: "it may not be executed"}
        return f"Its command cannot be started: {reasons.get(number, os.strerror(number))}."
    doing = {
        "user": "it cannot get a user of its own", "directory": "its directory cannot be entered",
        "confine": "the kernel refuses its Landlock ruleset",
    }[stage]  # fmt: skip
    return f"It cannot be started: {doing} ({os.strerror(number)})."


def read(record: Path) -> dict[str, Any]:
    """Return what a record says; empty when there is none, or nothing sensible in it."""
    try:
        noted = orjson.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def is_kept(record: Path) -> bool:
    """Tell whether a keeper stands over the instance of this record: it alone holds the lock."""
    try:
        fd = os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Processes:
    """Starts instances, isolated as the platform isolates commands. All calls belong to one event loop."""

    def __init__(self, isolation: str) -> None:
        self.isolation = isolation
        self._confinement = Confinement({sys.prefix, sys.base_prefix}) if isolation == "landlock" else None

    async def start(self, what: Start) -> Kept:
        """Start an instance under a keeper; at its return the main process is there, or has already ended.

        Raises NotStarted, and Conflict when an instance of this record lives: adopt that one.
        """
        fds: list[int] = []
        try:
            fds.append(_locked_record(what))
            fds.append(_opened_log(what))
            fds.append(_request(what, self.isolation))
            ruleset = -1
            if self._confinement is not None:
                ruleset = self._confinement.ruleset(*what.writable, readable=what.readable)
                fds.append(ruleset)
            pid = _spawn(request=fds[2], record=fds[0], logged=fds[1], ruleset=ruleset)
        except OSError as error:
            kind = DiskFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else NotStarted
            raise kind(f"This node cannot start it now: {error.strerror}.") from error
        finally:
            for fd in fds:
                os.close(fd)
        kept = Kept(what.record, what.nonce, pid)
        await self._settled(kept)
        return kept

    async def adopt(self, record: Path) -> Kept | None:
        """Take over an instance that an earlier worker started, if it lives. Raises NotStarted when it hangs."""
        deadline = asyncio.get_running_loop().time() + KEEPER_PATIENCE_S
        while is_kept(record):
            noted = read(record)
            if "keeper" in noted:
                kept = Kept(record, str(noted["nonce"]), int(noted["keeper"]))
                await self._settled(kept)
                return kept
            if asyncio.get_running_loop().time() > deadline:
                raise NotStarted(f"What stands over {record.name!r} says nothing, but holds its record.")
            await asyncio.sleep(0.01)
        return None

    async def _settled(self, kept: Kept) -> None:
        try:
            await kept.running()
        except TimeoutError:
            kept.kill_keeper()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPER_PATIENCE_S):
                    await asyncio.shield(kept.ended)
            raise NotStarted(f"What stands over {kept.record.name!r} did not start it in time.") from None

    def close(self) -> None:
        """Let go of what rulesets name; instances go on."""
        if self._confinement is not None:
            self._confinement.close()


def _locked_record(what: Start) -> int:
    """Open the record, take its lock, and note that a start begins. Raises Conflict, OSError."""
    fd = os.open(what.record, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        noted = orjson.dumps({"nonce": what.nonce}).ljust(keeper.RECORD_BYTES - 1) + b"\n"
        if os.pwrite(fd, noted, 0) != len(noted):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"{what.mark} runs already.") from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _opened_log(what: Start) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(what.log, flags, 0o600)
    if what.uid is not None:  # else /dev/stdout and /dev/stderr would be closed to it
        os.fchown(fd, what.uid, -1)
    return fd


def _request(what: Start, isolation: str) -> int:
    """Return the descriptor of a file, on no disk where the system has such, that tells the keeper what to start."""
    request = marshal.dumps(
        {
            "nonce": what.nonce, "argv": what.argv, "directory": str(what.directory), "isolation": isolation,
            "environment": {**what.environment, MARK: f"{what.mark}/{what.nonce}", RECORD: str(what.record)},
            "uid": -1 if what.uid is None else what.uid,
            "stop_signal": int(what.stop_signal), "stop_timeout_s": float(what.stop_timeout_s),
            "facts": {name: each for name, each in what.facts.items() if _PLAIN.fullmatch(str(each))},
        }
    )  # fmt: skip
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("hostler-app")
    else:
        name = what.record.with_name(f".{what.record.name}.request")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        name.unlink()
    with open(fd, "wb", closefd=False) as file:
        file.write(request)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _spawn(*, request: int, record: int, logged: int, ruleset: int) -> int:
    """Start a keeper in a session of its own; answers its process id. Raises OSError."""
    wanted = [(request, 0), (logged, 2), (record, _RECORD), (logged, _LOG)]
    if ruleset >= 0:
        wanted.append((ruleset, _RULESET))
    above: list[int] = []  # copies out of the way of the numbers that the keeper expects
    try:
        above += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _RULESET + 1) for fd, _ in wanted]
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, copy, to) for copy, (_, to) in zip(above, wanted, strict=True)
        ]
        actions.append((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
        argv = [
            sys.executable, "-I", "-S", keeper.__file__, str(_RECORD), str(_LOG),
            str(_RULESET if ruleset >= 0 else -1),
        ]  # fmt: skip
        return os.posix_spawn(sys.executable, argv, {}, file_actions=actions, setsid=True)
    finally:
        for fd in above:
            os.close(fd)


def sweep(records: Path, uid: int | None, spared: set[int]) -> int:
    """Kill what instances of an app left whose keepers were killed; answers how many processes that was.

    `records` is where the app's records lie, `spared` are the keepers that live: what is below them is theirs.
    Takes a while: run it in a thread.
    """
    below = f"{records}{os.sep}"
    if sys.platform != "linux":
        return _sweep_portably(below, spared)
    raw = b"\0" + os.fsencode(f"{RECORD}={below}")

    def find(table: dict[int, launcher.Process]) -> set[int]:
        theirs = launcher.with_descendants({pid for pid in spared if pid in table}, table)
        return {pid for pid in table if pid not in theirs and _is_of(pid, raw, uid)}

    return launcher.kill_found(find)


def _is_of(pid: int, mark: bytes, uid: int | None) -> bool:
    try:
        if uid is not None:  # whoever runs as the app's user is the app's
            return os.stat(f"/proc/{pid}").st_uid == uid
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in b"\0" + file.read()
    except OSError:
        return False


def _sweep_portably(below: str, spared: set[int]) -> int:
    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(RECORD, "").startswith(below):
                if spared & {each.pid for each in process.parents()}:
                    continue
                process.kill()
                found += 1
    return found


def live(records: Path) -> list[Path]:
    """Return the records of the instances that live."""
    return [path for path in sorted(records.glob("[!.]*")) if is_kept(path)] if records.is_dir() else []
