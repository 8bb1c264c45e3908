"""Many sockets that hear everything get each message once, in order, whoever joins, lags or loses touch meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import engine
import pytest
from live import Live, next_message, serve
from websockets.frames import Frame, Opcode

from api.realtime import broadcast
from api.realtime.frames import frame


@pytest.fixture
async def live(settings) -> AsyncIterator[Live]:
    async with serve(settings) as live:
        yield live


async def heard(socket, last: str) -> list[str]:
    """Return the ids of the jobs that a socket was told of, up to the job `last`."""
    ids = []
    while not ids or ids[-1] != last:
        message = await next_message(socket)
        assert message["type"] == "job.queued"
        ids.append(message["jobId"])
    return ids


async def test_each_of_many_sockets_hears_each_event_once_and_in_order(live):
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(live.socket()) for _ in range(30)]
        ids = [await engine.submit(live.store) for _ in range(20)]
        late = await stack.enter_async_context(live.socket())
        more = [await engine.submit(live.store) for _ in range(20)]
        for socket in sockets:
            assert await heard(socket, more[-1]) == ids + more
        after = await heard(late, more[-1])
        assert after == more[-len(after) :]
        assert len(broadcast.of(live.hub)._members) == 31


async def test_who_loses_touch_reads_what_was_missed_and_joins_again(live):
    async with live.socket() as one, live.socket() as other:
        ids = [await engine.submit(live.store) for _ in range(3)]
        await asyncio.gather(heard(one, ids[-1]), heard(other, ids[-1]))
        for _ in range(3):
            live.hub.lost_touch()
            ids = [await engine.submit(live.store) for _ in range(5)]
            assert await heard(one, ids[-1]) == await heard(other, ids[-1]) == ids


async def test_a_socket_that_lags_leaves_and_misses_nothing(live, monkeypatch):
    async with live.socket() as socket:
        first = await engine.submit(live.store)
        await heard(socket, first)
        monkeypatch.setattr(broadcast, "MOST_WAITING_BYTES", -1)  # whatever is written is too much
        ids = [await engine.submit(live.store) for _ in range(30)]
        assert await heard(socket, ids[-1]) == ids


async def test_nothing_is_kept_for_sockets_that_are_gone(live):
    async with live.socket() as socket:
        await heard(socket, await engine.submit(live.store))
        everything = broadcast.of(live.hub)
        async with asyncio.timeout(5):
            while not everything._members:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while everything._members or everything in live.hub._everything:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_frame_is_one_that_the_protocol_knows(size):
    text = "x" * size
    assert frame(text) == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
