"""A step that carries its caller's admission with it: one round trip decides who asks and does what is asked.

A process remembers the records by which it has known a caller, whose signatures it has checked. The script compares
them with what Redis holds at that instant; where anything differs it does nothing, and admission.py asks anew. So a
revoked key, an ended session or a changed role counts from the very next request, and no unchecked record is believed.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from hiredis import ReplyError

from storage import scripts
from storage.admission import Admission, Known
from storage.calls import Call, Word, command, script
from storage.errors import HostlerError, Unavailable
from storage.store import Store

T = TypeVar("T")


class Changed(Exception):
    """The caller is not as it was remembered; nothing was done, and nothing counted."""


class Carrier(Store):
    """The store as one handler sees it: its first step carries the admission; `pending` until then.

    `told` learns what the rate has left, and raises where it has nothing left. What is asked before the first step is
    asked of Redis by no one: a handler may be given a carrier only if its first effect is a call of the store.
    """

    pending: bool

    def __init__(self, store: Store, known: Known, told: Callable[[Admission], None]) -> None:
        self.__dict__.update(store.__dict__)
        self.pending, self._known, self._told = True, known, told

    async def call(self, call: Call[T]) -> T:
        """Carry out one step; the first one only for a caller who is admitted. Raises Changed, TooMany, Unavailable."""
        if not self.pending:
            return await self.wire.call(call)
        self.pending = False
        limit = self.settings.rate_limit_per_s
        reply = await self.wire.call(_carrying(call, self._known.words, limit))
        if reply[0] != b"ok":
            raise Changed
        self._told(Admission(self._known.identity, bool(reply[1]), limit, reply[2], reply[3]))
        return call.read(reply[4] if len(reply) > 4 else None)

    async def calls(self, *many: Call[Any]) -> list[Any]:
        """Carry out several steps in one round trip, after the first of all. Raises Changed, TooMany, Unavailable."""
        if not self.pending:
            return await self.wire.calls(*many)
        return [await self.call(many[0]), *(await self.wire.calls(*many[1:]))]


def _carrying(call: Call[Any], words: Sequence[Word], limit: int) -> Call[list[Any]]:
    rate, *checks = words
    if call.script is None:
        return script(f"{scripts.CARRYING}command", rate, limit, *checks, *call.words)
    _, _, many, *rest = call.words  # EVALSHA, the digest, how many keys
    keys = [str(key) for key in rest[: int(many)]]
    return script(f"{scripts.CARRYING}{call.script}", rate, limit, *checks, *rest[int(many) :], keys=keys)


@dataclass(frozen=True, slots=True)
class Looks:
    """What one caller looks at in one turn of the loop: the reads that are under way, and who is told of each."""

    known: Known
    waiting: list[tuple[asyncio.Future[Any], "Told"]] = field(default_factory=list)


class Rated(NamedTuple):
    """How a look was admitted, where its caller is as it was remembered."""

    allowed: bool
    limit: int
    remaining: int
    reset_ms: int


#: What is called once for a look: how it was admitted, and what was read. The first is None where the caller is not as
#: it was remembered, and an error where Redis failed; nothing was read then.
Told = Callable[[Rated | HostlerError | None, Any], None]

#: So many looks go together at most.
_MOST_TOGETHER = 1000


def look(store: Store, known: Known, call: Call[Any], told: Told) -> bool:
    """Read by one plain command for a caller who is admitted in the same round trip; `told` is called in the loop.

    All looks of one caller in one turn of the loop share one admission, which counts each. Nothing is decided from what
    was read before its reader is admitted. Answers False, and does nothing, while there is no connection.
    """
    turns: Any = store.cache.setdefault("looks", {})
    looks = turns.get(known.words)
    if looks is None:
        looks = turns[known.words] = Looks(known)
        asyncio.get_running_loop().call_soon(
            _admit, store, turns.pop, looks
        )  # to leave in one write with the reads
    reading = store.wire.send(call) if len(looks.waiting) < _MOST_TOGETHER else None
    if reading is None:
        return False
    looks.waiting.append((reading, told))
    return True


def _admit(store: Store, take: Callable[[Any], Looks], looks: Looks) -> None:
    """Ask for the admission of one turn's looks; its answer comes after what they read."""
    take(looks.known.words)
    if not looks.waiting:
        return
    rate, *checks = looks.known.words
    limit = store.settings.rate_limit_per_s
    asking = store.wire.send(script("admitted", rate, limit, *checks, len(looks.waiting)))
    if asking is not None:
        asking.add_done_callback(partial(_tell, store, looks.waiting, limit))
    else:
        _drop(looks.waiting, Unavailable("Redis cannot be reached."))


def _tell(store: Store, waiting: Sequence[tuple[asyncio.Future[Any], Told]], limit: int, asked: Any) -> None:
    reply: Any = None
    try:
        reply = asked.result()
    except (OSError, ReplyError) as error:
        if str(error).startswith("NOSCRIPT"):  # somebody flushed the scripts
            store.wire.send(command("SCRIPT", "LOAD", scripts.source("admitted")))
            reply = [b"changed"]
        else:
            reply = store.wire.unavailable(error) or Unavailable("Redis refuses for now.")
    if isinstance(reply, Unavailable) or reply[0] != b"ok":
        _drop(waiting, reply if isinstance(reply, Unavailable) else None)
        return
    _, allowed, remaining, reset_ms = reply
    for number, (reading, told) in enumerate(waiting, 1):
        rated = Rated(number <= allowed, limit, remaining + max(0, allowed - number), reset_ms)
        try:
            read = reading.result()
        except (OSError, ReplyError) as error:
            told(store.wire.unavailable(error) or rated, None)
        else:
            told(rated, read)


def _drop(waiting: Sequence[tuple[asyncio.Future[Any], Told]], why: Unavailable | None) -> None:
    for reading, told in waiting:
        reading.cancel() or reading.exception()  # whatever it was: nobody asks for it any more
        told(why, None)
