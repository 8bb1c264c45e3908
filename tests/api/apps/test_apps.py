"""Apps over HTTP: what is asked becomes a job, what is shown is what the node says, what is wrong is refused."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from nodes import HELLO, Node, manifest
from whole import Hostler

from storage import apps, relay
from storage.apps import Instance, LogLine, Run, Sample
from storage.attempts import rq_time
from storage.calls import script
from storage.relay import Ask, Head

pytestmark = pytest.mark.stack

NEEDS_CONFIG = {
    **HELLO,
    "config": {"type": "object", "required": ["key"], "properties": {"key": {"writeOnly": True}}},
}


@pytest.fixture
async def node(hostler: Hostler) -> Node:
    return await Node.online(hostler.store)


@pytest.fixture
async def operator(hostler: Hostler) -> httpx.AsyncClient:
    return await hostler.user("w")


async def shown(client: httpx.AsyncClient, instance_id: str = "hello") -> Any:
    answer = await client.get(f"/api/apps/{instance_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_app_is_installed_seen_and_uninstalled(node: Node, operator: httpx.AsyncClient) -> None:
    answer = await operator.post("/api/apps", json={"manifest": HELLO})
    assert answer.status_code == 202, answer.text
    job = (await operator.get("/api/jobs/status", params={"jobId": answer.json()["jobId"]})).json()["job"]
    assert (job["name"], job["command"], job["status"]) == ("install hello", None, "queued")
    claimed = await node.claim()
    await node.release(claimed, manifest())
    await node.settle(claimed)
    await node.observe("hello", "running", pid=7, started_ms=1, memory_rss_bytes=5)
    app = await shown(operator)
    assert (app["status"], app["node"], app["version"], app["jobId"]) == ("running", "node-1", "1.0", None)
    assert app["processes"][0]["instances"][0]["memoryBytes"] == 5
    listed = (await operator.get("/api/apps", params={"node": "node-1"})).json()
    assert [each["instanceId"] for each in listed["apps"]] == ["hello"]
    assert (await operator.get("/api/apps", params={"product": "other"})).json()["total"] == 0
    answer = await operator.delete("/api/apps/hello", params={"keepData": "true"})
    assert answer.status_code == 202
    assert (await shown(operator))["status"] == "removing"


async def test_a_job_of_an_app_is_listed_and_retried_like_any_other(
    node: Node, operator: httpx.AsyncClient
) -> None:
    installed = (await operator.post("/api/apps", json={"manifest": HELLO})).json()
    listed = (await operator.get("/api/jobs/list")).json()["jobs"]
    assert [each["name"] for each in listed] == ["install hello"]
    claimed = await node.claim()
    await node.settle(claimed, "failed", "exit_code")
    assert (await shown(operator))["status"] == "failed"
    again = await operator.post(f"/api/jobs/{installed['jobId']}/retry")
    assert again.status_code == 201, again.text
    assert (await shown(operator))["jobId"] == again.json()["jobId"]


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("start", {}), ("stop", {"process": "web"}), ("restart", None), ("scale", {"scale": {"web": 3}}),
        ("scale", {"delta": 1}), ("update", {"manifest": {**HELLO, "version": "2"}}),
    ],
)  # fmt: skip
async def test_each_action_is_accepted_as_a_job(
    node: Node, operator: httpx.AsyncClient, action: str, body: dict[str, Any] | None
) -> None:
    await node.install(manifest())
    answer = await operator.post(f"/api/apps/hello/{action}", **({} if body is None else {"json": body}))
    assert answer.status_code == 202, answer.text
    assert answer.json()["instanceId"] == "hello"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "", {}, 400, "product"),
        ("POST", "", {"product": "a", "manifest": HELLO}, 400, "product"),
        ("POST", "", {"manifest": {**HELLO, "id": "../x"}}, 400, "id"),
        ("POST", "", {"manifest": HELLO, "alias": "a__b"}, 400, "alias"),
        ("POST", "", {"manifest": HELLO, "node": "nowhere"}, 422, "node"),
        ("POST", "", {"product": "nothing"}, 404, None),
        ("POST", "/hello/scale", {}, 400, "scale"),
        ("POST", "/hello/scale", {"scale": {"web": 101}}, 400, "scale"),
        ("POST", "/hello/start", {"process": "nobody"}, 404, None),
        ("POST", "/nobody/start", {}, 404, None),
        ("POST", "/hello/rollback", {}, 409, "version"),
        ("POST", "/hello/update", {}, 409, None),
        ("PUT", "/hello/config", {"config": {"a": 1}}, 400, "config"),
        ("GET", "/nobody", None, 404, None),
        ("GET", "/hello/logs?after=$", None, 400, "after"),
        ("DELETE", "/hello?abandon=true", None, 409, None),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_field(  # noqa: PLR0917  the table above
    node: Node, operator: httpx.AsyncClient, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    await node.install(manifest())
    answer = await operator.request(method, f"/api/apps{path}", json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json().get("details", {}))[:1] == ([field] if field else [])


async def test_viewers_look_and_change_nothing(hostler: Hostler, node: Node) -> None:
    await node.install(manifest())
    viewer = await hostler.user("r")
    for path in ("", "/hello", "/hello/config", "/hello/logs", "/hello/samples", "/hello/runs"):
        assert (await viewer.get(f"/api/apps{path}")).status_code == 200
    for path in ("", "/hello/start", "/hello/update"):
        assert (await viewer.post(f"/api/apps{path}", json={})).status_code == 403
    assert (await viewer.delete("/api/apps/hello")).status_code == 403


async def test_configuration_is_shown_without_its_secrets_and_deployed_as_a_job(
    node: Node, operator: httpx.AsyncClient
) -> None:
    await operator.post("/api/apps", json={"manifest": NEEDS_CONFIG})
    claimed = await node.claim()
    await node.release(claimed, manifest(config=NEEDS_CONFIG["config"]))
    await node.settle(claimed)
    assert (await shown(operator))["status"] == "needs_config"
    answer = await operator.put("/api/apps/hello/config", json={"config": {"key": "s3cret"}})
    assert answer.status_code == 202, answer.text
    config = (await operator.get("/api/apps/hello/config")).json()
    assert (config["config"], config["configured"]) == ({"key": "********"}, True)
    assert "s3cret" not in str(await shown(operator))


async def test_an_install_under_an_idempotency_key_is_one(node: Node, operator: httpx.AsyncClient) -> None:
    operator.headers["Idempotency-Key"] = "once"
    first = await operator.post("/api/apps", json={"manifest": HELLO})
    assert (await operator.post("/api/apps", json={"manifest": HELLO})).json() == first.json()


async def test_lines_samples_and_runs_are_shown(
    hostler: Hostler, node: Node, operator: httpx.AsyncClient
) -> None:
    await node.install(manifest())
    line = LogLine("", 5, "web", 0, "stderr", "error", "<b>no</b>")
    await hostler.store.calls(
        apps.append(node.holder, "hello", [line]),
        apps.sample(node.holder, "hello", [Sample(7, "web", 0, 1.5, 100, 0.1)]),
        apps.ran(node.holder, "hello", Run("r", "web", 0, 1000, 2000, 1, None, "trigger")),
    )
    (found,) = (await operator.get("/api/apps/hello/logs")).json()["lines"]
    assert (found["text"], found["instance"], found["timestamp"]) == ("<b>no</b>", "web-0", 5)
    (sample,) = (await operator.get("/api/apps/hello/samples")).json()["samples"]
    assert (sample["timestamp"], sample["memoryBytes"]) == (7, 100)
    (run,) = (await operator.get("/api/apps/hello/runs")).json()["runs"]
    assert (run["exitCode"], run["cause"]) == (1, "trigger")


async def test_a_log_file_is_fetched_from_its_node(
    hostler: Hostler, node: Node, operator: httpx.AsyncClient
) -> None:
    await node.install(manifest())
    asked: list[Ask] = []

    async def handle(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        asked.append(ask)
        yield Head(200, (("Content-Type", "text/plain"),))
        yield b"the end\n"

    serving = asyncio.create_task(relay.serve(hostler.store, "node-1", handle))
    try:
        answer = await operator.get("/api/apps/hello/logfile", params={"lines": 3})
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert (answer.text, answer.headers["Content-Type"]) == ("the end\n", "text/plain; charset=utf-8")
    assert (asked[0].process, asked[0].lines) == ("web", 3)
    assert (await operator.get("/api/apps/hello/logfile?process=x")).status_code == 404


async def test_an_app_of_a_node_that_is_gone_is_unknown_and_can_be_abandoned(
    hostler: Hostler, node: Node, operator: httpx.AsyncClient
) -> None:
    app = await node.install(manifest())
    await hostler.store.call(apps.observe(node.holder, app, [Instance("web-0", "web", 0, "running")]))
    await hostler.store.call(script("depart", "node-1", "", rq_time(), "silent", "", ""))
    assert ((await shown(operator))["status"], (await shown(operator))["nodeOnline"]) == ("unknown", False)
    stopping = (await operator.post("/api/apps/hello/stop", json={})).json()
    why = (await operator.get(f"/api/jobs/{stopping['jobId']}/why")).json()
    assert why["reasons"][0]["code"] == "node_offline"
    assert (await operator.delete("/api/apps/hello?abandon=true")).json()["status"] == "abandoned"
    assert (await operator.get("/api/apps/hello")).status_code == 404
