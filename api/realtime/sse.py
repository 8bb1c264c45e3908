"""Server-sent events: the same messages as on a WebSocket, for clients that speak plain HTTP."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from falcon.asgi import Request, Response

from api import downloads
from api.endpoint import Context
from api.realtime.messages import Message
from api.realtime.websocket import STANDING_S, still_admitted
from storage.errors import HostlerError

#: A comment goes out when nothing else has for so long; proxies drop what is silent.
KEEP_ALIVE_S = 15.0


async def tell(
    context: Context, req: Request, resp: Response, messages: AsyncGenerator[Message, None]
) -> None:
    """Answer with `messages` as events: `job.output` is `output`, `stream.gap` is `gap`; ids are cursors.

    Raises what `messages` raises before its first message.
    """
    await anext(messages)
    resp.content_type = "text/event-stream; charset=utf-8"
    resp.set_header("X-Accel-Buffering", "no")
    resp.stream = _Closing(_events(context, messages, downloads.left(req)))


class _Closing:
    """Chunks that Falcon stops, whatever becomes of the client."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> "_Closing":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)

    async def close(self) -> None:
        """Let go of what is being followed."""
        await self._chunks.aclose()


def _frame(message: Message) -> bytes:
    return f"event: {message.type.partition('.')[2]}\nid: {message.id}\ndata: {message.text}\n\n".encode()


async def _events(
    context: Context, messages: AsyncGenerator[Message, None], gone: "asyncio.Future[None]"
) -> AsyncGenerator[bytes, None]:
    async with aclosing(messages):
        coming = asyncio.ensure_future(anext(messages, None))
        try:
            asked = said = time.monotonic()
            yield b": follows\n\n"  # proxies and clients see at once that the answer has begun
            while not gone.done():
                left_s = max(0.0, asked + STANDING_S - time.monotonic())
                await asyncio.wait((coming, gone), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                if now - asked >= STANDING_S:
                    asked = now
                    if not await still_admitted(context):
                        return
                if coming.done():
                    try:
                        message = coming.result()
                    except HostlerError:  # the client comes back with the id of its last event
                        return
                    if message is None:
                        return
                    said = now
                    yield _frame(message)
                    coming = asyncio.ensure_future(anext(messages, None))
                elif now - said >= KEEP_ALIVE_S:
                    said = now
                    yield b": still here\n\n"
        finally:
            gone.cancel()
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
