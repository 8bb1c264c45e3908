"""Request bodies: read within limits of size and time, and understood only as what they say they are."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from falcon.asgi import Request

from api.errors import UnsupportedMediaType
from api.long_body import IN_PLACE
from storage.errors import Invalid, TooLarge
from storage.read_into import Pieces, ReadInto, whole_of

T = TypeVar("T")

#: A client that sends no byte of a body for so long is given up.
BODY_IDLE_S = 30
#: A body up to this size is read in one go, and has the time of one pause for all of it.
_SMALL_BYTES = 64 * 1024


async def json_object(req: Request, limit_bytes: int, *, any_type: bool = False) -> dict[str, Any]:
    """Return the request's body, a JSON object; an absent body counts as an empty one.

    `any_type`: whatever its Content-Type says.

    Raises UnsupportedMediaType, TooLarge beyond `limit_bytes`, or Invalid.
    """
    raw = await read(req, limit_bytes)
    if not raw:
        return {}
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not any_type:
        raise UnsupportedMediaType("The body must be application/json.")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"The body is not valid JSON: {error.msg}.") from None
    if not isinstance(value, dict):
        raise Invalid("The body must be a JSON object.")
    return value


async def read(req: Request, limit_bytes: int) -> bytes:
    """Return the whole body. Raises TooLarge beyond `limit_bytes`, Invalid when the client stalls."""
    declared = req.content_length
    whole: bytes | None = getattr(req.context, "whole_body", None)  # it came with its head
    if whole is not None and declared == len(whole) <= limit_bytes:
        return whole
    if declared == 0:
        return b""
    if declared is None or declared > min(limit_bytes, _SMALL_BYTES):
        return await whole_of(Incoming(req, limit_bytes).read_into)
    try:  # nearly every body: with fewer steps, which took a fifth of a whole request
        async with asyncio.timeout(BODY_IDLE_S):
            body: bytes = await req.stream.read(declared)
    except TimeoutError:
        raise _stalled() from None
    if len(body) != declared:
        raise _broken_off(len(body), declared)
    return body


def _stalled() -> Invalid:
    return Invalid(f"The body stopped arriving for {BODY_IDLE_S} s.")


def _broken_off(received: int, declared: int) -> Invalid:
    return Invalid(f"The body broke off after {received} of {declared} bytes.")


class Patience:
    """Waits for the pieces of one body, each for `idle_s` seconds at most; one timer serves all of them.

    A timer a piece took an eighth of receiving a large file.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # when the piece was first waited for that is waited for now
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    async def wait(self, piece: Awaitable[T]) -> T:
        """Return the next piece once it is there. Raises TimeoutError."""
        self._since, self._task = self._loop.time(), asyncio.current_task()
        cancelled_before = 0 if self._task is None else self._task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle_s, self._look)
        try:
            return await piece
        except asyncio.CancelledError:
            # as asyncio.timeout has it: who else cancels is obeyed
            if self._expired and self._task is not None and self._task.uncancel() <= cancelled_before:
                raise TimeoutError from None
            raise
        finally:
            self._since = self._task = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None or self._task is None:
            return
        left_s = self._since + self._idle_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._expired = True
            self._task.cancel()

    def close(self) -> None:
        """Let go of the timer. Safe to run twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Incoming:
    """The body of a request as it arrives. Raises TooLarge when it says that it is longer than `limit_bytes`."""

    def __init__(self, req: Request, limit_bytes: int | None = None) -> None:
        self._declared, self._limit_bytes = req.content_length, limit_bytes
        if limit_bytes is not None and (self._declared or 0) > limit_bytes:
            raise TooLarge(f"The body is {self._declared} bytes; at most {limit_bytes} are accepted here.")
        self._received = 0
        self._patience = Patience(BODY_IDLE_S)
        self._pieces = Pieces(aiter(req.stream))
        self._in_place: ReadInto | None = req.scope.get("extensions", {}).get(IN_PLACE)

    async def read_into(self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
        """Read as ReadInto has it.

        Raises TooLarge beyond the limit, Invalid when the body stalls or breaks off.
        """
        read: ReadInto = self._pieces.read_into
        if self._in_place is not None and self._received and not self._pieces.rest:
            read = self._in_place  # what came with the head has been taken
        try:
            size = await self._patience.wait(read(buffer, start, end, look))
        except TimeoutError:
            raise _stalled() from None
        self._received += size
        if self._limit_bytes is not None and self._received > self._limit_bytes:
            raise TooLarge(f"The body exceeds {self._limit_bytes} bytes.")
        if not size:
            self._patience.close()
            if self._declared is not None and self._received != self._declared:
                raise _broken_off(self._received, self._declared)
        return size
