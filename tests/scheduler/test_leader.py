"""The leader: one at a time, through losses of the lead and of Redis, and gone without a trace when told."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from scheduler import leader
from scheduler.duties import Duty
from scheduler.leader import Leader
from storage import upkeep
from storage.errors import Unavailable
from storage.store import Store


class Tally:
    """A duty that counts how often it is done, and can fail."""

    def __init__(self) -> None:
        self.count, self.error = 0, None  # type: int, Exception | None

    async def run(self, _: Store) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """The only duty there is; leases are short."""
    tally = Tally()
    monkeypatch.setattr(leader, "table", lambda reap_s: (Duty("tally", 0.01, tally.run),))
    monkeypatch.setattr(leader, "LEASE_S", 0.3)
    monkeypatch.setattr(upkeep, "ASK_S", 0.05)
    return tally


async def until(condition: Any, patience_s: float = 5) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)


async def stopped(one: Leader, task: "asyncio.Task[None]") -> None:
    one.stop()
    await asyncio.wait_for(task, 5)  # noqa: TID251


async def test_a_leader_does_its_duties_until_it_is_stopped_and_steps_down(
    store: Store, tally: Tally
) -> None:
    one = Leader(store)
    task = asyncio.create_task(one.serve())
    await until(lambda: tally.count > 3)
    await stopped(one, task)
    count = tally.count
    assert await store.call(upkeep.lead("somebody else", 1, store.settings)) == 2
    await asyncio.sleep(0.05)
    assert tally.count == count


async def test_who_does_not_lead_does_nothing_until_the_lead_is_free(store: Store, tally: Tally) -> None:
    await store.call(upkeep.lead("somebody else", 0.5, store.settings))
    one = Leader(store)
    task = asyncio.create_task(one.serve())
    await asyncio.sleep(0.2)
    assert tally.count == 0
    await until(lambda: tally.count > 0)
    await stopped(one, task)


async def test_a_scheduler_with_another_secret_key_does_not_lead(store: Store, tally: Tally) -> None:
    await store.keyring.check()
    stranger = Store(replace(store.settings, secret_key="another secret key, also long enough"))
    one = Leader(stranger)
    task = asyncio.create_task(one.serve())
    await asyncio.sleep(0.2)
    await stopped(one, task)
    await stranger.close()
    assert tally.count == 0
    assert await store.call(upkeep.lead("somebody else", 1, store.settings)) == 1


async def test_a_leader_that_lost_the_lead_rests(store: Store, tally: Tally) -> None:
    one = Leader(store)
    task = asyncio.create_task(one.serve())
    await until(lambda: tally.count > 0)
    from storage.calls import command

    await store.call(command("SET", "h:leader", "7 somebody else"))
    await asyncio.sleep(0.2)
    count = tally.count
    await asyncio.sleep(0.1)
    assert tally.count == count
    await stopped(one, task)


async def test_a_leader_rests_when_redis_is_away_for_longer_than_its_lease(
    store: Store, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Leader(store)
    task = asyncio.create_task(one.serve())
    await until(lambda: tally.count > 0)
    real = store.call

    async def away(_: Any) -> Any:
        raise Unavailable("Redis cannot be reached.")

    monkeypatch.setattr(store, "call", away)
    await asyncio.sleep(0.45)
    count = tally.count
    await asyncio.sleep(0.1)
    assert tally.count == count
    monkeypatch.setattr(store, "call", real)
    await until(lambda: tally.count > count)
    await stopped(one, task)


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a mistake of ours")])
async def test_a_duty_that_fails_is_done_again(store: Store, tally: Tally, error: Exception) -> None:
    tally.error = error
    one = Leader(store)
    task = asyncio.create_task(one.serve())
    await until(lambda: tally.count > 2)
    await stopped(one, task)
