"""A step that carries its caller's admission with it: one round trip decides who asks and does what is asked.

A process remembers the records by which it has known a caller, whose signatures it has checked. The script compares
them with what Redis holds at that instant; where anything differs it does nothing, and admission.py asks anew. So a
revoked key, an ended session or a changed role counts from the very next request, and no unchecked record is believed.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from storage import scripts
from storage.admission import Admission, Known
from storage.calls import Call, Word, script
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
