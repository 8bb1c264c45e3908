"""The table of duties: what the leader does because of time, and how often."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from integrations import outbound
from storage import archive, files, schedules, upkeep, webhooks
from storage.errors import HostlerError
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
    settings = store.settings
    reaped = await store.call(upkeep.reap(lease_s=settings.lease_s, kill_grace_s=settings.kill_grace_s))
    for job_id in reaped.lost:
        log.warning("a worker lost a job", extra={"job": job_id})
    for job_id in reaped.cancelled:
        log.warning("ended a cancelled job that its worker did not end", extra={"job": job_id})
    for worker in reaped.offline:
        log.warning("a worker has gone silent", extra={"worker": worker})


async def promote(store: Store) -> None:
    """Queue the delayed jobs whose time has come."""
    await store.call(upkeep.promote())


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


async def deliver_webhooks(store: Store) -> None:
    """Tell the webhooks of jobs that have ended; a slow one delays no other."""
    deliveries = await webhooks.due(store, most=50)
    await asyncio.gather(*(_deliver(store, delivery) for delivery in deliveries))


async def _deliver(store: Store, delivery: Delivery) -> None:
    try:
        status = await asyncio.to_thread(
            outbound.deliver, delivery.url, delivery.body, headers=delivery.headers,
            allow=store.settings.outbound_allow,
        )  # fmt: skip
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
        Duty("fire", 0.5, fire),
        Duty("webhooks", 1, deliver_webhooks),
        Duty("restore", max(2.0, reap_s), restore),
        Duty("restore thoroughly", 300, restore_thoroughly),
        Duty("expire files", 60, expire_files),
        Duty("archive jobs", 60, archive_jobs),
        Duty("sweep uploads", 3600, sweep_uploads),
    )
