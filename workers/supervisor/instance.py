"""One instance of an app's process: its life carried out on a real process, watched and told of."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage.apps.records import Instance as Shown
from storage.errors import Conflict, HostlerError
from storage.manifests.parts import Command, Manifest, Process, Restart
from workers.installs.toolchains import FOLDER
from workers.log import log
from workers.supervisor import health, logs, processes
from workers.supervisor.life import ENDED, Blocked, Life, State, Step
from workers.supervisor.places import Places
from workers.supervisor.processes import DiskFull, Ended, Kept, Processes, Start
from workers.supervisor.restart import Budget
from workers.supervisor.samples import Usage

#: How often what keeps an instance from starting is looked at again.
RETRY_S = 0.5
#: A dependency that is not ready by then fails whoever waits for it.
DEPENDENCY_PATIENCE_S = 300.0
#: What says nothing of itself, but ends sooner than this, has not really been running.
STEADY_S = 0.5
#: Squareberg waits so long for the socket; then the start has failed.
SQUAREBERG_SOCKET_S = 10.0
#: A keeper that has not ended an instance so long after it should have is killed itself.
KEEPER_GRACE_S = 10.0
#: So many of the last lines come with the message of a failure, so many characters of them at most.
LAST_LINES, LAST_CHARACTERS = 10, 1000


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps an instance from being started.

    `hopeless` if it does not go away before somebody sees to it; `under_way` while a oneshot process is at work on it,
    which takes its time.
    """

    why: str
    hopeless: bool = False
    under_way: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the instances of one app share."""

    app: str
    places: Places
    uid: int | None
    processes: Processes
    manifest: Callable[[], Manifest]
    environment: Callable[[Path], Mapping[str, str]]  # given the release, what every process of the app gets
    prepare: Callable[[], Awaitable[None]]  # write the configuration, make the directories
    obstacle: Callable[[Process], Obstacle | None]  # why nothing of this process can start now
    sweep: Callable[[], Awaitable[None]]  # kill what a killed keeper left
    changed: Callable[[], None]
    ended: Callable[["Instance", Ended, int, int], None]  # told of each end: how, since when, and when (ms)


class Instance:
    """Drives one `Life`. `live` runs until cancelled, which leaves the process as it is."""

    def __init__(self, around: Surroundings, process: Process, index: int) -> None:
        self.around, self.process, self.index = around, process, index
        self.life = Life(
            Budget(default_restart(around.manifest(), process), runs_once=process.type != "longrun")
        )
        self.kept: Kept | None = None
        self.port: int | None = None
        self.release = ""
        self.health = "unknown"
        self.usage: Usage | None = None
        self.started_ms: int | None = None  # when the process began that there is, or was
        self._wake = asyncio.Event()
        self._why = ""  # we ended it, for this reason
        self._dirty = False  # its keeper was killed: something of it may be left
        self._starting = False  # a process of it may be there any moment
        self._outdated = False  # it was to be replaced while that was so
        self._waiting_since: float | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def name(self) -> str:
        """Return what it is called, as in its log and its record."""
        return f"{self.process.name}-{self.index}"

    @property
    def log(self) -> Path:
        """Return the file that it prints to."""
        return self.around.places.log(self.process.name, self.index)

    @property
    def socket(self) -> Path | None:
        """Return the socket that it makes, if it makes one."""
        return self.around.places.socket(self.process.name, self.index) if self.process.socket else None

    @property
    def lives(self) -> bool:
        """Tell whether anything of it is there, or may be in a moment: a start that is under way is not called back."""
        return self.kept is not None or self.life.alive or self._starting

    @property
    def is_steady(self) -> bool:
        """Tell whether it may be believed that it runs: it said so itself, or has been up for a moment."""
        says_so = self.process.socket or self.process.health is not None
        return says_so or self.kept is None or time.time() - self.kept.started_ms / 1000 >= STEADY_S

    def redefine(self, process: Process) -> None:
        """Take up another definition of the process, which holds from the next start on."""
        self.process = process
        self.life.budget.rules = default_restart(self.around.manifest(), process)

    def want(self, wanted: bool) -> None:
        """Say whether it shall run."""
        self.life.want(wanted)
        self._wake.set()

    def replace(self) -> None:
        """Have it started anew, also when it had failed or completed, or is being started with what was so before."""
        self._outdated = self._starting
        self.life.replace()
        self._wake.set()

    def is_of_another(self, release: str | None) -> bool:
        """Tell whether it runs, or is being started, out of another release than this one."""
        return (self.kept is not None or self._starting) and self.release not in {"", release}

    def look_again(self) -> None:
        """Look at once whether what kept it from starting has gone."""
        if self._waiting_since is not None:
            self._wake.set()
        elif self.life.blocked:
            obstacle = self.around.obstacle(self.process)
            if obstacle is None or (self.life.blocked is Blocked.HOPELESS and not obstacle.hopeless):
                self.life.take_up()
                self._wake.set()
                self.around.changed()

    def end(self, why: str) -> None:
        """End its process for a reason that counts as a crash."""
        if self.kept is not None and not self._why and self.life.state is not State.STOPPING:
            self._why = why
            self._stop_process()

    async def live(self) -> None:
        """Do what its life asks for, until cancelled."""
        while True:
            self._wake.clear()
            try:
                pause_s = await self._advance()
            except Exception:  # one instance's accident must not end the others
                log.exception(
                    "an instance could not be advanced", extra={"app": self.around.app, "instance": self.name}
                )
                pause_s = 5.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _advance(self) -> float | None:
        """Take the next step; answers after how many seconds to look again at the latest."""
        now = time.monotonic()
        step = self.life.next(now)
        if step is Step.START:
            return await self._start(now)
        self._waiting_since = None
        if step is Step.STOP:
            self.life.stops()
            self._stop_process()
            self.around.changed()
        return None if self.life.due is None else max(0.0, self.life.due - now)

    async def _start(self, now: float) -> float:
        obstacle = self.around.obstacle(self.process)
        if obstacle is not None and obstacle.hopeless:
            return self._give_up(obstacle.why, Blocked.HOPELESS)
        if obstacle is not None:
            return self._wait(now, obstacle)
        self._starting, self._outdated, self.release = True, False, ""
        try:
            if self._dirty:
                await self.around.sweep()
                self._dirty = False
            await self.around.prepare()
            what = await self._described()
            try:
                self.kept = await self.around.processes.start(what)
            except Conflict:  # one of it lives
                self.kept = await self.around.processes.adopt(self._record)
            if self.kept is None:
                return RETRY_S
        except DiskFull as error:
            return self._wait(now, Obstacle(f"{error} It is started once there is room again."))
        except (HostlerError, OSError) as error:
            self.life.unable(
                time.monotonic(), str(error) if isinstance(error, HostlerError) else f"{error.strerror}."
            )
            self.around.changed()
            return 0.0
        finally:
            self._starting = False
            if not self.life.wanted:  # somebody may wait until nothing of it is there
                self.around.changed()
        self._waiting_since = None
        self.life.began(time.monotonic())
        if self._outdated:
            self.life.replace()
        self._attend(self.kept, fresh=True)
        return 0.0

    def _give_up(self, why: str, blocked: Blocked) -> float:
        self._waiting_since = None
        self.life.give_up(why, blocked)
        self.around.changed()
        return RETRY_S

    def _wait(self, now: float, obstacle: Obstacle) -> float:
        why = obstacle.why
        if self._waiting_since is None or obstacle.under_way:
            self._waiting_since = now
        if why != self.life.message:
            self.life.wait(why)
            self.around.changed()
        if now - self._waiting_since > DEPENDENCY_PATIENCE_S and self.process.depends_on:
            return self._give_up(f"Not started within {DEPENDENCY_PATIENCE_S:.0f} s. {why}", Blocked.LATE)
        return RETRY_S

    @property
    def _record(self) -> Path:
        return self.around.places.record(self.process.name, self.index)

    async def _described(self) -> Start:
        """Return what to start. Raises HostlerError, OSError."""
        around, process = self.around, self.process
        release = around.places.release()
        directory = (release / (process.working_directory or ".")).resolve()
        if not directory.is_relative_to(release):
            raise Conflict(f"The working directory of {process.name!r} is not in the release.")
        self.port, self.release = self._choose_port(), release.name
        environment = {**around.environment(release), **process.env}
        if self.port is not None:
            environment["PORT"] = str(self.port)
        if self.socket is not None:
            environment["HOSTLER_SOCKET"] = str(self.socket)
            self.socket.unlink(missing_ok=True)  # what an earlier one left would be taken for this one's
        return Start(
            mark=f"{around.app}/{self.name}", nonce=secrets.token_hex(8), argv=argv(process.command),
            environment=environment, directory=directory, record=self._record, log=self.log,
            stop_signal=signal_number(process.stop_signal), stop_timeout_s=process.stop_timeout_s, uid=around.uid,
            writable=(release, around.places.data, around.places.tmp, around.places.run),
            readable=self._readable(),
            facts={"port": self.port or 0, "release": release.name},
        )  # fmt: skip

    def _readable(self) -> tuple[Path, ...]:
        config, toolchains = self.around.places.config.parent, self.around.places.root.parent / FOLDER
        return (config, toolchains) if toolchains.is_dir() else (config,)

    def _choose_port(self) -> int | None:
        """Return the port of this instance; one that may be any stays the same while it is free."""
        if self.process.port is None:
            return None
        if self.process.port:
            return self.process.port + self.index
        for wanted in (self.port or 0, 0):
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", wanted))
                return int(probe.getsockname()[1])
        raise Conflict("No port is free on this node.")

    def adopt(self, kept: Kept, *, was: State) -> None:
        """Take over a process that an earlier worker started, and had brought to the state `was`."""
        noted = processes.read(self._record)
        self.kept, self.port = kept, int(noted.get("port", 0)) or None
        self.release = str(noted.get("release", ""))
        up_s = max(0.0, time.time() - kept.started_ms / 1000)
        self.life.wanted = True
        self.life.began(time.monotonic() - up_s, adopted=True)
        if was is State.RUNNING:
            self.life.ready()
        if was is State.STOPPING:  # its end is no crash; whether it is started again, the wish says
            self.life.replace()
        self._attend(kept, fresh=False)

    def miss(self) -> None:
        """Take note of the end that a process had while no worker was there."""
        noted = processes.read(self._record)
        started_ms, ended_ms = int(noted.get("started_ms", 0)), int(noted.get("ended_ms", 0))
        ended = processes.ending(noted, str(noted.get("nonce", "")))
        self._dirty = "ended_ms" not in noted
        self.life.wanted = True
        now = time.monotonic()
        self.life.began(now - max(0, ended_ms - started_ms) / 1000, adopted=True)
        self.started_ms = started_ms or None
        self.life.ended(now, ended.exit_code, ended.signal, ended.message)
        self._explain()
        self.around.ended(self, ended, started_ms, ended_ms or time.time_ns() // 1_000_000)

    def _attend(self, kept: Kept, *, fresh: bool) -> None:
        loop = asyncio.get_running_loop()
        self._why, self.health, self.started_ms = "", "unknown", kept.started_ms
        kept.ended.add_done_callback(partial(self._ended, kept))
        if kept.ended.done():
            return
        self._watching.append(loop.create_task(self._watch(fresh=fresh)))
        if self.process.timeout_s is not None and self.process.type != "longrun":
            left_s = self.process.timeout_s - (time.time() - kept.started_ms / 1000)
            why = f"It timed out after {self.process.timeout_s:g} s."
            self._timers.append(loop.call_later(max(0.0, left_s), self.end, why))
        self.around.changed()

    async def _watch(self, *, fresh: bool) -> None:
        """Find out when it is ready, and from then on whether it is well."""
        target = health.Target(self.socket, self.port, self.around.uid, self._execute)
        is_squareberg = self.around.manifest().kind == "squareberg"
        if self.socket is not None:
            try:
                patience_s = SQUAREBERG_SOCKET_S if is_squareberg and fresh else None
                async with asyncio.timeout(patience_s):
                    await health.until_connectable(target)
            except TimeoutError:
                self.end(f"Its socket was not there within {SQUAREBERG_SOCKET_S:.0f} s.")
                return
        check = self.process.health
        if check is None or is_squareberg:  # of Squareberg's apps the socket alone says that they run
            self.life.ready()
            self.around.changed()
        if check is not None:
            await health.watch(check, target, self._found, delay_s=check.delay_s if fresh else 0.0)

    def _found(self, healthy: bool) -> None:
        self.health = "healthy" if healthy else "unhealthy"
        if healthy:
            self.life.ready()
        elif self.life.budget.rules.policy != "never":
            self.end("It did not pass its health check.")
        elif self.life.state is State.STARTING:
            self.end("It never passed its health check.")
        self.around.changed()

    async def _execute(self, command: Command, timeout_s: float) -> bool:
        """Run the command of a health check beside it, isolated in the same way."""
        what = await self._described_check(command, timeout_s)
        starting = asyncio.ensure_future(self.around.processes.start(what))
        try:
            kept = await asyncio.shield(starting)
            return (await asyncio.shield(kept.ended)).exit_code == 0
        except (HostlerError, OSError):
            return False
        finally:
            starting.add_done_callback(_kill)  # also one that is given up before it is there

    async def _described_check(self, command: Command, timeout_s: float) -> Start:
        port, release = self.port, self.around.places.release()
        environment = {**self.around.environment(release), **self.process.env}
        environment |= {"PORT": str(port)} if port is not None else {}
        environment |= {"HOSTLER_SOCKET": str(self.socket)} if self.socket is not None else {}
        places = self.around.places
        return Start(
            mark=f"{self.around.app}/{self.name}", nonce=secrets.token_hex(8), argv=argv(command),
            environment=environment, directory=release, record=self._record.with_name(f"~{self.name}"),
            log=Path(os.devnull), stop_signal=signal.SIGKILL, stop_timeout_s=timeout_s, uid=self.around.uid,
            writable=(release, places.data, places.tmp, places.run), readable=self._readable(), facts={},
        )  # fmt: skip

    def _stop_process(self) -> None:
        """Have its keeper end it."""
        if self.kept is None:
            return
        self._stop_watching()
        self.kept.stop()
        grace_s = self.process.stop_timeout_s + KEEPER_GRACE_S
        self._timers.append(asyncio.get_running_loop().call_later(grace_s, self.kept.kill_keeper))

    def _ended(self, kept: Kept, future: "asyncio.Future[Ended]") -> None:
        if self.kept is not kept or future.cancelled():
            return
        self.kept, ended = None, future.result()
        self._stop_watching()
        self.usage, self.health = None, "unknown"
        self._dirty = "ended_ms" not in processes.read(self._record)
        if self.socket is not None:  # nobody listens there any more
            with contextlib.suppress(OSError):
                self.socket.unlink(missing_ok=True)
        self.life.ended(time.monotonic(), ended.exit_code, ended.signal, self._why or ended.message)
        self._explain()
        self.around.ended(self, ended, kept.started_ms, time.time_ns() // 1_000_000)
        self._wake.set()
        self.around.changed()

    def _explain(self) -> None:
        """Put what it printed last beside why it failed, or crashed."""
        if self.life.state in {State.FAILED, State.CRASHED}:
            lines = "\n".join(logs.last_lines(self.log, LAST_LINES))[-LAST_CHARACTERS:]
            self.life.message = f"{self.life.message}\n{lines}".strip()

    def _stop_watching(self) -> None:
        for task in self._watching:
            task.cancel()
        for timer in self._timers:
            timer.cancel()
        self._watching, self._timers = [], []

    def measured(self, usage: Usage | None) -> None:
        """Take note of what it uses; too much memory ends it."""
        self.usage = usage
        limit_bytes = self.process.memory_limit_bytes
        if usage is not None and limit_bytes is not None and usage.memory_rss_bytes > limit_bytes:
            self.end(f"It used {usage.memory_rss_bytes} bytes of memory, and may use {limit_bytes}.")

    async def close(self) -> None:
        """Stop looking after it; its process goes on."""
        self._stop_watching()
        if self.kept is not None:
            self.kept.close()

    def shown(self) -> Shown:
        """Return it as it is told of."""
        kept, life, usage = self.kept, self.life, self.usage
        return Shown(
            id=self.name, process=self.process.name, index=self.index, state=life.state.value,
            pid=kept.pid if kept is not None else None,
            started_ms=self.started_ms if kept is not None or life.state in ENDED else None,
            restart_count=life.restart_count, exit_code=life.exit_code, signal=life.signal,
            cpu_percent=usage.cpu_percent if usage else None,
            memory_rss_bytes=usage.memory_rss_bytes if usage else None,
            memory_percent=usage.memory_percent if usage else None,
            port=self.port if kept is not None else None,
            socket=str(self.socket) if kept is not None and self.socket is not None else None,
            health=self.health, message=life.message,
        )  # fmt: skip

    def remembered(self) -> dict[str, Any]:
        """Return what a later worker must know of it."""
        return self.life.remembered(time.monotonic())


def _kill(starting: "asyncio.Future[Kept]") -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().kill()


def argv(command: Command) -> list[str]:
    """Return the words of a command; a line is for a shell."""
    return ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)


def signal_number(name: str) -> int:
    """Return the number of a signal by its name, with or without SIG."""
    return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value


def default_restart(manifest: Manifest, process: Process) -> Restart:
    """Return how a process is restarted; a scheduled run that failed waits for the next one, unless it says else."""
    if process.type == "scheduled" and process.restart is None:
        return Restart(policy="never")
    return manifest.restart_of(process)
