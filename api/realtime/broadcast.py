"""Everything that happens, to many WebSockets at once: encoded once, joined, and written to each in one go.

A message that takes each client's own task, queue and frame costs some 45 us, so that a thousand clients and 200 events
a second would take nine cores. Here a client costs one write for all that happened since the last one.
"""

import asyncio
from weakref import WeakKeyDictionary

from api.realtime.frames import Write, frame
from api.realtime.hub import Ended, Hub
from api.realtime.messages import event_id, told
from storage.watch import Event, Output, moment

#: A client that has not taken so much reads what it has missed by itself, at its own pace.
MOST_WAITING_BYTES = 1024 * 1024
#: While there are many clients, they hear of several things at once: so long each client's write is waited for …
PACE_S = 100e-6
#: … but no longer than this in all.
LONGEST_PACE_S = 0.05


class Broadcast:
    """What a hub feeds on behalf of many clients."""

    wants_output = True

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._members: dict[asyncio.Future[str | None], Write] = {}
        self._pending: list[bytes] = []
        self._position = "0-0"
        self._timer: asyncio.TimerHandle | None = None

    async def join(self, position: str, write: Write) -> str:
        """Tell a client what happens from now on, until it must look for itself; answers its position then.

        To be called in the turn of the loop in which the client was found to know just what the hub has told so far.
        Raises Ended.
        """
        self._flush()  # what waits, this client knows
        if not self._members:
            self._position = position
            self._hub.join(self)
        leave: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._members[leave] = write
        try:
            reached = await leave
        finally:
            self._members.pop(leave, None)
            if not self._members:
                self._hub.leave(self)
                self._clear()
        if reached is None:
            raise Ended
        return reached

    # What the hub tells

    def put(self, item: Event | Output, size_bytes: int = 0) -> None:
        """Take what happened, and have it written soon."""
        message = told(item, self._position)
        self._position = max(self._position, event_id(item), key=moment)
        if message is None:
            return
        self._pending.append(frame(message.text))
        if self._timer is None:
            pace_s = min(LONGEST_PACE_S, len(self._members) * PACE_S)
            self._timer = asyncio.get_running_loop().call_later(pace_s, self._flush)

    def miss(self) -> None:
        """Have every client look for itself."""
        self._let_go(self._position)

    def end(self) -> None:
        """Have every client stop."""
        self._let_go(None)

    def _let_go(self, position: str | None) -> None:
        self._flush()
        for leave in self._members:
            if not leave.done():
                leave.set_result(position)

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._clear()
        if not block:
            return
        for leave, write in self._members.items():
            if not leave.done() and write(block) > MOST_WAITING_BYTES:
                leave.set_result(self._position)

    def _clear(self) -> None:
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_OF: WeakKeyDictionary[Hub, Broadcast] = WeakKeyDictionary()


def of(hub: Hub) -> Broadcast:
    """Return the one broadcast of a hub."""
    return _OF.setdefault(hub, Broadcast(hub))
