"""Request bodies: read within limits of size and time, and understood only as what they say they are."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from falcon.asgi import Request

from api.errors import UnsupportedMediaType
from storage.errors import Invalid, TooLarge

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
    if declared is None or not 0 < declared <= min(limit_bytes, _SMALL_BYTES):
        return b"".join([chunk async for chunk in chunks(req, limit_bytes)])
    try:  # nearly every body: no generators, which took a fifth of a whole request
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

    async def next(self, pieces: AsyncIterator[bytes]) -> bytes:
        """Return the next piece, b"" at the end. Raises TimeoutError."""
        self._since, self._task = self._loop.time(), asyncio.current_task()
        cancelled_before = 0 if self._task is None else self._task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle_s, self._look)
        try:
            return await anext(pieces, b"")
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


async def chunks(req: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises TooLarge beyond `limit_bytes`, Invalid when it stalls or breaks off."""
    declared = req.content_length
    if declared is not None and declared > limit_bytes:
        raise TooLarge(f"The body is {declared} bytes; at most {limit_bytes} are accepted here.")
    received = 0
    chunk_reader, patience = req.stream.__aiter__(), Patience(BODY_IDLE_S)
    try:
        while declared is None or received < declared:
            chunk = await patience.next(chunk_reader)
            if not chunk:
                break
            received += len(chunk)
            if received > limit_bytes:
                raise TooLarge(f"The body exceeds {limit_bytes} bytes.")
            yield chunk
    except TimeoutError:
        raise _stalled() from None
    finally:
        patience.close()
    if declared is not None and received != declared:
        raise _broken_off(received, declared)
