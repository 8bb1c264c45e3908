"""One direction of an exchange: sealed pieces in their order, a few at a time, as both sides make and read them."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import orjson

from storage import errors
from storage.calls import command, script, text
from storage.errors import BadGateway, HostlerError
from storage.store import Store

#: Bodies travel in pieces of this size, so many of which may wait for the other side.
PIECE_BYTES, WINDOW = 128 * 1024, 8
#: Who takes nothing for so long is gone.
STALL_S = 120.0
#: The slow poll behind the messages, which may get lost.
POLL_S = 2.0

#: What a piece begins with: there are more, it is the last, or it says what went wrong.
MORE, LAST, ERROR = b"+", b".", b"!"


class Gone(Exception):
    """Nobody waits for this any more."""


@dataclass(slots=True)
class Way:
    """One direction of one exchange; the number of each piece is sealed into it, so that none moves or repeats."""

    store: Store
    name: Literal["ask", "answer"]
    id: str
    bound_to: str
    channel: str = ""
    ttl_ms: int = 0
    sent: int = 0
    taken: int = 0
    overdue: Callable[[], Awaitable[None]] | None = None  # asked now and then while nothing has come
    always: bool = False  # and also while nothing more comes
    announced: bool = False  # nothing is there before somebody says so
    nudged: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, mark: bytes, data: bytes) -> None:
        """Send a piece once the other side has room for it. Raises Gone, Unavailable."""
        sealed = self.store.seal.encrypt(f"relay {self.name}", mark + data, bound_to=self._bound(self.sent))
        self.sent += 1
        pause_s = 0.002
        since = time.monotonic()
        while time.monotonic() - since < STALL_S:
            call = script("relay_put", self.name, self.id, sealed, self.ttl_ms, WINDOW, self.channel)
            reply = await self.store.call(call)
            if reply == b"ok":
                return
            if reply == b"gone":
                raise Gone
            await asyncio.sleep(pause_s)
            pause_s = min(0.05, pause_s * 2)
        raise Gone

    async def pieces(self) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """Yield mark and data of each piece until the last. Raises Forged, Unavailable."""
        key, looks = f"h:relay:{self.name}:{self.id}", not self.announced
        while True:
            if looks:
                self.nudged.clear()
            for sealed in (await self.store.call(command("LPOP", key, WINDOW)) if looks else None) or ():
                raw = self.store.seal.decrypt(
                    f"relay {self.name}", text(sealed), bound_to=self._bound(self.taken)
                )
                self.taken += 1
                yield raw[:1], raw[1:]
                if raw[:1] != MORE:
                    return
            looks = True
            try:
                async with asyncio.timeout(POLL_S):
                    await self.nudged.wait()
            except TimeoutError:
                if self.overdue is not None and (self.always or not self.taken):
                    await self.overdue()

    def _bound(self, number: int) -> str:
        return f"{self.bound_to} {self.name} {number}"


def binding(node: str, session: str, ask_id: str) -> str:
    """Return what all that belongs to one question is sealed for."""
    return f"{node} {session} {ask_id}"


#: What an asker may be told; any other error of a node is its own affair.
_KINDS: Mapping[str, type[HostlerError]] = {
    kind.__name__: kind
    for kind in (
        errors.BadGateway, errors.Conflict, errors.Denied, errors.GatewayTimeout, errors.Invalid, errors.NotFound,
        errors.NotRunning, errors.TooLarge, errors.TooMany, errors.Unavailable,
    )
}  # fmt: skip


def error_of(said: Mapping[str, str]) -> HostlerError:
    """Return the error that the other side told of."""
    return _KINDS.get(said["kind"], BadGateway)(said["message"])


async def tell_error(way: Way, error: HostlerError) -> None:
    """End a way by saying what went wrong. Raises Gone, Unavailable."""
    kind = next(
        each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS or each is HostlerError
    )
    await way.put(ERROR, orjson.dumps({"kind": kind, "message": str(error)}))
