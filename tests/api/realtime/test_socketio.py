"""Socket.IO lets in whom HTTP would, tells what Cuby's page lists, and is not worn down by its clients."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import websockets
from servers import free_port
from sockets import QUICK, Site, serving

from api import auth
from api.realtime.socketio.outbox import Outbox
from settings import Listener
from storage import api_keys, apps, relay, sessions, users
from storage.relay import Ask, Head

HANDSHAKE = "/socket.io/?EIO=4&transport=polling"


@pytest.fixture
async def site(settings) -> AsyncIterator[Site]:
    async with serving(settings) as site:
        yield site


async def opened(http, **more: str) -> str:
    """Open a session by polling, without saying who one is; answer its id."""
    answer = await http.get(HANDSHAKE, headers=more)
    assert answer.status_code == 200, answer.text
    return orjson.loads(answer.text[1:])["sid"]


# Who may come in


@pytest.mark.parametrize("way", ["apiKey", "token", "Authorization", "X-API-Key"])
async def test_a_key_opens_by_every_way_it_may_come(site, way):
    key = await site.key()
    if way in {"apiKey", "token"}:
        client = await site.client(auth={way: key})
    else:
        client = await site.client(headers={way: f"Bearer {key}" if way == "Authorization" else key})
    assert await client.hears("products:status") == {}


async def test_who_shows_nothing_or_nothing_valid_is_told_so(site):
    worker = await sessions.issue_worker_token(site.store, site.node.holder.worker, "n1-r1")
    for given, code in (
        (None, "UNAUTHENTICATED"), ({"apiKey": "cb_wrong"}, "UNAUTHENTICATED"), ({"apiKey": 7}, "UNAUTHENTICATED"),
        ({"apiKey": "a\r\nX-Y: z"}, "UNAUTHENTICATED"), ({"token": worker}, "DENIED"),
        ({"apiKey": await site.key(scope="cbox")}, "DENIED"),
    ):  # fmt: skip
        assert (await site.refused(auth=given))["data"]["code"] == code, given
    assert (await site.client(auth={"apiKey": await site.key(scope="cuby")})).io.connected


async def cookie(site: Site) -> str:
    user = await users.named(site.store, "root")
    return f"{auth.COOKIE}={await sessions.issue(site.store, user)}"


async def test_a_cookie_counts_with_our_own_origin_alone(site):
    ours = {"Cookie": await cookie(site)}
    for more, status in (
        ({"Origin": site.url}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200), ({}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": f"{site.url}.evil.example"}, 403),
    ):  # fmt: skip
        async with site.http() as http:
            assert (await http.get(HANDSHAKE, headers={**ours, **more})).status_code == status, more
    url = f"ws://127.0.0.1:{site.port}/socket.io/?EIO=4&transport=websocket"
    for more in ({}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-origin"}):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers={**ours, **more})
        assert refused.value.response.status_code == 403
    client = await site.client(headers={**ours, "Origin": site.url}, transports=["websocket"])
    assert await client.hears("products:status") == {}


async def test_pages_of_other_sites_are_refused_whatever_they_show(site):
    async with site.http(Origin="https://evil.example", Authorization=f"Bearer {await site.key()}") as http:
        answer = await http.get(HANDSHAKE)
    assert (answer.status_code, answer.json()["code"]) == (403, 4)
    assert "access-control-allow-origin" not in answer.headers


async def test_neither_jsonp_nor_other_methods_are_spoken(site):
    async with site.http() as http:
        assert (await http.get(f"{HANDSHAKE}&j=0")).status_code == 403
        assert (await http.put(HANDSHAKE)).status_code == 403


async def test_an_open_port_lets_programs_in_and_other_dialects_ports_know_nothing_of_it(settings):
    cuby, cbox = free_port(), free_port()
    listen = (Listener.parse(f"cuby=127.0.0.1:{cuby}"), Listener.parse(f"cbox=127.0.0.1:{cbox}"))
    async with serving(replace(settings, listen=listen)) as site:
        call = site.application

        async def ask(port: int, **headers: str) -> int:
            """Ask as uvicorn would for a request that came by `port`."""
            said: list[int] = []

            async def receive() -> dict[str, object]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(event: dict[str, object]) -> None:
                if event["type"] == "http.response.start":
                    said.append(event["status"])

            given = {"Host": f"127.0.0.1:{port}", **headers}
            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
                "path": "/socket.io/", "raw_path": b"/socket.io/", "root_path": "",
                "query_string": b"EIO=4&transport=polling", "client": ("127.0.0.1", 5), "server": ("127.0.0.1", port),
                "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            }  # fmt: skip
            await call(scope, receive, send)
            return said[0]

        assert await ask(cuby) == 200
        assert await ask(cuby, Origin="https://evil.example") == 403
        assert await ask(cuby, Host="rebound.example") == 403
        assert await ask(cbox) == 404


async def test_connecting_counts_against_the_rate(settings):
    async with serving(replace(settings, rate_limit_per_s=4)) as site:
        key = await site.key()
        statuses = []
        async with site.http(Authorization=f"Bearer {key}") as http:
            for _ in range(8):
                statuses.append((await http.get(HANDSHAKE)).status_code)
        assert 429 in statuses


async def test_a_revoked_key_ends_its_connections_within_seconds(site):
    key, secret = await api_keys.create(site.store, site.admin, name="k", role="r")
    doomed, other = await site.client(auth={"apiKey": secret}), await site.client()
    await api_keys.revoke(site.store, site.admin, key.id)
    assert await doomed.hears("gone") == "/"
    assert other.io.connected


# What is told


async def test_installs_products_and_the_system_are_told_to_everybody(site):
    client = await site.client()
    await site.app("web", links={"engine_url": "http://127.0.0.1:8000"})
    done = await client.hears("install:status", lambda said: said["status"] == "installed")
    assert done == {
        "productId": "web", "instanceId": "web", "status": "installed", "progress": 100, "message": done["message"],
    }  # fmt: skip
    shown = await client.hears("products:status", lambda said: said.get("web", {}).get("status") == "running")
    assert set(shown["web"]) == {"status", "pid", "startedAt", "restartCount"}
    cube = await client.hears("processcube:registered")
    assert cube["instanceId"] == "web"
    await site.store.call(apps.say(site.node.holder, "system.status", {"message": "Fetching Node.js"}))
    assert (await client.hears("system:status"))["message"] == "Fetching Node.js"
    await apps.change(site.store, "test", "web", "uninstall")
    await site.node.carry_out()
    assert (await client.hears("processcube:unregistered"))["instanceId"] == "web"
    await client.hears("products:status", lambda said: said == {})


async def test_who_comes_later_hears_at_once_how_products_are(site):
    await site.app("web")
    client = await site.client()
    assert (await client.hears("products:status"))["web"]["status"] == "running"


async def test_log_lines_come_to_those_who_asked_and_to_nobody_else(site):
    await site.app("web")
    await site.app("other")
    by_product, by_both, nobody = [await site.client() for _ in range(3)]
    assert await by_product.io.call("subscribe:logs", {"productId": "web"}) == {"ok": True}
    await by_both.io.call("subscribe:logs", {"productId": "web"})
    await by_both.io.call("subscribe:logs", {"productId": "other"})
    await asyncio.sleep(0.1)
    await site.node.say("web", "web", "one", "two")
    await site.node.say("other", "web", "three")
    await by_both.hears("product:log", lambda said: said["line"] == "three")
    await by_product.hears("product:log", lambda said: said["line"] == "two")
    line = by_product.all("product:log")[0]
    assert (line["productId"], line["instanceId"], line["line"]) == ("web", "web", "one")
    assert [said["line"] for said in by_product.all("product:log")] == ["one", "two"]
    assert sorted(said["line"] for said in by_both.all("product:log")) == ["one", "three", "two"]
    await by_product.io.call("unsubscribe:logs", {"productId": "web"})
    await site.node.say("web", "web", "four")
    await by_both.hears("product:log", lambda said: said["line"] == "four")
    assert len(by_product.all("product:log")) == 2
    assert nobody.all("product:log") == []


async def test_who_follows_a_product_hears_also_instances_that_come_later(site):
    await site.app("web")
    client = await site.client()
    assert await client.io.call("subscribe:logs", {"productId": "web"}) == {"ok": True}
    manifest = (await apps.get(site.store, "web")).manifest
    await apps.install(site.store, "test", inline=manifest, alias="two")
    await site.node.carry_out()
    await client.hears("products:status", lambda said: "web__two" in said)
    telling = site.application.telling
    async with asyncio.timeout(5):
        while "web__two" not in telling._heeded:
            await asyncio.sleep(0.01)
        await telling._heeded["web__two"].wait()
    await site.node.say("web__two", "web", "here")
    line = await client.hears("product:log", lambda said: said["line"] == "here")
    assert (line["productId"], line["instanceId"]) == ("web", "web__two")


async def test_a_log_that_nobody_writes_is_not_followed(site):
    client = await site.client()
    for said in (None, {}, {"productId": ""}, {"productId": 3}, {"productId": "x" * 300}, "nothing"):
        assert (await client.io.call("subscribe:logs", said))["ok"] is False, said


async def test_nobody_connected_means_nobody_reads_the_events(site):
    telling = site.application.telling
    assert telling._tasks == []
    client = await site.client()
    assert telling._tasks != []
    await client.io.disconnect()
    async with asyncio.timeout(5):
        while telling._tasks:
            await asyncio.sleep(0.02)


# Namespaces of apps


async def test_an_apps_namespace_is_there_while_it_runs_and_fed_by_it(site):
    assert (await site.refused(namespaces=["/plugins/web"]))["data"]["code"] == "NOT_FOUND"
    await site.app("web")
    client = await site.client(namespaces=["/", "/plugins/web"])
    encoded = await site.client(namespaces=["/plugins/%77eb"])
    await site.emit("web", "tick", orjson.dumps({"n": 1}).decode())
    assert [await each.hears("tick") for each in (client, encoded)] == [{"n": 1}] * 2
    await site.becomes("web", "crashed")
    assert await client.hears("gone") == "/plugins/web"
    assert await encoded.hears("gone")
    assert client.io.connected
    assert (await site.refused(namespaces=["/plugins/web"]))["data"]["code"] == "APP_NOT_RUNNING"
    await site.becomes("web", "running")
    again = await site.client(namespaces=["/plugins/web"])
    await site.emit("web", "tick", "2")
    assert await again.hears("tick") == 2


async def test_no_other_namespace_exists(site):
    await site.app("web")
    for namespace in ("/plugins/", "/plugins", "/admin", "/plugins/../web", "/plugins/web/x"):
        assert (await site.refused(namespaces=[namespace]))["data"]["code"] == "NOT_FOUND", namespace


async def test_an_apps_namespace_asks_for_the_same_credentials(site):
    await site.app("web")
    assert (await site.refused(auth={"apiKey": "cb_wrong"}, namespaces=["/plugins/web"]))["data"][
        "status"
    ] == 401


async def test_an_event_in_the_namespace_reaches_the_app_and_its_answer_comes_back(site):
    await site.app("web")
    asked: list[Ask] = []

    async def answer(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        asked.append(ask)
        yield Head(200)
        yield b'{"done": true}'

    serves = asyncio.create_task(relay.serve(site.node.store, site.node.holder.worker, answer))
    operator = await site.client(role="w", namespaces=["/plugins/web"])
    viewer = await site.client(role="r", namespaces=["/plugins/web"])
    said = await operator.io.call("do it/now", ({"a": 1}, 2), namespace="/plugins/web", timeout=5)
    assert said == {"done": True}
    assert (asked[0].method, asked[0].path) == ("POST", "/p/socket/do%20it%2Fnow")
    assert orjson.loads(asked[0].body) == {"event": "do it/now", "args": [{"a": 1}, 2]}
    assert asked[0].caller["role"] == "w"
    assert (await viewer.io.call("x", 1, namespace="/plugins/web", timeout=5))["code"] == "DENIED"
    assert (await operator.io.call("x", b"\0", namespace="/plugins/web", timeout=5))[
        "code"
    ] == "INVALID_REQUEST"
    assert len(asked) == 1
    serves.cancel()
    await asyncio.gather(serves, return_exceptions=True)


# What wears a server down


async def test_a_session_that_does_not_say_who_it_is_ends(site):
    async with site.http() as http:
        session = await opened(http)
        async with asyncio.timeout(5):
            while session in site.application.telling.server.sessions:
                await asyncio.sleep(0.02)
        assert (await http.get(f"{HANDSHAKE}&sid={session}")).status_code == 400


async def test_one_address_keeps_few_sessions_without_a_name_open(settings):
    async with serving(settings, limits=replace(QUICK, unnamed_per_address=3)) as site, site.http() as http:
        assert [(await http.get(HANDSHAKE)).status_code for _ in range(5)] == [200, 200, 200, 503, 503]


async def test_one_caller_keeps_few_connections_open(settings):
    async with serving(settings, limits=replace(QUICK, names_per_caller=2)) as site:
        given = {"apiKey": await site.key()}
        first = await site.client(auth=given)
        await site.client(auth=given)
        assert (await site.refused(auth=given))["data"]["code"] == "UNAVAILABLE"
        await first.io.disconnect()
        async with asyncio.timeout(5):
            while (
                len(site.application.telling.server._callers)
                and site.application.telling.server._callers.total() > 1
            ):
                await asyncio.sleep(0.02)
        assert (await site.client(auth=given)).io.connected


async def test_a_client_that_says_too_much_is_disconnected(site):
    client = await site.client(transports=["websocket"])
    for _ in range(QUICK.packets + 5):
        await client.io.emit("noise", {})
    await client.hears("gone")


async def test_a_message_that_is_too_large_ends_its_connection(site):
    client = await site.client(transports=["websocket"])
    await client.io.emit("noise", "x" * 100_000)
    await client.hears("gone")
    async with site.http() as http:
        session = await opened(http)
        answer = await http.post(f"{HANDSHAKE}&sid={session}", content=b"4" + b"x" * 100_000)
        assert answer.status_code == 400


async def test_nonsense_harms_nobody_but_its_sender(site):
    other = await site.client()
    for raw in (b"4" + b"[" * 5000, b"451-" + b"0" * 50, b"49", b"4\xff", b"7", b"40/\0", b"4" + b"2[" * 99):
        async with site.http() as http:
            session = await opened(http)
            assert (await http.post(f"{HANDSHAKE}&sid={session}", content=raw)).status_code in {200, 400}
    await site.app("web")
    await other.hears("products:status", lambda said: "web" in said)


@pytest.mark.parametrize("said", ["", "x", "bA", "\u0664"])
@pytest.mark.parametrize("named", [False, True], ids=["nobody", "somebody"])
async def test_a_websocket_that_brings_no_packet_ends_with_its_session_at_once(site, said, named):
    sessions_of = site.application.telling.server.sessions
    url = f"ws://127.0.0.1:{site.port}/socket.io/?EIO=4&transport=websocket"
    async with websockets.connect(url) as socket, asyncio.timeout(5):
        assert (await socket.recv()).startswith("0{")
        if named:
            await socket.send(f'40{{"apiKey": "{await site.key()}"}}')
            assert (await socket.recv()).startswith("40{")
        await socket.send(said)
        await socket.wait_closed()
        assert socket.close_code == 1000
        assert not sessions_of


async def test_what_waits_for_a_client_that_takes_nothing_is_bounded_and_it_is_let_go(site):
    slow = Outbox(most_packets=3, most_bytes=1000)
    for number in range(10):
        slow.put_nowait(number)
    assert slow.overflown
    assert [slow.get_nowait() for _ in range(slow.qsize())] == [None]  # which ends whoever writes
    client = await site.client(transports=["polling"])
    (session,) = site.application.telling.server.eio.sockets.values()
    session.queue.overflown = True
    await client.hears("gone")


# Ends, and several processes


async def test_a_process_that_leaves_lets_its_clients_go_and_takes_no_more(site):
    clients = [await site.client(transports=[way]) for way in ("polling", "websocket")]
    async with asyncio.timeout(5):
        await site.application.leave()
    for client in clients:
        await client.hears("gone")
    async with site.http() as http:
        assert (await http.get(HANDSHAKE)).status_code == 503


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = Path(f"/tmp/hostler-test-{os.getpid()}-{os.urandom(4).hex()}")  # noqa: S108  short enough for sockets
    found.mkdir(mode=0o700)
    return found


async def test_a_session_is_served_whichever_process_its_requests_reach(settings, directory):
    async with (
        serving(settings, directory=directory) as one,
        serving(settings, directory=directory, node="n2") as two,
    ):
        async with one.http() as here, two.http() as there:
            session = await opened(here)
            said = b"40" + orjson.dumps({"apiKey": await one.key()})
            assert (await there.post(f"{HANDSHAKE}&sid={session}", content=said)).status_code == 200
            told = (await there.get(f"{HANDSHAKE}&sid={session}")).text
            assert re.match(r'40\{"sid":"[^"]+"\}', told)
            url = f"ws://127.0.0.1:{two.port}/socket.io/?EIO=4&transport=websocket&sid={session}"
            async with websockets.connect(url) as socket:
                await socket.send("2probe")
                assert await socket.recv() == "3probe"
        assert two.application.sticky.passed_on >= 3
        assert one.application.sticky.passed_on == 0
    assert list(directory.iterdir()) == []
    directory.rmdir()


async def test_a_request_that_was_led_astray_hears_why(site, directory):
    async with site.http() as http:
        answer = await http.get(f"{HANDSHAKE}&sid={'0' * 16}.abc")
        assert (answer.status_code, answer.json()["code"]) == (400, 1)
        assert "sticky" in answer.json()["message"]
    async with serving(site.settings, directory=directory, node="n2") as two, two.http() as http:
        answer = await http.get(f"{HANDSHAKE}&sid={directory.name[-8:]}{'0' * 8}.abc")
        assert (answer.status_code, "ended" in answer.json()["message"]) == (400, True)
    directory.rmdir()


async def test_a_directory_that_others_may_enter_is_not_used(settings, directory):
    directory.chmod(0o711)
    async with serving(settings, directory=directory) as site:
        assert list(directory.iterdir()) == []
        assert (await site.client()).io.connected
    directory.rmdir()
