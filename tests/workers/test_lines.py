"""The worker's line to Redis: claims without what is forged, heartbeats that outlive a registration."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import orjson
import pytest
import redis
from engine import register, submit
from fake_line import until

from storage import attempts, fleet, jobs
from storage.attempts import Holder, Unregistered
from storage.errors import Stale, Unavailable
from storage.jobs import State
from storage.store import Store
from workers.lines import Offer, RedisLine


class Registrar:
    """Registers anew when it is let."""

    def __init__(self, store: Store) -> None:
        self.store, self.count, self.gate = store, 0, asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Holder:
        self.count += 1
        await self.gate.wait()
        return await register(self.store, "w", f"again-{self.count}", proof="r2")


@pytest.fixture
async def registrar(store: Store) -> Registrar:
    return Registrar(store)


@pytest.fixture
async def line(store: Store, registrar: Registrar) -> AsyncIterator[RedisLine]:
    line = RedisLine(store, await register(store, "w", "r1"), tags=("gpu",), reregister=registrar)
    yield line
    await line.depart("done")


async def test_a_claim_brings_the_spec_and_what_is_held_ahead(line: RedisLine, store: Store) -> None:
    ids = [await submit(store, "make") for _ in range(3)]
    offers = await line.claim(most=3, startable=2)
    assert [offer.job_id for offer in offers] == ids
    assert [offer.held_ahead for offer in offers] == [False, False, True]
    assert offers[0].spec["command"] == "make"
    assert await line.begin(offers[2])


async def test_what_is_forged_is_ended_and_the_rest_is_handed_on(
    line: RedisLine, store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    forged, honest = await submit(store, "make"), await submit(store, "make")
    redis_client.hset(f"h:job:{forged}", "spec", b'{"task":"command","command":"evil"}')
    redis_client.rpush("rq:queue:jobs.normal", "foreign")
    assert [offer.job_id for offer in await line.claim(most=5, startable=5)] == [honest]
    job = await jobs.get(store, forged)
    assert (job.state, job.reason) == ("failed", "invalid")
    assert job.facts["message"]


async def test_a_task_that_this_worker_does_not_know_is_not_run(
    line: RedisLine, store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    job_id = await submit(store)
    spec = orjson.dumps({"task": "os.system", "command": "evil"})
    redis_client.hset(
        f"h:job:{job_id}", mapping={"spec": spec, "sig": store.seal.signature("job", job_id, spec)}
    )
    assert await line.claim(most=5, startable=5) == []
    assert "os.system" in (await jobs.get(store, job_id)).facts["message"]


async def test_a_forged_job_that_cannot_be_ended_takes_no_other_along(
    line: RedisLine, store: Store, redis_client: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    forged, honest = await submit(store), await submit(store)
    redis_client.hset(f"h:job:{forged}", "spec", b"{}")
    real = store.call

    async def shaky(call: object) -> object:
        if getattr(call, "script", None) == "settle":
            raise Unavailable("Redis cannot be reached.")
        return await real(call)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "call", shaky)
    assert [offer.job_id for offer in await line.claim(most=5, startable=5)] == [honest]
    monkeypatch.undo()


async def test_a_heartbeat_without_a_registration_loses_all_at_once_and_registers_meanwhile(
    line: RedisLine, store: Store, registrar: Registrar
) -> None:
    await submit(store)
    (offer,) = await line.claim(most=1, startable=1)
    await register(store, "w", "r2", proof="r1")
    registrar.gate.clear()
    for _ in range(2):
        beaten = await asyncio.wait_for(line.beat([offer], running=1, current=None), 2)  # noqa: TID251
        assert beaten.lost == [offer.job_id]
    await until(lambda: registrar.count == 1, "it registers, once")
    with pytest.raises(Unregistered):
        await line.claim(most=1, startable=1)
    registrar.gate.set()
    await until(lambda: line.holder.registration == "again-1", "it is registered")
    assert (await line.beat([], running=0, current=None)).lost == []
    assert [again.attempt for again in await line.claim(most=1, startable=1)] == [2]


async def test_work_and_cancels_are_heard_of(line: RedisLine, store: Store) -> None:
    woken, cancelled = asyncio.Event(), list[str]()
    task = line.listen(lambda queue: woken.set(), cancelled.append, lambda offer: None)
    try:
        await asyncio.wait_for(woken.wait(), 5)  # once it listens  # noqa: TID251
        woken.clear()
        job_id = await submit(store)
        await asyncio.wait_for(woken.wait(), 5)  # noqa: TID251
        await line.claim(most=1, startable=1)
        assert await jobs.cancel(store, "user:u", job_id) == State.RUNNING
        await until(lambda: cancelled == [job_id], "the wish to cancel is heard")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_new_set_of_tags_is_served_as_soon_as_it_is_heard_of(line: RedisLine, store: Store) -> None:
    assert await line.claim(most=1, startable=1) == []
    woken = asyncio.Event()
    task = line.listen(lambda queue: woken.set(), lambda job_id: None, lambda offer: None)
    try:
        await asyncio.wait_for(woken.wait(), 5)  # noqa: TID251
        woken.clear()
        job_id = await submit(store, tags=["gpu"])
        await asyncio.wait_for(woken.wait(), 5)  # noqa: TID251
        await until(lambda: line._tag_sets.known is None, "it asks anew")
        assert [offer.job_id for offer in await line.claim(most=1, startable=1)] == [job_id]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_set_of_tags_that_is_news_while_the_others_are_asked_for_is_served_too(
    line: RedisLine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, submitted = list[str](), list[str]()
    real = store.call

    async def overtaken(call: Any) -> Any:
        answer = await real(call)
        if call is fleet.TAG_SETS and not submitted:
            submitted.append(await submit(store, tags=["gpu"]))
            await until(
                lambda: "tagsets" in words, "the word of a new set comes before the answer without it"
            )
        return answer

    task = line.listen(words.append, lambda job_id: None, lambda offer: None)
    try:
        await until(lambda: words == [""], "it listens")
        monkeypatch.setattr(store, "call", overtaken)
        assert await line.claim(most=1, startable=1) == []
        assert [offer.job_id for offer in await line.claim(most=1, startable=1)] == submitted
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_leaving_does_not_disturb_a_worker_that_took_the_name_over(
    line: RedisLine, store: Store
) -> None:
    await register(store, "w", "r2", proof="r1")
    await line.depart("stopped")
    assert (await store.call(fleet.fetch("w"))).status == "online"


async def test_an_attempt_tells_its_output_its_progress_and_its_end(line: RedisLine, store: Store) -> None:
    job_id = await submit(store)
    (offer,) = await line.claim(most=1, startable=1)
    received = await line.output(offer, "o", b"a\nb\n", first_line=0, line_count=2)
    assert received == attempts.Received(2, False, False)
    await line.progress(offer, 40)
    facts: dict[str, str | int] = {"cpu_ms": 5, "signal": signal.SIGKILL, "message": "killed"}
    assert await line.settle(offer, "failed", "exit_code", 3, facts) == "failed"
    job = await jobs.get(store, job_id)
    assert (job.exit_code, job.progress, job.lines) == (3, 40, 2)
    assert job.facts == {"cpu_ms": "5", "signal": "9", "message": "killed"}


async def test_a_start_goes_with_the_result_of_the_same_turn_whatever_becomes_of_that(
    line: RedisLine, store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    for _ in range(5):
        await submit(store)
    ended, started, other, gone, broken = await line.claim(most=5, startable=1)
    await store.call(attempts.settle(line.holder, gone.job_id, 1, "completed", "", 0))
    redis_client.set(f"h:job:{broken.job_id}", "no record any more")
    lost = list[str]()
    redis_client.config_resetstat()
    for offer in (started, gone, broken):
        line.begin_unheard(offer, partial(lost.append, offer.job_id))
    assert await line.settle(ended, "completed", "", 0, {}) == "completed"
    line.begin_unheard(other, partial(lost.append, other.job_id))
    with pytest.raises(Stale):
        await line.settle(Offer(started.job_id, 7, {}, 0), "completed", "", 0, {})
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 2
    assert redis_client.hget(f"h:job:{started.job_id}", "ahead") == b""
    assert redis_client.hget(f"h:job:{other.job_id}", "ahead") == b""
    assert lost == [gone.job_id, broken.job_id]


async def test_a_start_that_nobody_may_have_heard_of_is_said_again(
    line: RedisLine, store: Store, redis_client: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await submit(store)
    ended, started = await line.claim(most=2, startable=1)

    async def away(*_: object, **__: object) -> object:
        monkeypatch.undo()
        raise Unavailable("Redis cannot be reached.")

    monkeypatch.setattr(store.wire, "call", away)
    line.begin_unheard(started, lambda: pytest.fail("it is ours"))
    with pytest.raises(Unavailable):
        await line.settle(ended, "completed", "", 0, {})
    async with asyncio.timeout(20):
        while redis_client.hget(f"h:job:{started.job_id}", "ahead") != b"":
            await asyncio.sleep(0.01)


async def test_a_job_that_is_handed_over_is_taken_and_what_is_forged_is_not(
    store: Store, registrar: Registrar, redis_client: "redis.Redis[bytes]"
) -> None:
    holder = await register(store, "w", "r1", slots=1, lease_ms=15000)
    line = RedisLine(store, holder, tags=(), reregister=registrar)
    ready, taken = asyncio.Event(), list[Offer]()
    task = line.listen(lambda queue: ready.set(), lambda job_id: None, taken.append)
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        assert await line.claim(most=1, startable=1) == []
        for word in (b"offer", b"offer \xff", b"offer job-x 1 jobs.normal sig\n{}", b"offer a b c d\n"):
            assert redis_client.publish("h:offer:w", word) == 1
        job_id = await submit(store, "make")
        await until(lambda: len(taken) == 1, "it is handed over")
        assert (taken[0].job_id, taken[0].attempt, taken[0].held_ahead) == (job_id, 1, True)
        assert taken[0].spec["command"] == "make"
        assert await line.begin(taken[0])
        assert await line.settle(taken[0], "completed", "", 0, {}) == "completed"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await line.depart("done")


@contextlib.asynccontextmanager
async def words_heard(line: RedisLine) -> AsyncIterator[list[str]]:
    """The queues that a line is woken for, from its subscription on."""
    words, ready = list[str](), asyncio.Event()

    def wake(queue: str) -> None:
        words.append(queue)
        ready.set()

    task = line.listen(wake, lambda job_id: None, lambda offer: None)
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        yield words
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_workers_are_woken_by_what_comes_to_an_empty_queue_and_not_by_what_waits_behind_it(
    line: RedisLine, store: Store
) -> None:
    async with words_heard(line) as words:
        words.clear()
        job_ids = [await submit(store) for _ in range(3)]
        await until(lambda: words == ["jobs.normal"], "it hears of the first one")
        assert [offer.job_id for offer in await line.claim(most=3, startable=3)] == job_ids
        await submit(store)
        await until(
            lambda: words == ["jobs.normal"] * 2, "it hears of the next one, and heard of none between"
        )


async def test_a_drained_worker_is_woken_by_the_end_of_its_draining_and_not_by_every_job(
    line: RedisLine, store: Store
) -> None:
    async with words_heard(line) as words:
        await store.call(fleet.drain("w", on=True, actor="user:u"))
        assert await line.claim(most=1, startable=1) == []
        words.clear()
        job_id = await submit(store)
        await store.call(fleet.drain("w", on=False, actor="user:u"))
        await until(lambda: words == ["tagsets"], "it hears that it may work again, and nothing before")
        assert [offer.job_id for offer in await line.claim(most=1, startable=1)] == [job_id]
        words.clear()
        await submit(store)
        await until(lambda: words == ["jobs.normal"], "it hears of jobs again")
