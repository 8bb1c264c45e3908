"""Work in threads, which nobody can call back."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Do something in a thread; who is cancelled meanwhile is so once that is over, and clears up after it.

    Raises what the work does.
    """
    return await _over(asyncio.to_thread(work, *given, **named), lambda: None)


async def until_told(work: Callable[[Callable[[], bool]], T]) -> T:
    """Do something in a thread that can ask whether it shall stop; as `to_the_end`, only that it is told to.

    Raises what the work does.
    """
    stopped = threading.Event()
    return await _over(asyncio.to_thread(work, stopped.is_set), stopped.set)


async def _over(work: Coroutine[Any, Any, T], tell: Callable[[], None]) -> T:
    thread = asyncio.ensure_future(work)
    cancelled = False
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError:
            cancelled = True
            tell()
    if cancelled:
        thread.exception()  # which nobody waits for any more
        raise asyncio.CancelledError
    return thread.result()
