"""What the supervisor and the control plane tell one another: wishes one way, what there is the other way."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from storage import apps, users
from storage.apps import App, Instance, LogLine, Run, Sample, ScheduleState
from storage.attempts import Holder
from storage.errors import Unavailable
from storage.store import Store


class ControlPlane(Protocol):
    """What the supervisor needs of the control plane.

    Every call may raise Unavailable, after which it may have happened or not, Unregistered while this worker registers
    anew, and NotFound for an app that is not this node's.
    """

    def listen(self, wake: Callable[[], None]) -> "asyncio.Task[None]":
        """Start telling when wishes may have changed: a hint that may get lost."""

    async def wished(self) -> list[App]:
        """Return the apps of this node."""

    async def observe(
        self, app: App, instances: Sequence[Instance], schedules: Mapping[str, ScheduleState], message: str
    ) -> None:
        """Report what there is."""

    async def append(self, instance_id: str, lines: Sequence[LogLine], batch: int) -> None:
        """Tell what instances printed. A `batch` that is repeated with its number counts once."""

    def session(self) -> str:
        """Return the registration of this worker, in which batches are counted from 1."""

    async def sample(self, instance_id: str, samples: Sequence[Sample]) -> None:
        """Keep one round of samples."""

    async def ran(self, instance_id: str, run: Run) -> None:
        """Keep a run that has ended."""

    async def rest(self, instance_id: str) -> App:
        """Have an app stay stopped after a reboot."""

    async def emit(self, instance_id: str, event: str, data: str) -> None:
        """Pass on what an app tells its watchers."""


class RedisReports:
    """The control plane of `hostler worker`; `holder` gives the registration that this worker has now."""

    def __init__(self, store: Store, holder: Callable[[], Holder]) -> None:
        self._store, self._holder = store, holder

    def listen(self, wake: Callable[[], None]) -> "asyncio.Task[None]":
        """Subscribe to the words to this node."""

        def tell(_: bytes, message: bytes) -> None:
            if message == b"apps":
                wake()

        channels = [f"h:control:{self._holder().worker}"]
        return asyncio.create_task(self._store.wire.listen(channels, tell, wake))

    async def wished(self) -> list[App]:
        """Return the apps of this node.

        Raises Unavailable for a Redis that holds nothing at all: whoever has lost it rebuilds it, and apps go on.
        """
        found = await apps.of_node(self._store, self._holder().worker)
        if not found and not await users.any_exist(self._store):
            raise Unavailable("This Redis is blank: nobody has installed anything, nor removed it.")
        return found

    async def observe(
        self, app: App, instances: Sequence[Instance], schedules: Mapping[str, ScheduleState], message: str
    ) -> None:
        """Report what there is."""
        step = apps.observe(self._holder(), app, instances, schedules=schedules, message=message)
        await self._store.call(step)

    async def append(self, instance_id: str, lines: Sequence[LogLine], batch: int) -> None:
        """Tell what instances printed."""
        await self._store.call(apps.append(self._holder(), instance_id, lines, batch=batch))

    def session(self) -> str:
        """Return the registration of this worker."""
        return self._holder().registration

    async def sample(self, instance_id: str, samples: Sequence[Sample]) -> None:
        """Keep one round of samples."""
        await self._store.call(apps.sample(self._holder(), instance_id, samples))

    async def ran(self, instance_id: str, run: Run) -> None:
        """Keep a run that has ended."""
        await self._store.call(apps.ran(self._holder(), instance_id, run))

    async def rest(self, instance_id: str) -> App:
        """Have an app stay stopped after a reboot."""
        return await apps.rest(self._store, self._holder(), instance_id)

    async def emit(self, instance_id: str, event: str, data: str) -> None:
        """Pass on what an app tells its watchers."""
        fields = {"event": event, "data": data}
        await self._store.call(apps.say(self._holder(), "plugin.emit", fields, instance_id=instance_id))
