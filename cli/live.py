"""What happens on a server, as it happens: a WebSocket that is taken up again where it was lost."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import urlencode

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from cli.client import Client, is_local

#: How long a lost connection is first waited for, and at most, in seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
#: A server says with these that there is no point in coming back: what is asked for is not there, or that was all.
_OVER = {1000, 4400, 4404}
_NOT_ADMITTED = {401, 403}


async def listen(
    client: Client,
    path: str,
    *,
    on_state: Callable[[bool], None] = lambda _live: None,
    **query: str,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the messages of the socket at `path`, through losses of the connection, until it is over.

    `on_state` is told whenever the connection is there, or lost. Raises Failed when the caller is not admitted.
    """
    after: str | None = None
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            async for message in _messages(
                client, path, query | ({"after": after} if after else {}), on_state
            ):
                pause_s = FIRST_PAUSE_S
                after = message.get("id") or after
                yield message
            return
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code in _OVER:
                return
        except InvalidStatus as refused:
            if refused.response.status_code in _NOT_ADMITTED:
                await asyncio.to_thread(
                    client.get, "/api/auth/me"
                )  # which renews a session, or says what is wrong
        except (OSError, InvalidHandshake, TimeoutError):
            pass
        on_state(False)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311  many clients shall not come at once
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


async def _messages(
    client: Client, path: str, query: dict[str, str], on_state: Callable[[bool], None]
) -> AsyncGenerator[dict[str, Any], None]:
    address = client.server.url.replace("http", "ws", 1) + path + (f"?{urlencode(query)}" if query else "")
    proxy: Any = None if is_local(client.server.url) else True
    headers = client.server.headers()
    async with connect(address, additional_headers=headers, proxy=proxy, open_timeout=10) as socket:
        on_state(True)
        while True:
            yield orjson.loads(await socket.recv())


async def ask(client: Client, path: str, **query: Any) -> Any:
    """Return the JSON at `path`, without holding up what else goes on. Raises Failed."""
    return await asyncio.to_thread(client.get, path, **query)


async def do(client: Client, method: str, path: str, body: Any = None) -> Any:
    """Have a server do something, without holding up what else goes on. Raises Failed."""
    return await asyncio.to_thread(client.call, method, path, body=body)
