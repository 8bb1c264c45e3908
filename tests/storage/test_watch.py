"""The order in which a watch tells of events and output that reach it by different ways."""

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import redis

from settings import Settings
from storage import batches, logs, watch
from storage.calls import command
from storage.jobs import Order
from storage.store import Store
from storage.watch import Event, Watch


class Listener:
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def happened(self, event: Event) -> None:
        self.told.append(event.name)

    def printed(self, output: Any) -> None:
        self.told.append(f"output of {output.entry.attempt}")

    def logged(self, lines: Any) -> None:
        raise AssertionError(lines)

    def woken(self, queue: str, many: int) -> None:
        raise AssertionError(queue)

    def lost_touch(self) -> None:
        raise AssertionError("nothing was lost")


def event(number: int, name: str, attempt: int | None = None) -> Event:
    fields = {"id": "job-a"} | ({} if attempt is None else {"a": str(attempt)})
    return Event(f"1-{number}", name, fields)


async def told(store: Store, outputs: list[int], events: list[Event]) -> list[str]:
    """Return what is told when output arrives before the events that were written before it."""
    await store.call(command("XADD", "h:events", "9-9", "e", "job.restored"))  # there is more to come
    listener = Listener()
    watch = Watch(store, listener)
    for attempt in outputs:
        watch._printed("job-a", logs.entry_of(f"{attempt} 0 1 o".encode(), b"x\n"), attempt)
    await watch._tell(events)
    await watch.stop()
    return listener.told


async def test_output_that_overtook_its_jobs_first_events_waits_for_them(store: Store) -> None:
    events = [event(1, "job.queued"), event(2, "job.started", 1), event(3, "job.completed", 1)]
    assert await told(store, [1], events) == ["job.queued", "job.started", "output of 1", "job.completed"]


async def test_output_of_an_attempt_comes_before_the_news_that_it_is_tried_again(store: Store) -> None:
    events = [event(1, "job.started", 1), event(2, "job.queued", 1), event(3, "job.started", 2)]
    expected = ["job.started", "output of 1", "job.queued", "job.started", "output of 2"]
    assert await told(store, [1, 2], events) == expected


async def test_a_subscription_that_redis_refuses_for_now_is_tried_again(
    settings: Settings, redis_client: redis.Redis
) -> None:
    user = f"watcher-{uuid.uuid4().hex[:8]}"
    # who may not subscribe yet; a Redis that a script keeps busy refuses as well, by the same kind of answer
    redis_client.acl_setuser(
        user, enabled=True, passwords=["+its-password"], keys="*", categories=["+@all"], reset_channels=True
    )
    port = redis_client.get_connection_kwargs()["port"]
    store = Store(replace(settings, redis_url=f"redis://{user}:its-password@127.0.0.1:{port}/0"))
    listener = Listener()
    listener.lost_touch = lambda: listener.told.append("lost touch")  # type: ignore[method-assign]
    watching = Watch(store, listener)
    opening = asyncio.create_task(watching.open())
    try:
        async with asyncio.timeout(20):
            while not any(entry["username"] == user for entry in redis_client.acl_log()):
                await asyncio.sleep(0.01)
            redis_client.acl_setuser(user, enabled=True, channels="*")
            await opening
        assert listener.told == ["lost touch"]
    finally:
        await watching.stop()
        await asyncio.gather(opening, return_exceptions=True)
        await store.close()
        redis_client.acl_deluser(user)


async def heard(store: Store, after: str) -> list[Event]:
    return [event async for page in watch.events_after(store, after) for event in page]


async def test_an_entry_about_several_jobs_is_told_of_each_under_an_id_of_its_own(store: Store) -> None:
    first = await batches.submit(store, "user:ada", [Order(command="true")])
    batch = await batches.submit(store, "user:ada", [Order(command="true") for _ in range(70)])
    last = await batches.submit(store, "user:ada", [Order(command="true")])
    events = await heard(store, "0-0")
    assert [event.job_id for event in events] == [*first.job_ids, *batch.job_ids, *last.job_ids]
    assert {(event.name, event.fields["by"], event.fields["q"]) for event in events} == {
        ("job.queued", "user:ada", "jobs.normal")
    }
    moments = [watch.moment(event.id) for event in events]
    assert moments == sorted(set(moments))
    assert events[-1].id == await watch.newest_event(store)


async def test_who_has_heard_of_some_jobs_of_an_entry_is_told_of_the_rest(store: Store) -> None:
    batch = await batches.submit(store, "user:ada", [Order(command="true") for _ in range(30)])
    events = await heard(store, "0-0")
    for known in (0, 1, 28, 29):
        assert [event.job_id for event in await heard(store, events[known].id)] == batch.job_ids[known + 1 :]
        assert not await watch.is_forgotten(store, events[known].id)


async def test_an_id_that_somebody_wrote_at_the_end_of_all_numbers_stops_no_batch(store: Store) -> None:
    ahead = "99999999999999-9223372036854775800"
    await store.call(command("XADD", "h:events", ahead, "e", "job.restored"))
    batch = await batches.submit(store, "user:ada", [Order(command="true") for _ in range(3)])
    assert [event.job_id for event in await heard(store, ahead)] == batch.job_ids


async def test_events_go_on_after_a_stream_that_is_ahead_of_the_clock(store: Store) -> None:
    await store.call(command("XADD", "h:events", "99999999999999-7", "e", "job.restored"))
    batch = await batches.submit(store, "user:ada", [Order(command="true") for _ in range(3)])
    events = await heard(store, "99999999999999-7")
    assert [(event.id, event.job_id) for event in events] == [
        (f"99999999999999-{8 + number}", job_id) for number, job_id in enumerate(batch.job_ids)
    ]
