"""Work in threads, which nobody can call back."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Do something in a thread; who is cancelled meanwhile is so once that is over, and clears up after it.

    Raises what the work does.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *given, **named))
    cancelled = False
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        thread.exception()  # which nobody waits for any more
        raise asyncio.CancelledError
    return thread.result()
