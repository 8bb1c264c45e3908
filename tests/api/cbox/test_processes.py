"""Processes in cbox-init's words: the page's answers, both spellings of requests, its error bodies to the letter."""

from typing import Any

import pytest

from storage import apps

PHP = {"php-fpm": {"command": ["php-fpm", "-F"], "scale": 2}}
ITEM = {
    "name", "type", "state", "scale", "desired_scale", "max_scale", "cpu_percent", "memory_rss_bytes",
    "memory_percent", "instances",
}  # fmt: skip


async def test_the_health_check_needs_no_credentials_and_says_what_the_page_says(fleet: Any) -> None:
    answer = await fleet.hostler.client().get("/api/v1/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})


async def test_a_process_is_listed_with_its_instances_as_the_page_shows_them(fleet: Any) -> None:
    await fleet.install("php-fpm", PHP)
    shown = await fleet.process("php-fpm")
    assert set(shown) == ITEM
    assert (shown["state"], shown["scale"], shown["desired_scale"], shown["max_scale"]) == (
        "running",
        2,
        2,
        100,
    )
    first, second = shown["instances"]
    assert (first["id"], second["id"]) == ("php-fpm-0", "php-fpm-1")
    assert first["started_at"] == 1_700_000_000
    assert second["pid"] == first["pid"] + 1
    assert {"id", "state", "pid", "started_at", "restart_count"} < set(first)


async def test_the_processes_of_one_app_are_told_apart_by_their_names(fleet: Any) -> None:
    await fleet.install("shop", {"web": {"command": ["web"]}, "queue": {"command": ["queue"]}})
    assert (await fleet.process("shop.web"))["instances"][0]["id"] == "shop.web-0"
    answer = await fleet.operator.post("/api/v1/processes/shop.queue/stop")
    assert answer.status_code == 202
    await fleet.node.carry_out()
    assert (await fleet.process("shop.queue"))["state"] == "stopped"
    assert (await fleet.process("shop.web"))["state"] == "running"
    assert (await fleet.operator.post("/api/v1/processes/shop/stop")).status_code == 404


@pytest.mark.parametrize("action", ["restart", "stop", "start"])
async def test_an_action_is_answered_as_on_the_page_and_carried_out_later(fleet: Any, action: str) -> None:
    await fleet.install("php-fpm", PHP)
    answer = await fleet.operator.post(f"/api/v1/processes/php-fpm/{action}")
    assert answer.status_code == 202
    assert answer.json() == {"message": f"{action} initiated", "process": "php-fpm"}
    await fleet.node.carry_out()
    assert fleet.node.done[-1] == ("php-fpm", action)
    assert (await fleet.process("php-fpm"))["state"] == ("stopped" if action == "stop" else "running")


@pytest.mark.parametrize(("body", "scale"), [({"scale": 5}, 5), ({"desired": 4}, 4), ({"delta": -1}, 1)])
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", None])
async def test_a_process_is_scaled_in_every_spelling(
    fleet: Any, body: dict[str, int], scale: int, content_type: str | None
) -> None:
    await fleet.install("php-fpm", PHP)
    content = ("{" + ", ".join(f'"{name}": {value}' for name, value in body.items()) + "}").encode()
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await fleet.operator.post("/api/v1/processes/php-fpm/scale", content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"message": "scale initiated", "process": "php-fpm", "scale": scale}
    await fleet.node.carry_out()
    shown = await fleet.process("php-fpm")
    assert (shown["scale"], len(shown["instances"])) == (scale, scale)


async def test_scaling_to_nothing_stops(fleet: Any) -> None:
    await fleet.install("php-fpm", PHP)
    answer = await fleet.operator.post("/api/v1/processes/php-fpm/scale", json={"scale": 0})
    assert answer.json()["scale"] == 0
    await fleet.node.carry_out()
    assert (await fleet.process("php-fpm"))["state"] == "stopped"


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"{", b'{"scale": "5"}', b'{"scale": -1}', b'{"scale": 1.5}', b'{"scale": 1, "delta": 1}',
                b'{"scale": 1001}', b'{"replicas": 3}', b"\xff", b"null"],
)  # fmt: skip
async def test_a_body_without_sense_is_refused_in_the_words_of_the_page(fleet: Any, content: bytes) -> None:
    await fleet.install("php-fpm", PHP)
    answer = await fleet.operator.post(
        "/api/v1/processes/php-fpm/scale", content=content, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid request body"})
    assert answer.headers["X-Error-Code"] == "INVALID_REQUEST"
    assert not await fleet.node.carry_out()


async def test_more_instances_than_a_process_may_have_are_refused_with_the_reason(fleet: Any) -> None:
    await fleet.install("one", {"one": {"command": ["x"], "max_scale": 3}})
    answer = await fleet.operator.post("/api/v1/processes/one/scale", json={"scale": 4})
    assert answer.status_code == 400
    assert "from 0 to 3" in answer.json()["error"]
    assert set(answer.json()) == {"error"}


async def test_errors_hold_what_the_page_shows_and_nothing_else(fleet: Any) -> None:
    await fleet.install("php-fpm", PHP)
    nobody, operator = fleet.hostler.client(), fleet.operator
    known = {
        ("GET", "/api/v1/processes", nobody): (401, "unauthorized", "UNAUTHENTICATED"),
        ("GET", "/api/v1/processes/php-fpm/logs", nobody): (401, "unauthorized", "UNAUTHENTICATED"),
        ("GET", "/api/v1/logs/stream", nobody): (401, "unauthorized", "UNAUTHENTICATED"),
        ("DELETE", "/api/v1/processes", operator): (405, "method not allowed", "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/processes/php-fpm/logs", operator): (405, "method not allowed", "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/logs", operator): (405, "method not allowed", "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/health", nobody): (405, "method not allowed", "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/processes/php-fpm/restart", operator): (405, "method not allowed", "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/processes/php-fpm", operator): (
            400, "action required (start|stop|restart|scale)", "UNKNOWN_ACTION",
        ),
        ("POST", "/api/v1/processes/php-fpm/explode", operator): (
            400, "unknown action: explode (valid: start|stop|restart|scale|schedule/pause|schedule/resume|"
            "schedule/trigger)", "UNKNOWN_ACTION",
        ),
        ("POST", "/api/v1/processes/nothing/start", operator): (404, "process not found: nothing", "NOT_FOUND"),
        ("GET", "/api/v1/processes/nothing/logs", operator): (404, "process not found: nothing", "NOT_FOUND"),
        ("GET", "/api/v1/nothing/at/all", operator): (404, "not found", "ROUTE_NOT_FOUND"),
    }  # fmt: skip
    for (method, path, client), (status, phrase, code) in known.items():
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()) == (status, {"error": phrase}), (method, path)
        assert answer.headers["X-Error-Code"] == code


async def test_too_many_requests_are_told_so_in_one_phrase(settings_for: Any) -> None:
    async with settings_for(rate_limit_per_s=1) as hostler:
        viewer = await hostler.user("r")
        answers = [await viewer.get("/api/v1/processes") for _ in range(4)]
        limited = next(each for each in answers if each.status_code == 429)
        assert limited.json() == {"error": "rate limit exceeded"}
        assert limited.headers["Retry-After"]


async def test_states_are_cboxs_words_alone(fleet: Any) -> None:
    fleet.node.behaviour["bad"] = "fails"
    await fleet.install("bad")
    assert (await fleet.process("bad"))["state"] == "failed"
    await fleet.install("good")
    app = await apps.get(fleet.hostler.store, "good")
    for ours, cboxs in (("starting", "starting"), ("crashed", "starting"), ("completed", "completed")):
        await fleet.node.observe(app, state=ours)
        assert (await fleet.process("good"))["state"] == cboxs
    await fleet.install("waits", config={"type": "object", "required": ["key"], "properties": {"key": {}}})
    assert (await fleet.process("waits"))["state"] == "stopped"


async def test_a_process_is_created_shown_updated_and_removed(fleet: Any) -> None:
    described = {"command": ["worker"], "scale": 2, "env": {"TOKEN": "canary"}}
    answer = await fleet.operator.post("/api/v1/processes", json={"name": "queue", "process": described})
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"status": "created", "process": "queue", "message": "Process added successfully"}
    await fleet.node.carry_out()
    shown = (await fleet.operator.get("/api/v1/processes/queue")).json()
    assert (shown["process"], shown["status"]["state"]) == ("queue", "running")
    assert (shown["config"]["command"], shown["config"]["scale"]) == (["worker"], 2)
    assert shown["config"]["env"] == {"TOKEN": "canary"}
    assert "canary" not in (await fleet.viewer.get("/api/v1/processes/queue")).text
    again = await fleet.operator.post("/api/v1/processes", json={"name": "queue", "process": described})
    assert again.status_code == 409
    changed = {"process": {**shown["config"], "scale": 3}}
    answer = await fleet.operator.put("/api/v1/processes/queue", json=changed)
    assert (answer.status_code, answer.json()["status"]) == (200, "updated")
    await fleet.node.carry_out()
    assert (await fleet.process("queue"))["scale"] == 3
    answer = await fleet.operator.delete("/api/v1/processes/queue")
    assert (answer.status_code, answer.json()["status"]) == (200, "removed")
    await fleet.node.carry_out()
    assert (await fleet.viewer.get("/api/v1/processes")).json() == {"processes": []}


@pytest.mark.parametrize(
    ("process", "complaint"),
    [
        ({}, "command"),
        ({"command": ["x"], "user": "root"}, "not supported here: processes.queue.user"),
        ({"command": ["x"], "scale": 2000}, "scale"),
        ({"command": ["x"], "env": {"A=B": "c"}}, "environment"),
    ],
)
async def test_a_process_that_cannot_be_is_refused_with_the_reason(
    fleet: Any, process: dict[str, Any], complaint: str
) -> None:
    answer = await fleet.operator.post("/api/v1/processes", json={"name": "queue", "process": process})
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]
    assert await apps.every(fleet.hostler.store) == []


async def test_a_process_of_a_product_is_neither_altered_nor_torn_out(fleet: Any) -> None:
    await fleet.install("shop", {"web": {"command": ["web"]}, "queue": {"command": ["queue"]}})
    answer = await fleet.operator.delete("/api/v1/processes/shop.web")
    assert (answer.status_code, "as a whole" in answer.json()["error"]) == (409, True)


async def test_saving_is_done_and_reloading_is_refused_with_the_way_to_do_it(fleet: Any) -> None:
    assert (await fleet.operator.post("/api/v1/config/save")).json()["status"] == "saved"
    answer = await fleet.operator.post("/api/v1/config/reload")
    assert answer.status_code == 409
    assert "hostler apps import" in answer.json()["error"]
