from typing import Any

import pytest
from engine import register
from whole import Hostler

from api.contextbay.nodes import status_of
from storage import fleet


async def test_nodes_show_what_their_workers_are(hostler: Hostler) -> None:
    await register(hostler.store, "n1", slots=4, cpu_count=8, memory_mb=2048, running=1, tags='["gpu"]')
    viewer = await hostler.user("r")
    listed = (await viewer.get("/api/nodes")).json()
    assert listed["total"] == 1
    node = listed["nodes"][0]
    assert (node["id"], node["name"], node["status"], node["tags"]) == ("n1", "n1", "online", ["gpu"])
    assert node["capacity"] == {"slots": 4, "cpu_count": 8, "memory_mb": 2048}
    assert (node["load"]["running"], node["load"]["free_slots"], node["load"]["busy"]) == (1, 3, 0.25)
    assert node["apps"] == {"total": 0, "by_status": {}}
    shown = (await viewer.get("/api/nodes/n1")).json()
    assert {name: shown[name] for name in node if name != "last_seen"} == {
        name: value for name, value in node.items() if name != "last_seen"
    }
    assert shown["installed"] == []


async def test_a_node_that_left_is_offline_and_an_unknown_one_is_not_found(hostler: Hostler) -> None:
    holder = await register(hostler.store, "n2")
    await hostler.store.call(fleet.depart("n2", holder.registration, reason="stopped"))
    viewer = await hostler.user("r")
    node = (await viewer.get("/api/nodes/n2")).json()
    assert (node["status"], node["status_reason"]) == ("offline", "stopped")
    unknown = await viewer.get("/api/nodes/nobody")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "There is no node 'nobody'.")
    assert (await hostler.client().get("/api/nodes")).status_code == 401


@pytest.mark.parametrize(
    ("status", "silent_s", "expected"),
    [
        ("online", 1, "online"),
        ("online", 20, "degraded"),
        ("error", 1, "degraded"),
        ("offline", 1, "offline"),
    ],
)
async def test_a_node_is_degraded_when_it_is_late_or_says_so(
    hostler: Hostler, status: str, silent_s: int, expected: str
) -> None:
    await register(hostler.store, "n3")
    worker: Any = await hostler.store.call(fleet.fetch("n3"))
    from dataclasses import replace

    seen = replace(worker, status=status)
    now_ms = worker.seen_ms + silent_s * 1000
    assert status_of(seen, now_ms=now_ms, lease_s=15)[0] == expected
