"""Sending an object whose length nobody knows yet: in parts, in bounded memory, hashed as it comes."""

import asyncio
import hashlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from settings import MIB
from storage.errors import NotFound, Unavailable
from storage.read_into import ReadInto

#: One part of a multipart upload; S3 wants 5 MiB or more, and 10,000 of them at most.
PART_BYTES = 8 * MIB
#: How much memory there is for the first part, step by step; a small object needs no more than the first of them.
_ROOM_BYTES = (64 * 1024, 512 * 1024, 2 * MIB, PART_BYTES)
#: Parts under way at once, besides the one being filled: what bounds an upload's memory.
PARTS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was stored or fetched: its size, its SHA-256 in hex, and the store's own tag."""

    size_bytes: int
    sha256: str
    etag: str


class Ask(Protocol):
    """Calls an operation of S3 on the object that is sent."""

    async def __call__(self, operation: str, /, **arguments: Any) -> Any:
        """Return what the store answers. Raises Unavailable."""


class _Digest:
    """A SHA-256 that a thread reckons beside whoever has the bytes, in their order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._sha256 = pool, hashlib.sha256()
        self._lock = threading.Lock()
        self._waiting: deque[memoryview | Callable[[], object]] = deque()
        self._running = False

    def update(self, piece: memoryview) -> None:
        """Take `piece`, which must not change before it was reckoned. May be called in any thread.

        Raises Unavailable when the process stops.
        """
        self._put(piece)

    def caught_up(self) -> "asyncio.Future[None]":
        """Return what is done once all that was taken so far is reckoned. Raises Unavailable when the process stops."""
        loop = asyncio.get_running_loop()
        reckoned: asyncio.Future[None] = loop.create_future()
        self._put(partial(loop.call_soon_threadsafe, _settle, reckoned))
        return reckoned

    def hexdigest(self) -> str:
        """Return the digest of what was reckoned."""
        return self._sha256.hexdigest()

    def _put(self, what: "memoryview | Callable[[], object]") -> None:
        with self._lock:
            self._waiting.append(what)
            if self._running:
                return
            try:
                self._pool.submit(self._run)
            except RuntimeError:
                raise Unavailable("This process is stopping.") from None
            self._running = True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                what = self._waiting.popleft()
            if isinstance(what, memoryview):
                with what:
                    self._sha256.update(what)
            else:
                what()


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Sending:
    """An upload under way: the part being filled, those in flight, and what S3 has confirmed.

    `turns` are what all uploads of a process share; a part takes one for as long as it is under way.
    """

    def __init__(
        self, ask: Ask, pool: ThreadPoolExecutor, turns: asyncio.Semaphore, content_type: str
    ) -> None:
        self._ask = ask
        self._turns = turns
        self._content_type = content_type
        self._digest = _Digest(pool)
        self._hashed: asyncio.Future[None] | None = None  # the part before the one being filled
        self._filling = bytearray()
        self._filled = self._digested = 0
        self._free: list[bytearray] = []
        self._upload_id: str | None = None
        self._count = 0
        self._given_up = False
        self._in_flight: set[asyncio.Task[None]] = set()
        self._etags: dict[int, str] = {}
        self.size_bytes = 0

    async def fill(self, read_into: ReadInto) -> int:
        """Take the next bytes and return how many, 0 at their end; waits while too many parts are under way."""
        if self._filled == PART_BYTES:
            await self._ship()
        if self._filled == len(self._filling):
            size = next(each for each in _ROOM_BYTES if each > self._filled)
            larger = bytearray(PART_BYTES if self._count else size)
            larger[: self._filled] = self._filling  # not in place: the digest may still look at it
            self._filling = larger
        size = await read_into(self._filling, self._filled, len(self._filling), self._digest_to)
        self._filled += size
        self.size_bytes += size
        return size

    def _digest_to(self, end: int) -> bool:
        self._digest.update(memoryview(self._filling)[self._digested : end])
        self._digested = end
        return True

    async def finish(self) -> Uploaded:
        """Send what is left and have S3 put the parts together."""
        if self._upload_id is None:
            return await self._put_whole()
        await self._digest.caught_up()
        del self._filling[self._filled :]
        await self._ship()
        while self._in_flight:
            await self._landed()
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
        answer = await self._ask(
            "complete_multipart_upload", UploadId=self._upload_id, MultipartUpload={"Parts": parts}
        )
        return Uploaded(self.size_bytes, self._digest.hexdigest(), answer["ETag"].strip('"'))

    async def abort(self) -> None:
        """Leave nothing behind; parts in flight are awaited, for one that lands later would stay."""
        self._given_up = True
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        if self._upload_id is not None:
            with suppress(NotFound, Unavailable):  # the sweeper comes later
                await self._ask("abort_multipart_upload", UploadId=self._upload_id)

    async def _put_whole(self) -> Uploaded:
        await self._digest.caught_up()
        del self._filling[self._filled :]
        answer = await self._ask("put_object", Body=self._filling, ContentType=self._content_type)
        return Uploaded(self.size_bytes, self._digest.hexdigest(), answer["ETag"].strip('"'))

    async def _ship(self) -> None:
        if self._upload_id is None:
            answer = await self._ask("create_multipart_upload", ContentType=self._content_type)
            self._upload_id = answer["UploadId"]
        while len(self._in_flight) >= PARTS_IN_FLIGHT:
            await self._landed()
        if self._hashed is not None:
            await self._hashed  # what is received before it can be hashed only takes its time from hashing
        part, self._filling = self._filling, self._free.pop() if self._free else bytearray()
        self._filled = self._digested = 0
        self._count += 1
        self._hashed = self._digest.caught_up()
        self._in_flight.add(asyncio.ensure_future(self._send(self._count, part, self._hashed)))

    async def _send(self, number: int, part: bytearray, hashed: "asyncio.Future[None]") -> None:
        async with self._turns:
            if self._given_up:
                return
            answer = await self._ask("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part)
        self._etags[number] = answer["ETag"]
        await hashed
        self._free.append(part)

    async def _landed(self) -> None:
        done, self._in_flight = await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        failures = [task.exception() for task in done]  # of several, all are asked for and the first is told
        for failure in failures:
            if failure is not None:
                raise failure
