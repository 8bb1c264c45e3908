from typing import Any

import orjson
from engine import register
from whole import Hostler

from api.contextbay.live import _happenings
from api.realtime.hub import Hub
from storage import fleet
from storage.notifications import notify


async def test_nodes_and_notifications_are_told_as_the_page_spells_them(hostler: Hostler) -> None:
    hub = Hub(hostler.store)
    await hub.start()
    told = _happenings(hub)
    try:
        assert (await anext(told)).text == ""
        holder = await register(hostler.store, "n1")
        await hostler.store.call(notify("Backup complete", "nightly of n1: 3 files"))
        await hostler.store.call(fleet.depart("n1", holder.registration, reason="stopped"))
        frames: list[Any] = [orjson.loads((await anext(told)).text) for _ in range(3)]
    finally:
        await told.aclose()
        await hub.stop()
    assert frames == [
        {"type": "node.status", "payload": {"node_id": "n1", "status": "healthy", "reason": None}},
        {
            "type": "notification",
            "payload": {"title": "Backup complete", "body": "nightly of n1: 3 files", "level": "info"},
        },
        {"type": "node.status", "payload": {"node_id": "n1", "status": "offline", "reason": "stopped"}},
    ]


async def test_who_is_too_slow_hears_the_rest_once_and_in_order(hostler: Hostler) -> None:
    hub = Hub(hostler.store)
    await hub.start()
    told = _happenings(hub)
    try:
        await anext(told)
        for number in range(3):
            await hostler.store.call(notify("n", str(number)))
        hub.lost_touch()
        frames = [orjson.loads((await anext(told)).text) for _ in range(3)]
        await hostler.store.call(notify("n", "3"))
        frames.append(orjson.loads((await anext(told)).text))
    finally:
        await told.aclose()
        await hub.stop()
    assert [frame["payload"]["body"] for frame in frames] == ["0", "1", "2", "3"]
