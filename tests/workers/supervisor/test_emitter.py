"""The socket by which an app tells events, as its node opens and closes it."""

import asyncio
import gc
import socket
from pathlib import Path

import pytest
from controls import FakeControl

from workers.supervisor.events import Emitter


@pytest.mark.parametrize("steps", range(4))
async def test_who_is_cancelled_while_it_begins_to_listen_leaves_nobody_listening(
    tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "events.sock"
    emitter = Emitter("a", path, None, FakeControl())
    opening = asyncio.create_task(emitter.open())
    for _ in range(steps):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await emitter.close()
    gc.collect()  # a socket that nobody closed is a warning here, and an error
    with socket.socket(socket.AF_UNIX) as client, pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        client.connect(str(path))
