"""The lane: what a node does for its apps, beside its command slots and never behind them.

Jobs of the node's own queue are carried out here, by name (workers/tasks.py), each as a task of the event loop. They
hold leases, print, are cancelled and end as commands do; the heartbeat that the executor sends covers them too.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from storage import cause
from storage.attempts import Holder
from storage.errors import HostlerError, Unavailable
from storage.store import Store
from workers.lines import Line, Offer, RedisLine
from workers.log import log
from workers.output import Output
from workers.run import Ending, deliver
from workers.supervisor.supervisor import Supervisor

#: So many of a node's own jobs are carried out at once.
SLOTS = 8
#: The slow poll behind the wake-ups, which may get lost.
POLL_S = 2.0
#: A task that was told to end has this long to clear up before it is left alone.
CLEAR_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all tasks of one node share."""

    line: RedisLine
    store: Store
    supervisor: Supervisor
    isolation: str
    spool: str
    drain_s: float


class Errand:
    """One attempt of a job of the node's own, and the context that its task is given."""

    def __init__(self, offer: Offer, around: Surroundings) -> None:
        self.offer, self._around = offer, around
        self.store, self.supervisor = around.store, around.supervisor
        self.isolation = around.isolation
        self.why_stopped: str | None = None
        settings = around.store.settings
        line: Line = around.line
        self.output = Output(
            line, offer, directory=around.spool, limit_bytes=settings.job_log_limit_bytes,
            live_bytes=settings.job_log_live_bytes, gone=lambda: self.stop("lost"),
            cancel=lambda: self.stop("cancelled"),
        )  # fmt: skip
        self._task: asyncio.Task[Ending] | None = None

    @property
    def holder(self) -> Holder:
        """Return who this node is by now."""
        return self._around.line.holder

    def hear(self, channel: str, data: bytes) -> None:
        """Take a piece of the job's output, of channel o or e."""
        self.output.feed(channel, data)

    def say(self, message: str) -> None:
        """Add a line of the worker's own to the job's output."""
        self.output.say(message)

    def step(self, name: str) -> None:
        """Take note that a step begins."""
        log.info("a step begins", extra={"job": self.offer.job_id, "step": name})

    def stop(self, why: str) -> None:
        """End it: `cancelled`, `timeout`, `released` or `lost`. Safe to repeat."""
        if self.why_stopped is not None and why != "lost":
            return
        self.why_stopped = why
        if self._task is not None:
            self._task.cancel()

    async def carry_out(self, tasks: Mapping[str, "Task"]) -> None:
        """Do the whole of it. Raises nothing that concerns this job alone."""
        because = cause.of_spec(self.offer.spec)
        cause.remember(because.request_id, because.traceparent, self.offer.job_id)
        timeout_s = float(self.offer.spec.get("timeout_s") or 3600)
        timer = asyncio.get_running_loop().call_later(timeout_s, self.stop, "timeout")
        try:
            ending = await self._attempt(tasks)
            self.output.end()
            await deliver(
                self._around.line, self.offer, self.output, ending, lambda: self.why_stopped == "lost"
            )
        finally:
            timer.cancel()
            await self.output.close()

    async def _attempt(self, tasks: Mapping[str, "Task"]) -> Ending:
        name = str(self.offer.spec["task"])
        if name not in tasks:
            return Ending("failed", "invalid", facts={"message": f"This node cannot carry out {name!r}."})
        if self.why_stopped is None:
            self._task = asyncio.get_running_loop().create_task(_ended(tasks[name](self.offer, self)))
            try:
                return await self._task
            except asyncio.CancelledError:
                if self.why_stopped is None:  # it is us who are to end
                    self._task.cancel()
                    raise
            except HostlerError as error:
                self.say(str(error))
                return Ending("failed", "invalid", facts={"message": str(error)[:1000]})
            except Exception:
                log.exception(
                    "a task failed inside the worker", extra={"job": self.offer.job_id, "task": name}
                )
                return Ending(
                    "failed", "invalid", facts={"message": "It failed inside the worker, whose log says why."}
                )
        return self._stopped()

    def _stopped(self) -> Ending:
        if self.why_stopped == "timeout":
            self.say(f"timed out after {self.offer.spec.get('timeout_s')} s")
            return Ending("failed", "timeout", facts={"message": "It was not done in time."})
        if self.why_stopped == "released":
            return Ending("released")
        return Ending("cancelled", "cancelled" if self.why_stopped == "cancelled" else "")


#: What carries a job out. Cancelled as tasks of asyncio are, it finds the reason in `context.why_stopped`.
Task = Callable[[Offer, Errand], Awaitable[Ending]]


async def _ended(work: Awaitable[Ending]) -> Ending:
    return await work


class Lane:
    """Carries out up to `SLOTS` of the node's own jobs at once."""

    def __init__(self, around: Surroundings, tasks: Mapping[str, Task], *, slots: int = SLOTS) -> None:
        self._around, self._tasks, self._slots = around, tasks, slots
        self._errands: dict[Errand, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._draining = asyncio.Event()

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self) -> None:
        """Take no more; finish within the time for draining, then hand back. Safe to repeat."""
        self._draining.set()
        self._wake.set()

    def held(self) -> list[Offer]:
        """Return the attempts whose leases are to be renewed."""
        return [errand.offer for errand in self._errands]

    def lose(self, job_id: str, attempt: int) -> None:
        """Give an attempt up: it is no longer ours."""
        for errand in list(self._errands):
            if errand.offer.key == (job_id, attempt):
                errand.stop("lost")

    def cancel(self, job_id: str) -> None:
        """End a job, since somebody wants that."""
        for errand in list(self._errands):
            if errand.offer.job_id == job_id:
                errand.stop("cancelled")

    async def work(self) -> None:
        """Carry jobs out until told to stop; what runs then has the time for draining, and is handed back after it."""
        await self._around.supervisor.begun.wait()
        while not self._draining.is_set():
            self._wake.clear()
            try:
                while not self._draining.is_set() and await self._claim():
                    pass
            except Unavailable:
                await asyncio.sleep(0.5)
            except HostlerError as error:  # our registration is gone: the heartbeat makes it anew
                log.warning("cannot claim for the node", extra={"why": str(error)})
                await asyncio.sleep(0.5)
            except Exception:  # what is wrong in Redis may be mended; a node that no longer claims may not
                log.exception("cannot claim for the node")
                await asyncio.sleep(POLL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S * random.uniform(0.8, 1.2)):  # noqa: S311  jitter
                    await self._wake.wait()
        await self._drain()

    async def _claim(self) -> bool:
        """Take what there are slots for; answers whether there may be more."""
        want = self._slots - len(self._errands)
        if want <= 0:
            return False
        offers = await self._around.line.claim_own(most=want)
        for offer in offers:
            errand = Errand(offer, self._around)
            self._errands[errand] = asyncio.get_running_loop().create_task(self._carry_out(errand))
        return len(offers) == want

    async def _carry_out(self, errand: Errand) -> None:
        try:
            await errand.carry_out(self._tasks)
        except Exception:  # one job's accident must not end the others
            log.exception("an attempt failed inside the worker", extra={"job": errand.offer.job_id})
        finally:
            del self._errands[errand]
            self._wake.set()

    async def _drain(self) -> None:
        if self._errands:
            await asyncio.wait(set(self._errands.values()), timeout=self._around.drain_s)
        for errand in list(self._errands):
            errand.stop("released")
        if self._errands:
            await asyncio.wait(set(self._errands.values()), timeout=CLEAR_UP_S)
        left = set(self._errands.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
