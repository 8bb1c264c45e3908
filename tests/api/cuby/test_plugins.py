"""Plugin routes, through the real relay and the real forwarder, to an app that is a small server here."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from fake_server import Answer, Asked, FakeServer
from whole import ORIGIN

from cuby.conftest import Fleet
from storage.errors import NotFound, NotRunning
from workers import forwarding
from workers.forwarding import Address, Forwarder

PLUGIN = "processcube-engine"
ROUTES = {"routes": {"process": "web", "prefix": "/api"}}


class OnThisNode:
    """The apps of a node: one, at an address."""

    def __init__(self, port: int | None) -> None:
        self.port = port

    def address(self, instance_id: str, process: str, index: int) -> Address:
        if instance_id != PLUGIN:
            raise NotFound("There is no such app.")
        if self.port is None:
            raise NotRunning("It does not run.")
        assert process == "web"
        return Address(port=self.port)

    def release(self, instance_id: str) -> Path:
        raise NotImplementedError

    def log_file(self, instance_id: str, process: str, index: int) -> Path:
        raise NotImplementedError


@pytest.fixture
def app() -> Any:
    """The plugin's process: it says what it was asked."""
    server = FakeServer()

    def echo(asked: Asked) -> Answer:
        seen = {"method": asked.method, "path": asked.path, "query": asked.query, "headers": asked.headers}
        return Answer(200, {**seen, "body": asked.body.decode()})

    for method in ("GET", "POST", "PUT", "DELETE"):
        for path in ("/api/items", "/api/items/7", "/api/", "/api/a%20b"):
            server.on(f"{method} {path}", echo)
    yield server
    server.close()


@pytest.fixture
async def plugin(fleet: Fleet, app: FakeServer) -> AsyncIterator[Fleet]:
    """A fleet with the plugin installed and answering."""
    await fleet.install(**ROUTES)
    port = int(app.url.rpartition(":")[2])
    async with fleet.answering(Forwarder(OnThisNode(port), fleet.store.seal).handle):
        yield fleet


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_every_method_of_the_page_reaches_the_plugin(plugin: Fleet, method: str) -> None:
    body = b'{"name": "x"}' if method in {"POST", "PUT"} else None
    answer = await plugin.operator.request(method, f"/api/plugins/{PLUGIN}/items/7?a=1&b=2", content=body)
    told = answer.json()
    assert answer.status_code == 200
    assert (told["method"], told["path"], told["query"]) == (method, "/api/items/7", {"a": "1", "b": "2"})
    assert told["body"] == (body or b"").decode()
    by_viewer = await plugin.viewer.request(method, f"/api/plugins/{PLUGIN}/items/7", content=body)
    assert by_viewer.status_code == (200 if method == "GET" else 403)


async def test_the_path_is_passed_on_as_it_was_written(plugin: Fleet) -> None:
    for path, seen in (("/items", "/api/items"), ("/a%20b", "/api/a%20b"), ("/", "/api/"), ("", "/api/")):
        answer = await plugin.viewer.get(f"/api/plugins/{PLUGIN}{path}")
        assert answer.json()["path"] == seen


@pytest.mark.proves("A36")
async def test_no_credential_reaches_a_plugin_and_no_cookie_comes_back(
    plugin: Fleet, app: FakeServer, evidence: list[str]
) -> None:
    app.routes["GET /api/items"] = [
        lambda asked: Answer(
            200,
            {"headers": asked.headers},
            {
                "Set-Cookie": "auth_token=planted; Path=/",
                "Clear-Site-Data": '"*"',
                "Access-Control-Allow-Origin": "*",
                "Content-Security-Policy": "default-src *",
                "X-Frame-Options": "ALLOWALL",
                "X-Items": "7",
                "WWW-Authenticate": "Basic",
                "Service-Worker-Allowed": "/",
                "Refresh": "0; url=https://evil.example",
                "Location": "https://evil.example/",
                "Link": "<https://evil.example/x.js>; rel=preload; as=script",
            },
        )
    ]
    token = plugin.viewer.headers["Authorization"].removeprefix("Bearer ")
    sent = {
        "Cookie": f"auth_token={token}; other=1", "X-API-Key": "cb_x", "X-Worker-Token": "w",
        "Proxy-Authorization": "x",
        "Connection": "X-Mine", "X-Mine": "1", "X-Custom": "stays",
    }  # fmt: skip
    answer = await plugin.viewer.get(f"/api/plugins/{PLUGIN}/items", headers=sent)
    seen = answer.json()["headers"]
    for name in ("authorization", "cookie", "x-api-key", "x-worker-token", "proxy-authorization", "x-mine"):
        assert name not in seen
    assert token not in json.dumps(seen)
    assert seen["x-custom"] == "stays"
    for name in (
        "Set-Cookie", "Clear-Site-Data", "Access-Control-Allow-Origin", "WWW-Authenticate", "Service-Worker-Allowed",
        "Refresh", "Location", "Link",
    ):  # fmt: skip
        assert name not in answer.headers, name
    assert answer.headers["X-Items"] == "7"
    evidence.append(f"the plugin saw {len(seen)} headers, none of ours")


@pytest.mark.proves("A37")
async def test_a_plugin_is_told_who_asks_and_nobody_else_can_say_so(plugin: Fleet, app: FakeServer) -> None:
    forged = {"X-Hostler-Identity": "forged", "x_hostler_identity": "forged", "X-Forwarded-User": "root"}
    seen = (await plugin.viewer.get(f"/api/plugins/{PLUGIN}/items", headers=forged)).json()["headers"]
    assert "forged" not in json.dumps(seen)
    assert "root" not in json.dumps(seen)
    key = forwarding.identity_key(plugin.store.seal, PLUGIN)
    claims = jwt.decode(
        seen["x-hostler-identity"], key, algorithms=["HS256"], audience=PLUGIN, issuer="hostler"
    )
    assert (claims["name"], claims["role"]) == ("user-r", "r")
    assert claims["exp"] - claims["iat"] <= 60


#: Paths that another reader could take for another route.
ELSEWHERE = [
    f"/api/plugins/{PLUGIN}/../../health", f"/api/plugins/{PLUGIN}/%2e%2e/health",
    f"/api/plugins/{PLUGIN}/..%2fhealth",
    f"/api/plugins/{PLUGIN}/%252e%252e/health", f"/api/plugins/{PLUGIN}/a%5c..%5chealth",
    f"/api/plugins/{PLUGIN}/items%2f7", f"/api/plugins/{PLUGIN}%2fother/items", f"/api/plugins/{PLUGIN}/%00",
    f"/api/plugins/{PLUGIN}/..;/health", f"/api/plugins/{PLUGIN}/./items",
]  # fmt: skip


@pytest.mark.proves("A37")
async def test_a_path_that_leads_elsewhere_reaches_no_plugin(plugin: Fleet, app: FakeServer) -> None:
    for path in ELSEWHERE:
        scope_path = path.replace("%2e", ".").replace("%2f", "/").replace("%252e", "%2e").replace("%5c", "\\")
        status, _ = await raw_get(plugin, scope_path.replace("%00", "\0"), path.encode())
        assert status in {400, 404}, path
    assert app.asked == []


async def raw_get(fleet: Fleet, path: str, raw_path: bytes) -> tuple[int, bytes]:
    """Ask for a path that no HTTP client would leave as it is."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    authorization = fleet.viewer.headers["Authorization"].encode()
    scope = {
        "type": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "method": "GET", "path": path,
        "raw_path": raw_path, "query_string": b"", "scheme": "http", "server": ("hostler.test", 80), "root_path": "",
        "headers": [(b"host", b"hostler.test"), (b"authorization", authorization)], "client": ("203.0.113.7", 5),
    }  # fmt: skip
    await fleet.hostler.app(scope, receive, send)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


@pytest.mark.proves("A37")
async def test_a_page_of_a_plugin_has_no_part_in_our_origin(plugin: Fleet, app: FakeServer) -> None:
    app.routes["GET /api/items"] = [
        Answer(
            200, b"<script>alert(1)</script>", {"Content-Type": "text/html", "Content-Security-Policy": ""}
        )
    ]
    answer = await plugin.viewer.get(f"/api/plugins/{PLUGIN}/items")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox ")
    assert "allow-same-origin" not in policy
    assert "connect-src 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    # and what such a page could still send has an Origin that a cookie does not count with
    token = plugin.operator.headers["Authorization"].removeprefix("Bearer ")
    browser = plugin.hostler.client(Cookie=f"auth_token={token}")
    refused = await browser.post(f"/api/plugins/{PLUGIN}/items", headers={"Origin": "null"})
    assert refused.status_code == 403
    assert (await browser.post(f"/api/plugins/{PLUGIN}/items", headers={"Origin": ORIGIN})).status_code == 200


@pytest.mark.proves("A37")
async def test_our_own_routes_are_not_a_plugins(plugin: Fleet, app: FakeServer) -> None:
    await plugin.offer("health", **ROUTES)
    for name in ("health", "status"):
        assert (await plugin.viewer.get(f"/api/plugins/{name}/items")).status_code == 404  # not installed
    assert (await plugin.hostler.client().get("/api/health")).json()["status"] == "ok"
    assert (await plugin.viewer.get(f"/api/plugins/other__{PLUGIN}/items")).status_code == 404
    assert app.asked == []


@pytest.mark.proves("A37")
async def test_a_stopped_plugin_is_unavailable_and_one_that_is_broken_a_bad_gateway(
    fleet: Fleet, app: FakeServer
) -> None:
    await fleet.install(**ROUTES)
    path = f"/api/plugins/{PLUGIN}/items"
    node = OnThisNode(None)
    async with fleet.answering(Forwarder(node, fleet.store.seal).handle):
        assert (await fleet.viewer.get(path)).status_code == 503
        app.close()
        node.port = int(app.url.rpartition(":")[2])
        answer = await fleet.viewer.get(path)
        assert (answer.status_code, answer.json()["code"]) == (502, "BAD_GATEWAY")
    assert str(node.port) not in answer.text
    await fleet.install("bare")
    assert (await fleet.viewer.get("/api/plugins/bare/items")).status_code == 404


async def test_a_body_that_is_too_large_is_not_passed_on(plugin: Fleet, app: FakeServer) -> None:
    answer = await plugin.operator.post(f"/api/plugins/{PLUGIN}/items", content=b"x" * (10 * 1024 * 1024 + 1))
    assert answer.status_code == 413
    assert app.asked == []


async def test_the_other_methods_are_not_passed_on(plugin: Fleet, app: FakeServer) -> None:
    for method in ("PATCH", "OPTIONS"):
        answer = await plugin.operator.request(method, f"/api/plugins/{PLUGIN}/items")
        assert answer.status_code in {200, 405}
    assert app.asked == []


async def test_a_redirect_leads_to_a_route_of_the_same_plugin_or_nowhere(
    plugin: Fleet, app: FakeServer
) -> None:
    leads = {
        "/api/items/7?new=1": f"/api/plugins/{PLUGIN}/items/7?new=1",
        "/api/config": f"/api/plugins/{PLUGIN}/config",
        "https://evil.example/": None,
        "//evil.example/": None,
        "/other/items": None,
        "/api/\\evil.example": None,
    }
    for location, shown in leads.items():
        app.routes["POST /api/items"] = [Answer(303, {}, {"Location": location})]
        answer = await plugin.operator.post(f"/api/plugins/{PLUGIN}/items")
        assert (answer.status_code, answer.headers.get("Location")) == (303, shown)
