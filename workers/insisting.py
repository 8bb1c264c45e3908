"""Steps in Redis that a task takes again for as long as it is away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from storage.errors import Unavailable

T = TypeVar("T")


async def insist(step: Callable[[], Awaitable[T]]) -> T:
    """Take a step in Redis, trying again for as long as it is away. Raises what the step's rules refuse with."""
    pause_s = 0.1
    while True:
        try:
            return await step()
        except Unavailable:
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)
