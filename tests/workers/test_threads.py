"""Work in threads is over before whoever waits for it goes on."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from workers.threads import until_told


async def test_work_that_is_told_to_stop_is_waited_for_however_often_who_waits_is_cancelled() -> None:
    began, go_on, over = threading.Event(), threading.Event(), threading.Event()
    told_of_it = []

    def work(told: Callable[[], bool]) -> None:
        began.set()
        go_on.wait(10)
        told_of_it.append(told())
        over.set()

    waiting = asyncio.create_task(until_told(work))
    await asyncio.to_thread(began.wait, 10)
    for _ in range(2):
        waiting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert over.is_set()
    assert told_of_it == [True]
