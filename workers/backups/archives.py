"""What a node answers about backups: a record as one ordinary archive, read from the object store as it is taken."""

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import zstandard

from storage import backups
from storage.errors import HostlerError, TooMany, Unavailable
from storage.relay import Ask, Handle, Head
from storage.store import Store
from workers.backups.engine import Corrupt, Engine
from workers.backups.process import Programs
from workers.backups.work import root_of
from workers.log import log

#: So many archives are made at once on a node.
AT_ONCE = 4
#: A good deal faster than what carries it, and smaller by half as a rule.
LEVEL = 3


class Archives:
    """Answers questions for archives; `otherwise` answers all others."""

    def __init__(self, store: Store, otherwise: Handle) -> None:
        self._store, self._otherwise = store, otherwise
        self._under_way = 0

    async def handle(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        """Yield the head of an answer, then its body."""
        parts = self._archive(ask) if ask.kind == "archive" else self._otherwise(ask)
        async with aclosing(parts):
            async for part in parts:
                yield part

    async def _archive(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        if self._under_way >= AT_ONCE:
            raise TooMany(f"{AT_ONCE} archives are being made on this node already.", retry_after_s=30)
        self._under_way += 1  # before anything is waited for, or many that come at once all find room
        try:
            async with aclosing(self._made(ask)) as parts:
                async for part in parts:
                    yield part
        finally:
            self._under_way -= 1

    async def _made(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        backup = await backups.get(self._store, ask.app)
        record = await backups.restorable(self._store, backup.id, ask.path)
        try:
            async with aclosing(self._compressed(backup.id, backup.prefix, record.snapshot)) as pieces:
                begun = False
                async for piece in pieces:
                    if not begun:
                        yield Head(200, (("content-type", "application/zstd"),))
                        begun = True
                    yield piece
        except (Corrupt, Unavailable):
            raise
        except HostlerError as error:
            raise Unavailable(f"The archive cannot be made: {error}") from error

    async def _compressed(self, backup_id: str, prefix: str, snapshot: str) -> AsyncGenerator[bytes, None]:
        store = self._store
        packing = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
        with Programs(f"archive-{secrets.token_hex(8)}") as programs:
            engine = Engine(
                store.settings, store.seal, store.objects, backup_id=backup_id, prefix=prefix, programs=programs,
                directory=root_of(store) / backup_id, say=_noted(backup_id),
            )  # fmt: skip
            async with aclosing(engine.archive(snapshot)) as pieces:
                async for piece in pieces:
                    if packed := packing.compress(piece):
                        yield packed
            yield packing.flush()


def _noted(backup_id: str) -> Callable[[str], None]:
    return lambda message: log.info("an archive is made", extra={"backup": backup_id, "said": message})
