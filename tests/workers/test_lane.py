"""The lane on a real Valkey, with tasks made for it: leases, cancels, ends, draining, and foreign queues."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from engine import register
from fake_line import until

from storage import jobs, logs, tasks
from storage.attempts import Holder, rq_time
from storage.calls import script
from storage.jobs import Job, Order
from storage.store import Store
from workers.lane import Errand, Lane, Surroundings
from workers.lines import Offer, RedisLine
from workers.run import Ending


class Supervisor:
    """Stands in for the one that the lane waits for."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.begun.set()


Start = Callable[..., Awaitable[Lane]]


@pytest.fixture
async def start(store: Store, tmp_path: Any) -> AsyncIterator[Start]:
    """Start a lane of the node `n` with these tasks."""
    running: list[tuple[Lane, asyncio.Task[None]]] = []

    async def start(given: Any, **how: Any) -> Lane:
        holder = await register(store, "n")

        async def again() -> Holder:
            return holder

        line = RedisLine(store, holder, tags=(), reregister=again)
        around = Surroundings(
            line=line,
            store=store,
            supervisor=Supervisor(),
            isolation="none",
            spool=str(tmp_path),
            drain_s=0.2,
        )  # type: ignore[arg-type]
        lane = Lane(around, given, **how)
        running.append((lane, asyncio.create_task(lane.work())))
        return lane

    yield start
    for lane, task in running:
        lane.stop()
        async with asyncio.timeout(10):
            await task


async def put(
    store: Store, task: str = "app.start", *, node: str = "n", timeout_s: int = 60, **spec: Any
) -> str:
    """Put a job into a node's own queue, as a change of an app does."""
    import orjson

    job_id = store.new_id("job")
    raw = orjson.dumps({"task": task, "timeout_s": timeout_s, **spec})
    signature = store.seal.signature("job", job_id, raw)
    await store.call(
        script(
            "submit",
            job_id,
            "user:u",
            f"node.{node}",
            raw,
            signature,
            tasks.TABLE[task].function,
            rq_time(),
            timeout_s,
            task,
            b"{}",
        )
    )
    return job_id


async def ended(store: Store, job_id: str) -> Job:
    async with asyncio.timeout(10):
        while not (job := await jobs.get(store, job_id)).finished:
            await asyncio.sleep(0.01)
    return job


async def said(store: Store, job_id: str) -> bytes:
    return b"".join([piece async for piece in await logs.text(store, job_id)])


async def test_a_task_is_chosen_by_name_and_its_words_and_end_are_told(store: Store, start: Start) -> None:
    async def task(offer: Offer, context: Errand) -> Ending:
        context.say(f"working on {offer.spec['app']}")
        context.hear("o", b"::progress 40\nraw\n")
        return Ending("failed", "exit_code", 3, {"message": "no"})

    await start({"app.start": task})
    job = await ended(store, await put(store, app="a"))
    assert (job.state, job.reason, job.exit_code, job.facts["message"]) == ("failed", "exit_code", 3, "no")
    assert job.progress == 40
    assert await said(store, job.id) == b"[hostler] working on a\n::progress 40\nraw\n"


async def test_what_a_task_did_not_expect_fails_its_job_alone(store: Store, start: Start) -> None:
    async def task(offer: Offer, context: Errand) -> Ending:
        if offer.spec["app"] == "bad":
            raise ZeroDivisionError
        return Ending("completed")

    await start({"app.start": task})
    bad, good = await put(store, app="bad"), await put(store, app="good")
    assert ((await ended(store, bad)).reason, (await ended(store, good)).state) == ("invalid", "completed")
    assert (
        await ended(store, await put(store, "app.stop", app="a"))
    ).reason == "invalid"  # nobody carries that out


async def test_more_at_once_than_slots_wait_and_leases_of_what_runs_are_told(
    store: Store, start: Start
) -> None:
    go = asyncio.Event()

    async def task(offer: Offer, context: Errand) -> Ending:
        await go.wait()
        return Ending("completed")

    lane = await start({"app.start": task}, slots=2)
    ids = [await put(store, app="a") for _ in range(3)]
    lane.wake()
    await until(lambda: len(lane.held()) == 2, "two are held")
    assert {offer.job_id for offer in lane.held()} == set(ids[:2])
    go.set()
    assert {(await ended(store, each)).state for each in ids} == {"completed"}


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [("cancel", "cancelled", "cancelled"), ("timeout", "failed", "timeout"), ("release", "queued", None)],
)
async def test_a_task_that_is_to_end_is_told_why(
    store: Store, start: Start, how: str, state: str, reason: str | None
) -> None:
    why: list[str | None] = []

    async def task(offer: Offer, context: Errand) -> Ending:
        try:
            await asyncio.sleep(600)
        finally:
            why.append(context.why_stopped)
        raise AssertionError

    lane = await start({"app.start": task})
    job_id = await put(store, app="a", timeout_s=1 if how == "timeout" else 60)
    lane.wake()
    await until(lane.held, "it is held")
    if how == "cancel":
        await jobs.cancel(store, "user:u", job_id)
        lane.cancel(job_id)
    elif how == "release":
        lane.stop()
    await until(lambda: why, "it was told")
    assert why == ["released" if how == "release" else {"cancel": "cancelled"}.get(how, how)]
    await until(lambda: not lane.held(), "it is over")
    job = await jobs.get(store, job_id)
    assert (job.state, job.reason) == (state, reason)


async def test_a_lost_attempt_ends_and_says_nothing(store: Store, start: Start) -> None:
    async def task(offer: Offer, context: Errand) -> Ending:
        await asyncio.sleep(600)
        return Ending("completed")

    lane = await start({"app.start": task})
    job_id = await put(store, app="a")
    lane.wake()
    await until(lane.held, "it is held")
    lane.lose(job_id, 7)  # another attempt is not meant
    assert lane.held()
    lane.lose(job_id, 1)
    await until(lambda: not lane.held(), "it was given up")
    assert (await jobs.get(store, job_id)).state == "running"  # its lease runs out


async def test_commands_and_tasks_do_not_swap_queues(store: Store, start: Start) -> None:
    async def task(offer: Offer, context: Errand) -> Ending:
        return Ending("completed")

    holder = await register(store, "c")

    async def again() -> Holder:
        return holder

    command = (await jobs.submit(store, "user:u", Order(command="true"))).id
    foreign = await put(store, node="x", app="a")
    # whoever can write to Redis moves them
    await store.call(_move("rq:queue:jobs.normal", "rq:queue:node.n"))
    await store.call(_move("rq:queue:node.x", "rq:queue:jobs.normal"))
    await start({"app.start": task})
    line = RedisLine(store, holder, tags=(), reregister=again)
    assert await line.claim(most=5, startable=5) == []
    assert (await ended(store, command)).reason == "invalid"
    assert (await ended(store, foreign)).reason == "invalid"


def _move(source: str, target: str) -> Any:
    from storage.calls import command

    return command("LMOVE", source, target, "LEFT", "RIGHT")
