"""The hub tells every client everything in order, forgets none silently, and costs nothing while nobody watches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import engine
import pytest
import redis

from api.realtime import hub as hubs
from api.realtime.hub import Ended, Feed, Hub
from storage import batches, queues
from storage.errors import NotFound
from storage.jobs import Order
from storage.watch import Event, Output

ANY = set(queues.served([], []))


@pytest.fixture
async def hub(store) -> AsyncIterator[Hub]:
    hub = Hub(store)
    await hub.start()
    yield hub
    await hub.stop()


def event(number: int) -> Event:
    return Event(f"{number}-0", "job.queued", {"id": "job-x"})


async def clients(redis_client: redis.Redis, command: str) -> int:
    listed = await asyncio.to_thread(redis_client.client_list)
    return sum(client["cmd"].startswith(command) for client in listed)


async def test_nobody_watching_means_no_connection_that_watches(hub, redis_client):
    assert await clients(redis_client, "xread") == 0
    async with hub.wake_up(ANY):
        assert await clients(redis_client, "subscribe") == 1
        assert await clients(redis_client, "xread") == 0


async def test_many_clients_share_one_reader(hub, store, redis_client):
    async with hub.follow() as one, hub.follow() as two, hub.follow(output=False) as three:
        job_id = await engine.submit(store)
        told = [await feed.take() for feed in (one, two, three)]
        assert [[each.job_id for each in items] for items in told] == [[job_id]] * 3
        assert told[0][0] is told[1][0]
        assert await clients(redis_client, "xread") == 1


async def test_a_job_followed_alone_and_among_all_is_heard_once_by_each(hub, store):
    holder = await engine.register(store)
    job_id = await engine.submit(store)
    (claimed,) = await engine.claim(store, holder)
    async with (
        hub.follow(job_id) as alone,
        hub.follow() as among,
        hub.follow(job_id, output=False) as without,
    ):
        for number in range(10):
            await engine.output(store, holder, claimed, b"%d\n" % number)
        await engine.settle(store, holder, claimed)
        for feed in (alone, among):
            taken = []
            while len(taken) < 11:
                taken += await feed.take()
            assert [each.entry.data for each in taken[:10]] == [b"%d\n" % number for number in range(10)]
            assert taken[10].name == "job.completed"
        assert [each.name for each in await without.take()] == ["job.completed"]


async def test_output_waits_for_the_start_and_the_end_for_output(hub, store):
    """Both come over ways of their own; 200 jobs at once give them every chance to overtake one another."""
    holder = await engine.register(store)
    async with hub.follow() as feed:
        ids = [await engine.submit(store) for _ in range(200)]

        async def run() -> None:
            (claimed,) = await engine.claim(store, holder)
            await asyncio.gather(
                engine.output(store, holder, claimed, b"x\n"), engine.settle(store, holder, claimed)
            )

        await asyncio.gather(*(run() for _ in ids))
        order: dict[str, list[str]] = {job_id: [] for job_id in ids}
        while not all(each and each[-1] == "job.completed" for each in order.values()):
            for item in await feed.take():
                order[item.job_id].append("output" if isinstance(item, Output) else item.name)
        assert set(map(tuple, order.values())) == {("job.queued", "job.started", "output", "job.completed")}


async def test_a_client_that_falls_behind_is_told_so_and_holds_no_more(monkeypatch):
    monkeypatch.setattr(hubs, "MOST_WAITING", 10)
    feed = Feed(wants_output=True)
    for number in range(1000):
        feed.put(event(number))
    assert await feed.take() is None
    feed.start_anew()
    feed.put(event(1000))
    assert [each.id for each in await feed.take()] == ["1000-0"]


async def test_a_lost_connection_is_told_to_everybody_and_mended(hub, store, redis_client):
    async with hub.follow() as feed, hub.wake_up(ANY) as waiter:
        await asyncio.to_thread(redis_client.execute_command, "CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(10):
            assert await feed.take() is None
        assert await waiter.wait(5)
        feed.start_anew()
        job_id = await engine.submit(store)
        assert [each.job_id for each in await feed.take()] == [job_id]
        assert await waiter.wait(5)


async def test_events_during_a_lost_connection_of_the_reader_are_told_after_it(hub, store, redis_client):
    async with hub.follow() as feed:
        for connection in await asyncio.to_thread(redis_client.client_list):
            if connection["cmd"].startswith("xread"):
                await asyncio.to_thread(redis_client.client_kill_filter, _id=connection["id"])
        job_id = await engine.submit(store)
        async with asyncio.timeout(10):
            assert [each.job_id for each in await feed.take()] == [job_id]


async def test_work_wakes_the_one_that_waits_longest_and_serves_it(hub, store):
    async with (
        hub.wake_up({"jobs.other"}) as other,
        hub.wake_up({"jobs.normal"}) as first,
        hub.wake_up({"jobs.normal"}) as second,
    ):
        await engine.submit(store)
        assert await first.wait(5)
        await engine.submit(store)
        await engine.submit(store)
        assert await second.wait(5)
        assert await first.wait(5)
        assert not await other.wait(0.01)


async def test_work_that_came_while_looking_is_not_slept_through(hub, store):
    async with hub.wake_up(ANY) as waiter:
        await engine.submit(store)
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1):
            assert await waiter.wait(10)


async def test_work_for_one_that_has_left_wakes_the_next(hub, store):
    async with hub.wake_up(ANY) as second:
        async with hub.wake_up(ANY) as first:
            for waiter in (first, second):  # the longer one waits, the sooner it is woken
                hub._waiters.remove(waiter)
                hub._waiters.append(waiter)
            hub.woken("jobs.normal")
            first.leave()
            assert await first.wait(5)
            assert not second.is_woken
        assert second.is_woken


async def test_a_word_that_got_lost_is_made_up_for_by_looks(hub, store, monkeypatch):
    monkeypatch.setattr(hubs, "LOOK_S", 0.01)
    await engine.submit(store)
    async with hub.wake_up(ANY) as waiter, hub.wake_up({"jobs.other"}) as other:
        assert await waiter.wait(20)
        assert not other.is_woken


async def test_tag_sets_are_remembered_until_there_are_others(hub, store):
    async with hub.wake_up(ANY) as waiter:
        assert await hub.tag_sets(store) == []
        await engine.submit(store, tags=["gpu"])
        assert await waiter.wait(20)
        assert await hub.tag_sets(store) == ["gpu"]


async def test_as_many_wake_up_as_there_are_jobs(hub, store):
    async with contextlib.AsyncExitStack() as waiting:
        waiters = [await waiting.enter_async_context(hub.wake_up(ANY)) for _ in range(5)]
        await batches.submit(store, "t", [Order(command="true") for _ in range(3)])
        async with asyncio.timeout(20):
            while sum(each.is_woken for each in waiters) < 3:
                await asyncio.sleep(0.005)
        assert sum(each.is_woken for each in waiters) == 3


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"jobs.normal", ("jobs.normal", 1)),
        (b"jobs.a+b.high 32", ("jobs.a+b.high", 32)),
        (b"tagsets", ("tagsets", 1)),
        (b"", ("", 1)),
        (b"jobs.normal x", ("jobs.normal", 1)),
        (b"jobs.normal 99999999999", ("jobs.normal", 1)),
        (b"\xff\xfe 2", ("\ufffd\ufffd", 2)),
    ],
)
def test_news_of_work_is_read_whoever_wrote_it(message, said):
    assert queues.news(message) == said


async def test_finished_waits_for_the_end(hub, store):
    holder = await engine.register(store)
    job_id = await engine.submit(store)
    assert not await hub.finished(job_id, 0.05)
    waiting = asyncio.create_task(hub.finished(job_id, 10))
    (claimed,) = await engine.claim(store, holder)
    await engine.settle(store, holder, claimed)
    assert await waiting
    assert await hub.finished(job_id, 0.0001)
    with pytest.raises(NotFound):
        await hub.finished("job-00000000000000000000", 1)


async def test_stopping_ends_every_watch_at_once(hub):
    async with hub.follow() as feed, hub.wake_up(ANY) as waiter:
        taking = asyncio.create_task(feed.take())
        waiting = asyncio.create_task(waiter.wait(30))
        await asyncio.sleep(0)
        await hub.stop()
        await hub.stop()
        for task in (taking, waiting):
            with pytest.raises(Ended):
                await task
    with pytest.raises(Ended):
        async with hub.follow():
            pass


async def test_connections_close_a_while_after_the_last_client(hub, store, redis_client, monkeypatch):
    monkeypatch.setattr("storage.watch.LINGER_S", 0.05)
    async with hub.follow():
        pass
    async with asyncio.timeout(5):
        while await clients(redis_client, "xread") or await clients(redis_client, "subscribe"):
            await asyncio.sleep(0.02)
    async with hub.follow() as feed:
        job_id = await engine.submit(store)
        assert [each.job_id for each in await feed.take()] == [job_id]
