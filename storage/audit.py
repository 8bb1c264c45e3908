"""The audit log: a chain of lines, each of which vouches for the one before it (scripts/_audit.lua)."""

import hashlib
from dataclasses import dataclass

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
