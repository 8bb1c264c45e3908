"""Schedules: each occurrence once, on time where clocks change, and as wished where it was missed."""

import asyncio
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
import redis

from storage import jobs, schedules
from storage.errors import Conflict, Invalid, NotFound, Unprocessable
from storage.jobs import Order
from storage.schedules import Misfire, Recurrence, Schedule, following
from storage.store import Store

BERLIN = "Europe/Berlin"


def ms(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def times(cron: str, zone: str, after: str, count: int) -> list[str]:
    """Return the next times in UTC after a time in `zone`."""
    at, found = ms(after, zone), []
    for _ in range(count):
        at = following(cron, zone, at)
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%d %H:%M"))
    return found


async def created(
    store: Store,
    cron: str = "0 * * * *",
    misfire: Misfire = Misfire.ONE,
    *,
    ago_s: float = 0,
    **order: object,
) -> Schedule:
    """Create a schedule `ago_s` seconds ago, as if no scheduler had run since."""
    now_ms = store.now_ms
    store.now_ms = lambda: int((time.time() - ago_s) * 1000)  # type: ignore[method-assign]
    try:
        given = Order(command="true", **order)  # type: ignore[arg-type]
        first = await schedules.create(store, "user:u", given, Recurrence(cron, "UTC", misfire))
    finally:
        store.now_ms = now_ms  # type: ignore[method-assign]
    schedule_id = (await jobs.get(store, first.id)).schedule
    assert schedule_id is not None
    return await schedules.get(store, schedule_id)


async def fire_all(store: Store) -> int:
    fired = 0
    while found := await schedules.fire_due(store, most=10):
        fired += found
    return fired


async def occurrences(store: Store) -> dict[str, list[str]]:
    """Return the jobs there are: ids by state, or by what a queued one waits for."""
    found: dict[str, list[str]] = {}
    for job in (await jobs.page(store, limit=100, offset=0, newest_first=False))[0]:
        found.setdefault(job.wait or job.reason or job.state, []).append(job.id)
    return found


def test_an_hour_that_is_skipped_in_spring_does_not_skip_the_day() -> None:
    assert times("30 2 * * *", BERLIN, "2026-03-28T12:00", 2) == ["03-29 01:00", "03-30 00:30"]


def test_an_hour_that_comes_twice_in_autumn_counts_once() -> None:
    assert times("30 2 * * *", BERLIN, "2026-10-24T12:00", 2) == ["10-25 00:30", "10-26 01:30"]


def test_what_is_due_every_hour_is_due_in_both_hours_of_autumn() -> None:
    found = times("0 * * * *", BERLIN, "2026-10-25T01:30", 3)
    assert found == ["10-25 00:00", "10-25 01:00", "10-25 02:00"]


def test_a_time_zone_moves_the_hour() -> None:
    assert times("0 9 * * *", "America/New_York", "2026-07-01T00:00", 1) == ["07-01 13:00"]


@pytest.mark.parametrize(
    ("cron", "zone", "field"),
    [
        ("61 * * * *", "UTC", "schedule.cron"),
        ("* * * *", "UTC", "schedule.cron"),
        ("* * * * * *", "UTC", "schedule.cron"),
        ("@daily", "UTC", "schedule.cron"),
        ("* " * 400, "UTC", "schedule.cron"),
        ("* * * * *", "Mars/Olympus", "schedule.timezone"),
        ("* * * * *", "../etc/passwd", "schedule.timezone"),
        ("0 0 30 2 *", "UTC", "schedule.cron"),
    ],
)
async def test_a_schedule_that_makes_no_sense_is_refused(
    store: Store, cron: str, zone: str, field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        await schedules.create(store, "user:u", Order(command="true"), Recurrence(cron, zone))
    assert field in caught.value.details
    assert (await schedules.page(store, limit=10, offset=0))[1] == 0


async def test_a_job_that_recurs_cannot_depend_on_others(store: Store) -> None:
    parent = await jobs.submit(store, "user:u", Order(command="true"))
    with pytest.raises(Invalid):
        await created(store, depends_on=[parent.id])
    assert (await schedules.page(store, limit=10, offset=0))[1] == 0


async def test_a_schedule_waits_with_its_next_occurrence(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    schedule = await created(store)
    job = await jobs.get(store, schedule.job_id)
    assert (job.state, job.wait, job.not_before_ms) == ("queued", "schedule", schedule.next_ms)
    assert schedule.next_ms % 3_600_000 == 0
    assert await fire_all(store) == 0
    assert redis_client.llen("rq:queue:jobs.normal") == 0
    assert (await schedules.page(store, limit=10, offset=0))[0] == [schedule]


async def test_the_same_key_makes_one_schedule(store: Store) -> None:
    order, hourly = Order(command="true"), Recurrence("0 * * * *")
    first = await schedules.create(store, "user:u", order, hourly, idempotency_key="k")
    assert await schedules.create(store, "user:u", order, hourly, idempotency_key="k") == first
    with pytest.raises(Unprocessable):
        await schedules.create(store, "user:u", order, Recurrence("5 * * * *"), idempotency_key="k")
    assert (await schedules.page(store, limit=10, offset=0))[1] == 1


async def test_an_occurrence_fires_once_however_many_look_at_once(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    schedule = await created(store, ago_s=3599)
    fired = await asyncio.gather(*(schedules.fire_due(store, most=10) for _ in range(8)))
    assert sum(fired) == 1
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1) == [schedule.job_id.encode()]
    following_one = await schedules.get(store, schedule.id)
    assert following_one.next_ms == schedule.next_ms + 3_600_000
    assert (await jobs.get(store, following_one.job_id)).wait == "schedule"


async def test_a_scheduler_that_died_between_its_two_steps_is_made_up_for(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    schedule = await created(store, ago_s=3599)
    coming = schedules.job_id_of(schedule.id, schedule.next_ms + 3_600_000)
    step = jobs.submission(
        store, "user:u", Order(command="true", not_before_ms=schedule.next_ms + 3_600_000),
        job_id=coming, schedule=schedule.id,
    )  # fmt: skip
    await store.call(step)  # the next occurrence is made, and this one not yet fired
    assert await fire_all(store) == 1
    assert await occurrences(store) == {"queued": [schedule.job_id], "schedule": [coming]}


SIX_MISSED_S = 6 * 3600 - 1


async def test_of_missed_occurrences_one_runs(store: Store) -> None:
    schedule = await created(store, misfire=Misfire.ONE, ago_s=SIX_MISSED_S)
    assert await fire_all(store) == 1
    found = await occurrences(store)
    assert found["queued"] == [schedule.job_id]
    assert len(found["schedule"]) == 1
    assert (await schedules.get(store, schedule.id)).next_ms > store.now_ms()


async def test_of_missed_occurrences_none_runs(store: Store) -> None:
    schedule = await created(store, misfire=Misfire.SKIP, ago_s=SIX_MISSED_S)
    await fire_all(store)
    found = await occurrences(store)
    assert found.get("queued", []) == []
    assert found["misfire"] == [schedule.job_id]
    assert len(found["schedule"]) == 1


async def test_of_missed_occurrences_all_run_in_their_order(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    schedule = await created(store, misfire=Misfire.ALL, ago_s=SIX_MISSED_S)
    assert await fire_all(store) == 6
    expected = [schedules.job_id_of(schedule.id, schedule.next_ms + hour * 3_600_000) for hour in range(6)]
    assert [each.decode() for each in redis_client.lrange("rq:queue:jobs.normal", 0, -1)] == expected


async def test_a_deleted_schedule_takes_its_waiting_occurrence_along(store: Store) -> None:
    schedule = await created(store)
    await schedules.delete(store, "user:u", schedule.id)
    assert (await jobs.get(store, schedule.job_id)).state == "cancelled"
    with pytest.raises(NotFound):
        await schedules.get(store, schedule.id)
    with pytest.raises(NotFound):
        await schedules.delete(store, "user:u", schedule.id)


async def test_cancelling_an_occurrence_leaves_the_schedule(store: Store) -> None:
    schedule = await created(store, ago_s=3599)
    await jobs.cancel(store, "user:u", schedule.job_id)
    assert await fire_all(store) == 1
    after = await schedules.get(store, schedule.id)
    assert (await jobs.get(store, schedule.job_id)).state == "cancelled"
    assert (await jobs.get(store, after.job_id)).wait == "schedule"
    with pytest.raises(Conflict):
        await jobs.retry(store, "user:u", after.job_id)


async def test_a_schedule_that_cannot_go_on_does_not_stop_the_others(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    redis_client.hset("h:file:f", "state", "ready")
    broken = await created(store, ago_s=3599, file="f")
    sound = await created(store, ago_s=3599)
    redis_client.delete("h:file:f")
    await fire_all(store)
    assert (await jobs.get(store, sound.job_id)).wait is None
    with pytest.raises(NotFound):
        await schedules.get(store, broken.id)


async def test_a_forged_schedule_is_not_fired(store: Store, redis_client: "redis.Redis[bytes]") -> None:
    schedule = await created(store, ago_s=3599)
    record = redis_client.hget(f"h:schedule:{schedule.id}", "record") or b""
    altered = record[:20] + (b"B" if record[20:21] == b"A" else b"A") + record[21:]
    redis_client.hset(f"h:schedule:{schedule.id}", "record", altered)
    assert await fire_all(store) == 0
    assert redis_client.llen("rq:queue:jobs.normal") == 0
