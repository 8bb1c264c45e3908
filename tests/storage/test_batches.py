"""Batches: all or none, also when whoever submits dies at any step."""

import asyncio
import struct
from typing import Any

import pytest
import redis
from engine import claim, register, settle, submit
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from storage import batches, jobs
from storage.calls import Call
from storage.errors import Invalid, Unprocessable
from storage.jobs import Order, described
from storage.store import Store

COUNT = 120  # more than two portions


class Dying(Store):
    """A store whose process dies before its n-th step."""

    def __init__(self, store: Store, steps: int) -> None:
        self.__dict__.update(store.__dict__)
        self.steps = steps

    async def call(self, call: Call[Any]) -> Any:
        if self.steps == 0:
            raise asyncio.CancelledError
        self.steps -= 1
        return await super().call(call)


def orders(count: int = COUNT) -> list[Order]:
    return [Order(command=f"echo {number}") for number in range(count)]


def seen(client: redis.Redis) -> list[int]:
    lists = ("h:jobs", "h:jobs:queued")
    return [client.zcard(name) for name in lists] + [client.llen("rq:queue:jobs.normal")]


async def test_a_batch_becomes_its_jobs_in_their_order(store: Store, redis_client: redis.Redis) -> None:
    batch = await batches.submit(store, "user:ada", orders())
    assert seen(redis_client) == [COUNT] * 3
    queued = [each.decode() for each in redis_client.lrange("rq:queue:jobs.normal", 0, -1)]
    assert queued == batch.job_ids
    last = await jobs.get(store, batch.job_ids[-1])
    assert (last.spec["command"], last.actor, last.state) == (f"echo {COUNT - 1}", "user:ada", "queued")
    assert last.created_ms == batch.created_ms
    assert not list(redis_client.scan_iter("h:batch*"))


async def test_each_job_of_a_batch_is_written_as_one_that_comes_alone(
    store: Store, redis_client: redis.Redis
) -> None:
    mixed = [
        Order(command="echo first"),
        Order(command="echo long " + "x" * 2000),
        Order(argv=["echo", "later"], name="Ünï", timeout_s=7),
        Order(command="echo soon", priority="high", env={"A": "b"}, metadata={"pr": 5}),
        Order(command="echo tagged", tags=["gpu"]),
        Order(command="echo last"),
    ]
    batch = await batches.submit(store, "user:ada", mixed)
    drawn = {b"sig", b"created", b"created_at", b"enqueued_at", b"spec", b"data"}
    for order, job_id in zip(mixed, batch.job_ids, strict=True):
        alone = await jobs.submit(store, "user:ada", order)
        kept = [
            {name: value for name, value in redis_client.hgetall(prefix + each).items() if name not in drawn}
            for each in (job_id, alone.id)
            for prefix in ("h:job:", "rq:job:")
        ]
        assert kept[:2] == kept[2:], order
        job, other = await jobs.get(store, job_id), await jobs.get(store, alone.id)
        assert jobs.order_of(store, job) == jobs.order_of(store, other) == order
        made = RqJob.fetch(job_id, connection=redis_client, serializer=JSONSerializer)
        assert (made.func_name, made.args, made.timeout) == (
            "workers.tasks.command",
            [job_id],
            order.timeout_s,
        )
    assert redis_client.lrange("rq:queue:jobs.normal", 0, 2) == [
        batch.job_ids[place].encode() for place in (0, 1, 2)
    ]
    compact = [redis_client.object("encoding", f"h:job:{job_id}") for job_id in batch.job_ids]
    assert compact[0] == compact[-1], (
        "a long command in a batch leaves the records of the others as small as they are"
    )


async def test_jobs_of_a_batch_run_as_others_do(store: Store, redis_client: redis.Redis) -> None:
    holder = await register(store, slots=2)
    await batches.submit(store, "user:ada", orders(2))
    for _ in range(2):
        (claimed,) = await claim(store, holder)
        await settle(store, holder, claimed)
    assert redis_client.zcard("h:jobs:completed") == 2


async def test_whoever_dies_at_whichever_step_leaves_all_jobs_or_none(
    store: Store, redis_client: redis.Redis
) -> None:
    outcomes = []
    for steps in range(20):
        redis_client.flushdb()
        try:
            await batches.submit(Dying(store, steps), "user:ada", orders())
        except asyncio.CancelledError:
            accepted = redis_client.scard("h:batches") == 1
            assert accepted or seen(redis_client) == [0] * 3, "nothing is seen before the batch is accepted"
            assert accepted or all(redis_client.ttl(name) > 0 for name in redis_client.scan_iter("h:batch:*"))
            await batches.unfold_all(store)
            assert seen(redis_client) == [COUNT if accepted else 0] * 3
            outcomes.append(accepted)
        else:
            break
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert sorted(outcomes) == outcomes
    assert len(outcomes) >= 4


async def test_several_may_unfold_one_batch_at_once(store: Store, redis_client: redis.Redis) -> None:
    with pytest.raises(asyncio.CancelledError):
        await batches.submit(Dying(store, 2), "user:ada", orders())
    await asyncio.gather(*(batches.unfold_all(store) for _ in range(4)))
    assert seen(redis_client) == [COUNT] * 3
    assert len(set(redis_client.lrange("rq:queue:jobs.normal", 0, -1))) == COUNT


async def test_a_repeated_key_is_the_same_batch_and_another_body_is_refused(
    store: Store, redis_client: redis.Redis
) -> None:
    first = await batches.submit(store, "user:ada", orders(3), idempotency=("k", "one"))
    assert await batches.submit(store, "user:ada", orders(3), idempotency=("k", "one")) == first
    with pytest.raises(Unprocessable):
        await batches.submit(store, "user:ada", orders(4), idempotency=("k", "two"))
    assert seen(redis_client) == [3] * 3
    assert not list(redis_client.scan_iter("h:batch*"))


async def test_a_repeated_key_finishes_a_batch_whose_first_process_died(
    store: Store, redis_client: redis.Redis
) -> None:
    with pytest.raises(asyncio.CancelledError):
        await batches.submit(Dying(store, 3), "user:ada", orders(), idempotency=("k", "one"))
    batch = await batches.submit(store, "user:ada", orders(), idempotency=("k", "one"))
    assert seen(redis_client) == [COUNT] * 3
    assert {each.decode() for each in redis_client.lrange("rq:queue:jobs.normal", 0, -1)} == set(
        batch.job_ids
    )


async def test_one_bad_dependency_or_file_refuses_them_all_by_its_place(
    store: Store, redis_client: redis.Redis
) -> None:
    for order, field in (
        (Order(command="true", depends_on=["job-" + "0" * 20]), "jobs[2].dependsOn"),
        (Order(command="true", file="file-" + "0" * 20), "jobs[2].fileUrl"),
    ):
        with pytest.raises(Invalid) as caught:
            await batches.submit(store, "user:ada", [*orders(2), order])
        assert list(caught.value.details or {}) == [field]
        assert seen(redis_client) == [0] * 3
        assert not list(redis_client.scan_iter("h:batch*"))


async def test_what_is_out_of_the_ordinary_keeps_its_meaning_in_a_batch(
    store: Store, redis_client: redis.Redis
) -> None:
    parent = await submit(store)
    batch = await batches.submit(
        store,
        "user:ada",
        [
            Order(command="a"),
            Order(command="b", depends_on=[parent]),
            Order(command="c", delay_s=60),
            Order(command="d", tags=["gpu"], env={"A": "b"}, retries=2),
        ],
    )
    found = [await jobs.get(store, job_id) for job_id in batch.job_ids]
    assert [job.wait for job in found] == [None, "dependency", "delay", None]
    assert (found[3].queue, found[3].spec["tags"]) == ("jobs.gpu.normal", ["gpu"])
    assert jobs.order_of(store, found[3]).env == {"A": "b"}


async def test_a_parent_that_failed_since_takes_its_children_with_it(
    store: Store, redis_client: redis.Redis
) -> None:
    parent = await submit(store)
    with pytest.raises(asyncio.CancelledError):
        await batches.submit(Dying(store, 2), "user:ada", [Order(command="b", depends_on=[parent])])
    await jobs.cancel(store, "user:ada", parent)
    await batches.unfold_all(store)
    (child,) = {each.decode() for each in redis_client.zrange("h:jobs:cancelled", 0, -1)} - {parent}
    assert (await jobs.get(store, child)).reason == "dependency"


async def test_a_parent_that_failed_since_is_left_as_it_ended_and_nothing_is_kept_of_who_waited_for_it(
    store: Store, redis_client: redis.Redis
) -> None:
    failed, running = await submit(store), await submit(store)
    holder = await register(store, slots=2)
    first, second = await claim(store, holder, most=2)
    with pytest.raises(asyncio.CancelledError):
        await batches.submit(Dying(store, 2), "user:ada", [Order(command="x", depends_on=[failed, running])])
    await settle(store, holder, first, "failed")
    ended = redis_client.hgetall(f"h:job:{failed}")
    await batches.unfold_all(store)
    assert redis_client.zcard("h:jobs:cancelled") == 1
    assert redis_client.hgetall(f"h:job:{failed}") == ended
    await settle(store, holder, second)
    assert [*redis_client.scan_iter("h:needs:*"), *redis_client.scan_iter("h:children:*")] == []


async def test_a_job_that_is_there_already_is_not_made_anew(store: Store, redis_client: redis.Redis) -> None:
    """As in a database that was rebuilt: of a batch, what was laid ready may have been read before its jobs were."""
    with pytest.raises(asyncio.CancelledError):
        await batches.submit(Dying(store, 2), "user:ada", orders(3))
    (batch_id,) = (each.decode() for each in redis_client.smembers("h:batches"))
    ids = [batches._job_id(batch_id, index) for index in range(3)]
    redis_client.hset(f"h:job:{ids[0]}", "state", "completed")
    redis_client.hset(f"h:job:{ids[2]}", "state", "running")
    await batches.unfold_all(store)
    assert [redis_client.hget(f"h:job:{job_id}", "state") for job_id in ids] == [
        b"completed",
        b"queued",
        b"running",
    ]
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1) == [ids[1].encode()]
    assert redis_client.zrange("h:jobs:queued", 0, -1) == [ids[1].encode()]


async def test_a_batch_that_was_accepted_in_the_older_form_is_made_whole(
    store: Store, redis_client: redis.Redis
) -> None:
    orders = [
        Order(command="echo old"),
        Order(command="echo tagged", tags=["gpu"]),
        Order(command="echo new"),
    ]
    ids = [store.new_id("job") for _ in orders]
    for job_id, order in zip(ids, orders, strict=True):
        made = described(store, order, job_id=job_id)
        words = (
            job_id, made.queue, made.signature, b"what RQ calls", b"%d" % made.timeout_s, made.description, made.spec,
        )  # fmt: skip
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        lengths = struct.pack(">HHHHHHI", *map(len, parts))
        redis_client.rpush("h:batch:batch-old:jobs", lengths + b"".join(parts) + made.packed_options)
    redis_client.hset(
        "h:batch:batch-old",
        mapping={"by": "user:u", "created": "1790000000000", "iso": "2026-09-21T00:00:00.000000Z"},
    )
    redis_client.sadd("h:batches", "batch-old")
    assert await batches.unfold_all(store) == ["batch-old"]
    for job_id, order in zip(ids, orders, strict=True):
        job = await jobs.get(store, job_id)
        assert (job.state, job.actor, job.spec["command"]) == ("queued", "user:u", order.command)
        assert job.queue == ("jobs.gpu.normal" if order.tags else "jobs.normal")
    assert not list(redis_client.scan_iter("h:batch*"))
