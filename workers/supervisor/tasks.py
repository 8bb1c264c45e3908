"""The tasks that change what runs: each waits until what was wished of the app is so, or cannot become so."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from storage import apps
from storage.apps import App
from storage.errors import Conflict, HostlerError, NotFound
from storage.store import Store
from workers.insisting import insist
from workers.lines import Offer
from workers.run import Ending
from workers.supervisor.instance import Instance
from workers.supervisor.supervised import Supervised
from workers.supervisor.supervisor import Supervisor

#: A job does not wait longer than this for its end to be seen by all: Redis may be away.
REPORT_PATIENCE_S = 10.0
LOOK_S = 0.1


class Context(Protocol):
    """What these tasks are given beside their offer."""

    store: Store
    supervisor: Supervisor

    def say(self, message: str) -> None:
        """Add a line of the worker's own to the job's output."""


async def fulfil(offer: Offer, context: Context) -> Ending:
    """Wait until the app does what is wished of it: app.start, stop, restart and scale.

    The wish had changed when the job was accepted. A later change ends the job, since it makes this one pointless.
    """
    supervised = await _taken_up(offer, context)
    names = _meant(offer, supervised.wish)
    while True:
        done, failed = supervised.outcome(names)
        if done:
            break
        with contextlib.suppress(TimeoutError):  # whether it runs steadily, only time can tell
            async with asyncio.timeout(LOOK_S):
                await supervised.changed.wait()
    await _reported(supervised)
    return Ending("completed") if failed is None else _failure(failed, context)


async def schedule(offer: Offer, context: Context) -> Ending:
    """Have schedules paused or resumed: app.schedule."""
    await _reported(await _taken_up(offer, context))
    return Ending("completed")


async def trigger(offer: Offer, context: Context) -> Ending:
    """Run a scheduled or oneshot process now, and wait for its end: app.trigger. Raises Conflict, NotFound."""
    supervised = await _taken_up(offer, context)
    name = str(offer.spec["process"])
    process = supervised.wish.process(name)
    if process is None:
        raise NotFound(f"App {supervised.app.instance_id!r} has no process {name!r}.")
    stopped = Conflict(f"Process {name!r} of app {supervised.app.instance_id!r} is stopped.")
    if not supervised.wish.wanted(process).running or supervised.held:
        raise stopped
    if process.type == "oneshot":
        return await fulfil(offer, context)
    try:
        while (run := supervised.runs.of(name, int(offer.spec["trigger"]))) is None:
            await supervised.changed.wait()
    except NotFound:
        if supervised.wish.wanted(process).running:
            raise
        raise stopped from None  # before that run had begun
    await _reported(supervised)
    if run.exit_code == 0 and run.signal is None:
        return Ending("completed", exit_code=0)
    return Ending(
        "failed",
        "exit_code",
        _exit_code(run.exit_code, run.signal),
        {"message": f"The run of {name!r} failed."},
    )


TASKS: dict[str, Callable[[Offer, Context], Awaitable[Ending]]] = {
    "app.start": fulfil, "app.stop": fulfil, "app.restart": fulfil, "app.scale": fulfil,
    "app.schedule": schedule, "app.trigger": trigger,
}  # fmt: skip


async def _taken_up(offer: Offer, context: Context) -> Supervised:
    """Have the supervisor act on the wish as it is now. Raises Conflict, NotFound."""
    instance_id = str(offer.spec["app"])
    app = await insist(lambda: apps.get(context.store, instance_id))
    if app.node != context.supervisor.name:  # somebody put this job into another node's queue
        raise Conflict(f"App {instance_id!r} is not on this node.")
    await context.supervisor.apply(app)
    return context.supervisor.supervised(instance_id)


def _meant(offer: Offer, app: App) -> Collection[str]:
    """Return the processes that a job is about."""
    if offer.spec.get("process") is not None:
        return {str(offer.spec["process"])}
    if offer.spec.get("scale"):
        return set(offer.spec["scale"])
    return {each.name for each in app.processes}


async def _reported(supervised: Supervised) -> None:
    """Let what is so be told before the job ends, so that whoever waited for it sees no older state."""
    try:
        async with asyncio.timeout(REPORT_PATIENCE_S):
            await supervised.reporter.caught_up()
    except (TimeoutError, HostlerError):
        return


def _failure(instance: Instance, context: Context) -> Ending:
    life = instance.life
    context.say(f"{instance.name} failed: {life.message}")
    facts: dict[str, str | int] = {"message": f"{instance.name}: {life.message}"[:1000]}
    return Ending("failed", "exit_code", _exit_code(life.exit_code, life.signal), facts)


def _exit_code(exit_code: int | None, signal: int | None) -> int | None:
    return exit_code if signal is None else 128 + signal  # as shells say it
