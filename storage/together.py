"""What one caller asks for in one turn of the loop goes to Redis under one admission, which counts each.

Looks at records are plain reads beside the admission; orders of plain jobs are one script with it. Each has its own
answer, which comes by a callback of the loop. Whatever is out of the ordinary is not for here.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from hiredis import ReplyError

from storage import fleet, queues, scripts
from storage.admission import Known
from storage.attempts import rq_time
from storage.calls import Call, Word, command, script
from storage.errors import HostlerError, Unavailable
from storage.fleet import Outlook
from storage.jobs import Described, Order, Submitted, described
from storage.store import Store

log = logging.getLogger("hostler.storage")


class Rated(NamedTuple):
    """How a request was admitted, where its caller is as it was remembered."""

    allowed: bool
    limit: int
    remaining: int
    reset_ms: int


#: What is called once for a request: how it was admitted, and what was read, or the Submitted. The first is None where
#: the caller is not as it was remembered, and an error where Redis failed. Without an allowed Rated there is no second.
Told = Callable[[Rated | HostlerError | None, Any], None]

_Look = tuple[asyncio.Future[Any], Told]
_Ordered = tuple[str, Described, Told]

#: The options that an order shares with all of its queue.
_OF_QUEUE = {"tags", "tag_set"}
#: So many looks, and so many orders, share one admission at most; the orders take Redis some 2 ms.
_MOST_LOOKS, _MOST_ORDERS = 1000, 32


def look(store: Store, known: Known, call: Call[Any], told: Told) -> bool:
    """Read by one plain command for a caller who is admitted in the same round trip; `told` is called in the loop.

    Nothing is decided from what was read before its reader is admitted. Answers False, and does nothing, while there is
    no connection.
    """
    looks = _gathered(store, known.words, _MOST_LOOKS, partial(_admit, store, known))
    reading = store.wire.send(call)  # the admission leaves in one write with it
    if reading is None:
        return False
    looks.append((reading, told))
    return True


def order(store: Store, known: Known, wanted: Order, request_id: str, told: Told) -> bool:
    """Accept a job durably for a caller who is admitted in the same step; `told` is called in the loop.

    Answers False, and does nothing, for an order that is not plain, and where nobody has looked at the fleet lately.
    """
    try:
        outlook = fleet.outlook_at_hand(store, wanted.priority, wanted.tags)
    except LookupError:
        return False
    job_id = store.new_id("job")
    words = described(store, wanted, job_id=job_id, request_id=request_id)
    if words.options.keys() - _OF_QUEUE:
        return False
    about = known.words, words.queue
    orders = _gathered(store, about, _MOST_ORDERS, partial(_accept, store, known, words.queue, outlook))
    orders.append((job_id, words, told))
    return True


class _Turn:
    """What gathers in one turn of the loop: by whom and what it is about, and what lets it leave."""

    def __init__(self) -> None:
        self.gathered: dict[Any, list[Any]] = {}
        self.leaving: list[tuple[Callable[[list[Any]], None], list[Any]]] = []


def _gathered(store: Store, about: Any, most: int, leave: Callable[[list[Any]], None]) -> list[Any]:
    """Return what gathers in this turn of the loop; `leave` is called with it at the turn's end."""
    turn: Any = store.cache.get("together")
    if turn is None:
        turn = store.cache["together"] = _Turn()
    gathered: list[Any] | None = turn.gathered.get(about)
    if gathered is None or len(gathered) >= most:
        gathered = turn.gathered[about] = []
        if not turn.leaving:
            asyncio.get_running_loop().call_soon(_leave, turn)
            store.wire.flush_soon()  # behind it, in the same turn
        turn.leaving.append((leave, gathered))
    return gathered


def _leave(turn: _Turn) -> None:
    leaving, turn.leaving = turn.leaving, []
    turn.gathered.clear()
    for leave, gathered in leaving:
        try:
            if gathered:
                leave(gathered)
        except Exception:  # those of others must not wait for ever
            log.exception("requests could not be passed on")


def _admit(store: Store, known: Known, looks: Sequence[_Look]) -> None:
    """Ask for the admission of one turn's looks; its answer comes after what they read."""
    asking = store.wire.send(script("admitted", *_of(store, known), len(looks)))
    if asking is not None:
        asking.add_done_callback(partial(_show, store, looks))
    else:
        _drop(looks, Unavailable("Redis cannot be reached."))


def _show(store: Store, looks: Sequence[_Look], asked: Any) -> None:
    reply = _reply(store, "admitted", asked)
    if not isinstance(reply, list):
        _drop(looks, reply)
        return
    for number, (reading, told) in enumerate(looks):
        rated = _rated(store, number, *reply[1:])
        try:
            read = reading.result()
        except (OSError, ReplyError) as error:
            told(store.wire.unavailable(error) or rated, None)
        else:
            told(rated, read)


def _drop(looks: Sequence[_Look], why: Unavailable | None) -> None:
    for reading, told in looks:
        reading.cancel() or reading.exception()  # whatever it was: nobody asks for it any more
        told(why, None)


def _accept(
    store: Store, known: Known, queue: str, outlook: Outlook | None, orders: Sequence[_Ordered]
) -> None:
    """Have one turn's orders accepted, those of one queue."""
    tags = sorted(queues.tags_of(queue))
    slots, free, mean_ms, *lists = outlook.words() if outlook is not None else ("", "", "")
    words: list[Word] = [len(orders), known.identity.actor, rq_time(), orders[0][1].task.function, queue]
    words += (len(tags), *tags, queues.tag_set(tags), slots, free, mean_ms, len(lists), *lists)
    for job_id, job, _ in orders:
        words += (job_id, job.spec, job.signature, job.timeout_s, job.description)
    asking = store.wire.send(script("accept", *_of(store, known), *words), others_first=True)
    if asking is not None:
        asking.add_done_callback(partial(_promise, store, orders))
    else:  # nothing was sent
        _promise_none(orders, None)


def _promise(store: Store, orders: Sequence[_Ordered], asked: Any) -> None:
    reply = _reply(store, "accept", asked)
    if not isinstance(reply, list):
        _promise_none(orders, reply)
        return
    _, allowed, remaining, reset_ms, *made = reply
    created_ms, estimates = (int(made[0]), made[1]) if made else (0, [])
    for number, (job_id, _, told) in enumerate(orders):
        submitted = None
        if number < allowed:
            submitted = Submitted(job_id, created_ms, int(estimates[number]) if estimates[number] else None)
        told(_rated(store, number, allowed, remaining, reset_ms), submitted)


def _promise_none(orders: Sequence[_Ordered], why: Unavailable | None) -> None:
    for *_, told in orders:
        told(why, None)


def _of(store: Store, known: Known) -> tuple[Word, ...]:
    """Return the words by which a script knows the caller, and its rate (_known.lua)."""
    rate, *checks = known.words
    return rate, store.settings.rate_limit_per_s, *checks


def _rated(store: Store, number: int, allowed: int, remaining: int, reset_ms: int) -> Rated:
    left = remaining + max(0, allowed - number - 1)
    return Rated(number < allowed, store.settings.rate_limit_per_s, left, reset_ms)


def _reply(store: Store, name: str, asked: Any) -> Any:
    """Return what the script `name` answered; None where it has done nothing, Unavailable where nobody knows."""
    try:
        reply = asked.result()
    except (OSError, ReplyError) as error:
        if str(error).startswith("NOSCRIPT"):  # somebody flushed the scripts
            store.wire.send(command("SCRIPT", "LOAD", scripts.source(name)))
            return None
        return store.wire.unavailable(error) or Unavailable("Redis refuses for now.")
    return reply if reply[0] == b"ok" else None
