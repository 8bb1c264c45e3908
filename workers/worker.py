"""`hostler worker`: RQ's worker in name, registration and queues, with Hostler's claim, execution and settling.

What of RQ is kept and what is overridden, and why, is in docs/decisions/0003.
"""

import asyncio
import os
import platform as machine
import secrets
import signal
import socket
from pathlib import Path
from typing import Any, cast

import orjson
import redis
import rq
from rq.serializers import JSONSerializer

from settings import Settings, __version__, process_environment
from storage import fleet, queues
from storage.attempts import Holder
from storage.calls import text
from storage.errors import Conflict, Unavailable
from storage.store import Store
from workers import platforms
from workers.executor import Executor
from workers.lines import RedisLine
from workers.log import log
from workers.run import Circumstances
from workers.workspace import Workspace

#: What a command inherits of the worker's own environment; everything else, credentials first, stays out.
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT", "PATHEXT", "COMSPEC", "TERM")


class Worker(rq.Worker):
    """An RQ worker whose jobs are commands: no work-horse is forked around them.

    RQ registers it, so that `rq info` shows it; its `work` claims, runs and settles by Hostler's scripts (R1-R6), takes
    no orders from RQ's command channel (anybody who may publish could end it), and runs no RQ maintenance (R7).
    """

    def __init__(self, settings: Settings, *, name: str, slots: int, tags: tuple[str, ...]) -> None:
        self.settings, self.slots, self.tags = settings, slots, tags
        connection = redis.Redis.from_url(settings.redis_url, socket_connect_timeout=2, socket_timeout=5)
        tag_sets = [text(each) for each in cast("set[bytes]", connection.smembers("h:tagsets"))]
        super().__init__(
            queues.served(tag_sets, tags), name=name, connection=connection, serializer=JSONSerializer,
            worker_ttl=int(settings.lease_s * 4) + 1,
        )  # fmt: skip

    def work(self, *_: Any, **__: Any) -> bool:
        """Claim and run jobs until told to stop; answers True."""
        if machine.system() == "Windows":
            asyncio.run(self._work())
        else:
            import uvloop  # noqa: PLC0415  not to be had on Windows

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._work())
        return True

    async def _work(self) -> None:
        platforms.protect_this_process()
        store = Store(self.settings)
        holder = Holder(self.name, secrets.token_hex(8))
        root = self.settings.work_dir / self.name
        platform = platforms.choose(self.settings.isolation, slots=self.slots, directory=root)
        try:
            workspace = Workspace(
                root, platform, fetch_limit_bytes=self.settings.fetch_limit_bytes,
                allow=self.settings.outbound_allow,
            )  # fmt: skip
            await self._register(store, holder, platform)
            workspace.sweep()

            async def again() -> Holder:
                fresh = Holder(self.name, secrets.token_hex(8))
                await self._register(store, fresh, platform)
                return fresh

            line = RedisLine(store, holder, tags=self.tags, reregister=again)
            executor = Executor(
                Circumstances(
                    line=line, platform=platform, workspace=workspace, environment=inherited(), spool=str(root),
                    kill_grace_s=self.settings.kill_grace_s,
                    log_limit_bytes=self.settings.job_log_limit_bytes,
                    live_bytes=self.settings.job_log_live_bytes,
                ),
                slots=self.slots, heartbeat_s=self.settings.heartbeat_s, drain_s=self.settings.drain_s,
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, executor.stop)
            log.info(
                "ready", extra={"worker": self.name, "slots": self.slots, "isolation": platform.isolation}
            )
            await executor.work()
            await self._depart(line)
        finally:
            platform.close()
            await store.close()

    async def _register(self, store: Store, holder: Holder, platform: platforms.Platform) -> None:
        """Register with Hostler and with RQ, waiting while Redis is away or an earlier worker's lease still runs."""
        for warning in platform.warnings:
            log.warning(warning)
        facts: dict[str, str | int] = {
            "kind": "worker", "hostname": socket.gethostname(), "pid": os.getpid(), "version": __version__,
            "cpu_count": os.cpu_count() or 1, "slots": self.slots, "running": 0, "isolation": platform.isolation,
            "tags": _json(list(self.tags)), "metadata": _json(self._metadata(platform)),
            "memory_mb": _memory_mb(), "boot": _boot_id(),
        }  # fmt: skip
        said = False
        while True:
            proof = await self._proof_of_death(store)
            try:
                silent_s = self.settings.lease_s
                await store.call(fleet.register(holder, facts, proof=proof, silent_s=silent_s))
                await asyncio.to_thread(self.register_birth)
                return
            except Conflict:
                if not said:
                    log.warning("waiting: another worker of this name is online", extra={"worker": self.name})
                    said = True
            except (Unavailable, redis.RedisError) as error:
                log.warning("cannot register for now", extra={"why": str(error)})
            await asyncio.sleep(1)

    async def _proof_of_death(self, store: Store) -> str:
        """Return the registration of an earlier worker of this name that is known to be dead on this very machine."""
        try:
            record = await store.call(fleet.record(self.name))
        except Unavailable:
            return ""
        pid, boot = record.get("pid", ""), record.get("boot")
        if record.get("hostname") != socket.gethostname() or not pid.isdigit():
            return ""
        if boot == _boot_id() and _alive(int(pid)) and int(pid) != os.getpid():
            return ""
        return record.get("registration", "")

    def register_birth(self) -> None:
        """Register with RQ; whether the name is free has been decided by then."""
        self.connection.delete(self.key)
        super().register_birth()  # type: ignore[no-untyped-call]  # RQ is not typed here

    async def _depart(self, line: RedisLine) -> None:
        try:
            await line.depart("stopped")
            await asyncio.to_thread(self.register_death)
        except (Unavailable, redis.RedisError) as error:
            log.warning("left without a word", extra={"why": str(error)})

    def _metadata(self, platform: platforms.Platform) -> dict[str, Any]:
        return {
            "osType": machine.system(), "arch": machine.machine(), "pythonVersion": machine.python_version(),
            "tags": list(self.tags), "warnings": list(platform.warnings),
        }  # fmt: skip


def inherited() -> dict[str, str]:
    """Return the part of this process's environment that commands get."""
    return {name: value for name, value in process_environment().items() if name in INHERITED}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot_id() -> str:
    """Return what is different after each boot, where the system says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _memory_mb() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)
    except (ValueError, OSError, AttributeError):
        return 0
