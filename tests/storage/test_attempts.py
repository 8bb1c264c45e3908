import asyncio
from typing import Any

import pytest
import redis
from engine import claim, output, reap, register, settle, submit

from storage import attempts, batches, jobs
from storage.attempts import Held, Holder, Unregistered
from storage.errors import NotFound, Stale
from storage.jobs import Backoff, Order
from storage.seal import Forged
from storage.store import Store


def run_out(redis_client: redis.Redis, job_id: str) -> None:
    """Let a lease end in the past, as it does when nobody renews it."""
    redis_client.zadd("h:leases", {job_id: 1})


def no_outage(redis_client: redis.Redis) -> None:
    """Let the reaper believe that it looked a moment ago."""
    seconds, _ = redis_client.time()
    redis_client.set("h:reaper:last", seconds * 1000)


async def test_a_claim_moves_the_job_to_its_worker_under_a_lease(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store, "make")
    (claimed,) = await claim(store, holder)
    assert (claimed.job_id, claimed.attempt, claimed.lines) == (job_id, 1, 0)
    assert claimed.read_spec(store.seal)["command"] == "make"
    job = await jobs.get(store, job_id)
    assert (job.state, job.worker, job.attempt) == ("running", "w", 1)
    seconds, _ = redis_client.time()
    assert 10_000 < redis_client.zscore("h:leases", job_id) - seconds * 1000 < 17_000
    assert redis_client.lrange("h:proc:w", 0, -1) == [job_id.encode()]
    assert redis_client.llen("rq:queue:jobs.normal") == 0
    assert redis_client.hget(f"rq:job:{job_id}", "status") == b"started"
    assert redis_client.zscore("h:jobs:running", job_id)
    assert redis_client.zscore("h:jobs:queued", job_id) is None


async def test_urgent_jobs_are_taken_first_and_equals_in_their_order(store: Store) -> None:
    holder = await register(store)
    low, first, second, high = [
        await submit(store, priority=priority) for priority in ("low", "normal", "normal", "high")
    ]
    assert [each.job_id for each in await claim(store, holder, most=4)] == [high, first, second, low]


async def test_a_job_with_tags_goes_only_to_a_worker_that_has_them_all(store: Store) -> None:
    holder, job_id = await register(store), await submit(store, tags=["linux", "gpu"])
    assert await claim(store, holder, "gpu") == []
    assert [each.job_id for each in await claim(store, holder, "arm", "gpu", "linux")] == [job_id]


async def test_two_workers_never_get_the_same_job(store: Store) -> None:
    holders = [await register(store, f"w{number}") for number in range(4)]
    ids = {await submit(store) for _ in range(20)}
    taken = await asyncio.gather(*(claim(store, holder, most=7) for holder in holders))
    assert sorted(each.job_id for part in taken for each in part) == sorted(ids)


async def test_what_is_no_job_of_ours_is_refused_aloud(store: Store, redis_client: redis.Redis) -> None:
    holder = await register(store)
    redis_client.rpush("rq:queue:jobs.normal", "evil")
    job_id = await submit(store)
    claims, refused = await store.call(attempts.claim(holder, [], [], most=5, startable=5, lease_s=15))
    assert [each.job_id for each in claims] == [job_id]
    assert refused == ["evil"]
    assert redis_client.hget("rq:job:evil", "status") == b"failed"
    assert any(b"queue.refused" in entry.values() for _, entry in redis_client.xrange("h:events"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("attempt", "x"), ("attempt", "-1"), ("attempt", "9" * 400), ("created", "x"), ("created", ""),
     ("timeout", "1e999"), ("lines", "x"), ("bytes", " 1"), ("attempt", None), ("created", None), ("timeout", None)],
)  # fmt: skip
async def test_a_record_that_somebody_spoilt_ends_alone_and_holds_up_no_other(
    store: Store, redis_client: redis.Redis, field: str, value: str | None
) -> None:
    holder = await register(store)
    first, spoilt, last = [await submit(store) for _ in range(3)]
    dependent = await submit(store, depends_on=[spoilt])
    if value is None:
        redis_client.hdel(f"h:job:{spoilt}", field)
    else:
        redis_client.hset(f"h:job:{spoilt}", field, value)
    # lease 0: the job's own timeout is counted with, as for an agent
    claims, refused = await store.call(attempts.claim(holder, [], [], most=5, startable=5, lease_s=0))
    assert [each.job_id for each in claims] == [first, last]
    assert refused == [spoilt]
    assert redis_client.hmget(f"h:job:{spoilt}", "state", "reason") == [b"failed", b"invalid"]
    assert redis_client.hget(f"h:job:{dependent}", "state") == b"cancelled"
    assert redis_client.lrange("h:proc:w", 0, -1) == [first.encode(), last.encode()]


async def test_what_is_not_even_a_record_holds_up_no_claim(store: Store, redis_client: redis.Redis) -> None:
    holder = await register(store)
    redis_client.set("h:job:evil", "x")
    redis_client.rpush("rq:queue:jobs.normal", "evil")
    bare = await submit(store)
    redis_client.hdel(f"h:job:{bare}", "spec", "sig")
    job_id = await submit(store)
    claims, refused = await store.call(attempts.claim(holder, [], [], most=5, startable=5, lease_s=15))
    assert [each.job_id for each in claims] == [bare, job_id]
    assert refused == ["evil"]
    with pytest.raises(Forged):
        claims[0].read_spec(store.seal)


@pytest.mark.parametrize("field", ["deaths", "created", "attempt", "wait", "backoff", "retries", "failures"])
async def test_a_record_that_is_spoilt_while_it_runs_does_not_stop_the_reaper(
    store: Store, redis_client: redis.Redis, field: str
) -> None:
    holder = await register(store)
    spoilt, other = [await submit(store) for _ in range(2)]
    await claim(store, holder, most=2)
    redis_client.hset(f"h:job:{spoilt}", field, "x")
    for job_id in (spoilt, other):
        run_out(redis_client, job_id)
    no_outage(redis_client)
    _, lost, _, _ = await reap(store)
    assert {spoilt.encode(), other.encode()} == set(lost)
    assert (await jobs.get(store, other)).state == "queued"
    await jobs.cancel(store, "user:u", spoilt)
    assert redis_client.hget(f"h:job:{spoilt}", "state") == b"cancelled"


async def test_a_spec_that_was_altered_or_belongs_to_another_job_is_not_believed(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, one, other = await register(store), await submit(store, "one"), await submit(store, "other")
    redis_client.hset(f"h:job:{one}", "spec", redis_client.hget(f"h:job:{other}", "spec"))
    redis_client.hset(f"h:job:{one}", "sig", redis_client.hget(f"h:job:{other}", "sig"))
    (claimed,) = await claim(store, holder)
    with pytest.raises(Forged):
        claimed.read_spec(store.seal)


async def test_an_earlier_registration_of_a_worker_can_neither_claim_nor_beat(store: Store) -> None:
    old = await register(store)
    await register(store, registration="r2", proof="r1")
    await submit(store)
    with pytest.raises(Unregistered):
        await claim(store, old)
    with pytest.raises(Unregistered):
        await store.call(attempts.beat(old, [], lease_s=15, rq_ttl_s=0, status={}))
    with pytest.raises(Unregistered):
        await store.call(attempts.hold(old, lease_s=15))
    with pytest.raises(Unregistered):
        await claim(store, Holder("nobody", "r"))


@pytest.mark.parametrize(
    "ending",
    [
        ("completed", "completed", None, b"finished"),
        ("failed", "failed", "exit_code", b"failed"),
        ("cancelled", "cancelled", "cancelled", b"canceled"),
    ],
)
async def test_an_attempt_ends_its_job_once(
    store: Store, redis_client: redis.Redis, ending: tuple[str, str, str | None, bytes]
) -> None:
    outcome, state, reason, rq_status = ending
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert await settle(store, holder, claimed, outcome) == state
    job = await jobs.get(store, job_id)
    assert (job.state, job.reason, job.worker) == (state, reason, "w")
    assert job.ended_ms
    assert redis_client.zcard("h:leases") == redis_client.llen("h:proc:w") == 0
    assert redis_client.hget(f"rq:job:{job_id}", "status") == rq_status
    assert redis_client.zscore("h:ended", job_id)
    # Said again, even with another outcome, nothing changes.
    assert await settle(store, holder, claimed, "failed") == state
    assert (await jobs.get(store, job_id)).reason == reason
    assert sum(b"job.completed" in entry.values() for _, entry in redis_client.xrange("h:events")) == 1


async def test_a_result_for_an_attempt_that_is_over_is_refused(
    store: Store, redis_client: redis.Redis
) -> None:
    one, other, job_id = await register(store, "one"), await register(store, "other"), await submit(store)
    (early,) = await claim(store, one)
    run_out(redis_client, job_id)
    no_outage(redis_client)
    assert (await reap(store))[1] == [job_id.encode()]
    (late,) = await claim(store, other)
    assert late.attempt == 2
    for write in (settle(store, one, early), output(store, one, early, b"x\n")):
        with pytest.raises(Stale):
            await write
    assert await settle(store, other, late) == "completed"


async def test_a_worker_cannot_write_to_a_job_that_it_does_not_hold(store: Store) -> None:
    one, other, job_id = await register(store, "one"), await register(store, "other"), await submit(store)
    await claim(store, one)
    for attempt in (None, 1):
        for step in (
            attempts.settle(other, job_id, attempt, "completed", "", 0),
            attempts.progress(other, job_id, attempt, 5),
            attempts.attach(other, job_id, attempt, "artifacts", "a", {}),
        ):
            with pytest.raises(Stale):
                await store.call(step)
    with pytest.raises(NotFound):
        await store.call(attempts.settle(other, "job-none", None, "completed", "", 0))
    assert (await jobs.get(store, job_id)).state == "running"


async def test_a_write_without_an_attempt_counts_for_the_one_that_is_held(store: Store) -> None:
    holder, job_id = await register(store), await submit(store)
    await claim(store, holder)
    await store.call(attempts.progress(holder, job_id, None, 45))
    assert (await jobs.get(store, job_id)).progress == 45
    assert await store.call(attempts.settle(holder, job_id, None, "completed", "", 0)) == "completed"
    assert await store.call(attempts.settle(holder, job_id, None, "completed", "", 0)) == "completed"


async def test_a_failure_is_retried_within_its_budget_and_starts_clean(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store, retries=1, backoff=Backoff(0, 2, 1))
    (claimed,) = await claim(store, holder)
    await store.call(attempts.progress(holder, job_id, 1, 60))
    assert await settle(store, holder, claimed, "failed", facts={"message": "it broke"}) == "queued"
    assert await settle(store, holder, claimed, "failed") == "queued", "said twice counts once"
    assert await store.call(attempts.settle(holder, job_id, None, "failed", "exit_code", 1)) == "queued"
    assert (await jobs.get(store, job_id)).failures == 1
    (again,) = await claim(store, holder)
    job = await jobs.get(store, job_id)
    assert (again.attempt, job.exit_code, job.reason, job.progress, job.facts) == (2, None, None, None, {})
    assert await settle(store, holder, again, "failed") == "failed"


async def test_a_retry_waits_for_its_backoff(store: Store, redis_client: redis.Redis) -> None:
    holder, job_id = await register(store), await submit(store, retries=3, backoff=Backoff(100, 2, 1000))
    (claimed,) = await claim(store, holder)
    assert await settle(store, holder, claimed, "failed") == "queued"
    job = await jobs.get(store, job_id)
    seconds, _ = redis_client.time()
    assert job.wait == "backoff"
    assert 79_000 <= (job.not_before_ms or 0) - seconds * 1000 <= 121_000
    assert await claim(store, holder) == []
    assert redis_client.zscore("rq:scheduled:jobs.normal", job_id)


@pytest.mark.parametrize("reason", ["invalid", "integrity", "lost"])
async def test_what_would_fail_again_is_not_retried(store: Store, reason: str) -> None:
    holder = await register(store)
    await submit(store, retries=5)
    (claimed,) = await claim(store, holder)
    assert await settle(store, holder, claimed, "failed", reason=reason) == "failed"


async def test_a_job_that_is_handed_back_is_the_next_to_be_taken(store: Store) -> None:
    holder, job_id = await register(store), await submit(store)
    await submit(store)
    (claimed,) = await claim(store, holder)
    assert await settle(store, holder, claimed, "released") == "queued"
    (again,) = await claim(store, holder)
    assert (again.job_id, again.attempt) == (job_id, 2)
    assert (await jobs.get(store, job_id)).deaths == 0


async def test_a_cancelled_job_that_is_handed_back_does_not_start_again(store: Store) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert await jobs.cancel(store, "user:u", job_id) == "running"
    assert await settle(store, holder, claimed, "released") == "cancelled"


async def test_a_job_that_may_run_once_is_not_handed_back_after_its_start(store: Store) -> None:
    holder = await register(store)
    await submit(store, at_most_once=True)
    (claimed,) = await claim(store, holder)
    assert await settle(store, holder, claimed, "released") == "failed"


async def test_a_claim_says_whose_command_it_is_unless_somebody_else_may_have_written_it(
    store: Store,
) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert claimed.owner == "user:u"
    await settle(store, holder, claimed, "failed")
    await jobs.retry(store, "user:admin", job_id)
    (again,) = await claim(store, holder)
    assert (again.owner, again.attempt) == ("", 1)


async def test_a_job_that_may_run_once_is_not_retried(store: Store) -> None:
    holder = await register(store)
    await submit(store, at_most_once=True, retries=3)
    (claimed,) = await claim(store, holder)
    assert await settle(store, holder, claimed, "failed") == "failed"


async def test_a_job_that_was_only_held_ahead_is_handed_back_even_if_it_may_run_once(store: Store) -> None:
    holder = await register(store)
    await submit(store, at_most_once=True)
    (claimed,) = await claim(store, holder, startable=0)
    assert await settle(store, holder, claimed, "released") == "queued"
    (again,) = await claim(store, holder, startable=0)
    assert await store.call(attempts.begin(holder, again.job_id, again.attempt)) is True
    assert await settle(store, holder, again, "released") == "failed"
    assert await store.call(attempts.begin(holder, again.job_id, again.attempt)) is False


async def test_three_dead_workers_put_a_job_into_quarantine(store: Store, redis_client: redis.Redis) -> None:
    holder, job_id = await register(store), await submit(store)
    for death in (1, 2, 3):
        await claim(store, holder)
        run_out(redis_client, job_id)
        no_outage(redis_client)
        await reap(store)
        assert (await jobs.get(store, job_id)).deaths == death
    job = await jobs.get(store, job_id)
    assert (job.state, job.reason) == ("failed", "quarantined")
    assert redis_client.zscore("h:quarantine", job_id)


async def _claimed_under_a_lease(
    store: Store, redis_client: redis.Redis, *, heard: bool, beats_ms: int, **order: Any
) -> str:
    """Have a worker claim a job and send a heartbeat `beats_ms` later, in which the job is or is not; end the lease."""
    holder, job_id = await register(store, lease_ms=15_000), await submit(store, **order)
    (claimed,) = await claim(store, holder)
    started = int(redis_client.hget(f"h:job:{job_id}", "started"))
    status = {"running": 1, "current_job": job_id}
    held = [(job_id, claimed.attempt)] if heard else []
    earlier = started - beats_ms
    redis_client.hset(f"h:job:{job_id}", "started", earlier)
    redis_client.zadd("h:leases", {job_id: earlier + 15_000})
    await store.call(attempts.beat(holder, held, lease_s=15, rq_ttl_s=60, status=status))
    # all of it lies a while back
    by_ms = 20_000
    redis_client.hincrby(f"h:job:{job_id}", "started", -by_ms)
    redis_client.hincrby("h:worker:w", "seen", -by_ms)
    redis_client.zincrby("h:leases", -by_ms, job_id)
    no_outage(redis_client)
    await reap(store)
    return job_id


async def test_a_job_whose_claim_was_answered_in_vain_counts_no_death(
    store: Store, redis_client: redis.Redis
) -> None:
    job_id = await _claimed_under_a_lease(store, redis_client, heard=False, beats_ms=5000)
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths) == ("queued", 0)
    assert b"not heard of" in redis_client.hget(f"h:job:{job_id}", "try:1")


@pytest.mark.parametrize(
    ("heard", "beats_ms"), [(True, 5000), (False, 1000)], ids=["it was in a heartbeat", "too soon to tell"]
)
async def test_a_job_that_its_worker_may_have_started_counts_a_death(
    store: Store, redis_client: redis.Redis, *, heard: bool, beats_ms: int
) -> None:
    job_id = await _claimed_under_a_lease(store, redis_client, heard=heard, beats_ms=beats_ms)
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths) == ("queued", 1)


async def test_a_job_that_may_run_once_is_lost_though_its_worker_says_nothing_of_it(
    store: Store, redis_client: redis.Redis
) -> None:
    job_id = await _claimed_under_a_lease(store, redis_client, heard=False, beats_ms=5000, at_most_once=True)
    job = await jobs.get(store, job_id)
    assert (job.state, job.reason) == ("failed", "lost"), (
        "a record may have been rolled back to before its end"
    )


async def test_a_job_that_may_run_once_is_lost_with_its_worker(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store, at_most_once=True)
    await claim(store, holder)
    run_out(redis_client, job_id)
    no_outage(redis_client)
    await reap(store)
    job = await jobs.get(store, job_id)
    assert (job.state, job.reason) == ("failed", "lost")


async def test_a_job_that_was_only_held_survives_any_number_of_workers(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store)
    for _ in range(5):
        await claim(store, holder, startable=0)
        run_out(redis_client, job_id)
        no_outage(redis_client)
        await reap(store)
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths) == ("queued", 0)


async def test_after_redis_was_away_everybody_gets_one_full_lease(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store)
    await claim(store, holder)
    run_out(redis_client, job_id)
    redis_client.set("h:reaper:last", 1)
    hold_ms, lost, *_ = await reap(store)
    assert 0 < hold_ms <= 15_000
    assert lost == []
    assert (await reap(store))[1] == [], "the pause lasts, however often it is asked"
    redis_client.delete("h:reaper:hold")
    assert (await reap(store))[1] == [job_id.encode()]


async def test_a_heartbeat_renews_leases_and_tells_what_is_lost_or_cancelled(
    store: Store, redis_client: redis.Redis
) -> None:
    holder = await register(store)
    kept, lost, cancelled = [await submit(store) for _ in range(3)]
    await claim(store, holder, most=3)
    for each in (kept, lost, cancelled):
        run_out(redis_client, each)
    redis_client.hset(f"h:job:{lost}", "attempt", 2)
    await jobs.cancel(store, "user:u", cancelled)
    held = [(each, 1) for each in (kept, lost, cancelled)]
    beaten = await store.call(attempts.beat(holder, held, lease_s=15, rq_ttl_s=0, status={"running": 3}))
    assert (beaten.lost, beaten.cancel) == ([lost], [cancelled])
    assert redis_client.zscore("h:leases", kept) > 1
    assert redis_client.zscore("h:leases", lost) == 1
    assert redis_client.hget("h:worker:w", "running") == b"3"


async def test_a_call_of_an_agent_without_heartbeats_leaves_its_long_lease_alone(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store, kind="agent"), await submit(store, timeout_s=1000)
    await claim(store, holder, lease_s=0)
    lease_ms = redis_client.zscore("h:leases", job_id)
    seconds, _ = redis_client.time()
    assert 1_020_000 < lease_ms - seconds * 1000 < 1_035_000
    assert await store.call(attempts.hold(holder, lease_s=15)) == Held(cancel=[], held=[(job_id, 1)])
    assert redis_client.zscore("h:leases", job_id) == lease_ms
    # Its first heartbeat puts it under the common rule, and from then on every call renews.
    await store.call(attempts.hold(holder, lease_s=15, heartbeat={"status": "online"}))
    assert redis_client.zscore("h:leases", job_id) < lease_ms
    run_out(redis_client, job_id)
    await jobs.cancel(store, "user:u", job_id)
    assert await store.call(attempts.hold(holder, lease_s=15)) == Held(cancel=[job_id], held=[(job_id, 1)])
    assert redis_client.zscore("h:leases", job_id) > 1


async def test_output_is_numbered_and_a_repeated_piece_counts_once(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert (await output(store, holder, claimed, b"a\nb\n", first_line=0)).next_line == 2
    assert (await output(store, holder, claimed, b"a\nb\n", first_line=0)).next_line == 2
    assert (await output(store, holder, claimed, b"c\n", channel="e")).next_line == 3
    entries = [(entry[b"s"], entry[b"d"]) for _, entry in redis_client.xrange(f"h:log:{job_id}")]
    assert entries == [(b"1 0 2 o", b"a\nb\n"), (b"1 2 1 e", b"c\n")]


async def test_output_beyond_the_quota_ends_with_a_visible_mark(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert not (await output(store, holder, claimed, b"x" * 50 + b"\n", limit_bytes=100)).full
    for _ in range(3):
        assert (await output(store, holder, claimed, b"y" * 80 + b"\n", limit_bytes=100)).full
    said = b"".join(entry[b"d"] for _, entry in redis_client.xrange(f"h:log:{job_id}"))
    assert said.count(b"output limit of 100 bytes reached") == 1
    assert b"yy" not in said
    assert (await jobs.get(store, job_id)).facts["truncated"] == "1"


async def test_the_live_log_keeps_the_newest_output_within_its_cap(
    store: Store, redis_client: redis.Redis
) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    for number in range(500):
        await output(store, holder, claimed, b"%03d" % number + b"." * 96 + b"\n", live_bytes=10_000)
    kept = [entry[b"d"] for _, entry in redis_client.xrange(f"h:log:{job_id}")]
    assert kept[-1].startswith(b"499")
    assert 5_000 <= sum(map(len, kept)) <= 11_000
    assert (await jobs.get(store, job_id)).lines == 500


async def test_output_tells_the_worker_to_cancel(store: Store) -> None:
    holder, job_id = await register(store), await submit(store)
    (claimed,) = await claim(store, holder)
    assert not (await output(store, holder, claimed, b"x\n")).cancel
    await jobs.cancel(store, "user:u", job_id)
    assert (await output(store, holder, claimed, b"x\n")).cancel


async def test_a_job_whose_attempt_ended_takes_no_more_output(store: Store) -> None:
    holder = await register(store)
    await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed)
    with pytest.raises(Stale):
        await output(store, holder, claimed, b"late\n")


async def test_a_claim_passes_over_so_many_that_wait_for_a_key_and_has_everybody_go_on(
    store: Store, redis_client: redis.Redis
) -> None:
    waiting = [Order(command="x", concurrency_key="k") for _ in range(250)]
    first, *_, last = (await batches.submit(store, "user:u", [*waiting, Order(command="x")])).job_ids
    holder = await register(store)
    (running,) = await claim(store, holder)
    assert running.job_id == first
    with redis_client.pubsub() as heard:
        heard.subscribe("h:wake")
        heard.get_message(timeout=5)
        for parked in (100, 200):
            assert await claim(store, holder) == []
            assert redis_client.scard("h:parked") == parked
            word = heard.get_message(timeout=5)
            assert word is not None
            assert word["data"] == b"tagsets"
        (claimed,) = await claim(store, holder)
        assert (claimed.job_id, redis_client.scard("h:parked")) == (last, 249)
        assert heard.get_message(timeout=0.05) is None
