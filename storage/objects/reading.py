"""Reading an object: a long one in spans, of which the store works on the next while one is read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from settings import MIB
from storage.errors import Unavailable
from storage.objects.sending import PART_BYTES

if TYPE_CHECKING:
    from botocore.response import StreamingBody

#: A long download is asked for in spans of this, which end where the parts did that we uploaded. The store works on the
#: next one while one is read: as long as its reader takes so much a second, for no connection shall wait for long.
SPAN_BYTES, FAST_BYTES_A_S = PART_BYTES, 4 * MIB


def end_of_span(first: int, last: int) -> int:
    """Return where the span ends that begins at `first`; what is no longer than one is not divided."""
    return last if last - first < SPAN_BYTES else first - first % SPAN_BYTES + SPAN_BYTES - 1


class Reading:
    """An object being read: iterate, then `close`; the next chunk is fetched while one is used.

    `left` are the bytes that `body` has, where that is known; `rest` is what follows them: its first byte, its last one
    and the object's tag. `read` fetches what comes next of a body, `open_span` opens the first span of such a rest.
    """

    def __init__(
        self,
        body: "StreamingBody",
        read: "Callable[[StreamingBody], Awaitable[bytes]]",
        open_span: "Callable[[int, int, str], Awaitable[StreamingBody]]",
        left: int | None = None,
        rest: tuple[int, int, str] | None = None,
    ) -> None:
        self._body = body
        self._read_of, self._open_span = read, open_span
        self._left, self._rest = left, rest
        self._next: asyncio.Future[bytes] | None = None
        self._ahead: asyncio.Future[StreamingBody] | None = None
        self._taken, self._since_s = 0, 0.0  # of this span, and since when

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._next is None:
            self._next = asyncio.ensure_future(self._fetch())
        chunk = await self._next
        if not chunk:
            await self.close()
            raise StopAsyncIteration
        self._look_ahead(len(chunk))
        self._next = asyncio.ensure_future(self._fetch())
        return chunk

    def _look_ahead(self, taken: int) -> None:
        """Have the next span opened for a reader that will soon want it."""
        if self._rest is None or self._ahead is not None:
            return
        now = asyncio.get_running_loop().time()
        if not self._taken:
            self._since_s = now
        elif self._taken >= (now - self._since_s) * FAST_BYTES_A_S:
            self._ahead = asyncio.ensure_future(self._open_span(*self._rest))
        self._taken += taken

    async def _fetch(self) -> bytes:
        if self._left == 0:
            if self._rest is None:
                return b""
            return await self._go_on(*self._rest)
        return await self._read()

    async def _go_on(self, first: int, last: int, etag: str) -> bytes:
        """Return the first chunk of the next span."""
        ahead, self._ahead = self._ahead, None
        end = end_of_span(first, last)
        self._left, self._rest = end + 1 - first, (end + 1, last, etag) if end < last else None
        self._taken = 0
        if ahead is not None:
            try:
                self._body = await ahead
                return await self._read()
            except Unavailable:  # it may have waited for longer than the store has patience
                self._body.close()
        self._body = await self._open_span(first, last, etag)
        return await self._read()

    async def _read(self) -> bytes:
        chunk = await self._read_of(self._body)
        if self._left is not None:
            self._left -= len(chunk)
        return chunk

    async def close(self) -> None:
        """Give the connections up. Safe to run twice."""
        pending, self._next = self._next, None
        if pending is not None and not pending.done():
            await asyncio.wait([pending])
        if pending is not None and not pending.cancelled():
            pending.exception()  # nobody else will ask
        self._body.close()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await asyncio.wait([ahead])
            if not ahead.cancelled() and ahead.exception() is None:
                ahead.result().close()
