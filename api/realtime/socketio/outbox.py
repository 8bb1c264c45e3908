"""What waits to be sent to one client of Socket.IO, within bounds."""

import asyncio
import contextlib
from typing import Any

MOST_PACKETS = 4096
MOST_BYTES = 4 * 1024 * 1024
_JOIN_S = 1.0


class Outbox(asyncio.Queue[Any]):
    """Packets for one client; one that takes too little loses them all, and is to be disconnected (`overflown`)."""

    def __init__(self, *, most_packets: int = MOST_PACKETS, most_bytes: int = MOST_BYTES) -> None:
        super().__init__()
        self._most_packets, self._most_bytes = most_packets, most_bytes
        self._size_bytes = 0
        self.overflown = False

    async def join(self) -> None:
        """Wait until all has been taken, but not for long: a client may take nothing any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_JOIN_S):
                await super().join()

    def _put(self, item: Any) -> None:
        if item is not None and self.overflown:
            return
        super()._put(item)
        self._size_bytes += _size_bytes(item)
        if self.qsize() > self._most_packets or self._size_bytes > self._most_bytes:
            self.overflown = True
            while self.qsize():
                self.get_nowait()
            super()._put(None)  # ends whoever writes

    def _get(self) -> Any:
        item = super()._get()
        self._size_bytes -= _size_bytes(item)
        return item


def _size_bytes(item: Any) -> int:
    data = getattr(item, "data", None)
    return len(data) if isinstance(data, str | bytes) else 0
