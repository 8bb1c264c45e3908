"""A line to the control plane: how an executor takes work and reports on it, straight to Redis or over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from storage import attempts, files, fleet, logs, queues
from storage.attempts import Beaten, Claim, Holder, Received
from storage.calls import Call
from storage.errors import Conflict, HostlerError, Invalid, NotFound
from storage.seal import Forged
from storage.store import Store
from storage.tasks import COMMAND, TABLE
from workers.insisting import insist
from workers.log import log

T = TypeVar("T")

#: What the names of queues begin with that nodes draw no longer from once they drain.
_COMMANDS = queues.COMMAND_PREFIX.encode()


@dataclass(frozen=True, slots=True)
class Offer:
    """One attempt to carry out: what to do (`spec`), how many lines of log the job already has, who submitted it."""

    job_id: str
    attempt: int
    spec: Mapping[str, Any]
    lines: int
    held_ahead: bool = False
    owner: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Return what tells this attempt from all others."""
        return self.job_id, self.attempt

    @property
    def needs_files(self) -> bool:
        """Tell whether something is to be fetched before its command can start."""
        return bool(self.spec.get("file") or self.spec.get("file_url"))

    @property
    def at_most_once(self) -> bool:
        """Tell whether its command must not run again where it is not known whether it did."""
        return bool(self.spec.get("at_most_once"))


class IntegrityError(Conflict):
    """A file is not what it was when it was uploaded."""

    code = "INTEGRITY"


class Line(Protocol):
    """What an executor needs of the control plane.

    Every call may raise Unavailable, after which it may have happened or not; all of them may be repeated.
    """

    name: str
    #: Whether `wake` tells of all new work, so that nothing has come since a claim that brought less than it wanted.
    tells_of_work: bool

    def listen(
        self, wake: Callable[[str], None], cancel: Callable[[str], None], take: Callable[[Offer], None]
    ) -> "asyncio.Task[None]":
        """Start telling about new work and about jobs to cancel; both are hints that may get lost.

        `wake` is told the queue, or "" when it may be any. `take` is given a job that this line was handed unasked.
        """

    async def claim(self, *, most: int, startable: int) -> list[Offer]:
        """Take up to `most` jobs; those beyond `startable` are held, not started.

        There may be more of them where jobs have come meanwhile that were asked for before.
        """

    def brought(self) -> list[Offer]:
        """Return the jobs that have come since the last claim; they are ours, with or without a slot for them."""

    async def begin(self, offer: Offer) -> bool:
        """Say that a held job starts; answers whether it is still ours."""

    def begin_unheard(self, offer: Offer, lost: Callable[[], None]) -> None:
        """Say that a held job starts without waiting for the answer; `lost` is called if it is not ours any more.

        Said before whatever is said later. While the control plane is away it is said again until it is heard.
        """

    async def beat(self, held: Iterable[Offer], *, running: int, current: str | None) -> Beaten:
        """Renew the leases of what is held."""

    async def output(
        self, offer: Offer, channel: str, data: bytes, *, first_line: int, line_count: int
    ) -> Received:
        """Append output. Raises Stale when the attempt is no longer ours."""

    async def progress(self, offer: Offer, percent: int) -> None:
        """Say how far an attempt is."""

    async def settle(
        self, offer: Offer, outcome: str, reason: str, exit_code: int | None, facts: Mapping[str, str | int]
    ) -> str:
        """End an attempt; answers the job's state after it. Raises Stale."""

    async def fetch_file(
        self, offer: Offer, into: Path, *, limit_bytes: int, cancelled: Callable[[], bool] = lambda: False
    ) -> str:
        """Download the upload that the job works on to the path `into`; answers its name.

        Raises InterruptedError once `cancelled` says so.
        """

    async def put_artifact(self, offer: Offer, name: str, path: Path) -> None:
        """Store a file that the job left, and register it."""

    async def put_log(self, offer: Offer, frames: bytes, *, first_line: int, next_line: int) -> None:
        """Store a part of the log that is too long for Redis, and register it."""

    async def depart(self, reason: str) -> None:
        """Say goodbye."""


class RedisLine:
    """The line of `hostler worker`: the scripts of the job engine and the object store, without a detour."""

    tells_of_work = True

    def __init__(
        self,
        store: Store,
        holder: Holder,
        *,
        tags: tuple[str, ...],
        reregister: Callable[[], Awaitable[Holder]],
    ) -> None:
        self.store, self.holder = store, holder
        self.name = holder.worker
        self._tags, self._reregister = tags, reregister
        self._lease_s = store.settings.lease_s
        self._tag_sets = fleet.TagSets()
        self._drained = False
        self._registering: asyncio.Task[None] | None = None
        self._starts: list[tuple[Offer, Callable[[], None]]] = []  # in this turn of the loop, not said yet
        self._insisting: set[asyncio.Task[None]] = set()

    def listen(
        self, wake: Callable[[str], None], cancel: Callable[[str], None], take: Callable[[Offer], None]
    ) -> "asyncio.Task[None]":
        """Subscribe to the channels for work and for a word to this worker."""

        def tell(channel: bytes, message: bytes) -> None:
            if channel == b"h:wake":
                if message == b"tagsets":
                    self._tag_sets.forget()
                elif self._drained and message.startswith(_COMMANDS):
                    return  # it would be given nothing; the end of the draining is told, and polled for
                wake(queues.news(message)[0])
            elif message.startswith(attempts.OFFER):
                self._hear_offer(message, take)
            elif message.startswith(b"cancel "):
                cancel(message[7:].partition(b" ")[0].decode("ascii", "replace"))

        def connected() -> None:
            self._tag_sets.forget()
            wake("")

        channels = ["h:wake", f"h:control:{self.name}", f"h:offer:{self.name}"]
        return asyncio.create_task(self.store.wire.listen(channels, tell, connected))

    def _hear_offer(self, message: bytes, take: Callable[[Offer], None]) -> None:
        """Pass on a job that was handed to this worker, if we wrote it.

        What we did not write is left alone, for anybody who may publish can say such a word; a job that has it in its
        record goes back with the next heartbeat, and is refused when it is claimed.
        """
        try:
            claim = attempts.offered(self.holder, message)
            if claim is not None:
                take(self._offer(claim, held_ahead=True, own=False))
        except (ValueError, Forged, Invalid) as error:
            log.error("was handed what is no job of ours", extra={"why": str(error)})

    async def claim(self, *, most: int, startable: int) -> list[Offer]:
        """Take jobs; forged ones are ended as invalid and reported, never handed on."""
        tag_sets = await self._tag_sets.all(self.store)
        call = attempts.claim(
            self.holder, tag_sets, self._tags, most=most, startable=startable, lease_s=self._lease_s, hears=True,
            drains=self._note_drained,
        )  # fmt: skip
        return await self._offers(call, startable=startable, own=False)

    def brought(self) -> list[Offer]:
        """Return nothing: no job comes that was not claimed, or handed over."""
        return []

    def _note_drained(self, drained: bool) -> None:
        self._drained = drained

    async def claim_own(self, *, most: int) -> list[Offer]:
        """Take up to `most` jobs of this node's own queue, which commands never are in."""
        call = attempts.claim(self.holder, (), (), most=most, startable=most, lease_s=self._lease_s, own=True)
        return await self._offers(call, startable=most, own=True)

    async def _offers(
        self, call: Call[tuple[list[Claim], list[str]]], *, startable: int, own: bool
    ) -> list[Offer]:
        claims, refused = await self._call(call)
        for job_id in refused:
            log.warning(
                "refused what a queue held: no job of ours, or not as we wrote it", extra={"job": job_id}
            )
        offers = []
        for number, claim in enumerate(claims):
            try:
                offers.append(self._offer(claim, held_ahead=number >= startable, own=own))
            except (Forged, Invalid) as error:
                log.error("refused a job", extra={"job": claim.job_id, "why": str(error)})
                await self._refuse(claim, str(error))
        return offers

    def _offer(self, claim: Claim, *, held_ahead: bool, own: bool) -> Offer:
        spec = claim.read_spec(self.store.seal)
        if spec.get("task") not in TABLE:
            raise Invalid(f"There is no task {spec.get('task')!r}.")
        if (spec["task"] == COMMAND.name) is own:  # a queue is but a list of ids, and not signed
            raise Invalid(
                f"The task {spec['task']!r} was in queue {claim.queue!r}, where it does not belong."
            )
        return Offer(claim.job_id, claim.attempt, spec, claim.lines, held_ahead, claim.owner)

    async def _refuse(self, claim: Claim, why: str) -> None:
        facts = {"message": why}
        step = attempts.settle(self.holder, claim.job_id, claim.attempt, "failed", "invalid", facts=facts)
        try:
            await self._call(step)
        except HostlerError as error:  # its lease runs out; what was claimed beside it must not wait for that
            log.warning("could not end a refused job", extra={"job": claim.job_id, "why": str(error)})

    async def begin(self, offer: Offer) -> bool:
        """Say that a held job starts."""
        return await self._call(attempts.begin(self.holder, offer.job_id, offer.attempt))

    def begin_unheard(self, offer: Offer, lost: Callable[[], None]) -> None:
        """Say that a held job starts, in the next write: with the result that comes in the same turn, or alone."""
        if not self._starts:
            asyncio.get_running_loop().call_soon(self._say_starts)
        self._starts.append((offer, lost))

    def _say_starts(self) -> None:
        """Say that jobs start which no result has taken along."""
        starts, self._starts = self._starts, []
        for offer, lost in starts:
            step = attempts.begin(self.holder, offer.job_id, offer.attempt)
            if not self.store.wire.tell(step, partial(self._heard, offer, lost, step)):
                self._insist_on(offer, lost)

    def _heard(
        self, offer: Offer, lost: Callable[[], None], step: Call[bool], reply: "asyncio.Future[Any]"
    ) -> None:
        if reply.cancelled() or reply.exception() is not None:
            self._insist_on(offer, lost)
        elif not step.read(reply.result()):
            lost()

    def _insist_on(self, offer: Offer, lost: Callable[[], None]) -> None:
        task = asyncio.create_task(self._insist(offer, lost))
        self._insisting.add(task)
        task.add_done_callback(self._insisting.discard)

    async def _insist(self, offer: Offer, lost: Callable[[], None]) -> None:
        """Say that a job has started until that is heard."""
        if not await insist(partial(self.begin, offer)):
            lost()

    async def beat(self, held: Iterable[Offer], *, running: int, current: str | None) -> Beaten:
        """Renew the leases, by one script. With a registration that is gone all is lost; it is made anew meanwhile."""
        pairs = [offer.key for offer in held]
        status: dict[str, str | int] = {"running": running, "current_job": current or ""}
        ttl_s = int(self._lease_s * 4) + 1
        try:
            return await self._call(
                attempts.beat(self.holder, pairs, lease_s=self._lease_s, rq_ttl_s=ttl_s, status=status)
            )
        except attempts.Unregistered:
            if self._registering is None or self._registering.done():
                log.warning("the registration is gone; registering anew", extra={"worker": self.name})
                self._registering = asyncio.create_task(self._register())
            return Beaten([job_id for job_id, _ in pairs], [])

    async def _register(self) -> None:
        try:
            self.holder = await self._reregister()  # waits for as long as another worker has the name
        except Exception:  # the next heartbeat tries again
            log.exception("cannot register anew")

    async def output(
        self, offer: Offer, channel: str, data: bytes, *, first_line: int, line_count: int
    ) -> Received:
        """Append output."""
        return await self._call(
            attempts.output(
                self.holder, offer.job_id, offer.attempt, channel, data, first_line=first_line,
                line_count=line_count, live_bytes=self.store.settings.job_log_live_bytes,
                limit_bytes=self.store.settings.job_log_limit_bytes,
            )
        )  # fmt: skip

    async def progress(self, offer: Offer, percent: int) -> None:
        """Say how far an attempt is."""
        await self._call(attempts.progress(self.holder, offer.job_id, offer.attempt, percent))

    async def settle(
        self, offer: Offer, outcome: str, reason: str, exit_code: int | None, facts: Mapping[str, str | int]
    ) -> str:
        """End an attempt, and say which ones start at this moment, in one step."""
        starts, self._starts = self._starts, []
        heard = False

        def begun(lost: list[str]) -> None:
            nonlocal heard
            heard = True
            for start, tell in starts:
                if start.job_id in lost:
                    tell()

        step = attempts.settle(
            self.holder, offer.job_id, offer.attempt, outcome, reason, exit_code, facts,
            begins=[start.key for start, _ in starts], begun=begun,
        )  # fmt: skip
        try:
            return await self._call(step)
        finally:
            if not heard:
                for start, tell in starts:
                    self._insist_on(start, tell)

    async def fetch_file(
        self, offer: Offer, into: Path, *, limit_bytes: int, cancelled: Callable[[], bool] = lambda: False
    ) -> str:
        """Download the upload from the object store; its record holds its name and its digest."""
        file = await files.get(self.store, str(offer.spec["file"]))
        fetched = await asyncio.to_thread(
            self.store.objects.get_file, file.key, into, limit_bytes=limit_bytes, cancelled=cancelled
        )
        if fetched.sha256 != file.sha256:
            raise IntegrityError(f"File {file.id!r} is not what was uploaded: its sha256 differs.")
        return file.filename

    async def put_artifact(self, offer: Offer, name: str, path: Path) -> None:
        """Store a file that the job left under a key of this attempt, then register it."""
        key = f"artifacts/{offer.job_id}/{offer.attempt}/{name}"
        stored = await asyncio.to_thread(self.store.objects.put_file, key, path)
        record = {
            "name": name, "size": stored.size_bytes, "sha256": stored.sha256, "key": key, "attempt": offer.attempt
        }  # fmt: skip
        await self._call(attempts.attach(self.holder, offer.job_id, offer.attempt, "artifacts", name, record))

    async def put_log(self, offer: Offer, frames: bytes, *, first_line: int, next_line: int) -> None:
        """Store frames of the log as an object, then register them."""
        key = f"logs/{offer.job_id}/{offer.attempt}/{first_line:012d}"
        await asyncio.to_thread(lambda: self.store.objects.put_bytes(key, logs.pack(frames)))
        record = {
            "attempt": offer.attempt, "first": first_line, "next": next_line, "key": key, "size_bytes": len(frames)
        }  # fmt: skip
        name = f"{offer.attempt}:{first_line:012d}"
        await self._call(attempts.attach(self.holder, offer.job_id, offer.attempt, "logparts", name, record))

    async def depart(self, reason: str) -> None:
        """Mark this worker offline, unless another has taken its name meanwhile."""
        if self._registering is not None:
            self._registering.cancel()
            await asyncio.gather(self._registering, return_exceptions=True)
        for task in self._insisting:
            task.cancel()
        try:
            await self._call(fleet.depart(self.name, self.holder.registration, reason=reason))
        except (NotFound, Conflict):
            log.info("this worker's registration was already gone", extra={"worker": self.name})

    def _call(self, call: Call[T]) -> Awaitable[T]:
        return self.store.wire.call(call)
