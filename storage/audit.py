"""The audit log: a chain of lines, each of which vouches for the one before it (scripts/_audit.lua)."""

import hashlib
from dataclasses import dataclass

import orjson

from storage.calls import command, text
from storage.store import Store

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Chain:
    """What reading the log came to: how many lines, the digest of the last, and where the chain breaks, if it does."""

    lines: int
    head: str
    broken_at: str | None


async def read(store: Store) -> Chain:
    """Read the whole log and check that each line vouches for the one before it."""
    lines, head, broken_at, after = 0, "", None, "-"
    while entries := await store.call(command("XRANGE", "h:audit", after, "+", "COUNT", _PAGE)):
        for entry, words in entries:
            fields = dict(zip(words[::2], words[1::2], strict=True))
            line, digest = fields.get(b"line", b""), text(fields.get(b"digest"))
            # SHA-1 is what Lua offers in Redis; the chain finds edits, the secret key is what nobody forges
            found = hashlib.sha1(head.encode() + line, usedforsecurity=False).hexdigest()
            if found != digest and broken_at is None:
                broken_at = text(entry)
            lines, head = lines + 1, digest
        after = f"({text(entries[-1][0])}"
    return Chain(lines, head, broken_at)


@dataclass(frozen=True, slots=True)
class Line:
    """One accepted change: when, who, what, and to which thing."""

    id: str
    at_ms: int
    actor: str
    action: str
    subject: str


async def newest(store: Store, *, limit: int, before: str | None = None) -> list[Line]:
    """Return the newest lines, or the newest before the one with that id, at most `limit`, the newest first."""
    if before is not None and not before.strip("0-"):  # there is nothing before the first id there can be
        return []
    start = f"({before}" if before else "+"
    found = []
    for entry, words in await store.call(command("XREVRANGE", "h:audit", start, "-", "COUNT", limit)):
        fields = dict(zip(words[::2], words[1::2], strict=True))
        at_ms, actor, action, subject = orjson.loads(fields[b"line"])
        found.append(Line(text(entry), int(at_ms), actor, action, subject))
    return found
