"""Rules that hold on the in-memory fake as on Valkey; scripts that the fake cannot run are tested on Valkey alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import fakeredis
import pytest

from settings import Settings
from storage import admission, fleet, scripts, upkeep
from storage.attempts import Holder
from storage.calls import Call, command
from storage.errors import Conflict
from storage.store import Store


class FakeWire:
    """The steps of storage/calls, carried out by fakeredis within this process."""

    def __init__(self) -> None:
        self.redis = fakeredis.FakeAsyncRedis(server_type="valkey")

    async def call(self, call: Call[Any], **_: Any) -> Any:
        words = call.words
        if call.script is not None:
            words = ("EVAL", scripts.source(call.script), *words[2:])
        return call.read(await self.redis.execute_command(*words))

    async def calls(self, *many: Call[Any], **_: Any) -> list[Any]:
        return [await self.call(each) for each in many]

    async def close(self) -> None:
        await self.redis.aclose()


@pytest.fixture(params=["fakeredis", "valkey"])
async def anywhere(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Store]:
    """A store on the fake, and one on a real server."""
    store = Store(settings)
    if request.param == "fakeredis":
        store.wire = FakeWire()  # type: ignore[assignment]
    yield store
    await store.close()


async def test_one_of_many_leads_until_it_steps_down(anywhere: Store) -> None:
    terms = await asyncio.gather(
        *(anywhere.call(upkeep.lead(f"s{n}", 9, anywhere.settings)) for n in range(10))
    )
    assert sorted(terms) == [0] * 9 + [1]
    leader = f"s{terms.index(1)}"
    assert await anywhere.call(upkeep.lead(leader, 9, anywhere.settings)) == 1
    assert await anywhere.call(upkeep.step_down("somebody else")) == 0
    assert await anywhere.call(upkeep.step_down(leader)) == 1
    assert await anywhere.call(upkeep.lead("s10", 9, anywhere.settings)) == 2


async def test_a_hundred_requests_at_once_find_room_for_exactly_the_limit(anywhere: Store) -> None:
    object.__setattr__(anywhere.settings, "rate_limit_per_s", 10)
    many = await asyncio.gather(*(admission.admit(anywhere, None, "192.0.2.1") for _ in range(100)))
    assert sum(each.allowed for each in many) == 10
    assert (await admission.admit(anywhere, None, "192.0.2.2")).allowed


async def test_a_name_is_taken_while_its_worker_is_online(anywhere: Store) -> None:
    first, second = Holder("w", "r1"), Holder("w", "r2")
    registered = await anywhere.call(fleet.register(first, {"kind": "worker"}, silent_s=60))
    with pytest.raises(Conflict):
        await anywhere.call(fleet.register(second, {"kind": "worker"}, silent_s=60))
    again = await anywhere.call(fleet.register(second, {"kind": "worker"}, proof="r1", silent_s=60))
    assert again == registered


async def test_a_delayed_job_is_queued_when_its_time_has_come_and_not_before(anywhere: Store) -> None:
    for job_id, due_ms in (("now", 1), ("later", anywhere.now_ms() + 60_000)):
        fields = ("state", "queued", "wait", "delay", "queue", "jobs.normal", "created", 1)
        await anywhere.call(command("HSET", f"h:job:{job_id}", *fields))
        await anywhere.call(command("ZADD", "h:delayed", due_ms, job_id))
    promoted, next_ms = await anywhere.call(upkeep.promote())
    assert promoted == 1
    assert next_ms is not None
    assert 0 < next_ms <= 60_000
    assert await anywhere.call(command("LRANGE", "rq:queue:jobs.normal", 0, -1)) == [b"now"]
