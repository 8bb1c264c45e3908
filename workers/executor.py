"""The executor: takes jobs for its free slots, keeps their leases, and hands back what it cannot finish."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol

from storage import cause, queues
from storage.errors import HostlerError, Unavailable
from workers.lines import Line, Offer
from workers.log import log
from workers.platforms import Child, Platform
from workers.run import Circumstances, Run

#: The slow poll behind the wake-ups, which may get lost.
POLL_S = 2.0
#: After a claim that could not be asked for none is for so long, whatever wakes us.
AWAY_S = 0.1
#: So much work, by how long jobs take on average, is claimed before a slot is free, so that none idles for a reply.
AHEAD_S = 0.025
#: A job held so long without a slot goes back to those who have one.
HOLD_S = 0.1
#: So many slots of a worker, the first ones, have their next command laid ready while one runs.
MOST_FOLLOWERS = 32
#: A slot that is free for so long is made ready for its next command.
IDLE_S = 0.01


class Beside(Protocol):
    """What is at work beside the slots, over the same line: the lane of a node (workers/lane.py)."""

    def wake(self) -> None:
        """Look for work now."""

    def held(self) -> list[Offer]:
        """Return the attempts whose leases are to be renewed."""

    def lose(self, job_id: str, attempt: int) -> None:
        """Give an attempt up: it is no longer ours."""

    def cancel(self, job_id: str) -> None:
        """End a job, since somebody wants that."""

    async def work(self) -> None:
        """Work until stopped, and until what runs then has ended or been handed back."""

    def stop(self) -> None:
        """Take no more work. Safe to repeat."""


class Held(NamedTuple):
    """A job that waits for a slot: since when, and whether it was laid ready to follow another one before."""

    since_s: float
    offer: Offer
    has_followed: bool = False


class Executor:
    """Runs up to `slots` jobs at once, until `stop` is called."""

    def __init__(
        self,
        around: Circumstances,
        *,
        slots: int,
        heartbeat_s: float,
        drain_s: float,
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside
        self._around, self._slots = around, slots
        self._heartbeat_s, self._drain_s = heartbeat_s, drain_s
        self._free = list(range(slots))
        self._held: deque[Held] = deque()
        self._in_slots: dict[int, Run] = {}
        # what starts in a slot by itself as the command there ends, in a place (and as a user) of its own: the two of
        # a slot take turns
        self._followers: dict[int, tuple[float, Run]] = {}
        self._runs: dict[str, Run] = {}  # the newest attempt of each job, followers too
        self._outlived: set[Run] = (
            set()
        )  # attempts that were lost while their job came back to this very worker
        self._tasks: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._more = True  # for all we know, queues hold what the last claim could not take
        self._draining = asyncio.Event()
        self._beating = asyncio.Lock()
        self._next_beat_s = heartbeat_s
        self._beat_now = asyncio.Event()
        self._mean_run_s = 1.0
        self._expecting: asyncio.TimerHandle | None = None
        self._looked = time.monotonic()  # when this process was surely awake

    @property
    def _line(self) -> Line:
        return self._around.line

    @property
    def _platform(self) -> Platform:
        return self._around.platform

    def stop(self) -> None:
        """Take no more work; finish what runs within the time for draining, then hand it back. Safe to repeat."""
        self._draining.set()
        self._work.set()
        if self._beside is not None:
            self._beside.stop()

    def _wake(self, queue: str) -> None:
        """Look for work where there may be some."""
        of_a_node = queue.startswith(queues.NODE_PREFIX)
        if not of_a_node:
            self._work.set()
        if self._beside is not None and (of_a_node or not queue.startswith(queues.COMMAND_PREFIX)):
            self._beside.wake()

    async def work(self) -> None:
        """Work until stopped and drained."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._platform.fileno(), self._pump)
        claiming = loop.create_task(self._keep_claiming())
        chores = [
            claiming,
            loop.create_task(self._keep_polling()),
            self._line.listen(self._wake, self._hear_of_cancel, self._take),
            loop.create_task(self._keep_beating()),
            loop.create_task(self._keep_holding_briefly()),
        ]
        beside = None if self._beside is None else loop.create_task(self._beside.work())
        self._expect()
        try:
            await self._draining.wait()
            log.info("draining", extra={"running": len(self._runs), "held": len(self._held)})
            await claiming  # what a claim on its way brings is ours to run or to hand back
            await self._drain()
            if beside is not None:
                await beside
        finally:
            chores += [] if beside is None else [beside]
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            if self._expecting is not None:
                self._expecting.cancel()
            loop.remove_reader(self._platform.fileno())

    async def _keep_claiming(self) -> None:
        while not self._draining.is_set():
            await self._work.wait()
            self._work.clear()
            try:
                while not self._draining.is_set() and await self._claim():
                    pass
            except Unavailable as error:
                log.warning("cannot claim for now", extra={"why": str(error)})
                await asyncio.sleep(AWAY_S)
            except HostlerError as error:  # our registration is gone: the heartbeat makes it anew
                log.warning("cannot claim", extra={"why": str(error)})
                await self._beat()
                await asyncio.sleep(0.5)
            except Exception:  # what is wrong in Redis may be mended; a worker that no longer claims may not
                log.exception("cannot claim")
                await asyncio.sleep(POLL_S)

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(POLL_S * random.uniform(0.8, 1.2))  # noqa: S311  jitter
            self._work.set()

    def _wanted(self) -> int:
        """Return how many jobs to claim now."""
        ahead = min(4 * self._slots, int(self._slots * AHEAD_S / self._mean_run_s))
        wanted = len(self._free) + ahead - len(self._held) - len(self._followers)
        idle = len(self._free) > len(self._held)  # once what is held has been started
        if not idle and wanted < ahead / 2:  # several at once cost little more than one
            return 0
        return wanted

    async def _claim(self) -> bool:
        """Take what the free slots can run; answers whether there may be more."""
        want = self._wanted()
        if want <= 0:
            self._more = True
            self._hold(self._line.brought())
            return False
        offers = await self._line.claim(most=want, startable=max(0, len(self._free) - len(self._held)))
        self._more = len(offers) >= want or not self._line.tells_of_work
        self._hold(offers)
        return len(offers) >= want and bool(self._free)

    def _hold(self, offers: list[Offer]) -> None:
        """Start jobs in free slots; those that get none are held, but not for long."""
        now = time.monotonic()
        self._held.extend(Held(now, offer) for offer in offers)
        self._fill()

    def _take(self, offer: Offer) -> None:
        """Start a job that was handed to this worker because it idles."""
        if self._draining.is_set():
            self._do(self._release(offer))
            return
        if offer.job_id in self._runs or any(held.offer.job_id == offer.job_id for held in self._held):
            return  # said twice
        # after a pause of this process nobody knows for how long the word has lain there
        self._held.append(Held(min(time.monotonic(), self._looked + 2 * HOLD_S), offer))
        self._fill()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fill(self) -> None:
        while self._held and self._free:
            held = self._held.popleft()
            slot = self._free.pop()
            run = self._in_slots[slot] = self._run_of(held, slot)
            earlier = self._runs.get(held.offer.job_id)
            self._runs[held.offer.job_id] = run
            if earlier is None:
                run.start()
            else:  # it was lost before we heard of it; both at once would be two executions
                self._outlived.add(earlier)
            self._do(self._carry_out(run, earlier))
        if self._held:
            self._lay_ready()
        elif self._free and self._followers:  # a slot idles while a job waits for another one
            next(iter(self._followers.values()))[1].recall()

    def _run_of(self, held: Held, place: int) -> Run:
        held_s = time.monotonic() - held.since_s
        # this process may have been stopped meanwhile, for longer than a lease
        held_long = held_s > 2 * HOLD_S
        return Run(held.offer, place, self._around, self._slot_freed, held_long=held_long, held_s=held_s)

    def _lay_ready(self) -> None:
        """Have held jobs follow commands that run, so that no slot idles until this process hears of their ends.

        Only commands that began a moment ago: most end soon, and what waits for a long one is kept from other slots.
        """
        lately_s = time.monotonic() - AHEAD_S
        for slot, before in self._in_slots.items():
            if slot >= self._platform.followers or slot in self._followers or not before.runs_since(lately_s):
                continue
            if not self._held or not self._follow(slot, before):
                return

    def _follow(self, slot: int, before: Run) -> bool:
        """Have the held job that is next follow a command; False where it, and all after it, wait for a slot."""
        held = self._held[0]
        offer, until_s = held.offer, held.since_s + 2 * HOLD_S
        if (
            held.has_followed
            or offer.needs_files
            or offer.at_most_once  # it asks first whether it is still ours
            or offer.job_id in self._runs
            or time.monotonic() > until_s
            or self._draining.is_set()
            or before.child is None
        ):
            return False
        run = self._run_of(held, slot if before.slot != slot else self._slots + slot)
        try:
            run.follow(before.child, until_s)
        except Exception:  # its own start will say what is wrong
            run.give_up()
            return False
        self._held.popleft()
        self._followers[slot] = held.since_s, run
        self._runs[offer.job_id] = run
        return True

    def _slot_freed(self, run: Run) -> None:
        slot = run.slot % self._slots
        self._mean_run_s += 0.2 * (time.monotonic() - run.began_s - self._mean_run_s)
        del self._in_slots[slot]
        _, follower = self._followers.pop(slot, (0.0, None))
        if follower is None:
            self._free.append(slot)
        if self._more and self._wanted() > 0:
            self._work.set()  # first, so that the claim leaves in one write with what is started and settled now
        if follower is not None:
            self._in_slots[slot] = follower
            follower.has_started()
            self._do(self._carry_out(follower, None))
        self._fill()
        self._expect()

    def _given_back(self, run: Run) -> None:
        """Hold what was not started after all, unless somebody wants its end."""
        slot = run.slot % self._slots
        since_s, _ = self._followers.pop(slot)
        if self._runs.get(run.offer.job_id) is run:
            del self._runs[run.offer.job_id]
        run.give_up()
        if run.why_stopped == "lost":
            return
        if run.why_stopped is None and not self._draining.is_set():
            self._held.appendleft(Held(since_s, run.offer, has_followed=True))
            self._fill()
        else:
            self._do(self._release(run.offer))

    def _expect(self) -> None:
        """Have what slots need that idle for a moment be ready before the next command comes."""
        if self._expecting is None and self._free and not self._draining.is_set():
            loop = asyncio.get_running_loop()
            self._expecting = loop.call_later(IDLE_S, self._make_ready)

    def _make_ready(self) -> None:
        self._expecting = None
        if not self._draining.is_set():
            for slot in self._free:
                self._around.workspace.make_spare(slot)
            self._platform.make_ready()

    async def _carry_out(self, run: Run, earlier: Run | None) -> None:
        cause.remember(run.cause.request_id, run.span.traceparent or run.cause.traceparent, run.offer.job_id)
        try:
            if earlier is not None:
                await self._outlive(earlier)
            await run.carry_out()
        except Exception:  # one job's accident must not end the others
            log.exception("an attempt failed inside the worker", extra={"job": run.offer.job_id})
        finally:
            if self._runs.get(run.offer.job_id) is run:
                del self._runs[run.offer.job_id]

    async def _outlive(self, earlier: Run) -> None:
        try:
            earlier.stop("lost")
            await earlier.slot_free
        finally:
            self._outlived.discard(earlier)

    def _pump(self) -> None:
        """Tell the runs whose main process is gone."""
        children: list[Child] = self._platform.pump()
        for child in children:
            for run in (self._runs.get(child.command.job_id), *self._outlived):
                if run is None or run.child is not child:
                    continue
                if child.given_back and run.follows:
                    self._given_back(run)
                else:  # also what could not be asked for, where what it follows has ended in this same turn
                    run.has_exited()

    def _hear_of_cancel(self, job_id: str) -> None:
        """Ask whether a job shall really end: whoever may publish can say so, the record alone decides."""
        waiting = (*self._held_beside(), *(held.offer for held in self._held))
        if job_id in self._runs or any(offer.job_id == job_id for offer in waiting):
            self._beat_now.set()

    def _cancel(self, job_id: str) -> None:
        run = self._runs.get(job_id)
        if run is not None:
            run.stop("cancelled")
            return
        for held in [held for held in self._held if held.offer.job_id == job_id]:
            self._held.remove(held)
            self._do(self._release(held.offer))  # which is its end
        if self._beside is not None:
            self._beside.cancel(job_id)

    def _held_beside(self) -> list[Offer]:
        return [] if self._beside is None else self._beside.held()

    async def _keep_beating(self) -> None:
        while True:
            self._beat_now.clear()
            await self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_beat_s):
                    await self._beat_now.wait()

    async def _beat(self) -> None:
        async with self._beating:
            held = [run.offer for run in self._runs.values()] + [held.offer for held in self._held]
            held += self._held_beside()
            current = next(iter(self._runs), None)
            try:
                beaten = await self._line.beat(held, running=self._slots - len(self._free), current=current)
            except Unavailable as error:
                log.warning("cannot send a heartbeat for now", extra={"why": str(error)})
                return
            except HostlerError as error:
                log.error("a heartbeat was refused", extra={"why": str(error)})
                return
            except Exception:  # as above
                log.exception("cannot send a heartbeat")
                return
        pause_s = beaten.next_s or self._heartbeat_s * random.uniform(0.9, 1.0)  # noqa: S311  jitter
        self._next_beat_s = min(pause_s, self._heartbeat_s)
        attempts = {offer.job_id: offer.attempt for offer in held}
        for job_id in beaten.lost:
            self._lose(job_id, attempts[job_id])
        for job_id in beaten.cancel:
            self._cancel(job_id)

    def _lose(self, job_id: str, attempt: int) -> None:
        """Give up an attempt; one of the same job that was claimed while the heartbeat was on its way is not meant."""
        self._held = deque(held for held in self._held if held.offer.key != (job_id, attempt))
        run = self._runs.get(job_id)
        if run is not None and run.offer.attempt == attempt:
            log.warning("an attempt is no longer ours", extra={"job": job_id, "attempt": run.offer.attempt})
            run.stop("lost")
        if self._beside is not None:
            self._beside.lose(job_id, attempt)

    async def _keep_holding_briefly(self) -> None:
        while True:
            await asyncio.sleep(HOLD_S)
            self._looked = time.monotonic()
            for since_s, run in self._followers.values():
                if self._looked - since_s > HOLD_S:
                    run.recall()
            while self._held and time.monotonic() - self._held[0].since_s > HOLD_S:
                # what runs takes longer than what has ended: it would come back at once, as another attempt
                self._mean_run_s = max(self._mean_run_s, 2 * self._slots * AHEAD_S)
                await self._release(self._held.popleft().offer)

    async def _release(self, offer: Offer) -> None:
        """Give back a job that was not started; when that fails, its lease runs out."""
        try:
            await self._line.settle(offer, "released", "unstarted", None, {})
        except HostlerError as error:
            log.warning("could not hand a job back", extra={"job": offer.job_id, "why": str(error)})

    async def _drain(self) -> None:
        for _, run in self._followers.values():
            run.recall()
        while self._held:
            await self._release(self._held.popleft().offer)
        await self._finish(self._drain_s)
        for run in list(self._runs.values()):
            run.stop("released")
        await self._finish(self._around.kill_grace_s + 5)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._around.workspace.tidied()

    async def _finish(self, patience_s: float) -> None:
        """Wait until all tasks have ended, those too that are begun meanwhile: for what could not be called back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
