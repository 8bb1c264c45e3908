"""Server-sent events: the same messages as on a WebSocket, for clients that speak plain HTTP."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from falcon.asgi import Response, SSEvent

from api.endpoint import Context
from api.realtime.messages import Message
from api.realtime.websocket import STANDING_S, still_admitted
from storage.errors import HostlerError

#: A comment goes out when nothing else has for so long; proxies drop what is silent.
KEEP_ALIVE_S = 15.0


async def tell(context: Context, resp: Response, messages: AsyncGenerator[Message, None]) -> None:
    """Answer with `messages` as events: `job.output` is `output`, `stream.gap` is `gap`; ids are cursors.

    Raises what `messages` raises before its first message.
    """
    await anext(messages)
    resp.set_header("X-Accel-Buffering", "no")
    resp.sse = _events(context, messages)


async def _events(
    context: Context, messages: AsyncGenerator[Message, None]
) -> AsyncGenerator[SSEvent | None, None]:
    async with aclosing(messages):
        coming = asyncio.ensure_future(anext(messages, None))
        try:
            asked = said = time.monotonic()
            while True:
                await asyncio.wait({coming}, timeout=STANDING_S)
                now = time.monotonic()
                if now - asked >= STANDING_S:
                    asked = now
                    if not await still_admitted(context):
                        return
                if not coming.done():
                    if now - said >= KEEP_ALIVE_S:
                        said = now
                        yield None
                    continue
                try:
                    message = coming.result()
                except HostlerError:  # the client comes back with the id of its last event
                    return
                if message is None:
                    return
                said = now
                yield SSEvent(event=message.type.partition(".")[2], event_id=message.id, text=message.text)
                coming = asyncio.ensure_future(anext(messages, None))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
