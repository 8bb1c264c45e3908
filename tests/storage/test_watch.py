"""The order in which a watch tells of events and output that reach it by different ways."""

from typing import Any

from storage import logs
from storage.calls import command
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
