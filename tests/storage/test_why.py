from typing import Any

import redis
from engine import claim, register, settle, submit

from storage import jobs, why
from storage.jobs import Backoff
from storage.store import Store


async def reasons(store: Store, job_id: str) -> list[dict[str, Any]]:
    return await why.waiting(store, await jobs.get(store, job_id))


async def codes(store: Store, job_id: str) -> list[str]:
    return [reason["code"] for reason in await reasons(store, job_id)]


async def test_a_job_that_runs_or_has_ended_does_not_wait(store: Store) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert await reasons(store, job_id) == []
    await settle(store, holder, claimed)
    assert await reasons(store, job_id) == []


async def test_missing_busy_and_draining_workers_are_named(store: Store, redis_client: redis.Redis) -> None:
    job_id = await submit(store)
    assert await codes(store, job_id) == ["no_workers", "position"]
    await register(store, slots=2)
    assert await codes(store, job_id) == ["position"]
    redis_client.hset("h:worker:w", "running", 2)
    busy, _ = await reasons(store, job_id)
    assert (busy["code"], busy["message"]) == ("busy", "All 2 slots that serve it are busy.")
    redis_client.hset("h:worker:w", "drain", 1)
    assert await codes(store, job_id) == ["draining", "position"]
    redis_client.hset("h:worker:w", "status", "offline")
    assert await codes(store, job_id) == ["no_workers", "position"]


async def test_unmet_tags_are_named(store: Store) -> None:
    await register(store, tags='["linux"]')
    job_id = await submit(store, tags=["linux", "gpu"])
    unmet, _ = await reasons(store, job_id)
    assert (unmet["code"], unmet["tags"]) == ("unmet_tags", ["gpu"])
    await register(store, "other", tags='["gpu"]')
    unmet, _ = await reasons(store, job_id)
    assert unmet["tags"] == ["gpu", "linux"], "no single worker has both"


async def test_the_position_counts_all_that_goes_before(store: Store) -> None:
    await submit(store, priority="high")
    await submit(store)
    mine = await submit(store)
    await submit(store, priority="low")
    assert (await reasons(store, mine))[-1]["position"] == 3


async def test_a_time_to_come_is_told(store: Store) -> None:
    (reason,) = await reasons(store, job_id := await submit(store, delay_s=60))
    assert (reason["code"], reason["notBeforeMs"]) == (
        "not_before",
        (await jobs.get(store, job_id)).not_before_ms,
    )
    holder, failing = await register(store), await submit(store, retries=1, backoff=Backoff(60, 2, 60))
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, "failed")
    (reason,) = await reasons(store, failing)
    assert "last attempt failed" in reason["message"]


async def test_unmet_dependencies_are_named_with_their_state(store: Store) -> None:
    holder, parent = await register(store), await submit(store)
    child = await submit(store, depends_on=[parent])
    await claim(store, holder)
    (reason,) = await reasons(store, child)
    assert (reason["code"], reason["jobId"]) == ("dependency", parent)
    assert "running" in reason["message"]


async def test_the_holder_of_the_key_is_named(store: Store) -> None:
    holder = await register(store)
    first, second = [await submit(store, concurrency_key="db") for _ in range(2)]
    await claim(store, holder, most=2)
    (reason,) = await reasons(store, second)
    assert (reason["code"], reason["jobId"], reason["key"]) == ("concurrency_key", first, "db")
