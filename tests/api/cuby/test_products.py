from collections.abc import AsyncIterator
from typing import Any

import pytest

from cuby.conftest import SCHEMA, Fleet
from storage import apps
from storage.relay import Ask, Head

ENGINE = "processcube-engine"


async def post(fleet: Fleet, action: str, instance: str = ENGINE, **how: Any) -> Any:
    return await fleet.operator.post(f"/api/products/{instance}/{action}", **how)


async def test_the_list_of_statuses_is_keyed_by_instance(fleet: Fleet) -> None:
    await fleet.install()
    await fleet.install("studio", alias="two")
    told = (await fleet.viewer.get("/api/products/status")).json()
    assert set(told) == {ENGINE, "studio__two"}
    entry = told[ENGINE]
    assert entry.pop("pid") >= 1000
    assert entry == {"status": "running", "startedAt": "2023-11-14T22:13:20Z", "restartCount": 0}
    one = (await fleet.viewer.get(f"/api/products/{ENGINE}/status")).json()
    assert (one["instanceId"], one["productId"], one["status"]) == (ENGINE, ENGINE, "running")


async def test_a_product_is_stopped_started_and_restarted(fleet: Fleet) -> None:
    await fleet.install()
    pids = [(await fleet.viewer.get("/api/products/status")).json()[ENGINE]["pid"]]
    for action, status in (("stop", "stopped"), ("start", "running"), ("restart", "running")):
        answer = await post(fleet, action)
        assert answer.status_code == 202, answer.text
        assert answer.json()["message"] == f"{action} initiated"
        await fleet.node.carry_out()
        assert await fleet.status(ENGINE) == status
        pids.append((await fleet.viewer.get("/api/products/status")).json()[ENGINE]["pid"])
    assert pids[1] is None
    assert [action for _, action in fleet.node.done] == ["install", "stop", "start", "restart"]


@pytest.mark.parametrize(
    ("state", "status", "health"),
    [
        ("running", "running", "unknown"),
        ("starting", "running", "unknown"),
        ("crashed", "crashed", "unhealthy"),
        ("failed", "failed", "unhealthy"),
        ("completed", "stopped", "unknown"),
    ],
)
async def test_every_state_has_one_of_the_eight_words(
    fleet: Fleet, state: str, status: str, health: str
) -> None:
    await fleet.install()
    app = await apps.get(fleet.store, ENGINE)
    await fleet.node.observe(app, state=state, restart_count=2, message="why")
    told = (await fleet.viewer.get(f"/api/products/{ENGINE}/status")).json()
    assert (told["status"], told["restartCount"], told["message"]) == (status, 2, "why")
    told = (await fleet.viewer.get(f"/api/products/{ENGINE}/health")).json()
    assert (told["health"], told["healthy"]) == (health, status == "running")
    assert (await fleet.viewer.get("/api/products/health")).json() == {ENGINE: told}


async def test_what_its_own_check_finds_ill_is_unhealthy(fleet: Fleet) -> None:
    await fleet.install()
    app = await apps.get(fleet.store, ENGINE)
    for health, healthy in (("healthy", True), ("unhealthy", False)):
        await fleet.node.observe(app, health=health)
        told = (await fleet.viewer.get(f"/api/products/{ENGINE}/health")).json()
        assert (told["status"], told["health"], told["healthy"]) == ("running", health, healthy)


async def test_start_all_starts_what_is_configured_and_does_not_run(fleet: Fleet) -> None:
    await fleet.install("one")
    await fleet.install("two")
    await fleet.install("three", config=SCHEMA)
    await post(fleet, "stop", "two")
    await fleet.node.carry_out()
    told = (await fleet.operator.post("/api/products/start-all")).json()
    assert told["started"] == ["two"]
    assert [each["instanceId"] for each in told["skipped"]] == ["one", "three"]
    await fleet.node.carry_out()
    assert await fleet.status("two") == "running"


async def test_an_update_goes_to_the_newest_release_or_to_the_one_asked_for(fleet: Fleet) -> None:
    await fleet.install()
    assert (await post(fleet, "update")).status_code == 409  # there is nothing newer
    await fleet.offer(version="1.2.0")
    await fleet.offer(version="1.10.0")
    listed = (await fleet.viewer.get("/api/marketplace/products")).json()["products"][0]
    assert (listed["version"], listed["installedVersion"], listed["updateAvailable"]) == (
        "1.10.0",
        "1.0.0",
        True,
    )
    assert (await post(fleet, "update")).json()["status"] == "updating"
    assert await fleet.status(ENGINE) == "updating"
    status = await fleet.viewer.get(f"/api/install/status?productId={ENGINE}")
    assert status.json()["status"] == "updating"
    await fleet.node.carry_out()
    assert (await apps.get(fleet.store, ENGINE)).version == "1.10.0"
    assert (await post(fleet, "update", json={"version": "9"})).status_code == 404
    assert (await post(fleet, "update", json={"version": "1.2.0"})).status_code == 202


async def test_an_uninstalled_product_is_gone(fleet: Fleet) -> None:
    await fleet.install()
    assert (await fleet.viewer.delete(f"/api/products/{ENGINE}/uninstall")).status_code == 403
    assert (await fleet.operator.delete(f"/api/products/{ENGINE}/uninstall")).status_code == 202
    await fleet.node.carry_out()
    assert (await fleet.viewer.get(f"/api/products/{ENGINE}/status")).status_code == 404
    assert (await fleet.viewer.get("/api/products/status")).json() == {}


async def test_logs_are_the_last_hundred_lines_unless_more_are_asked_for(fleet: Fleet) -> None:
    await fleet.install()
    await fleet.node.say(ENGINE, "web", *(f"line {number}" for number in range(150)))
    told = (await fleet.viewer.get(f"/api/products/{ENGINE}/logs")).json()
    assert told["logs"] == [f"line {number}" for number in range(50, 150)]
    assert {**told["entries"][-1], "timestamp": ""} == {
        "timestamp": "", "process": "web", "instance": "web-0", "stream": "stdout", "level": "info", "line": "line 149",
    }  # fmt: skip
    # as the page asks for them
    told = (await fleet.viewer.get(f"/api/products/{ENGINE}/logs?limit=50")).json()
    assert len(told["logs"]) == 50
    for limit in ("0", "10001", "x"):
        assert (await fleet.viewer.get(f"/api/products/{ENGINE}/logs?limit={limit}")).status_code == 400


async def test_the_log_file_comes_from_the_node(fleet: Fleet) -> None:
    await fleet.install()
    asked: list[Ask] = []

    async def handle(ask: Ask) -> AsyncIterator[Head | bytes]:
        asked.append(ask)
        yield Head(200, (("content-type", "text/plain"),))
        yield b"first\nsecond \xff\n"

    assert (await fleet.viewer.get(f"/api/products/{ENGINE}/logfile")).status_code == 503  # the node is away
    async with fleet.answering(handle):
        told = (await fleet.viewer.get(f"/api/products/{ENGINE}/logfile")).json()
        assert (told["lines"], told["content"]) == (["first", "second \ufffd"], "first\nsecond \ufffd\n")
        await fleet.viewer.get(f"/api/products/{ENGINE}/logfile?lines=7&process=web&index=1")
        assert (await fleet.viewer.get(f"/api/products/{ENGINE}/logfile?process=..")).status_code == 404
    assert [(each.kind, each.lines, each.process, each.index) for each in asked] == [
        ("log", 500, "", 0),
        ("log", 7, "web", 1),
    ]


@pytest.mark.parametrize("instance", ["nothing", "a%2Fb", "x__y", "h:app:x"])
async def test_what_is_not_installed_is_not_found(fleet: Fleet, instance: str) -> None:
    for method, path in (
        ("GET", "status"),
        ("POST", "start"),
        ("GET", "config"),
        ("GET", "config-component.js"),
    ):
        answer = await fleet.operator.request(method, f"/api/products/{instance}/{path}")
        assert answer.status_code == 404


async def test_nobody_is_told_of_an_instance_that_its_node_does_not_vouch_for(
    fleet: Fleet, redis_client: Any
) -> None:
    await fleet.install()
    redis_client.hset(f"h:app:{ENGINE}", "wish", b"forged\n{}")
    assert (await fleet.viewer.get("/api/products/status")).json() == {}
    assert (await post(fleet, "start")).status_code == 404
