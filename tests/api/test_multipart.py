"""A form's file is read as it was sent, wherever its delimiters are cut."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from forms import BOUNDARY, FIELD, FILE, form

from api import body as bodies
from api import multipart
from storage.read_into import Pieces, whole_of


async def test_a_delimiter_split_anywhere_is_found():
    data = b"\r\n--" + BOUNDARY[:-1] + b"\r\r\n-\r\n--" + b"tail"
    whole = form((FIELD, b"x"), (FILE, data))
    for size in (1, 2, 3, 7, 19, 64):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(whole), size):
                yield whole[start : start + size]

        reader = multipart.FormReader(Pieces(pieces()).read_into, BOUNDARY)
        assert (await reader.file("file")).filename == "a.zip"
        assert await whole_of(reader.read_into) == data


async def test_a_delimiter_is_found_wherever_it_comes_to_lie_in_the_memory_of_its_reader():
    chance = random.Random(7)  # noqa: S311
    for _ in range(40):
        parts = [os.urandom(chance.choice([0, 1, 30_000])) for _ in range(chance.randrange(8))]
        parts += [(b"\r\n--" + BOUNDARY)[: chance.randrange(1, 20)] for _ in range(chance.randrange(9))]
        chance.shuffle(parts)
        data = b"".join(parts)
        whole, at = form((FIELD, b"x"), (FILE, data), (FIELD, b"y")), 0

        async def read_into(buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
            """Fill all of it, piece by piece, as a thread does."""
            nonlocal at
            filled, on = start, True
            while on and filled < end and at < len(whole):  # noqa: B023
                size = min(end - filled, chance.choice([1, 17, 5_000, 50_000]))
                piece = whole[at : at + size]  # noqa: B023
                buffer[filled : filled + len(piece)] = piece
                at, filled = at + len(piece), filled + len(piece)
                on = look(filled)
            return filled - start

        reader, found, told = multipart.FormReader(read_into, BOUNDARY), bytearray(), 0
        await reader.file("file")
        while True:
            room = bytearray(chance.choice([1, 5, 70, 17_000, 60_000]) + 2)
            told = 1

            def look(end: int) -> bool:
                nonlocal told
                assert end >= told
                told = end
                return True

            size = await reader.read_into(room, 1, len(room) - 1, look)
            if not size:
                break
            assert told == 1 + size
            assert room[0] == room[-1] == 0
            found += room[1 : 1 + size]
        assert found == data


async def test_a_client_that_stalls_is_given_up(monkeypatch):
    async def stalling() -> AsyncIterator[bytes]:
        yield form((FILE, b"x"), end=b"")
        await asyncio.Event().wait()

    monkeypatch.setattr(bodies, "BODY_IDLE_S", 0.01)
    request: Any = SimpleNamespace(content_length=None, stream=stalling(), scope={})
    reader = multipart.FormReader(bodies.Incoming(request).read_into, BOUNDARY)
    await reader.file("file")
    with pytest.raises(multipart.Invalid, match="stopped arriving"):
        await whole_of(reader.read_into)
