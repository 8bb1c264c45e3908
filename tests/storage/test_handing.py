"""Handing a new job straight to a worker that idles: only one that listens, has a free slot, and overtakes nobody."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from engine import claim, register, settle, submit

from settings import Settings
from storage import attempts, fleet, jobs, queues
from storage.attempts import Claim, Holder
from storage.jobs import State
from storage.store import Store

QUEUE = queues.key("jobs.normal")


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.redis_url, decode_responses=True)


@pytest.fixture
async def heard(store: Store) -> AsyncIterator[list[Claim]]:
    """Listen as the worker `w` does, and keep what it is handed."""
    found, ready = list[Claim](), asyncio.Event()

    def tell(_: bytes, message: bytes) -> None:
        found.extend(filter(None, [attempts.offered(Holder("w", "r1"), message)]))

    task = asyncio.create_task(store.wire.listen(["h:offer:w"], tell, ready.set))
    async with asyncio.timeout(20):
        await ready.wait()
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def idle(store: Store, name: str = "w", *tags: str, slots: int = 1) -> Holder:
    """Register a worker that finds its queues empty, and says that it listens."""
    holder = await register(store, name, slots=slots, lease_ms=15000)
    await idle_again(store, holder, *tags, slots=slots)
    return holder


async def idle_again(store: Store, holder: Holder, *tags: str, slots: int = 1) -> None:
    """Ask for work where there is none."""
    sets = await fleet.tag_sets(store)
    step = attempts.claim(holder, sets, tags, most=slots, startable=slots, lease_s=15, hears=True)
    assert await store.call(step) == ([], [])


async def arrived(found: list[Claim], count: int = 1) -> None:
    async with asyncio.timeout(20):
        while len(found) < count:
            await asyncio.sleep(0.005)


async def test_an_idle_worker_is_handed_a_job_whole_and_says_that_it_starts(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    holder = await idle(store)
    job_id = await submit(store, "make")
    await arrived(heard)
    (given,) = heard
    assert (given.job_id, given.attempt, given.owner) == (job_id, 1, "user:u")
    assert given.read_spec(store.seal)["command"] == "make"
    job = await jobs.get(store, job_id)
    assert (job.state, job.worker, job.attempt) == (State.RUNNING, "w", 1)
    assert client.hget(f"h:job:{job_id}", "ahead") == "1"
    assert client.lrange("h:proc:w", 0, -1) == [job_id]
    assert client.llen(QUEUE) == 0
    assert 13_000 < float(client.zscore("h:leases", job_id)) - job.created_ms <= 16_000
    assert [entry["e"] for _, entry in client.xrange("h:events")][-2:] == ["job.queued", "job.started"]
    assert await store.call(attempts.begin(holder, job_id, 1))
    assert await store.call(attempts.settle(holder, job_id, 1, "completed", exit_code=0)) == "completed"
    assert client.zcard("h:leases") == 0
    again = await submit(store)
    await arrived(heard, 2)
    assert heard[1].job_id == again


async def test_where_nobody_hears_a_job_waits_in_its_queue(store: Store, client: redis.Redis) -> None:
    await idle(store)
    with client.pubsub() as supervisor:  # it hears words to the worker, and takes no jobs
        supervisor.subscribe("h:control:w")
        supervisor.get_message(timeout=20)
        job_id = await submit(store)
    assert (await jobs.get(store, job_id)).state is State.QUEUED
    assert client.lrange(QUEUE, 0, -1) == [job_id]
    assert client.scard("h:ready:jobs.normal") == 0  # it is not asked twice


async def test_a_worker_whose_slots_are_taken_is_handed_nothing(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    await idle(store, slots=2)
    first, second, third = [await submit(store) for _ in range(3)]
    await arrived(heard, 2)
    assert {each.job_id for each in heard} == {first, second}
    assert client.lrange(QUEUE, 0, -1) == [third]


async def test_nobody_is_overtaken(store: Store, client: redis.Redis, heard: list[Claim]) -> None:
    await idle(store)
    waiting = await submit(store, delay_s=60)
    client.hset(f"h:job:{waiting}", "wait", "")  # as though its time had come, and nobody had claimed it yet
    client.rpush(queues.key("jobs.high"), waiting)
    job_id = await submit(store)
    assert client.lrange(QUEUE, 0, -1) == [job_id]
    assert heard == []


@pytest.mark.parametrize(
    "order", [{"delay_s": 60}, {"concurrency_key": "k"}, {"tags": ["gpu"]}], ids=["later", "key", "tags"]
)
async def test_what_has_to_wait_or_is_for_others_is_not_handed_over(
    store: Store, heard: list[Claim], order: dict[str, object]
) -> None:
    await idle(store)
    job_id = await submit(store, **order)
    assert (await jobs.get(store, job_id)).state is State.QUEUED
    assert heard == []


async def test_a_job_for_tags_is_handed_to_who_has_them(store: Store, heard: list[Claim]) -> None:
    await register(store, "w", slots=1, lease_ms=15000, tags='["gpu"]')
    queued = await submit(store, tags=["gpu"])  # the first makes the set known
    (found,) = await claim(store, Holder("w", "r1"), "gpu")
    assert found.job_id == queued
    await store.call(attempts.settle(Holder("w", "r1"), queued, 1, "completed", exit_code=0))
    sets = await fleet.tag_sets(store)
    step = attempts.claim(Holder("w", "r1"), sets, ["gpu"], most=1, startable=1, lease_s=15, hears=True)
    assert await store.call(step) == ([], [])
    job_id = await submit(store, tags=["gpu"])
    await arrived(heard)
    assert heard[0].job_id == job_id


async def test_a_drained_worker_is_handed_nothing(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    await idle(store)
    client.hset("h:worker:w", "drain", "1")
    job_id = await submit(store)
    assert client.lrange(QUEUE, 0, -1) == [job_id]
    assert heard == []


async def test_the_next_heartbeat_gives_back_what_was_not_heard_of(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    holder = await idle(store)
    job_id = await submit(store)

    async def beat(*held: tuple[str, int]) -> attempts.Beaten:
        status = {"running": 0, "current_job": ""}
        return await store.call(attempts.beat(holder, held, lease_s=15, rq_ttl_s=60, status=status))

    await beat()
    assert client.hget(f"h:job:{job_id}", "state") == "running"  # the word may be on its way
    client.hset(f"h:job:{job_id}", "started", store.now_ms() - 5000)
    await beat((job_id, 1))
    assert client.hget(f"h:job:{job_id}", "state") == "running"  # it is held
    await beat()
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths) == (State.QUEUED, 0)
    assert client.lrange(QUEUE, 0, -1) == [job_id]
    assert not await store.call(attempts.begin(holder, job_id, 1))  # should it hear of it after all
    (again,) = await claim(store, holder)
    assert again.attempt == 2


async def test_a_worker_that_dies_with_what_it_was_handed_costs_the_job_no_life(
    store: Store, heard: list[Claim]
) -> None:
    await idle(store)
    job_id = await submit(store)
    await register(store, "w", "r2", proof="r1")
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths) == (State.QUEUED, 0)


async def test_what_its_successor_is_handed_is_not_for_a_worker_that_still_listens(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    await idle(store)  # r1, which goes on to listen
    await register(store, "w", "r2", proof="r1", lease_ms=15000)
    step = attempts.claim(Holder("w", "r2"), [], [], most=1, startable=1, lease_s=15, hears=True)
    assert await store.call(step) == ([], [])
    with client.pubsub() as told:
        told.subscribe("h:offer:w")
        job_id = await submit(store)
        words = [each["data"] for _ in range(2) if (each := told.get_message(timeout=20))]
    assert words[-1].partition("\n")[0].endswith(" r2")
    assert (await jobs.get(store, job_id)).worker == "w"
    assert attempts.offered(Holder("w", "r2"), words[-1].encode()) is not None
    assert attempts.offered(Holder("w", "r1"), words[-1].encode()) is None
    assert heard == []


async def test_what_an_earlier_registration_served_is_not_handed_to_the_next(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    await idle(store)
    await register(
        store, "w", "r2", proof="r1", lease_ms=15000, tags='["gpu"]'
    )  # it has not asked for work yet
    job_id = await submit(store)
    assert client.lrange(QUEUE, 0, -1) == [job_id]


async def test_a_silent_worker_is_handed_no_more_than_it_was_until_its_lease(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    """Else each job would keep it from being taken for gone, and the next would be lost to it for a lease."""
    await idle(store)
    client.hset("h:worker:w", "seen", store.now_ms() - 15_000)
    job_id = await submit(store)
    assert client.lrange(QUEUE, 0, -1) == [job_id]
    assert heard == []


async def test_what_was_not_heard_of_and_shall_be_cancelled_does_not_start_again(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    holder = await idle(store)
    job_id = await submit(store)
    assert await jobs.cancel(store, "user:u", job_id) is State.RUNNING
    client.hset(f"h:job:{job_id}", "started", store.now_ms() - 5000)
    status = {"running": 0, "current_job": ""}
    await store.call(attempts.beat(holder, (), lease_s=15, rq_ttl_s=60, status=status))
    assert (await jobs.get(store, job_id)).state is State.CANCELLED
    assert client.llen(QUEUE) == client.zcard("h:leases") == client.llen("h:proc:w") == 0


async def test_what_may_run_but_once_and_found_its_slot_taken_by_what_was_handed_over_waits_again(
    store: Store, heard: list[Claim]
) -> None:
    holder = await idle(store)
    await submit(store)  # handed over, while a claim for the same slot is on its way
    once = await submit(store, at_most_once=True)
    (found,) = await claim(store, holder)
    assert found.job_id == once
    step = attempts.settle(holder, once, 1, "released", "unstarted")
    assert await store.call(step) == "queued"
    (again,) = await claim(store, holder)
    assert (again.job_id, again.attempt) == (once, 2)
    assert await store.call(attempts.settle(holder, once, 2, "released")) == "failed"  # it may have run


async def test_who_is_ready_is_forgotten_now_and_then_and_queues_are_known_to_rq(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    await idle(store)
    assert 0 < client.ttl("h:ready:jobs.normal") <= 600
    await submit(store)
    assert client.smembers("rq:queues") == {QUEUE}


async def test_a_worker_that_gives_back_unstarted_what_it_was_handed_is_handed_no_more_until_it_asks(
    store: Store, client: redis.Redis, heard: list[Claim]
) -> None:
    holder = await idle(store)
    first = await submit(store)
    assert await store.call(attempts.settle(holder, first, 1, "released", "unstarted")) == "queued"
    other = await register(store, "other")
    assert [each.job_id for each in await claim(store, other)] == [first]
    second = await submit(store)
    assert client.lrange(QUEUE, 0, -1) == [second]
    await settle(store, holder, (await claim(store, holder))[0])
    await idle_again(store, holder)
    third = await submit(store)
    await arrived(heard, 2)
    assert [each.job_id for each in heard] == [first, third]
