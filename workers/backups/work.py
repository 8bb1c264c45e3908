"""What the tasks of backups share: the job and its backup, the engine, how both are told of, the lease as a lock."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from storage import backups
from storage.attempts import Holder
from storage.backups import Backup, Record, reports
from storage.calls import Call
from storage.errors import Conflict, Unavailable
from storage.store import Store
from workers.backups.engine import Engine
from workers.backups.process import Programs
from workers.insisting import insist
from workers.installs.releases import remove_tree
from workers.lines import Offer
from workers.supervisor.places import Places

T = TypeVar("T")

#: How often progress is told.
TELL_S = 2.0
#: What the engine keeps here of a backup that nobody has worked on for so long is forgotten.
FORGET_DAYS = 30


class Supervisor(Protocol):
    """What these tasks need of the one who keeps this node's apps running."""

    name: str

    def places(self, instance_id: str) -> Places:
        """Return where an app lies. Raises Invalid."""

    def user(self, instance_id: str) -> int | None:
        """Return the user that an app runs as; None for the worker's own."""

    def held(self, instance_id: str) -> AbstractAsyncContextManager[None]:
        """Keep an app stopped: nothing of it runs inside."""


class Context(Protocol):
    """What a task is given beside its offer."""

    store: Store
    supervisor: Supervisor
    why_stopped: str | None

    @property
    def holder(self) -> Holder:
        """Who this node is by now."""

    def say(self, message: str) -> None:
        """Add a line of the worker's own to the job's output."""

    def step(self, name: str) -> None:
        """Take note that a step begins."""


def root_of(store: Store) -> Path:
    """Return where this machine keeps what backups need; no worker's name begins with a dot."""
    return store.settings.work_dir / ".backups"


class Work:
    """One task under way."""

    def __init__(self, offer: Offer, context: Context, backup: Backup, programs: Programs) -> None:
        self.offer, self.context, self.backup, self.programs = offer, context, backup, programs
        self.store, self.supervisor = context.store, context.supervisor
        self.held = (offer.job_id, offer.attempt)
        self.directory = root_of(self.store) / backup.id
        self.scratch = self.directory / "scratch"
        self.engine = Engine(
            self.store.settings, self.store.seal, self.store.objects, backup_id=backup.id, prefix=backup.prefix,
            programs=programs, directory=self.directory, say=context.say, bandwidth_limit=backup.bandwidth_limit,
        )  # fmt: skip
        self._told = 0.0
        self._rate = _Rate()

    async def report(self, call: Callable[[Holder], Call[T]]) -> T:
        """Tell something as this node, trying again as `insist` does. Raises Stale, Unregistered, NotFound."""
        return await insist(lambda: self.store.call(call(self.context.holder)))

    async def progress(self, done: int, total: int) -> None:
        """Say how far this is, now and then; not now is as good as later. Raises Stale, Unregistered."""
        now = time.monotonic()
        if now - self._told < TELL_S:
            return
        self._told = now
        rate = self._rate.after(now, done)
        percent = min(99, done * 100 // total) if total else 0
        left_s = int((total - done) / rate) if rate and total > done else None
        self.context.say(_line(percent, done, total, rate, left_s))
        with contextlib.suppress(Unavailable):
            await self.store.call(
                reports.progress(
                    self.context.holder, self.held, percent=percent, bytes_done=done, bytes_total=total,
                    bytes_per_s=rate, eta_s=left_s,
                )
            )  # fmt: skip

    async def alone(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what nobody else may be at meanwhile: given up once the lease cannot be shown to be ours.

        Raises Stale, Unregistered, or Unavailable when Redis has been silent for as long as a lease.
        """
        lease_s = self.store.settings.lease_s
        await self.store.call(reports.still_held(self.context.holder, self.held))
        known = time.monotonic()
        task = asyncio.ensure_future(work())
        try:
            while not (await asyncio.wait([task], timeout=lease_s / 5))[0]:
                try:
                    async with asyncio.timeout(lease_s / 5):
                        await self.store.call(reports.still_held(self.context.holder, self.held))
                    known = time.monotonic()
                except (Unavailable, TimeoutError):
                    if time.monotonic() - known > lease_s * 0.6:
                        raise Unavailable("Redis does not answer, so the lock cannot be kept.") from None
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def room_for(self, size_bytes: int, place: Path) -> None:
        """Raise Conflict unless a file system has room for so much."""
        free = shutil.disk_usage(place).free
        if free < size_bytes + 16 * 1024 * 1024:
            raise Conflict(f"{place} has {size(free)} of free space, and {size(size_bytes)} are needed.")

    def steadily(self, record: Record) -> Callable[[int, int], Awaitable[None]]:
        """Return how a restore tells how far it is, when it knows only how much it has written."""

        async def told(done: int, _: int) -> None:
            await self.progress(done, int(record.proof["size_bytes"]))

        return told

    async def fresh_scratch(self) -> Path:
        """Return an empty directory of the worker's own, without what an earlier attempt has left."""
        await asyncio.to_thread(remove_tree, self.scratch)
        await asyncio.to_thread(self.scratch.mkdir, 0o700, True, True)
        return self.scratch


@contextlib.asynccontextmanager
async def at_work(offer: Offer, context: Context) -> AsyncIterator[Work]:
    """Have what a task needs, and leave nothing running. Raises NotFound, Forged, NotConfigured."""
    store = context.store
    backup = await insist(lambda: backups.get(store, str(offer.spec["backup"])))
    with Programs(offer.job_id) as programs:
        programs.sweep()
        work = Work(offer, context, backup, programs)
        try:
            yield work
        finally:
            await asyncio.to_thread(remove_tree, work.scratch)
            await asyncio.to_thread(_forget_old, root_of(store))


def _forget_old(root: Path) -> None:
    before = time.time() - FORGET_DAYS * 86_400
    for each in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(OSError):
            newest = max(
                (inner.stat().st_mtime for inner in (each, each / "cache") if inner.exists()), default=0
            )
            if newest < before:
                remove_tree(each)


class _Rate:
    """How fast something goes, on the whole of the last moments."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def after(self, now: float, done: int) -> int:
        """Take another look; answers bytes a second."""
        self._seen = [*self._seen[-9:], (now, done)]
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return int(max(0, last - first) / (last_at - first_at)) if last_at > first_at else 0


def size(size_bytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def _line(percent: int, done: int, total: int, rate: int, left_s: int | None) -> str:
    line = f"{percent} %, {size(done)} of {size(total)}, {size(rate)}/s"
    return line if left_s is None else f"{line}, {left_s} s left"


async def aside(work: Awaitable[None], limit_s: float) -> None:
    """See something through, also when this is cancelled meanwhile, but not for longer than `limit_s`."""
    task = asyncio.ensure_future(work)
    deadline = asyncio.get_running_loop().time() + limit_s
    cancelled = False
    while not task.done():
        try:
            left_s = deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait([task], timeout=max(0.0, left_s))
            if not done:
                task.cancel()
                deadline += 10
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()
