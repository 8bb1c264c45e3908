"""Pace: long work that nobody waits for takes a share of the time and leaves the rest to others."""

import asyncio
import time

#: One rest is no longer than this, whatever was waited for in between.
_MOST_REST_S = 0.1


class Pace:
    """Work in portions that takes `share` of the time: 1 never rests."""

    def __init__(self, share: float = 1.0) -> None:
        self._rest_per_work = 1 / share - 1
        self._began = time.monotonic()

    async def rest(self) -> None:
        """Rest for the portion that is done, and let others have their turn in any case."""
        await asyncio.sleep(self.due_s())
        self._began = time.monotonic()

    def rest_in_thread(self) -> None:
        """Do the same, for work in a thread of its own."""
        time.sleep(self.due_s())
        self._began = time.monotonic()

    def due_s(self) -> float:
        """Return how long the portion that is done asks to rest, in seconds."""
        return min(_MOST_REST_S, (time.monotonic() - self._began) * self._rest_per_work)
