"""`hostler worker`: RQ's worker in name, registration and queues, with Hostler's claim, execution and settling.

What of RQ is kept and what is overridden, and why, is in docs/decisions/0003.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import orjson
import psutil
import redis
import rq
from rq.serializers import JSONSerializer

from settings import Settings, __version__
from storage import fleet, quarantine, queues, relay
from storage.attempts import Holder
from storage.errors import Conflict, HostlerError, Unavailable
from storage.seal import Forged
from storage.store import Store
from workers import startup, tasks
from workers.backups.archives import Archives
from workers.forwarding import Forwarder
from workers.lane import Lane, Surroundings
from workers.lines import RedisLine
from workers.log import log
from workers.platforms import Platform
from workers.supervisor.reports import RedisReports
from workers.supervisor.supervisor import Supervisor, boot_id


class Worker(rq.Worker):
    """An RQ worker whose jobs are commands: no work-horse is forked around them.

    RQ registers it, so that `rq info` shows it; its `work` claims, runs and settles by Hostler's scripts (R1-R6), takes
    no orders from RQ's command channel (anybody who may publish could end it), and runs no RQ maintenance (R7).
    """

    def __init__(self, settings: Settings, *, name: str, slots: int, tags: tuple[str, ...]) -> None:
        self.settings, self.slots, self.tags = settings, slots, tags
        connection = redis.Redis.from_url(settings.redis_url, socket_connect_timeout=2, socket_timeout=5)
        super().__init__(
            queues.served([], tags), name=name, connection=connection, serializer=JSONSerializer,
            worker_ttl=int(settings.lease_s * 4) + 1, prepare_for_work=False,  # that needs Redis, which may be away
        )  # fmt: skip
        self.hostname, self.pid = socket.gethostname(), os.getpid()

    def work(self, *_: Any, **__: Any) -> bool:
        """Claim and run jobs until told to stop; answers True."""
        startup.run(self._work())
        return True

    async def _work(self) -> None:
        store = Store(self.settings)
        holder = Holder(self.name, secrets.token_hex(8))
        try:
            with startup.workplace(self.settings, name=self.name, slots=self.slots) as place:

                async def again() -> Holder:
                    fresh = Holder(self.name, secrets.token_hex(8))
                    await self._register(store, fresh, place.platform)
                    return fresh

                line = RedisLine(store, holder, tags=self.tags, reregister=again)
                supervisor = Supervisor(
                    self.settings, store.seal, RedisReports(store, lambda: line.holder), name=self.name,
                    isolation=place.platform.isolation, environment=startup.inherited(),
                )  # fmt: skip
                async with _at_work(supervisor.run()):  # before Redis is there: apps do not wait for it
                    await self._register(store, holder, place.platform)
                    await _tell_obituaries(store, place.platform)
                    lane = Lane(
                        Surroundings(
                            line=line, store=store, supervisor=supervisor, isolation=place.platform.isolation,
                            spool=str(place.root), drain_s=self.settings.drain_s,
                        ),
                        tasks.of_apps(),
                    )  # fmt: skip
                    answers = Archives(store, Forwarder(supervisor, store.seal).handle)
                    async with _at_work(relay.serve(store, self.name, answers.handle)):
                        await place.work(line, heartbeat_s=self.settings.heartbeat_s, beside=lane)
                await self._depart(line)
        finally:
            await store.close()

    async def _register(self, store: Store, holder: Holder, platform: Platform) -> None:
        """Register with Hostler and with RQ.

        Waits while Redis is away or belongs to another secret key, and while an earlier worker's lease still runs.
        """
        facts: dict[str, str | int] = {
            "kind": "worker", "hostname": socket.gethostname(), "pid": os.getpid(), "version": __version__,
            "cpu_count": os.cpu_count() or 1, "slots": self.slots, "running": 0, "isolation": platform.isolation,
            "tags": _json(list(self.tags)), "metadata": _json(startup.metadata(platform, self.tags)),
            "memory_mb": startup.memory_mb(), "boot": boot_id(), "lease_ms": int(self.settings.lease_s * 1000),
        }  # fmt: skip
        said = ""
        while True:
            proof = await self._proof_of_death(store)
            try:
                await store.keyring.recognise()
                silent_s = self.settings.lease_s
                await store.call(fleet.register(holder, facts, proof=proof, silent_s=silent_s))
                self.queues = self._served(await fleet.tag_sets(store))
                await asyncio.to_thread(self.register_birth)
                return
            except Conflict:
                why = f"Another worker of the name {self.name!r} is online."
            except (Unavailable, Forged, redis.RedisError) as error:
                why = str(error)
            if why != said:
                said = why
                log.warning("cannot register for now", extra={"redis": store.wire.address.place, "why": why})
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
        if boot == boot_id() and psutil.pid_exists(int(pid)) and int(pid) != os.getpid():
            return ""
        return record.get("registration", "")

    def _served(self, tag_sets: Sequence[str]) -> list[rq.Queue]:
        served = queues.served(tag_sets, self.tags)
        return [rq.Queue(each, connection=self.connection, serializer=JSONSerializer) for each in served]

    def register_birth(self) -> None:
        """Register with RQ; whether the name is free has been decided by then. Raises redis.RedisError."""
        self._set_ip_address(self.connection)
        self.connection.delete(self.key)
        super().register_birth()  # type: ignore[no-untyped-call]  # RQ is not typed here

    async def _depart(self, line: RedisLine) -> None:
        try:
            await line.depart("stopped")
            await asyncio.to_thread(self.register_death)
        except (Unavailable, redis.RedisError) as error:
            log.warning("left without a word", extra={"why": str(error)})


async def _tell_obituaries(store: Store, platform: Platform) -> None:
    """Tell how the jobs ended that an earlier worker here did not outlive."""
    found = platform.obituaries()
    try:
        await store.calls(
            *(
                quarantine.obituary(
                    each.job_id,
                    each.attempt,
                    how=each.how,
                    signal=each.signal,
                    max_rss_bytes=each.max_rss_bytes,
                )
                for each in found
            )
        )
    except Unavailable as error:  # the next start tells them
        log.warning("cannot tell how lost jobs ended", extra={"why": str(error)})
        return
    platform.forget_obituaries()


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


@contextlib.asynccontextmanager
async def _at_work(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something done at the same time, until what is within has ended.

    Should it fail, the worker is told to stop as by a signal, and then this raises HostlerError: whoever runs it starts
    another, while one that went on with a part of itself would look well.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_stop_when_it_fails)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and (error := task.exception()) is not None:
        raise HostlerError(f"A part of the worker has ended: {error!r}.") from error


def _stop_when_it_fails(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the worker has ended, so it stops", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
