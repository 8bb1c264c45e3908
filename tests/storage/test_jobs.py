import asyncio
import itertools
import json

import pytest
import redis
from engine import claim, register, settle, submit, submitted
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from storage import attempts, batches, jobs, schedules, upkeep
from storage.calls import command, script
from storage.errors import Conflict, Invalid, NotFound, Unprocessable
from storage.jobs import Backoff, Order, State
from storage.store import Store


def events(redis_client: redis.Redis, name: str) -> list[dict[bytes, bytes]]:
    return [entry for _, entry in redis_client.xrange("h:events") if entry[b"e"] == name.encode()]


async def promote(store: Store, redis_client: redis.Redis, job_id: str) -> None:
    """Let a delayed job's time come."""
    redis_client.zadd("h:delayed", {job_id: 1})
    await store.call(script("promote", 100))


async def test_a_submit_writes_record_queue_event_and_audit(store: Store, redis_client: redis.Redis) -> None:
    promised = await submitted(
        store, "make test", name="Build", timeout_s=7, tags=["b", "a"], metadata={"pr": 5}
    )
    job = await jobs.get(store, promised.id)
    assert (job.state, job.actor, job.queue, job.attempt) == ("queued", "user:u", "jobs.a+b.normal", 0)
    assert job.spec["command"] == "make test"
    assert job.spec["metadata"] == {"pr": 5}
    assert job.created_ms == promised.created_ms
    assert redis_client.lrange("rq:queue:jobs.a+b.normal", 0, -1) == [promised.id.encode()]
    assert [each[b"id"] for each in events(redis_client, "job.queued")] == [promised.id.encode()]
    assert b"job.submit" in redis_client.xrange("h:audit")[-1][1][b"line"]


async def test_rq_reads_the_queue_and_the_job_as_its_own(store: Store, redis_client: redis.Redis) -> None:
    job_id = await submit(store, "make", name="Build", timeout_s=7)
    queue = Queue("jobs.normal", connection=redis_client, serializer=JSONSerializer)
    assert queue.get_job_ids() == [job_id]
    job = RqJob.fetch(job_id, connection=redis_client, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.description, job.timeout) == (
        "workers.tasks.command",
        [job_id],
        "Build",
        7,
    )
    assert job.get_status() == "queued"


async def test_the_same_key_and_body_make_one_job_and_one_answer(
    store: Store, redis_client: redis.Redis
) -> None:
    answers = await asyncio.gather(*(submitted(store, "make", "k") for _ in range(50)))
    assert len({answer.id for answer in answers}) == 1
    assert len(set(answers)) == 1
    assert redis_client.zcard("h:jobs") == 1
    # Also once the job has left Redis.
    redis_client.delete(f"h:job:{answers[0].id}")
    assert await submitted(store, "make", "k") == answers[0]


async def test_the_same_key_with_another_body_is_refused(store: Store, redis_client: redis.Redis) -> None:
    await submitted(store, "make", "k")
    with pytest.raises(Unprocessable):
        await submitted(store, "make test", "k")
    await jobs.submit(store, "user:other", Order(command="make test"), idempotency_key="k")
    assert redis_client.zcard("h:jobs") == 2


async def test_an_unknown_or_failed_dependency_is_refused_and_queues_nothing(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, failed = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, "failed")
    for parent in ("job-" + "0" * 20, failed):
        with pytest.raises(Invalid):
            await submitted(store, "next", "k", depends_on=[parent])
    assert redis_client.zcard("h:jobs") == 1
    assert not redis_client.keys("h:idem:*")


async def test_a_file_that_is_not_there_is_refused_and_one_that_is_needed_is_marked(
    store: Store, redis_client: redis.Redis
) -> None:
    redis_client.hset("h:file:file-1", "state", "pending")
    for file in ("file-1", "file-2"):
        with pytest.raises(Invalid, match="fileUrl: File not found"):
            await submit(store, file=file)
    assert redis_client.zcard("h:jobs") == 0
    redis_client.hset("h:file:file-1", "state", "ready")
    job_id = await submit(store, file="file-1")
    assert redis_client.smembers("h:file:file-1:jobs") == {job_id.encode()}


async def test_a_job_waits_for_what_it_depends_on(store: Store) -> None:
    holder = await register(store)
    parents = [await submit(store), await submit(store)]
    child = await submit(store, depends_on=parents)
    first, second = await claim(store, holder, most=5)
    await settle(store, holder, first)
    assert (await jobs.get(store, child)).wait == "dependency"
    await settle(store, holder, second)
    assert [each.job_id for each in await claim(store, holder)] == [child]


async def test_a_job_whose_parents_are_done_does_not_wait(store: Store) -> None:
    holder, parent = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed)
    assert (await jobs.get(store, await submit(store, depends_on=[parent]))).wait is None


async def test_a_failure_cancels_all_that_depends_on_it_each_once(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, root = await register(store), await submit(store)
    left, right = await submit(store, depends_on=[root]), await submit(store, depends_on=[root])
    bottom = await submit(store, depends_on=[root, left, right])
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, "failed")
    for each in (left, right, bottom):
        job = await jobs.get(store, each)
        assert (job.state, job.reason) == ("cancelled", "dependency")
    ended = [entry[b"id"].decode() for entry in events(redis_client, "job.completed")]
    assert sorted(ended) == sorted([root, left, right, bottom])


async def test_a_chain_of_dependents_is_cancelled_to_its_end(store: Store) -> None:
    chain = [await submit(store)]
    for _ in range(30):
        chain.append(await submit(store, depends_on=[chain[-1]]))
    await jobs.cancel(store, "user:u", chain[0])
    assert {(await jobs.get(store, each)).state for each in chain} == {State.CANCELLED}


@pytest.mark.parametrize(("outcome", "state"), [("completed", "queued"), ("failed", "cancelled")])
async def test_more_dependents_than_one_step_sees_to_are_seen_to_in_several(
    store: Store, redis_client: redis.Redis, outcome: str, state: str
) -> None:
    holder, parent = await register(store), await submit(store)
    other = await submit(store)
    made = await batches.submit(store, "user:u", [Order(command="x", depends_on=[parent])] * 1000)
    children = list(made.job_ids)
    grandchildren = [await submit(store, depends_on=[each, other]) for each in children[:20]]
    claimed, _ = await claim(store, holder, most=2)
    await settle(store, holder, claimed, outcome)
    assert redis_client.zcard("h:dependents") > 0
    assert 400 <= redis_client.scard(f"h:children:{parent}") <= 500
    steps = 1
    while await store.call(upkeep.dependents()):
        steps += 1
    assert steps <= 4
    assert {(await jobs.get(store, each)).state for each in children} == {state}
    assert {(await jobs.get(store, each)).wait for each in children} == {None}
    assert redis_client.exists("h:dependents", f"h:children:{parent}") == 0
    waits_on = outcome == "completed"
    assert {(await jobs.get(store, each)).wait for each in grandchildren} == {
        "dependency" if waits_on else None
    }
    assert (
        redis_client.scard(f"h:children:{other}") == 20
    )  # which is to find out by itself whose end came before
    ended = [entry[b"id"].decode() for entry in events(redis_client, "job.completed")]
    assert len(ended) == len(set(ended)) == 1 + (0 if waits_on else 1020)


async def test_dependents_that_are_yet_to_be_seen_to_can_be_cancelled_meanwhile(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, parent = await register(store), await submit(store)
    await batches.submit(store, "user:u", [Order(command="x", depends_on=[parent])] * 600)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, "failed")
    left = redis_client.srandmember(f"h:children:{parent}").decode()
    await jobs.cancel(store, "user:u", left)
    while await store.call(upkeep.dependents()):
        pass
    assert (await jobs.get(store, left)).reason == "cancelled"
    assert redis_client.zcard("h:jobs:cancelled") == 600


async def test_a_delayed_job_waits_for_its_time(store: Store, redis_client: redis.Redis) -> None:
    holder, job_id = await register(store), await submit(store, delay_s=60)
    job = await jobs.get(store, job_id)
    assert (job.wait, job.estimated_wait_s) == ("delay", None)
    assert 59_000 <= (job.not_before_ms or 0) - job.created_ms <= 61_000
    assert await claim(store, holder) == []
    await promote(store, redis_client, job_id)
    assert [each.job_id for each in await claim(store, holder)] == [job_id]


async def test_a_time_that_is_past_does_not_delay(store: Store) -> None:
    assert (await jobs.get(store, await submit(store, not_before_ms=1000))).wait is None


async def test_a_dependent_job_with_a_time_waits_for_both(store: Store, redis_client: redis.Redis) -> None:
    holder, parent = await register(store), await submit(store)
    child = await submit(store, depends_on=[parent], delay_s=60)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed)
    assert (await jobs.get(store, child)).wait == "delay"
    await promote(store, redis_client, child)
    assert (await jobs.get(store, child)).wait is None


async def test_one_job_at_a_time_has_a_concurrency_key(store: Store) -> None:
    holder = await register(store)
    ids = [await submit(store, concurrency_key="db") for _ in range(3)]
    other = await submit(store)
    taken = await claim(store, holder, most=5)
    assert [each.job_id for each in taken] == [ids[0], other]
    assert (await jobs.get(store, ids[1])).wait == "key"
    for expected in (ids[1], ids[2]):
        await settle(store, holder, taken[0])
        taken = await claim(store, holder, most=5)
        assert [each.job_id for each in taken] == [expected]


async def test_a_cancelled_job_that_waited_for_a_key_does_not_hold_it(store: Store) -> None:
    holder = await register(store)
    ids = [await submit(store, concurrency_key="db") for _ in range(3)]
    (first,) = await claim(store, holder, most=5)
    await jobs.cancel(store, "user:u", ids[1])
    await settle(store, holder, first)
    assert [each.job_id for each in await claim(store, holder, most=5)] == [ids[2]]


async def test_a_key_does_not_stay_with_a_job_that_was_cancelled_before_it_could_take_it(
    store: Store,
) -> None:
    holder = await register(store)
    ids = [await submit(store, concurrency_key="db") for _ in range(3)]
    (first,) = await claim(store, holder, most=5)
    await settle(store, holder, first)
    await jobs.cancel(store, "user:u", ids[1])
    assert [each.job_id for each in await claim(store, holder, most=5)] == [ids[2]]


async def test_a_queued_job_is_cancelled_at_once(store: Store, redis_client: redis.Redis) -> None:
    holder, job_id = await register(store), await submit(store)
    assert await jobs.cancel(store, "user:u", job_id) is State.CANCELLED
    assert await jobs.cancel(store, "user:u", job_id) is State.CANCELLED
    assert redis_client.llen("rq:queue:jobs.normal") == 0
    assert await claim(store, holder) == []
    assert len(events(redis_client, "job.completed")) == 1


@pytest.mark.parametrize("wait", [{"delay_s": 60}, {"depends_on": 1}])
async def test_a_waiting_job_is_cancelled_wherever_it_waits(
    store: Store, redis_client: redis.Redis, wait: dict[str, object]
) -> None:
    if "depends_on" in wait:
        wait = {"depends_on": [await submit(store)]}
    job_id = await submit(store, **wait)
    await jobs.cancel(store, "user:u", job_id)
    assert redis_client.zcard("h:delayed") == redis_client.scard("h:parked") == 0
    assert (
        redis_client.zcard("rq:deferred:jobs.normal") == redis_client.zcard("rq:scheduled:jobs.normal") == 0
    )


async def test_a_running_job_is_asked_to_end_and_its_worker_told(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    with redis_client.pubsub() as told:
        told.subscribe("h:control:w")
        told.get_message(timeout=1)
        assert await jobs.cancel(store, "user:u", job_id) is State.RUNNING
        message = told.get_message(timeout=1)
    assert message
    assert message["data"] == f"cancel {job_id} 1".encode()
    assert (await jobs.get(store, job_id)).cancel_requested
    assert await settle(store, holder, claimed, "failed") == "cancelled"
    assert redis_client.zcard("h:cancels") == 0


async def test_what_has_ended_cannot_be_cancelled(store: Store) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed)
    with pytest.raises(Conflict, match="already completed"):
        await jobs.cancel(store, "user:u", job_id)
    with pytest.raises(NotFound):
        await jobs.cancel(store, "user:u", "job-" + "0" * 20)


@pytest.mark.parametrize("job_id", ["", "x", "job-", "../h:users", "job-" + "a" * 19, "job-" + "u" * 21])
async def test_what_cannot_be_an_id_is_not_looked_up(store: Store, job_id: str) -> None:
    with pytest.raises(NotFound):
        await jobs.get(store, job_id)


async def test_a_retry_is_a_new_job_with_the_same_order(store: Store) -> None:
    order = Order(argv=["make", "x"], env={"A": "1"}, tags=["t"], timeout_s=5, priority="high", name="n",
                  artifacts=["*.txt"], metadata={"a": [1]}, at_most_once=True, concurrency_key="c", retries=1,
                  backoff=Backoff(3, 4, 5))  # fmt: skip
    first = (await jobs.submit(store, "user:u", order)).id
    with pytest.raises(Conflict):
        await jobs.retry(store, "user:v", first)
    await jobs.cancel(store, "user:u", first)
    again = await jobs.get(store, (await jobs.retry(store, "user:v", first)).id)
    assert (again.retry_of, again.actor, again.state) == (first, "user:v", "queued")
    assert jobs.order_of(store, again) == order
    assert again.queue == "jobs.t.high"


async def test_what_may_hold_secrets_is_not_legible_in_redis(store: Store) -> None:
    webhook = {"url": "https://example.org/", "secret": "canary-hook"}
    order = Order(command="true", env={"TOKEN": "canary-env"}, webhook=webhook)
    job_id = (await jobs.submit(store, "user:u", order)).id
    daily = schedules.Recurrence("0 3 * * *")
    await schedules.create(store, "user:u", order, daily)
    await store.call(command("CONFIG", "SET", "rdbcompression", "no"))  # so that a dump shows what is there
    for key in await store.call(command("KEYS", "*")):
        dumped = await store.call(command("DUMP", key))
        assert b"canary" not in dumped, key
    (claimed,) = await claim(store, await register(store))
    assert (claimed.job_id, claimed.read_spec(store.seal)["env"]) == (job_id, {"TOKEN": "canary-env"})


async def test_a_retry_is_told_to_the_same_webhook(store: Store) -> None:
    webhook = {"url": "https://example.org/", "secret": "s"}
    first = await submit(store, webhook=webhook)
    await jobs.cancel(store, "user:u", first)
    again = await jobs.get(store, (await jobs.retry(store, "user:u", first)).id)
    sealed = again.sealed_webhook or ""
    assert json.loads(store.seal.decrypt("webhook", sealed, bound_to=again.id)) == webhook


async def test_a_page_holds_what_matches_every_filter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()  # jobs of one millisecond are in the order of their ids, which end by chance
    monkeypatch.setattr(store, "new_id", lambda kind: f"{kind}-{next(numbers):020d}")
    holder = await register(store)
    ids = [await submit(store, tags=["even"] if number % 2 == 0 else ["odd"]) for number in range(6)]
    done, running = await claim(store, holder, "even", most=2)
    await settle(store, holder, done)
    found, total = await jobs.page(store, limit=2, offset=1)
    assert ([job.id for job in found], total) == ([ids[4], ids[3]], 6)
    found, total = await jobs.page(store, limit=9, offset=0, newest_first=False)
    assert [job.id for job in found] == ids
    for filters, expected in (
        ({"state": "completed"}, [done.job_id]),
        ({"worker": "w"}, [running.job_id, done.job_id]),
        ({"worker": "w", "state": "running"}, [running.job_id]),
        ({"tags": ["even"], "state": "queued"}, [ids[4]]),
        ({"tags": ["even", "odd"]}, []),
        ({"state": "failed"}, []),
        ({"order_by": "completedAt"}, [done.job_id]),
        ({"order_by": "completedAt", "tags": ["odd"]}, []),
    ):
        found, total = await jobs.page(store, limit=9, offset=0, **filters)
        assert ([job.id for job in found], total) == (expected, len(expected)), filters
    assert await jobs.page(store, limit=0, offset=0) == ([], 6)


async def test_a_job_that_went_back_into_its_queue_is_nobodys(store: Store) -> None:
    holder = await register(store)
    await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, "released")
    assert (await jobs.page(store, limit=9, offset=0, worker="w"))[1] == 0


async def test_a_job_without_a_queue_entry_is_put_back_once(store: Store, redis_client: redis.Redis) -> None:
    job_id, parked = await submit(store), await submit(store, delay_s=60)
    redis_client.delete("rq:queue:jobs.normal")
    assert await store.call(script("restore", job_id, parked, "job-none")) == [job_id.encode()]
    assert await store.call(script("restore", job_id)) == []
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1) == [job_id.encode()]


async def test_an_archived_job_leaves_nothing_behind_in_redis(
    store: Store, redis_client: redis.Redis
) -> None:
    holder = await register(store)
    redis_client.hset("h:file:file-1", "state", "ready")
    job_id = await submit(store, tags=["t"], file="file-1")
    assert await store.call(script("archive", job_id)) == 0, "it has not ended"
    (claimed,) = await claim(store, holder, "t")
    await store.call(attempts.attach(holder, job_id, 1, "artifacts", "a.txt", {"size": 1}))
    await settle(store, holder, claimed)
    assert await store.call(script("archive", job_id)) == 1
    left = [key for key in redis_client.scan_iter() if job_id.encode() in key]
    assert left == [b"rq:results:" + job_id.encode()], "which expires by itself"
    for index in ("h:jobs", "h:jobs:completed", "h:ended", "h:jobs:worker:w", "h:jobs:tag:t"):
        assert redis_client.zscore(index, job_id) is None, index
    assert redis_client.smembers("h:file:file-1:jobs") == set()
