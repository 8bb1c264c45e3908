"""Reading into memory that whoever reads brings along, so that nothing is copied on the way."""

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Protocol

#: What is read at once of what shall be had whole.
_PIECE_BYTES = 64 * 1024


class ReadInto(Protocol):
    """Reads what comes next into `buffer[start:end]`, at least a byte of it; returns how much, 0 when all was read.

    `look` is told up to where the buffer holds what was read, once or as it grows, perhaps by another thread, and
    answers whether to go on. It does not wait.
    """

    def __call__(
        self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool], /
    ) -> Awaitable[int]:
        """Read."""


class Pieces:
    """Reads pieces that come in memory of their own."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = aiter(pieces)
        #: What was not taken yet of the last one.
        self.rest = memoryview(b"")

    async def read_into(self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
        """Read as ReadInto has it."""
        while not self.rest:
            try:
                self.rest = memoryview(await anext(self._pieces))
            except StopAsyncIteration:
                return 0
        taken, self.rest = self.rest[: end - start], self.rest[end - start :]
        with memoryview(buffer) as whole:  # a slice of the buffer itself would copy twice
            whole[start : start + len(taken)] = taken
        look(start + len(taken))
        return len(taken)


async def whole_of(read_into: ReadInto) -> bytes:
    """Return all that `read_into` reads."""
    full: list[bytearray] = []
    piece, used = bytearray(_PIECE_BYTES), 0
    while size := await read_into(piece, used, len(piece), lambda _: True):
        used += size
        if used == len(piece):
            full.append(piece)
            piece, used = bytearray(_PIECE_BYTES), 0
    return b"".join([*full, memoryview(piece)[:used]])
