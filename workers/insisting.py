"""Steps that are taken again for as long as what they need is away: Redis, the API, or the object store."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from storage.errors import Unavailable

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


async def insist(step: Callable[[], Awaitable[T]]) -> T:
    """Take a step, and again for as long as that raises Unavailable. Raises what its rules refuse with."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await step()
        except Unavailable:
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


async def insist_unless(is_over: Callable[[], bool], step: Callable[[], Awaitable[object]]) -> None:
    """Insist on a step until it is taken, or nobody needs it any more. Raises what its rules refuse with."""

    async def unless_over() -> None:
        if not is_over():
            await step()

    await insist(unless_over)
