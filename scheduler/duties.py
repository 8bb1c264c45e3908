"""The table of duties: what the leader does because of time, and how often."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from integrations import outbound
from integrations import processcubes as neighbours
from storage import (
    archive,
    backups,
    batches,
    files,
    findings,
    processcubes,
    recovery,
    schedules,
    upkeep,
    webhooks,
)
from storage.errors import HostlerError, Unavailable
from storage.processcubes import SubCuby
from storage.store import Store
from storage.webhooks import Delivery

log = logging.getLogger("hostler.scheduler")

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Duty:
    """Something to do every `every_s` seconds. All duties are safe to run twice, and in several processes at once."""

    name: str
    every_s: float
    run: Callable[[Store], Awaitable[None]]


async def reap(store: Store) -> None:
    """Take back what dead workers held."""
    reaped = await store.call(upkeep.reap(store.settings))
    for job_id in reaped.lost:
        log.warning("a worker lost a job", extra={"job": job_id})
    for job_id in reaped.cancelled:
        log.warning("ended a cancelled job that its worker did not end", extra={"job": job_id})
    for worker in reaped.offline:
        log.warning("a worker has gone silent", extra={"worker": worker})


async def promote(store: Store) -> None:
    """Queue the delayed jobs whose time has come."""
    await store.call(upkeep.promote())


async def see_to_dependents(store: Store) -> None:
    """Queue or cancel the dependents of jobs that ended with too many of them for one step."""
    while await store.call(upkeep.dependents()):
        pass


async def fire(store: Store) -> None:
    """Fire the schedules that are due, and those that were missed."""
    while await schedules.fire_due(store, most=100):
        pass


async def restore(store: Store) -> None:
    """Put back the jobs that have vanished from their queue."""
    for job_id in await upkeep.restore(store, thorough=False):
        log.warning("put a job back that had vanished from its queue", extra={"job": job_id})


async def restore_thoroughly(store: Store) -> None:
    """The same, also where as many entries are too many as are missing."""
    for job_id in await upkeep.restore(store, thorough=True):
        log.warning("put a job back that had vanished from its queue", extra={"job": job_id})


async def unfold_batches(store: Store) -> None:
    """Make the jobs of batches whose web process died after it had accepted them."""
    for batch_id in await batches.unfold_all(store):
        log.info("looked after an accepted batch", extra={"batch": batch_id})


async def expire_files(store: Store) -> None:
    """Delete uploads whose time is over."""
    while await files.expire_due(store, store.now_ms()):
        pass


async def archive_jobs(store: Store) -> None:
    """Move finished jobs that are old, or too many, to the object store."""
    before_ms = store.now_ms() - int(store.settings.finished_keep_days * DAY_MS)
    keep = store.settings.finished_keep_count
    while await archive.archive_due(store, ended_before_ms=before_ms, keep_count=keep, most=100):
        pass


async def sweep_uploads(store: Store) -> None:
    """Abort multipart uploads that nobody goes on with."""
    swept = await store.objects.sweep_uploads(24 * 3600)
    if swept:
        log.info("aborted forsaken uploads", extra={"count": swept})


async def trim_registries(store: Store) -> None:
    """Forget what RQ's registries hold beyond its time."""
    await upkeep.trim_registries(store)


async def forget_workers(store: Store) -> None:
    """Forget workers that have been gone for as long as finished jobs are kept."""
    before_ms = store.now_ms() - int(store.settings.finished_keep_days * DAY_MS)
    for worker_id in await upkeep.forget_workers(store, offline_before_ms=before_ms):
        log.info("forgot a worker that has long been gone", extra={"worker": worker_id})


async def fire_backups(store: Store) -> None:
    """Fire the backups and the rehearsals of their restores that are due."""
    while await backups.fire_due(store, most=1000):
        pass


async def look_after_backups(store: Store) -> None:
    """Say which backups are overdue, and which have not been proven for too long."""
    await backups.look_after(store)


async def sweep_backups(store: Store) -> None:
    """Delete the data of backups that were removed some time ago."""
    if deleted := await backups.sweep(store):
        log.info("deleted the data of removed backups", extra={"count": deleted})


async def ask_sub_cubies(store: Store) -> None:
    """Ask every registered sub-Cuby which ProcessCubes it has; nothing of a slow one delays the others."""
    await asyncio.gather(*(_ask_sub_cuby(store, sub) for sub in await processcubes.every(store)))


async def _ask_sub_cuby(store: Store, sub: SubCuby) -> None:
    try:
        key = processcubes.key_of(store, sub)
        cubes = await neighbours.ask(sub.url, key, allow=store.settings.outbound_allow)
    except Unavailable as error:
        gone = store.now_ms() - (sub.answered_ms or 0) >= processcubes.GONE_AFTER_MS
        await processcubes.silent(store, sub, str(error), gone=gone)
    except HostlerError as error:  # it does not know us any more, or may not be asked
        await processcubes.silent(store, sub, str(error), gone=True)
    else:
        await processcubes.told(store, sub, [cube.shown for cube in cubes])


async def make_recovery_point(store: Store) -> None:
    """Back Hostler itself up, when that is due."""
    point = await recovery.keep_up(store)
    if point is not None:
        log.info(
            "made a recovery point", extra={"point": point.id, "keys": point.keys, "took_ms": point.took_ms}
        )


class Messenger:
    """Tells the webhooks of jobs that have ended; neither a slow one nor a slow host delays the others."""

    MOST_AT_ONCE, MOST_OF_A_HOST = 32, 4
    #: What a host at its limit would get comes up again after this.
    PUT_OFF_S = 5

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.MOST_AT_ONCE, "webhooks")
        self._busy: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, store: Store) -> None:
        """Set off what is due, without waiting for the answers."""
        while free := self.MOST_AT_ONCE - len(self._tasks):
            deliveries = await webhooks.due(store, most=free)
            for delivery in deliveries:
                host = urlsplit(delivery.url).hostname or ""
                if self._busy[host] >= self.MOST_OF_A_HOST:
                    await webhooks.put_off(store, delivery, self.PUT_OFF_S)
                    continue
                self._busy[host] += 1
                task = asyncio.get_running_loop().create_task(self._tell(store, delivery, host))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if not deliveries:
                return

    async def settled(self) -> None:
        """Return once all that was set off has been answered or given up."""
        await asyncio.gather(*self._tasks)

    async def _tell(self, store: Store, delivery: Delivery, host: str) -> None:
        try:
            await self._deliver(store, delivery)
        except HostlerError as error:
            log.warning("a webhook has to wait", extra={"job": delivery.job_id, "why": str(error)})
        except Exception:  # one webhook's accident must not end the others
            log.exception("a webhook failed", extra={"job": delivery.job_id})
        finally:
            self._busy[host] -= 1

    async def _deliver(self, store: Store, delivery: Delivery) -> None:
        send = partial(
            outbound.deliver, delivery.url, delivery.body, headers=delivery.headers,
            allow=store.settings.outbound_allow,
        )  # fmt: skip
        try:
            status = await asyncio.get_running_loop().run_in_executor(self._threads, send)
        except HostlerError as error:
            status, why = 0, str(error)
        else:
            why = f"status {status}"
        if 200 <= status < 300:
            await webhooks.delivered(store, delivery)
        elif not await webhooks.postpone(store, delivery):
            log.error("gave a webhook up", extra={"job": delivery.job_id, "why": why})


def table(reap_s: float) -> tuple[Duty, ...]:
    """Return all duties."""
    return (
        Duty("reap", reap_s, reap),
        Duty("promote", 0.25, promote),
        Duty("see to dependents", 0.5, see_to_dependents),
        Duty("fire", 0.5, fire),
        Duty("unfold batches", 1, unfold_batches),
        Duty("webhooks", 1, Messenger().run),
        Duty("restore", max(2.0, reap_s), restore),
        Duty("restore thoroughly", 300, restore_thoroughly),
        Duty("trim registries", 300, trim_registries),
        Duty("forget workers", 300, forget_workers),
        Duty("expire files", 60, expire_files),
        Duty("archive jobs", 60, archive_jobs),
        Duty("make recovery point", 10, make_recovery_point),
        Duty("ask sub-Cubies", 15, ask_sub_cubies),
        Duty("look around", findings.EVERY_S, findings.look),
        Duty("sweep uploads", 3600, sweep_uploads),
        Duty("fire backups", 0.5, fire_backups),
        Duty("look after backups", 60, look_after_backups),
        Duty("sweep backups", 3600, sweep_backups),
    )
