"""The census: every number that is shown of the fleet, from one step."""

import engine
import orjson
import pytest
import redis

from storage import census, fleet, jobs, queues, schedules
from storage.calls import command
from storage.capacity import Advice
from storage.jobs import Order
from storage.schedules import Misfire, Recurrence
from storage.store import Store


async def counted(store: Store) -> census.Census:
    """Take the census as it is now, not as it was a moment ago."""
    await store.wire.call(command("DEL", "h:census"))
    return await store.call(census.take())


def queue_of(taken: census.Census, *tags: str, priority: str = "normal") -> census.Queue:
    return next(each for each in taken.queues if each.tags == {*tags} and each.priority == priority)


async def test_an_empty_fleet_is_counted_as_empty(store: Store) -> None:
    taken = await counted(store)
    assert taken.queues == ()
    assert taken.groups == ()
    assert not taken.led
    assert taken.reaped_s is None
    assert set(taken.states.values()) == {0}
    assert taken.memory_bytes is not None
    assert taken.memory_bytes > 100_000
    (pool,) = (await census.outlook(store)).pools
    assert (pool.tags, pool.depth, pool.slots, pool.drain_s) == (frozenset(), 0, 0, 0.0)
    assert pool.advice == Advice(0, 0)


async def test_queues_are_counted_by_tags_and_priority_with_the_age_of_their_oldest(
    store: Store, redis_client: redis.Redis
) -> None:
    holder = await engine.register(store, tags='["gpu","py3.11"]', slots=4)
    first = await engine.submit(store, tags=["py3.11", "gpu"], priority="high")
    await engine.submit(store, tags=["py3.11", "gpu"], priority="high")
    await engine.submit(store)
    redis_client.hincrby(f"h:job:{first}", "created", -90_000)
    taken = await counted(store)
    tagged = queue_of(taken, "gpu", "py3.11", priority="high")
    assert (tagged.depth, tagged.running) == (2, 0)
    assert 90 <= tagged.oldest_s < 150
    assert queue_of(taken).depth == 1
    assert queue_of(taken).oldest_s < 60
    assert [each.job_id for each in await engine.claim(store, holder, "gpu", "py3.11")] == [first]
    tagged = queue_of(await counted(store), "gpu", "py3.11", priority="high")
    assert (tagged.depth, tagged.running) == (1, 1)
    assert tagged.oldest_s < 60


async def test_a_job_that_came_back_waits_since_then(store: Store, redis_client: redis.Redis) -> None:
    holder = await engine.register(store)
    job = await engine.submit(store)
    redis_client.hincrby(f"h:job:{job}", "created", -90_000)
    (claimed,) = await engine.claim(store, holder)
    await engine.settle(store, holder, claimed, "released", reason="", exit_code=None)
    taken = await counted(store)
    assert queue_of(taken).depth == 1
    assert queue_of(taken).oldest_s < 60
    assert taken.again == {"handed back": 1}


async def test_workers_that_are_alike_are_counted_together(store: Store) -> None:
    for name in ("a", "b", "c"):
        await engine.register(store, name, slots=2, tags='["linux"]')
    await engine.register(store, "d", slots=8, tags='["linux"]', kind="agent")
    await store.call(command("HSET", "h:worker:b", "drain", "1"))
    await store.call(fleet.depart("c", reason="stopped"))
    groups = {(each.kind, each.status): each for each in (await counted(store)).groups}
    assert {key: (each.count, each.slots) for key, each in groups.items()} == {
        ("worker", "online"): (1, 2), ("worker", "draining"): (1, 2), ("worker", "offline"): (1, 2),
        ("agent", "online"): (1, 8),
    }  # fmt: skip
    pool = {each.tags: each for each in (await census.outlook(store)).pools}
    assert (pool[frozenset({"linux"})].workers, pool[frozenset({"linux"})].slots) == (2, 10)
    assert pool[frozenset()].slots == 10  # they serve those that ask for nothing, too


async def test_times_and_ends_are_counted_for_good(store: Store, redis_client: redis.Redis) -> None:
    holder = await engine.register(store, slots=10)
    for outcome, ran_ms in (("completed", 70_000), ("completed", 3), ("failed", 600)):
        job = await engine.submit(store)
        redis_client.hincrby(f"h:job:{job}", "created", -2000)
        (claimed,) = await engine.claim(store, holder)
        redis_client.hincrby(f"h:job:{job}", "started", -ran_ms)
        await engine.settle(store, holder, claimed, outcome)
    cancelled = await engine.submit(store)
    await jobs.cancel(store, "user:u", cancelled)
    taken = await counted(store)
    assert taken.ended == {("completed", ""): 2, ("failed", "exit_code"): 1, ("cancelled", "cancelled"): 1}
    assert sum(taken.waited["normal"].counts) == 3
    assert dict(taken.waited["normal"].cumulative)["1.0"] == 0
    assert dict(taken.waited["normal"].cumulative)["300.0"] == 3
    assert 6 <= taken.waited["normal"].sum_s < 200
    assert set(taken.ran) == {"completed", "failed"}
    assert dict(taken.ran["completed"].cumulative)["60.0"] == 1
    assert dict(taken.ran["completed"].cumulative)["+Inf"] == 2
    assert dict(taken.ran["failed"].cumulative)["0.5"] == 0


async def test_what_somebody_wrote_into_the_counts_stops_no_job(
    store: Store, redis_client: redis.Redis
) -> None:
    redis_client.hset(
        "h:tally", mapping={"wait:normal:1": "x", "run:completed:ms": "1e400", "end:": "2", "w": "1"}
    )
    holder = await engine.register(store)
    await engine.submit(store)
    (claimed,) = await engine.claim(store, holder)
    assert await engine.settle(store, holder, claimed) == "completed"
    taken = await counted(store)
    assert taken.ended["completed", ""] == 1
    redis_client.hset("h:worker:evil", mapping={"registration": "r", "tags": "{", "slots": "many"})
    redis_client.zadd("h:workers", {"evil": 1})
    taken = await counted(store)
    assert {group.slots for group in taken.groups} == {0, 1}
    redis_client.zrem("h:workers", "evil")
    store.cache.clear()
    redis_client.delete("h:tally")
    redis_client.set("h:tally", "no hash")
    await engine.submit(store)
    (claimed,) = await engine.claim(store, holder)
    assert await engine.settle(store, holder, claimed) == "completed"


async def test_all_that_is_counted_within_a_second_is_one_census(
    store: Store, redis_client: redis.Redis
) -> None:
    first = await counted(store)
    await engine.submit(store)
    assert await store.call(census.take()) == first
    assert 0 < redis_client.pttl("h:census") <= census.FRESH_MS


async def test_missed_occurrences_of_schedules_are_told_from_others(
    store: Store, redis_client: redis.Redis
) -> None:
    for misfire in (Misfire.SKIP, Misfire.ONE):
        await schedules.create(
            store, "user:u", Order(command="true"), Recurrence("0 0 * * *", misfire=misfire)
        )
    for each, _ in redis_client.zscan_iter("h:schedules"):
        redis_client.zadd("h:schedules", {each: store.now_ms() - 7_200_000})
        redis_client.hset(f"h:schedule:{each.decode()}", "next", store.now_ms() - 7_200_000)
        due = redis_client.zscore("h:schedules", each)
        redis_client.hset(f"h:schedule:{each.decode()}", "next", int(due))
    assert (await counted(store)).counts["overdue"] == 2
    assert await schedules.fire_due(store, most=10) == 2
    taken = await counted(store)
    assert taken.schedules == {("skip", "missed"): 1, ("run", "missed"): 1}
    assert taken.counts["overdue"] == 0


async def test_the_mean_running_time_is_that_of_the_jobs_with_the_same_tags(
    store: Store, redis_client: redis.Redis
) -> None:
    holder = await engine.register(store, slots=10, tags='["gpu"]')
    for tags, ran_ms in ((["gpu"], 10_000), ([], 2000), ([], 4000)):
        job = await engine.submit(store, tags=tags)
        (claimed,) = await engine.claim(store, holder, *tags)
        redis_client.hincrby(f"h:job:{job}", "started", -ran_ms)
        await engine.settle(store, holder, claimed)
    for _ in range(60):
        await engine.submit(store, tags=["gpu"])
    await store.call(command("DEL", "h:census"))
    asked = frozenset({"rare"})
    pools = {each.tags: each for each in (await census.outlook(store, target_s=60, also=[asked])).pools}
    gpu, plain, rare = pools[frozenset({"gpu"})], pools[frozenset()], pools[asked]
    assert gpu.mean_run_s == pytest.approx(10, abs=1)
    assert plain.mean_run_s == pytest.approx(3, abs=1)
    assert gpu.advice.slots in {8, 9, 10}
    assert gpu.advice.workers in {1, 2}
    assert rare.depth == rare.advice.workers == rare.workers == 0


def test_the_bounds_are_those_that_the_script_counts_by() -> None:
    from storage import scripts

    line = next(each for each in scripts.source("claim").splitlines() if each.startswith("local BOUNDS"))
    written = orjson.loads(line.partition("=")[2].replace("{", "[").replace("}", "]"))
    assert [bound * 1000 for bound in census.BOUNDS_S] == written


@pytest.mark.parametrize("tags", [[], ["a"], ["py3.11"], ["a.b", "c"]])
def test_the_tags_of_a_queue_are_those_that_jobs_asked_for(tags: list[str]) -> None:
    for priority in ("high", "low"):
        assert queues.tags_of(queues.of_job(priority, tags)) == frozenset(tags)
    assert queues.tags_of(queues.of_node("machine.example.org")) == frozenset()
