"""Squareberg's hub: the page's nine fields and three words, its waits, its way to an app's socket and frontend."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from machines import Machine, machine
from whole import Hostler

from api.squareberg import registry, words
from settings import Listener
from storage import apps, manifests, relay
from storage.calls import command
from storage.errors import BadGateway, NotFound
from storage.manifests import squareberg
from storage.relay import Ask, Head

FIELDS = {
    "name", "display_name", "description", "version", "status", "socket_path", "frontend_dist_path", "manifest_path",
    "backend_module",
}  # fmt: skip
HELLO = {
    "app": {
        "name": "hello",
        "display_name": "Hello World",
        "description": "A minimal app",
        "version": "0.1.0",
    },
    "backend": {"module": "app:app"},
    "frontend": {"active": ["default"]},
}
SPEC = b'{"openapi": "3.1.0", "paths": {"/api/health": {"get": {"summary": "<Health>"}}}}'


@dataclass
class Hub:
    """The API with an operator and a viewer, and a node whose apps answer as `files` and `answers` say."""

    hostler: Hostler
    node: Machine
    operator: httpx.AsyncClient
    viewer: httpx.AsyncClient
    asked: list[Ask] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    unreachable: bool = False
    silent: bool = False

    async def install(self, data: dict[str, Any] | None = None, *, start: bool = True) -> None:
        manifest = manifests.load(squareberg.translated(data or HELLO))
        await apps.install(self.hostler.store, "test", inline=manifest, start=start)
        await self.node.carry_out()

    async def answer(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        """Stand for the node's forwarder and the app behind it."""
        self.asked.append(ask)
        if self.silent:
            await asyncio.sleep(60)
        if ask.kind == "file":
            for path in (ask.path, ask.fallback):
                if (content := self.files.get(f"{ask.within}/{path}")) is not None:
                    yield Head(200, (("content-type", "text/html" if path.endswith("html") else "text/css"),))
                    yield content
                    return
            raise NotFound("There is no such file.")
        if self.unreachable:
            raise BadGateway("The socket of hello cannot be reached.")
        yield Head(
            200 if ask.path != "/api/teapot" else 418, (("content-type", "application/json"), ("x-app", "1"))
        )
        yield SPEC if ask.path == "/openapi.json" else b'{"path": "' + ask.path.encode() + b'"}'


@pytest.fixture
async def hub(settings_for: Any) -> AsyncIterator[Hub]:
    listen = (Listener.parse("squareberg=127.0.0.1:9100"),)
    async with settings_for(listen=listen) as hostler, _running(hostler) as hub:
        yield hub


@contextlib.asynccontextmanager
async def _running(hostler: Hostler) -> AsyncIterator[Hub]:
    node = await machine(hostler.store)
    hub = Hub(hostler, node, await hostler.user("w"), await hostler.user("r"))
    serving = asyncio.create_task(relay.serve(hostler.store, node.holder.worker, hub.answer))
    while not await hostler.store.call(command("EXISTS", f"h:relay:session:{node.holder.worker}")):
        await asyncio.sleep(0.005)
    yield hub
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def test_an_app_is_listed_with_its_nine_fields_as_on_the_page(hub: Hub) -> None:
    assert (await hub.viewer.get("/registry")).json() == []
    await hub.install()
    (shown,) = (await hub.viewer.get("/registry")).json()
    assert set(shown) == FIELDS
    assert (shown["name"], shown["display_name"], shown["version"]) == ("hello", "Hello World", "0.1.0")
    assert (shown["status"], shown["backend_module"]) == ("running", "app:app")
    assert shown["socket_path"] == "/run/hello.sock"
    assert shown["frontend_dist_path"].endswith("/hello/current/frontend/default")  # there is no build
    assert (await hub.viewer.get("/registry/hello")).json() == shown


async def test_apps_of_other_kinds_are_shown_too(hub: Hub) -> None:
    plain = manifests.load({"id": "plain", "processes": {"web": {"command": ["web"], "port": 8000}}})
    await apps.install(hub.hostler.store, "test", inline=plain)
    await hub.node.carry_out()
    (shown,) = (await hub.viewer.get("/registry")).json()
    assert set(shown) == FIELDS
    assert (shown["name"], shown["status"], shown["backend_module"]) == ("plain", "running", None)
    assert (shown["socket_path"], shown["frontend_dist_path"]) == (None, None)


async def test_what_is_not_registered_is_not_found_in_fastapis_words(hub: Hub) -> None:
    for method, path in (
        ("GET", "/registry/nothing"), ("GET", "/registry/nothing/spec"), ("POST", "/registry/nothing/start"),
        ("POST", "/registry/nothing/stop"), ("DELETE", "/registry/nothing"), ("GET", "/registry/nothing/view"),
        ("GET", "/apps/nothing/api/x"), ("GET", "/apps/nothing/"), ("GET", "/apps/nothing/x.css"),
    ):  # fmt: skip
        answer = await hub.operator.request(method, path)
        assert answer.status_code == 404, (method, path)
        told = answer.json()
        assert told["detail"] == told["error"] == "App 'nothing' not found."
        assert answer.headers["X-Error-Code"] == "NOT_FOUND"


async def test_starting_waits_for_the_app_and_starting_again_is_nothing(hub: Hub) -> None:
    await hub.install(start=False)
    assert (await hub.viewer.get("/registry/hello")).json()["status"] == "stopped"
    async with hub.node.working():
        answer = await hub.operator.post("/registry/hello/start")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"status": "ok", "app": "hello", "message": "App 'hello' started."}
    assert (await hub.viewer.get("/registry/hello")).json()["status"] == "running"
    before = list(hub.node.done)
    assert (await hub.operator.post("/registry/hello/start")).status_code == 200
    assert hub.node.done == before
    assert not await hub.node.carry_out()


async def test_an_app_that_does_not_come_up_answers_500_and_shows_error_until_it_is_started_again(
    hub: Hub,
) -> None:
    await hub.install(start=False)
    hub.node.behaviour["hello"] = "fails"
    async with hub.node.working():
        answer = await hub.operator.post("/registry/hello/start")
        assert answer.status_code == 500
        assert "failed to start; check app logs" in answer.json()["detail"]
        assert "It exited with code 3." in answer.json()["detail"]
        assert (await hub.viewer.get("/registry/hello")).json()["status"] == "error"
        del hub.node.behaviour["hello"]
        assert (await hub.operator.post("/registry/hello/start")).status_code == 200
    assert (await hub.viewer.get("/registry/hello")).json()["status"] == "running"


async def test_an_app_that_ends_unexpectedly_later_shows_error_too(hub: Hub) -> None:
    await hub.install()
    await hub.node.observe(await apps.get(hub.hostler.store, "hello"), state="failed")
    assert (await hub.viewer.get("/registry/hello")).json()["status"] == "error"


async def test_a_node_that_does_nothing_is_not_waited_for_for_ever(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.install(start=False)
    monkeypatch.setattr(registry, "START_S", 0.1)
    monkeypatch.setattr(registry, "WAY_S", 0.1)
    answer = await hub.operator.post("/registry/hello/start")
    assert (answer.status_code, answer.json()["code"]) == (500, "APP_START_FAILED")


async def test_stopping_waits_and_stopping_again_is_nothing(hub: Hub) -> None:
    await hub.install()
    async with hub.node.working():
        answer = await hub.operator.post("/registry/hello/stop")
        assert answer.json() == {"status": "ok", "app": "hello", "message": "App 'hello' stopped."}
        assert (await hub.viewer.get("/registry/hello")).json()["status"] == "stopped"
        assert (await hub.viewer.get("/registry/hello")).json()["socket_path"] is None
        before = list(hub.node.done)
        assert (await hub.operator.post("/registry/hello/stop")).status_code == 200
    assert hub.node.done == before


async def test_scanning_names_all_apps_and_deleting_uninstalls(hub: Hub) -> None:
    await hub.install()
    assert (await hub.operator.post("/registry/scan")).json() == {"status": "ok", "apps": ["hello"]}
    answer = await hub.operator.delete("/registry/hello")
    assert answer.json()["message"] == "App 'hello' removed from registry."
    await hub.node.carry_out()
    assert (await hub.viewer.get("/registry")).json() == []


async def test_the_document_of_an_app_comes_from_its_socket(hub: Hub) -> None:
    await hub.install()
    answer = await hub.viewer.get("/registry/hello/spec")
    assert (answer.status_code, answer.content) == (200, SPEC)
    ask = hub.asked[-1]
    assert (ask.app, ask.kind, ask.method, ask.path) == ("hello", "http", "GET", "/openapi.json")
    hub.unreachable = True
    answer = await hub.viewer.get("/registry/hello/spec")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (502, "BAD_GATEWAY")
    assert answer.json()["detail"]
    async with hub.node.working():
        await hub.operator.post("/registry/hello/stop")
    answer = await hub.viewer.get("/registry/hello/spec")
    assert (answer.status_code, "not running" in answer.json()["detail"]) == (503, True)


async def test_a_hub_that_gets_no_answer_in_time_says_502(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    await hub.install()
    hub.silent = True
    monkeypatch.setattr(registry, "SPEC_S", 0.2)
    began = time.monotonic()
    assert (await hub.viewer.get("/registry/hello/spec")).status_code == 502
    assert time.monotonic() - began < 5


async def test_the_view_of_an_app_shows_its_endpoints_and_runs_nothing(hub: Hub) -> None:
    await hub.install()
    answer = await hub.viewer.get("/registry/hello/view")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/api/health" in answer.text
    assert "&lt;Health&gt;" in answer.text
    assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_requests_are_passed_on_without_credentials_and_with_who_asks(hub: Hub) -> None:
    await hub.install()
    answer = await hub.operator.put(
        "/apps/hello/api/items/a%2Fb?x=1&y=%20", content=b"body", headers={"Cookie": "a=b", "X-Mine": "yes"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-App"] == "1"
    ask = hub.asked[-1]
    assert (ask.method, ask.path, ask.query, ask.body) == ("PUT", "/api/items/a%2Fb", "x=1&y=%20", b"body")
    assert ask.caller is not None
    assert (ask.caller["role"], ask.caller["kind"]) == ("w", "user")
    assert ask.forwarded is not None
    assert ask.forwarded["prefix"] == "/apps/hello"
    assert (await hub.viewer.get("/apps/hello/api/teapot")).status_code == 418
    assert (await hub.viewer.get("/apps/hello/api")).json() == {"path": "/api"}


async def test_viewers_read_from_apps_and_change_nothing(hub: Hub) -> None:
    await hub.install()
    for method in ("GET", "HEAD", "OPTIONS"):
        assert (await hub.viewer.request(method, "/apps/hello/api/x")).status_code == 200
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await hub.viewer.request(method, "/apps/hello/api/x")).status_code == 403
        assert (await hub.operator.request(method, "/apps/hello/api/x")).status_code == 200
        assert (await hub.hostler.client().request(method, "/apps/hello/api/x")).status_code == 401


async def test_a_frontend_is_handed_out_with_its_start_page_for_unknown_paths(hub: Hub) -> None:
    await hub.install()
    hub.files = {
        "frontend/default/dist/index.html": b"<h1>start",
        "frontend/default/dist/assets/a.css": b"a{}",
    }
    answer = await hub.viewer.get("/apps/hello")
    assert (answer.status_code, answer.headers["Location"]) == (307, "hello/")
    for path in ("/apps/hello/", "/apps/hello/some/route", "/apps/hello/index.html"):
        answer = await hub.viewer.get(path)
        assert (answer.status_code, answer.content) == (200, b"<h1>start"), path
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert (await hub.viewer.get("/apps/hello/assets/a.css")).content == b"a{}"
    shown = (await hub.viewer.get("/registry/hello")).json()
    assert shown["frontend_dist_path"].endswith("/current/frontend/default/dist")


async def test_a_frontend_without_a_build_is_its_directory_itself(hub: Hub) -> None:
    await hub.install()
    hub.files = {"frontend/default/index.html": b"<h1>unbuilt"}
    assert (await hub.viewer.get("/apps/hello/")).content == b"<h1>unbuilt"
    hub.files = {}
    answer = await hub.viewer.get("/apps/hello/")
    assert answer.json()["detail"] == "Frontend for 'hello' has not been built."
    asked = len(hub.asked)
    await hub.viewer.get("/registry")
    assert len(hub.asked) == asked  # where it lies does not change within a release


async def test_a_frontend_runs_on_a_port_of_its_own_and_nowhere_else(hub: Hub) -> None:
    await hub.install()
    hub.files = {"frontend/default/dist/index.html": b"<script src=a.js></script>"}
    own = hub.hostler.client()
    own.base_url = httpx.URL("http://127.0.0.1:9100")
    for path in ("/apps/hello/", "/apps/hello/api/docs"):
        assert "sandbox" in (await hub.viewer.get(path)).headers["Content-Security-Policy"]
        policy = (await own.get(path)).headers["Content-Security-Policy"]
        assert "sandbox" not in policy
        assert "frame-ancestors 'self'" in policy
    assert "sandbox" in (await own.get("/registry/hello/view")).headers["Content-Security-Policy"]


def test_what_nodes_have_said_of_frontends_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_KNOWN", 2)
    store: Any = SimpleNamespace(cache={})
    for number in range(10):
        words._known(store)[str(number)] = "dist"
        assert words._known(store).get(str(number), "dist") == "dist"
    assert len(store.cache["frontends"]) <= 3
