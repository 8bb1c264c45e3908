"""WebSockets that tell and do not ask: messages go out, and the socket closes when its caller may listen no longer."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import NamedTuple

import falcon
from falcon.asgi import WebSocket

from api.endpoint import Context
from api.errors import status_of
from api.realtime import broadcast
from api.realtime.frames import FRAMES, frame
from api.realtime.hub import Ended
from api.realtime.messages import Live, Message
from storage.errors import HostlerError, Unavailable

#: How often it is asked whether the caller may still listen.
STANDING_S = 4.0
#: A client that takes nothing for so long is given up.
SEND_S = 30.0
#: While a client has not taken so much, messages are written to it at once, past the layers that would wait for it.
DIRECT_BYTES = 16 * 1024
#: What a client may say: nothing that matters here, so little.
MOST_INCOMING_BYTES = 4096
MOST_INCOMING = 20  # in INCOMING_S seconds
INCOMING_S = 10.0


class Closing(NamedTuple):
    """Why a socket closes."""

    code: int
    reason: str


async def tell(context: Context, ws: WebSocket, messages: AsyncGenerator[Message | Live, None]) -> None:
    """Accept the socket once `messages` has begun, send what it yields, and close with the reason why it ends."""
    async with aclosing(messages):
        try:
            await anext(messages)
        except HostlerError as error:
            await ws.accept()  # only then does a client see the code
            await _close(ws, _because(error))
            return
        await ws.accept()
        ways = (_send(context, ws, messages), _listen(ws), _standing(context))
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        closing = next(iter(done)).result()
        if closing is not None:
            await _close(ws, closing)


def _because(error: HostlerError) -> Closing:
    if isinstance(error, Ended):
        return Closing(1012, str(error))
    if isinstance(error, Unavailable):
        return Closing(1013, str(error))
    return Closing(4000 + status_of(type(error)), str(error))


async def _close(ws: WebSocket, closing: Closing) -> None:
    with suppress(TimeoutError, falcon.WebSocketDisconnected):
        async with asyncio.timeout(
            STANDING_S
        ):  # the socket of a client that takes nothing takes no goodbye either
            await ws.close(closing.code, closing.reason.encode()[:120].decode("utf-8", "ignore"))


def takes_frames(context: Context) -> bool:
    """Tell whether the server takes frames that are already encoded, as our own does (api/server.py)."""
    return FRAMES in context.request.scope.get("extensions", {})


async def _send(
    context: Context, ws: WebSocket, messages: AsyncGenerator[Message | Live, None]
) -> Closing | None:
    """Send all messages; answers how to close after the last one."""
    write = context.request.scope.get("extensions", {}).get(FRAMES)
    waiting_bytes = 0
    try:
        async for message in messages:
            if isinstance(message, Live):
                everything = broadcast.of(context.request.context.hub)
                message.position = await everything.join(message.position, write)
                continue
            if write is not None and waiting_bytes < DIRECT_BYTES:
                waiting_bytes = write(frame(message.text))
                continue
            async with asyncio.timeout(SEND_S):  # what was written before has to leave first
                await ws.send_text(message.text)
            waiting_bytes = 0
    except falcon.WebSocketDisconnected:
        return None
    except TimeoutError:
        return Closing(1008, f"Nothing was taken for {SEND_S:.0f} s.")
    except HostlerError as error:
        return _because(error)
    return Closing(1000, "That was all.")


async def _listen(ws: WebSocket) -> Closing | None:
    """Notice when the client leaves; answers how to close when it talks too much."""
    heard: deque[float] = deque(maxlen=MOST_INCOMING)
    while True:
        try:
            said = await ws.receive_text()
        except falcon.WebSocketDisconnected:
            return None
        except falcon.PayloadTypeError:
            return Closing(1003, "This socket takes no binary messages.")
        if len(said) > MOST_INCOMING_BYTES:
            return Closing(1009, f"A message has at most {MOST_INCOMING_BYTES} characters here.")
        now = time.monotonic()
        if len(heard) == MOST_INCOMING and now - heard[0] < INCOMING_S:
            return Closing(1008, "Too many messages: this socket only tells.")
        heard.append(now)


async def _standing(context: Context) -> Closing:
    """Answer once the caller may not listen any more."""
    while await still_admitted(context):
        await asyncio.sleep(STANDING_S)
    return Closing(4401, "The credentials are no longer valid.")


async def still_admitted(context: Context) -> bool:
    """Tell whether the caller of an open connection would still be admitted; yes while Redis cannot say."""
    try:
        return bool(await context.request.context.still_admits(context.request, context.caller))
    except Unavailable:
        return True
