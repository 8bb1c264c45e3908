"""What happens, handed to those who watch: one reader of Redis for each process, any number of clients."""

import asyncio
import contextlib
import itertools
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import Any, Generic, Protocol, TypeVar

from storage import fleet, jobs, queues
from storage.calls import command, text
from storage.errors import NotFound, Unavailable
from storage.logs import Snapshot
from storage.store import Store
from storage.watch import EVERY_APP_LOG, EVERY_OUTPUT, AppLines, Event, Output, Watch

T = TypeVar("T")

#: What waits for one client at most; beyond, it is told that it missed some and has to look anew.
MOST_WAITING = 4096
MOST_WAITING_BYTES = 4 * 1024 * 1024
#: How often a process looks, for all who wait for work in it, whether there is some.
LOOK_S = 5.0


class Ended(Unavailable):
    """This process stops, and so does every watch."""

    def __init__(self) -> None:
        super().__init__("The server is about to restart.", retry_after_s=1)


class Listener(Protocol):
    """Somebody to whom a hub tells all events, and perhaps what jobs print."""

    @property
    def wants_output(self) -> bool:
        """Whether that includes what jobs print."""

    def put(self, item: Event | Output, size_bytes: int = 0) -> None:
        """Take what happened."""

    def miss(self) -> None:
        """Learn that something was missed."""

    def end(self) -> None:
        """Learn that no more will come."""


class Feed(Generic[T]):
    """What one client has yet to take, in order and within bounds."""

    __slots__ = ("_ended", "_items", "_missed", "_size_bytes", "_waiter", "wants_output")

    def __init__(self, *, wants_output: bool = False) -> None:
        self.wants_output = wants_output
        self._items: list[T] = []
        self._size_bytes = 0
        self._missed = self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Add what happened; a client that is too far behind loses all that waits instead."""
        if self._missed:
            return
        self._items.append(item)
        self._size_bytes += size_bytes
        if len(self._items) > MOST_WAITING or self._size_bytes > MOST_WAITING_BYTES:
            self.miss()
        else:
            self._wake()

    def miss(self) -> None:
        """Have the client look anew."""
        self._missed = True
        self._drop()
        self._wake()

    def end(self) -> None:
        """Have the client stop."""
        self._ended = True
        self._wake()

    def _drop(self) -> None:
        self._items, self._size_bytes = [], 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, nothing was missed, and more may come."""
        return not (self._items or self._missed or self._ended)

    def start_anew(self) -> None:
        """Forget what waits, and that something was missed: the client is about to look for itself."""
        self._missed = False
        self._drop()

    async def take(self) -> list[T] | None:
        """Return all that waits, at least one; None when some was missed. Raises Ended."""
        while not self._items:
            if self._ended:
                raise Ended
            if self._missed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items = self._items
        self._drop()
        return items


class Waiter:
    """Somebody who waits for work in the queues `served`, to which it may add."""

    def __init__(self, served: Collection[str]) -> None:
        self.served = served
        self._bell = asyncio.Event()
        self._woken = self._left = self._ended = False

    @property
    def is_woken(self) -> bool:
        """Whether it has been woken and has not come back for it since."""
        return self._woken

    def wake(self) -> None:
        """Let it look for work."""
        self._woken = True
        self._bell.set()

    def leave(self) -> None:
        """Let it wait no longer; what it has been woken for is left to others."""
        self._left = True
        self._bell.set()

    def end(self) -> None:
        """Let it stop waiting for good."""
        self._ended = True
        self._bell.set()

    async def wait(self, timeout_s: float) -> bool:
        """Return True once there may be work, or may have been since the last time; False after `timeout_s` seconds.

        Raises Ended.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._bell.wait()
        except TimeoutError:
            return False
        if self._ended:
            raise Ended
        self._bell.clear()
        self._woken = self._woken and self._left
        return True


class Hub:
    """The fan-out of one process. Reads nothing from Redis while nobody watches."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._watch: Watch | None = None
        self.told = "0-0"  #: the id of the newest event that all listeners have been told
        self._everything: set[Listener] = set()
        self._of_job: dict[str, set[Feed[Event | Output]]] = {}
        self._of_app: dict[str | None, set[Feed[AppLines]]] = {}
        self._waiters: deque[Waiter] = deque()
        self._looking: asyncio.Task[None] | None = None
        self._tag_sets = fleet.TagSets()
        self._stopped = False

    async def start(self) -> None:
        """Be ready for those who watch. Safe to run twice."""
        self._stopped = False

    async def stop(self) -> None:
        """End every watch and every wait. Safe to run twice; may be called as soon as the process shall stop."""
        self._stopped = True
        for feed in self._feeds():
            feed.end()
        for waiter in self._waiters:
            waiter.end()
        if self._looking is not None:
            self._looking.cancel()
        if self._watch is not None:
            await self._watch.stop()
            self._watch = None

    def _feeds(self) -> list[Listener]:
        by_name: list[set[Any]] = [*self._of_job.values(), *self._of_app.values()]
        return [*self._everything, *(feed for feeds in by_name for feed in feeds)]

    @property
    def watch(self) -> Watch:
        """Return the way to Redis. Raises Ended."""
        if self._stopped:
            raise Ended
        if self._watch is None:
            self._watch = Watch(self.store, self)
        return self._watch

    @contextlib.asynccontextmanager
    async def follow(
        self, job_id: str | None = None, *, output: bool = True
    ) -> AsyncIterator[Feed[Event | Output]]:
        """Watch one job, or everything, for as long as the context lasts; `output` includes what jobs print.

        An attempt's output comes after its start and before its end. Raises Unavailable, Ended.
        """
        watch = self.watch
        channels = [EVERY_OUTPUT if job_id is None else f"h:out:{job_id}"] if output else []
        feed: Feed[Event | Output] = Feed(wants_output=output)
        feeds: set[Any] = self._everything
        try:
            await watch.open(*channels, events=True)
            if job_id is not None:
                feeds = self._of_job.setdefault(job_id, set())
            feeds.add(feed)
            yield feed
        finally:
            feeds.discard(feed)
            if job_id is not None and not self._of_job.get(job_id):
                self._of_job.pop(job_id, None)
            watch.close(*channels)

    @contextlib.asynccontextmanager
    async def follow_app_logs(self, instance_id: str | None = None) -> AsyncIterator[Feed[AppLines]]:
        """Watch what one app prints, or all, for as long as the context lasts. Raises Unavailable, Ended."""
        watch = self.watch
        channel = EVERY_APP_LOG if instance_id is None else f"h:applogs:{instance_id}"
        feed: Feed[AppLines] = Feed()
        try:
            await watch.open(channel)
            self._of_app.setdefault(instance_id, set()).add(feed)
            yield feed
        finally:
            feeds = self._of_app.get(instance_id, set())
            feeds.discard(feed)
            if not feeds:
                self._of_app.pop(instance_id, None)
            watch.close(channel)

    def join(self, listener: Listener) -> None:
        """Tell `listener` everything, while somebody else follows."""
        self._everything.add(listener)

    def leave(self, listener: Listener) -> None:
        """Tell `listener` nothing more."""
        self._everything.discard(listener)

    async def look(self, job_id: str, *, after: int) -> tuple[Snapshot, int]:
        """Return a job and its log from line number `after` on, and the number of the last output that is in it.

        To be called inside `follow`. Raises NotFound, Unavailable, Ended.
        """
        return await self.watch.look(job_id, after=after)

    @contextlib.asynccontextmanager
    async def wake_up(self, served: Collection[str]) -> AsyncIterator[Waiter]:
        """Wait for work in the queues `served`; look for work before each `wait`.

        One waiter is woken for each job, the one that has waited longest. Raises Unavailable, Ended.
        """
        watch, waiter = self.watch, Waiter(served)
        try:
            await watch.open()
            self._waiters.append(waiter)
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._keep_looking())
            yield waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            if waiter.is_woken:  # it leaves with a wake-up that may have been meant for the next one
                self._wake_all()
            watch.close()

    async def _keep_looking(self) -> None:
        """Look for all who wait, should the word that there is work get lost, or whom it woke die."""
        while True:
            await asyncio.sleep(LOOK_S * random.uniform(0.8, 1.2))  # noqa: S311  jitter
            if not self._waiters:
                return
            served = sorted(set().union(*(waiter.served for waiter in self._waiters)))
            with contextlib.suppress(Unavailable):  # once Redis is back, everybody looks
                lengths = await self.store.calls(*(command("LLEN", queues.key(each)) for each in served))
                for queue, length in zip(served, lengths, strict=True):
                    if length:
                        self.woken(queue, length)

    async def tag_sets(self, store: Store) -> list[str]:
        """Return the tag sets that jobs have asked for; only for who waits, since changes are told to those alone.

        Raises Unavailable.
        """
        return await self._tag_sets.all(store)

    async def finished(self, job_id: str, timeout_s: float) -> bool:
        """Wait until a job has ended; False after `timeout_s` seconds. Raises NotFound, Unavailable, Ended."""
        deadline = time.monotonic() + timeout_s
        async with self.follow(job_id, output=False) as feed:
            while True:
                feed.start_anew()
                state = text(await self.store.call(command("HGET", f"h:job:{job_id}", "state")))
                if not state:
                    raise NotFound("Job not found")
                if state in jobs.FINISHED:
                    return True
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await feed.take()
                except TimeoutError:
                    return False

    # What the watch tells

    def happened(self, event: Event) -> None:
        """Hand an event on."""
        for feed in self._everything:
            feed.put(event)
        for feed in self._of_job.get(event.job_id or "", ()):
            feed.put(event)
        self.told = event.id

    def printed(self, output: Output) -> None:
        """Hand a piece of output on."""
        for feed in self._everything:
            if feed.wants_output:
                feed.put(output, len(output.entry.data))
        for feed in self._of_job.get(output.job_id, ()):
            if feed.wants_output:
                feed.put(output, len(output.entry.data))

    def logged(self, lines: AppLines) -> None:
        """Hand on what an app printed."""
        for feed in (*self._of_app.get(lines.instance_id, ()), *self._of_app.get(None, ())):
            feed.put(lines, lines.size_bytes)

    def woken(self, queue: str, many: int = 1) -> None:
        """Wake who has waited longest for that queue, one for each job; everybody when the tag sets changed."""
        if queue == "tagsets":
            self._look_anew()
            return
        fit = (waiter for waiter in self._waiters if not waiter.is_woken and queue in waiter.served)
        for waiter in list(itertools.islice(fit, many)):
            waiter.wake()
            self._waiters.remove(waiter)
            self._waiters.append(waiter)

    def _look_anew(self) -> None:
        self._tag_sets.forget()
        self._wake_all()

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    def lost_touch(self) -> None:
        """Have everybody look anew."""
        self._look_anew()
        for feed in self._feeds():
            feed.miss()
