import pytest
import redis
from engine import claim, reap, register, settle, submit

from storage import attempts, fleet, jobs
from storage.errors import Conflict, NotFound
from storage.jobs import Order
from storage.store import Store


async def test_a_registered_worker_is_known_with_its_facts(store: Store) -> None:
    await register(
        store, "a", tags='["x","y"]', slots=3, hostname="h", cpu_count=8, memory_mb=512, metadata='{"o":1}'
    )
    worker = await store.call(fleet.fetch("a"))
    assert (worker.status, worker.tags, worker.slots, worker.free_slots) == ("online", ("x", "y"), 3, 3)
    assert (worker.hostname, worker.cpu_count, worker.memory_mb, worker.metadata) == ("h", 8, 512, {"o": 1})
    assert [each.id for each in await fleet.workers(store)] == ["a"]
    with pytest.raises(NotFound):
        await store.call(fleet.fetch("b"))


async def test_a_record_that_somebody_wrote_says_what_can_be_read_of_it(
    store: Store, redis_client: redis.Redis
) -> None:
    await register(store, tags='["x"]', slots=3, hostname="h")
    for nonsense in ("nonsense", "[1]", '{"a":1}', "-1", "1e9", "9" * 40):
        names = ("tags", "metadata", "slots", "cpu_count", "seen", "offline_at", "pid")
        redis_client.hset("h:worker:w", mapping=dict.fromkeys(names, nonsense))
        (worker,) = await fleet.workers(store)
        assert (worker.hostname, worker.tags, worker.slots, worker.cpu_count) == ("h", (), 1, None)
        assert worker.metadata == ({"a": 1} if nonsense == '{"a":1}' else {})


async def test_a_name_is_taken_while_its_worker_is_online(store: Store, redis_client: redis.Redis) -> None:
    await register(store, hostname="first", version="1")
    with pytest.raises(Conflict, match="Worker already registered"):
        await register(store, registration="r2")
    with pytest.raises(Conflict):
        await register(store, registration="r2", proof="wrong")
    await register(store, registration="r2", proof="r1", hostname="second")
    worker = await store.call(fleet.fetch("w"))
    assert (worker.hostname, worker.version) == ("second", None), "the facts of the first are gone"
    redis_client.hset("h:worker:w", "seen", 1)
    await register(store, registration="r3")  # the second was silent for too long
    await store.call(fleet.depart("w", "r3", reason="stopped"))
    await register(store, registration="r4")


async def test_an_agent_takes_no_nodes_name_until_that_is_unregistered(store: Store) -> None:
    await register(store, kind="worker")
    await store.call(fleet.depart("w", "r1", reason="stopped"))
    with pytest.raises(Conflict, match="'w' is a node"):
        await register(store, registration="r2", kind="agent")
    assert (await store.call(fleet.fetch("w"))).kind == "worker"
    await register(store, registration="r3", kind="worker")
    await store.call(fleet.depart("w", reason="unregistered", forget=True))
    await register(store, registration="r4", kind="agent")
    await store.call(fleet.depart("w", "r4", reason="stopped"))
    await register(store, registration="r5", kind="worker")  # which comes to Redis by itself


async def test_a_silent_agent_at_work_keeps_its_name_and_its_job(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store, kind="agent"), await submit(store, timeout_s=900)
    (claimed,) = await claim(store, holder, lease_s=0)
    redis_client.hset("h:worker:w", "seen", 1)
    redis_client.zadd("h:workers:seen", {"w": 1})
    seconds, _ = redis_client.time()
    redis_client.set("h:reaper:last", seconds * 1000)
    assert (await reap(store))[3] == []
    with pytest.raises(Conflict):
        await register(store, registration="r2")
    assert await settle(store, holder, claimed) == "completed"
    redis_client.zadd("h:workers:seen", {"w": 1})
    assert (await reap(store))[3] == [b"w"]
    await register(store, registration="r2")
    assert (await jobs.get(store, job_id)).state == "completed"


async def test_what_an_earlier_registration_held_goes_back(store: Store, redis_client: redis.Redis) -> None:
    holder, job_id = await register(store), await submit(store)
    await claim(store, holder)
    await register(store, registration="r2", proof="r1")
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths, job.worker) == ("queued", 1, None)
    assert redis_client.llen("h:proc:w") == 0


@pytest.mark.parametrize("forget", [False, True])
async def test_a_worker_that_leaves_gives_back_what_it_holds(
    store: Store, redis_client: redis.Redis, forget: bool
) -> None:
    holder, job_id = await register(store), await submit(store)
    await claim(store, holder)
    with pytest.raises(Conflict):
        await store.call(fleet.depart("w", "other", reason="stopped"))
    await store.call(fleet.depart("w", reason="stopped", forget=forget, actor="user:u" if forget else ""))
    assert (await jobs.get(store, job_id)).state == "queued"
    if forget:
        with pytest.raises(NotFound):
            await store.call(fleet.fetch("w"))
        with pytest.raises(attempts.Unregistered):
            await claim(store, holder)
        with pytest.raises(NotFound):
            await store.call(fleet.depart("w", reason="again"))
    else:
        worker = await store.call(fleet.fetch("w"))
        assert (worker.status, worker.offline_reason, worker.free_slots) == ("offline", "stopped", 0)


async def test_a_worker_that_was_only_silent_comes_back_with_its_next_call(
    store: Store, redis_client: redis.Redis
) -> None:
    holder = await register(store)
    seconds, _ = redis_client.time()
    for call in (
        attempts.beat(holder, [], lease_s=15, rq_ttl_s=0, status={}),
        attempts.hold(holder, lease_s=15),
    ):
        redis_client.set("h:reaper:last", seconds * 1000)
        redis_client.zadd("h:workers:seen", {"w": 1})
        assert (await reap(store))[3] == [b"w"]
        worker = await store.call(fleet.fetch("w"))
        assert (worker.status, worker.offline_reason) == ("offline", "silent")
        await store.call(call)
        worker = await store.call(fleet.fetch("w"))
        assert (worker.status, worker.offline_ms, worker.offline_reason) == ("online", None, None)
        assert redis_client.xrevrange("h:events", count=1)[0][1] == {b"e": b"worker.online", b"w": b"w"}


async def test_a_draining_worker_is_given_nothing(store: Store, redis_client: redis.Redis) -> None:
    holder, _ = await register(store), await submit(store)
    redis_client.hset("h:worker:w", "drain", "1")
    assert await claim(store, holder) == []
    assert (await store.call(fleet.fetch("w"))).free_slots == 0


async def test_an_agent_runs_what_it_holds_and_a_worker_what_it_says(
    store: Store, redis_client: redis.Redis
) -> None:
    agent, worker = await register(store, "a", kind="agent", slots=2), await register(store, "b", slots=2)
    ids = [await submit(store) for _ in range(2)]
    await claim(store, agent)
    await claim(store, worker)
    redis_client.hset("h:worker:b", "running", 2)
    first, second = await fleet.workers(store)
    assert (first.running, first.current_job, first.free_slots) == (1, ids[0], 1)
    assert (second.running, second.current_job, second.free_slots) == (2, None, 0)


async def test_the_estimated_wait_comes_from_what_was_observed(
    store: Store, redis_client: redis.Redis
) -> None:
    async def estimate(*tags: str) -> int | None:
        store.cache.clear()
        submitted = await jobs.submit(store, "test", Order(command="true", tags=list(tags)))
        await jobs.cancel(store, "test", submitted.id)
        return submitted.estimated_wait_s

    assert await estimate() is None, "nobody is there"
    holder = await register(store, slots=2)
    assert await estimate() == 0
    assert await estimate("gpu") is None
    redis_client.hset("h:worker:w", "running", 2)
    assert await estimate() is None, "nothing has ended yet"
    job_id = await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed)
    redis_client.hset(f"h:job:{job_id}", mapping={"started": 1000, "ended": 21_000})
    assert await estimate() == 10, "20 s a job, shared by two slots"
    for _ in range(3):
        await submit(store)
    assert await estimate() == 40
    assert (await jobs.get(store, await submit(store))).estimated_wait_s is not None


async def test_a_worker_that_is_drained_takes_no_more_jobs_until_it_may_again(store: Store) -> None:
    holder = await register(store)
    await store.call(fleet.drain("w", on=True, actor="user:t"))
    await submit(store)
    assert await claim(store, holder) == []
    assert (await store.call(fleet.fetch("w"))).free_slots == 0
    holder = await register(store, registration="r2", proof="r1")
    assert await claim(store, holder) == [], "it stays so over its restarts"
    await store.call(fleet.drain("w", on=False, actor="user:t"))
    assert len(await claim(store, holder)) == 1
    with pytest.raises(NotFound):
        await store.call(fleet.drain("nobody", on=True, actor="user:t"))
