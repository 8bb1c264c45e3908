"""Schedules: jobs that recur by a cron expression in a time zone, each occurrence exactly once.

A schedule always has one occurrence that waits: a job whose id is made of the schedule's and of the time it is due, so
that making it twice makes one. When its time comes the leader makes the next occurrence, then fires this one in a step
that only succeeds while the schedule still points at it.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterError, croniter

from storage.attempts import rq_time
from storage.calls import command, pairs, script, text
from storage.errors import Invalid, NotFound
from storage.jobs import Backoff, Order, Submitted, digest_of, submission
from storage.seal import Forged
from storage.store import Store

log = logging.getLogger("hostler.storage")

#: An occurrence fired later than this after its time was missed; what then happens is the schedule's misfire policy.
MISFIRE_S = 60


class Misfire(StrEnum):
    """What happens to occurrences that were missed because no scheduler ran."""

    SKIP = "skip"  #: none of them runs
    ONE = "one"  #: one runs, for all of them
    ALL = "all"  #: each of them runs


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule. `next_ms` is when it is due next, `job_id` the occurrence that waits for it."""

    id: str
    order: Order
    cron: str
    timezone: str
    misfire: Misfire
    actor: str
    created_ms: int
    next_ms: int
    job_id: str


def check(cron: str, timezone: str) -> None:
    """Raise Invalid unless `cron` (five fields) and `timezone` (an IANA name) make sense."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = f"{timezone!r} is not a time zone, such as Europe/Berlin."
        raise Invalid(message, details={"schedule.timezone": message}) from None
    if len(cron) > 200 or len(cron.split()) != 5 or not croniter.is_valid(cron):
        message = f"{cron[:200]!r} is not a cron expression of five fields, such as 0 3 * * 1."
        raise Invalid(message, details={"schedule.cron": message})


def following(cron: str, timezone: str, after_ms: int) -> int:
    """Return the first time (ms) after `after_ms` at which `cron` is due. Raises Invalid if there is none."""
    zone = ZoneInfo(timezone)
    times = croniter(cron, datetime.fromtimestamp(after_ms / 1000, zone), max_years_between_matches=8)
    each_hour = "*" in cron.split()[1]
    try:
        while True:
            due: datetime = times.get_next(datetime).astimezone(UTC)
            if (
                each_hour or not due.astimezone(zone).fold
            ):  # as cron(8) does: a fixed hour that comes twice counts once
                return int(due.timestamp()) * 1000
    except CroniterError:
        raise Invalid(f"{cron!r} is never due.", details={"schedule.cron": "never due"}) from None


@dataclass(frozen=True, slots=True)
class Recurrence:
    """When a job recurs: `cron` in the time zone `timezone`, and what happens to occurrences that were missed."""

    cron: str
    timezone: str = "UTC"
    misfire: Misfire = Misfire.ONE


async def create(
    store: Store, actor: str, order: Order, recurrence: Recurrence, *, idempotency_key: str | None = None
) -> Submitted:
    """Keep a schedule and answer its first occurrence, which waits for its time. Raises Invalid."""
    check(recurrence.cron, recurrence.timezone)
    if order.depends_on:  # they end once, and it recurs
        message = "A job that recurs cannot depend on others."
        raise Invalid(message, details={"dependsOn": message})
    schedule_id = store.new_id("schedule")
    due_ms = following(recurrence.cron, recurrence.timezone, store.now_ms())
    given = {"order": asdict(order), "actor": actor, **asdict(recurrence)}
    record = store.seal.encrypt_json("schedule", given, bound_to=schedule_id)
    idempotency = None
    if idempotency_key is not None:
        idempotency = (idempotency_key, digest_of([asdict(order), asdict(recurrence)]))
    return await store.call(
        submission(
            store, actor, replace(order, not_before_ms=due_ms, delay_s=None),
            job_id=job_id_of(schedule_id, due_ms), schedule=schedule_id, schedule_record=record,
            idempotency=idempotency,
        )
    )  # fmt: skip


def coming(schedule: Schedule, number: int) -> list[int]:
    """Return the next `number` times (ms) at which a schedule is due, the one that waits first."""
    times = [schedule.next_ms]
    while len(times) < number:
        times.append(following(schedule.cron, schedule.timezone, times[-1]))
    return times


async def recover(store: Store, schedule_id: str) -> None:
    """Put a schedule's record into the index, and make the occurrence that waits unless it is there. Raises Forged."""
    schedule = await get(store, schedule_id)
    await store.call(command("ZADD", "h:schedules", schedule.next_ms, schedule_id))
    coming = replace(schedule.order, not_before_ms=schedule.next_ms, delay_s=None)
    job_id = job_id_of(schedule_id, schedule.next_ms)
    if not await store.call(command("EXISTS", f"h:job:{schedule.job_id}")):
        step = submission(store, schedule.actor, coming, job_id=job_id, schedule=schedule_id)
        await store.call(step)
        await store.call(command("HSET", f"h:schedule:{schedule_id}", "job", job_id))


def job_id_of(schedule_id: str, due_ms: int) -> str:
    """Return the id of the job that is a schedule's occurrence at a time."""
    return f"job-{schedule_id.removeprefix('schedule-')}-{due_ms // 1000}"


def _read(store: Store, schedule_id: str, row: Mapping[str, str]) -> Schedule:
    record: dict[str, Any] = store.seal.decrypt_json("schedule", row["record"], bound_to=schedule_id)
    order = {**record["order"], "backoff": Backoff(**record["order"]["backoff"])}
    return Schedule(
        id=schedule_id, order=Order(**order), cron=record["cron"], timezone=record["timezone"],
        misfire=Misfire(record["misfire"]), actor=record["actor"], created_ms=int(row["created"]),
        next_ms=int(row["next"]), job_id=row["job"],
    )  # fmt: skip


async def get(store: Store, schedule_id: str) -> Schedule:
    """Return one schedule. Raises NotFound; Forged when Redis holds one that is not ours."""
    row = await store.call(command("HGETALL", f"h:schedule:{schedule_id}", read=pairs))
    if "record" not in row:
        raise NotFound("Schedule not found")
    return _read(store, schedule_id, row)


async def page(store: Store, *, limit: int, offset: int) -> tuple[list[Schedule], int]:
    """Return schedules in the order they are due, and how many there are."""
    total, ids = await store.calls(
        command("ZCARD", "h:schedules"), command("ZRANGE", "h:schedules", offset, offset + limit - 1)
    )
    rows = await store.calls(*(command("HGETALL", f"h:schedule:{text(each)}", read=pairs) for each in ids))
    return [
        _read(store, text(each), row) for each, row in zip(ids, rows, strict=True) if "record" in row
    ], total


async def delete(store: Store, actor: str, schedule_id: str) -> None:
    """End a schedule; the occurrence that waits is cancelled, one that runs is not. Raises NotFound."""
    if not await store.call(script("unschedule", schedule_id, actor, rq_time())):
        raise NotFound("Schedule not found")


async def fire_due(store: Store, *, most: int) -> int:
    """Fire what is due; answers how many occurrences were decided. Any number may do it at once."""
    now_ms = await store.call(command("TIME", read=_ms))  # by the clock that all share
    due = await store.call(command("ZRANGEBYSCORE", "h:schedules", "-inf", now_ms, "LIMIT", 0, most))
    fired = 0
    for each in due:
        try:
            schedule = await get(store, text(each))
        except (NotFound, Forged):
            await store.call(command("ZREM", "h:schedules", each))
            continue
        try:
            fired += await _fire(store, schedule, now_ms)
        except Invalid as error:  # it cannot go on; the others must
            log.error("ended a schedule", extra={"schedule": schedule.id, "why": str(error)})
            await delete(store, "system:scheduler", schedule.id)
    return fired


def _ms(reply: list[bytes]) -> int:
    return int(reply[0]) * 1000 + int(reply[1]) // 1000


async def _fire(store: Store, schedule: Schedule, now_ms: int) -> int:
    missed = now_ms - schedule.next_ms > MISFIRE_S * 1000
    action = "skip" if missed and schedule.misfire is Misfire.SKIP else "run"
    after_ms = schedule.next_ms if not missed or schedule.misfire is Misfire.ALL else now_ms
    next_ms = following(schedule.cron, schedule.timezone, after_ms)
    coming = replace(schedule.order, not_before_ms=next_ms, delay_s=None)
    await store.call(
        submission(
            store, schedule.actor, coming, job_id=job_id_of(schedule.id, next_ms), schedule=schedule.id
        )
    )
    fired: int = await store.call(script("fire", schedule.id, schedule.next_ms, action, next_ms, rq_time()))
    return fired
