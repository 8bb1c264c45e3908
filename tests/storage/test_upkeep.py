"""Upkeep: one leader, nothing forgotten in or outside the queues, nothing kept for ever."""

import asyncio
import time

import pytest
import redis
from engine import claim, reap, register, settle, submit

from storage import attempts, fleet, jobs, upkeep
from storage.store import Store


async def test_one_leads_until_its_lease_ends_or_it_steps_down(store: Store) -> None:
    first = await store.call(upkeep.lead("a", 10, store.settings))
    assert first == 1
    assert await store.call(upkeep.lead("b", 10, store.settings)) == 0
    assert await store.call(upkeep.lead("a", 0.05, store.settings)) == first
    await asyncio.sleep(0.06)
    assert await store.call(upkeep.lead("b", 10, store.settings)) == 2
    assert await store.call(upkeep.step_down("a")) == 0
    assert await store.call(upkeep.step_down("b")) == 1
    assert await store.call(upkeep.lead("a", 10, store.settings)) == 3


async def test_only_jobs_whose_time_has_come_are_queued(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    soon, late = await submit(store, delay_s=0.05), await submit(store, delay_s=600)
    await asyncio.sleep(0.06)
    count, next_ms = await store.call(upkeep.promote())
    assert count == 1
    assert next_ms is not None
    assert 590_000 < next_ms <= 600_000
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1) == [soon.encode()]
    assert (await jobs.get(store, late)).wait == "delay"
    assert await store.call(upkeep.promote()) == (0, pytest.approx(next_ms, abs=1000))


async def test_a_job_that_left_its_queue_unseen_is_put_back(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    lost, there = await submit(store), await submit(store)
    redis_client.lrem("rq:queue:jobs.normal", 0, lost)
    assert await upkeep.restore(store, thorough=False) == [lost]
    assert set(redis_client.lrange("rq:queue:jobs.normal", 0, -1)) == {lost.encode(), there.encode()}
    assert await upkeep.restore(store, thorough=False) == []


async def test_a_queue_that_was_emptied_is_filled_again(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    ids = {await submit(store, tags=["gpu"]) for _ in range(150)}
    redis_client.delete("rq:queue:jobs.gpu.normal", "rq:queues")
    assert set(await upkeep.restore(store, thorough=False)) == ids
    assert redis_client.llen("rq:queue:jobs.gpu.normal") == 150


async def test_a_missing_entry_behind_a_doubled_one_is_found_by_the_thorough_look(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    lost, doubled = await submit(store), await submit(store)
    redis_client.lrem("rq:queue:jobs.normal", 0, lost)
    redis_client.rpush("rq:queue:jobs.normal", doubled)
    assert await upkeep.restore(store, thorough=False) == []
    assert await upkeep.restore(store, thorough=True) == [lost]
    holder = await register(store)
    assert sorted(each.job_id for each in await claim(store, holder, most=5)) == sorted([lost, doubled])


async def test_what_waits_for_a_node_that_is_away_makes_nobody_look_for_every_job(
    store: Store, redis_client: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(store)
    of_node = await submit(store)
    redis_client.lmove("rq:queue:jobs.normal", "rq:queue:node.away", "RIGHT", "RIGHT")
    redis_client.hset(f"h:job:{of_node}", "queue", "node.away")
    redis_client.sadd("rq:queues", "rq:queue:node.away")
    with monkeypatch.context() as context:
        context.delattr(upkeep, "_all")
        assert await upkeep.restore(store, thorough=False) == []
    redis_client.delete("rq:queue:node.away")
    assert await upkeep.restore(store, thorough=False) == [of_node]


async def test_jobs_that_wait_outside_their_queue_are_left_there(store: Store) -> None:
    parent = await submit(store)
    await submit(store, delay_s=600)
    await submit(store, depends_on=[parent])
    assert await upkeep.restore(store, thorough=True) == []


async def test_what_rq_keeps_of_ended_jobs_is_forgotten_in_time(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed)
    await upkeep.trim_registries(store)
    assert redis_client.zrange("rq:finished:jobs.normal", 0, -1) == [job_id.encode()]
    redis_client.zadd("rq:finished:jobs.normal", {job_id: int(time.time()) - 1})
    await upkeep.trim_registries(store)
    assert redis_client.zcard("rq:finished:jobs.normal") == 0


@pytest.mark.parametrize(
    "kept", ["", "an agent", "a drained one", "one with an app", "one that a job waits for"]
)
async def test_a_worker_that_has_long_been_gone_is_forgotten_unless_something_waits_for_it(
    store: Store, redis_client: "redis.Redis[bytes]", kept: str
) -> None:
    await register(store, "gone", **({"kind": "agent"} if kept == "an agent" else {}))
    await register(store, "there")
    later_ms = store.now_ms() + 1000
    assert await upkeep.forget_workers(store, offline_before_ms=later_ms) == []
    if kept == "a drained one":
        await store.call(fleet.drain("gone", on=True, actor="user:u"))
    elif kept == "one with an app":
        redis_client.sadd("h:apps:node:gone", "app")
    elif kept == "one that a job waits for":
        redis_client.rpush("rq:queue:node.gone", "job")
    await store.call(fleet.depart("gone", reason="stopped"))
    assert await upkeep.forget_workers(store, offline_before_ms=store.now_ms() - 1000) == []
    assert await upkeep.forget_workers(store, offline_before_ms=later_ms) == ([] if kept else ["gone"])
    known = {each.id for each in await fleet.workers(store)}
    assert known == ({"gone", "there"} if kept else {"there"})


async def test_a_node_that_a_backup_is_of_is_not_forgotten(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    await register(store, "gone")
    await store.call(fleet.depart("gone", reason="stopped"))
    redis_client.zadd("h:backups", {"backup-x": 1})
    redis_client.hset("h:backup:backup-x", "node", "gone")
    assert await upkeep.forget_workers(store, offline_before_ms=store.now_ms() + 1000) == []


@pytest.mark.parametrize("end", ["silence", "removal"])
async def test_nothing_of_a_worker_that_died_stays_in_what_rq_lists(
    store: Store, redis_client: "redis.Redis[bytes]", end: str
) -> None:
    await submit(store, tags=["gpu"])
    holder, key = await register(store), "rq:worker:w"
    lists = ["rq:workers", "rq:workers:jobs.normal", "rq:workers:jobs.gpu.high"]
    for each in lists:
        redis_client.sadd(each, key)
    await submit(store)
    (claimed,) = await claim(store, holder)
    given = {"running": 1, "current_job": claimed.job_id}
    await store.call(attempts.beat(holder, [(claimed.job_id, 1)], lease_s=15, rq_ttl_s=60, status=given))
    assert await upkeep.forget_workers(store, offline_before_ms=0) == []
    assert redis_client.smembers("rq:workers") == {key.encode()}
    if end == "silence":
        await settle(store, holder, claimed)
        await reap(store)
        redis_client.set("h:reaper:hold", 0)
        await reap(store, silent_ms=-1000)
    else:
        await store.call(fleet.depart("w", reason="unregistered", forget=True))
    for each in (key, f"{key}:executions"):
        assert 0 < redis_client.ttl(each) <= 60
        redis_client.delete(each)
    await upkeep.forget_workers(store, offline_before_ms=0)
    assert redis_client.exists(*lists) == 0


async def test_the_reaper_tells_what_it_did(store: Store, redis_client: "redis.Redis[bytes]") -> None:
    holder, job_id = await register(store), await submit(store)
    await claim(store, holder)
    first = await store.call(upkeep.reap(store.settings))
    assert first.hold_ms > 0  # it has not looked for long: everybody gets a lease to come back
    redis_client.delete("h:reaper:hold")
    redis_client.zadd("h:leases", {job_id: 1})
    redis_client.zadd("h:workers:seen", {"w": 1})
    assert await store.call(upkeep.reap(store.settings)) == upkeep.Reaped(0, [job_id], [], ["w"])
    assert await store.call(upkeep.reap(store.settings)) == upkeep.Reaped(0, [], [], [])


@pytest.mark.parametrize(("away_s", "patient"), [(4.5, False), (6, True), (14, True)])
async def test_after_an_absence_in_which_a_heartbeat_may_be_missing_nobody_is_reaped_for_a_lease(
    store: Store, redis_client: "redis.Redis[bytes]", away_s: float, patient: bool
) -> None:
    seconds, microseconds = redis_client.time()
    for key in ("h:reaper:last", "h:leader:asked"):
        redis_client.set(key, int((seconds - away_s) * 1000 + microseconds / 1000))
    await store.call(upkeep.lead("a", 9, store.settings))
    assert ((await store.call(upkeep.reap(store.settings))).hold_ms > 0) is patient


async def test_a_leader_that_died_is_no_absence_while_another_asks_for_its_place(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    seconds, _ = redis_client.time()
    redis_client.set("h:reaper:last", (seconds - 12) * 1000)
    redis_client.set("h:leader:asked", (seconds - 2) * 1000)
    assert (await store.call(upkeep.reap(store.settings))).hold_ms == 0


async def test_what_somebody_wrote_there_counts_as_an_absence(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    redis_client.mset({"h:reaper:last": "nonsense", "h:leader:asked": "x"})
    assert (await store.call(upkeep.reap(store.settings))).hold_ms > 0
