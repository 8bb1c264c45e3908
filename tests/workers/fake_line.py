"""A control plane in memory for an executor: it hands out what it is given, keeps what it is told, and can be away."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.attempts import Beaten, Received
from storage.errors import Stale, Unavailable
from workers.lines import Offer


@dataclass
class Told:
    """What one attempt has told: its output, its end, its files."""

    pieces: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    percents: list[int] = field(default_factory=list)
    parts: list[tuple[int, int, bytes]] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    ends: list[tuple[str, str, int | None, dict[str, str | int]]] = field(default_factory=list)

    @property
    def text(self) -> bytes:
        """Return all of its output."""
        return b"".join(data for _, _, _, data in self.pieces)


class FakeLine:
    """Stands in for RedisLine. `away` makes every call raise Unavailable; `stale` names attempts that are over."""

    name = "fake"
    tells_of_work = True

    def __init__(self) -> None:
        self.waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self.told: dict[tuple[str, int], Told] = {}
        self.stale: set[tuple[str, int]] = set()
        self.attempts: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.lose: set[str] = set()
        self.away = self.store_away = False
        self.claim_gate = asyncio.Event()
        self.claim_gate.set()
        self.error: Exception | None = None
        self.files: dict[str, bytes] = {}
        self.came: list[Offer] = []  # unasked, as by a poll that had waited
        self.begun: list[tuple[str, int]] = []
        self.beats: list[list[tuple[str, int]]] = []
        self.wake: Callable[[str], None] = lambda queue: None
        self.hint: Callable[[str], None] = lambda job_id: None
        self.hand: Callable[[Offer], None] = lambda offer: None

    def put(self, job_id: str, command: str = "true", **spec: Any) -> None:
        """Queue a job."""
        self.waiting.append((job_id, {"task": "command", "command": command, "timeout_s": 60, **spec}))
        self.wake("")

    def cancel(self, job_id: str) -> None:
        """Wish for a job's end in its record, then say so."""
        self.cancelled.add(job_id)
        self.hint(job_id)

    def of(self, job_id: str, attempt: int = 1) -> Told:
        """Return what an attempt has told so far."""
        return self.told.setdefault((job_id, attempt), Told())

    def _check(self, offer: Offer | None = None) -> None:
        if self.away:
            raise Unavailable("The control plane is away.")
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if offer is not None and (offer.job_id, offer.attempt) in self.stale:
            raise Stale("That attempt is over.")

    def listen(
        self, wake: Callable[[str], None], cancel: Callable[[str], None], take: Callable[[Offer], None]
    ) -> "asyncio.Task[None]":
        self.wake, self.hint, self.hand = wake, cancel, take
        wake("")
        return asyncio.create_task(asyncio.sleep(3600))

    async def claim(self, *, most: int, startable: int) -> list[Offer]:
        self._check()
        taken = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        await self.claim_gate.wait()
        offers = []
        for number, (job_id, spec) in enumerate(taken):
            self.attempts[job_id] = self.attempts.get(job_id, 0) + 1
            offers.append(Offer(job_id, self.attempts[job_id], spec, 0, held_ahead=number >= startable))
        return offers

    def brought(self) -> list[Offer]:
        offers = [*self.came]
        self.came.clear()
        return offers

    async def begin(self, offer: Offer) -> bool:
        self._check()
        return (offer.job_id, offer.attempt) not in self.stale

    def begin_unheard(self, offer: Offer, lost: Callable[[], None]) -> None:
        self.begun.append((offer.job_id, offer.attempt))
        if (offer.job_id, offer.attempt) in self.stale:
            asyncio.get_running_loop().call_soon(lost)

    async def beat(self, held: Iterable[Offer], *, running: int, current: str | None) -> Beaten:
        self._check()
        pairs = [(offer.job_id, offer.attempt) for offer in held]
        self.beats.append(pairs)
        lost = [job_id for job_id, attempt in pairs if (job_id, attempt) in self.stale]
        return Beaten(lost, [job_id for job_id, _ in pairs if job_id in self.cancelled])

    async def output(
        self, offer: Offer, channel: str, data: bytes, *, first_line: int, line_count: int
    ) -> Received:
        self._check(offer)
        self.of(offer.job_id, offer.attempt).pieces.append((channel, first_line, line_count, data))
        return Received(first_line + line_count, False, offer.job_id in self.cancelled)

    async def progress(self, offer: Offer, percent: int) -> None:
        self._check(offer)
        self.of(offer.job_id, offer.attempt).percents.append(percent)

    async def settle(
        self, offer: Offer, outcome: str, reason: str, exit_code: int | None, facts: Mapping[str, str | int]
    ) -> str:
        self._check(offer)
        self.of(offer.job_id, offer.attempt).ends.append((outcome, reason, exit_code, dict(facts)))
        return outcome

    async def fetch_file(
        self, offer: Offer, into: Path, *, limit_bytes: int, cancelled: Callable[[], bool] = lambda: False
    ) -> str:
        self._check(offer)
        if self.store_away:
            raise Unavailable("The object store is away.")
        name = str(offer.spec["file"])
        with into.open("xb") as file:
            file.write(self.files[name])
        return name

    async def put_artifact(self, offer: Offer, name: str, path: Path) -> None:
        self._check(offer)
        if self.store_away:
            raise Unavailable("The object store is away.")
        self.of(offer.job_id, offer.attempt).artifacts[name] = path.read_bytes()

    async def put_log(self, offer: Offer, frames: bytes, *, first_line: int, next_line: int) -> None:
        self._check(offer)
        if self.store_away:
            raise Unavailable("The object store is away.")
        self.of(offer.job_id, offer.attempt).parts.append((first_line, next_line, frames))

    async def depart(self, reason: str) -> None:
        self._check()


async def until(condition: Callable[[], Any], what: str, patience_s: float = 10) -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"This did not come true within {patience_s} s: {what}.") from None
