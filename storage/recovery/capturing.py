"""Reading all that Redis durably holds, as the commands that make it anew, without holding Redis up.

The commands are spelled as in an append-only file (RESP): any Redis takes them. Keys are read one after another while
work goes on, each as it is at an instant; what has to agree between them a rebuild derives from the records.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import hiredis

from storage.calls import Word, command, script, text
from storage.recovery import keyspace
from storage.recovery.pacing import Pace
from storage.wire import Wire

#: What one step reads at most, and from where on a key is read in pieces. While a step lasts nobody else is served: a
#: look at a job takes a tenth of a millisecond, so these are kept to a few of them.
_MOST_BYTES, _LARGE_BYTES = 64 * 1024, 256 * 1024
#: Keys in one step, members in one command, keys that one SCAN goes through.
_MOST_KEYS, _MOST_WORDS, _SCANNED = 20, 500, 100
#: Entries of a large stream in one step; each may be a piece of output of 64 KiB and more.
_STREAM_ENTRIES = 32

Command = tuple[Word, ...]


async def commands(wire: Wire, now_ms: int, pace: Pace) -> AsyncIterator[tuple[str, list[Command]]]:
    """Yield each key with the commands that make it anew; a large one is yielded piece by piece.

    What the caller does with them counts as work for the `pace` too.
    """
    cursor: Any = b"0"
    while True:
        cursor, found = await wire.call(command("SCAN", cursor, "COUNT", _SCANNED))
        wanted = [key for key in found if keyspace.is_captured(text(key))]
        await pace.rest()
        while wanted:
            step = script("capture", _MOST_BYTES, _LARGE_BYTES, *wanted[:_MOST_KEYS])
            seen, rows = await wire.call(step)
            wanted = wanted[seen:]
            for key, kind, pttl, content in rows:
                name = text(key)
                if content is None:  # Lua's false
                    async for piece in _in_pieces(wire, key, text(kind)):
                        yield name, piece
                        await pace.rest()
                    made: list[Command] = []
                else:
                    made = [] if text(kind) in {"string", "hash"} else [("DEL", key)]
                    made += _anew(key, text(kind), content)
                if pttl >= 0:
                    made.append(("PEXPIREAT", key, now_ms + pttl))
                yield name, made
            await pace.rest()
        if cursor == b"0":
            return


def packed(made: Sequence[Command]) -> bytes:
    """Return commands as they go over the wire and into a file."""
    return b"".join(hiredis.pack_command(words) for words in made)  # type: ignore[arg-type]


def _anew(key: bytes, kind: str, content: Any) -> list[Command]:
    """Return the commands that make a key what was read of it."""
    if kind == "string":
        return [("SET", key, content)]
    if kind == "stream":
        return [("XADD", key, entry, *fields) for entry, fields in content]
    verb = {"hash": "HSET", "list": "RPUSH", "set": "SADD", "zset": "ZADD"}[kind]
    words = content
    if kind == "zset":  # WITHSCORES says the member first, ZADD the score
        words = [word for pair in zip(content[1::2], content[::2], strict=True) for word in pair]
    return [(verb, key, *words[at : at + _MOST_WORDS]) for at in range(0, len(words), _MOST_WORDS)]


async def _in_pieces(wire: Wire, key: bytes, kind: str) -> AsyncIterator[list[Command]]:
    """Yield the commands of a large key. What leaves it meanwhile may come along, what enters it may not."""
    if kind == "string":
        yield _anew(key, kind, await wire.call(command("GET", key)) or b"")
        return
    yield [("DEL", key)]
    if kind in _SCANS:
        verb, shape = _SCANS[kind]
        cursor: Any = b"0"
        while True:
            cursor, content = await wire.call(command(verb, key, cursor, "COUNT", _MOST_WORDS))
            if content:
                yield _anew(key, kind, shape(content))
            if cursor == b"0":
                return
    if kind == "list":
        at = 0
        while content := await wire.call(command("LRANGE", key, at, at + _MOST_WORDS - 1)):
            yield _anew(key, kind, content)
            at += _MOST_WORDS
    if kind == "stream":
        after: Any = b"-"
        while content := await wire.call(command("XRANGE", key, after, "+", "COUNT", _STREAM_ENTRIES)):
            yield _anew(key, kind, content)
            after = b"(" + content[-1][0]


def _unchanged(content: Any) -> Any:
    return content


_SCANS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "hash": ("HSCAN", _unchanged),
    "set": ("SSCAN", _unchanged),
    "zset": ("ZSCAN", _unchanged),
}
