"""Archives that a node makes for whoever downloads a record."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from storage import backups
from storage.errors import NotFound, TooMany
from storage.relay import Ask, Head
from workers.backups.archives import AT_ONCE, Archives


async def test_archives_asked_for_all_at_once_are_no_more_than_a_node_makes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def get(_store: Any, backup_id: str) -> Any:
        await asyncio.sleep(0)
        if backup_id == "gone":
            raise NotFound("There is no backup 'gone'.")
        return SimpleNamespace(id=backup_id, prefix="p")

    async def restorable(*_: Any) -> Any:
        await asyncio.sleep(0)
        return SimpleNamespace(snapshot="s")

    taken = asyncio.Event()

    async def compressed(*_: Any) -> AsyncGenerator[bytes, None]:
        await taken.wait()
        yield b"piece"

    monkeypatch.setattr(backups, "get", get)
    monkeypatch.setattr(backups, "restorable", restorable)
    unused: Any = None  # the store, and who answers other questions
    archives = Archives(unused, unused)
    monkeypatch.setattr(archives, "_compressed", compressed)

    async def ask(backup_id: str) -> list[Head | bytes]:
        return [part async for part in archives.handle(Ask(app=backup_id, kind="archive", path="/r"))]

    asked = [asyncio.ensure_future(ask("b")) for _ in range(AT_ONCE + 3)]
    for _ in range(10):
        await asyncio.sleep(0)
    taken.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, TooMany) for each in answers) == 3
    for _ in range(AT_ONCE + 1):
        with pytest.raises(NotFound):
            await ask("gone")
    assert (await ask("b"))[-1] == b"piece"
