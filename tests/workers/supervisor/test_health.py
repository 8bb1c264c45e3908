"""Health checks, asked of real servers."""

import asyncio
import http.server
import ssl
import threading
import time
from typing import Any

import pytest
from controls import CHECK, SERVE, SLEEP, FakeControl, Running, has, pids, soon

from storage.manifests.parts import Health
from workers.supervisor import health, processes


class Talkative(http.server.BaseHTTPRequestHandler):
    """Keeps connections open, and sends a body that who looks at the head may not take any more."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Counts what servers of the standard library print as an accident."""

    accidents = 0

    def handle_error(self, *_: object) -> None:
        self.accidents += 1


def test_a_check_that_has_its_answer_is_no_accident_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> bool:
        return False

    def too_long(*_: object, **__: object) -> None:
        pytest.fail("What the machine trusts was read, which holds the event loop for 20 ms.")

    monkeypatch.setattr(ssl, "create_default_context", too_long)
    with Server(("127.0.0.1", 0), Talkative) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = health.Target(socket=None, port=server.server_address[1], uid=None, execute=nothing)

        async def ask(times: int) -> None:
            for _ in range(times):
                assert await health.ask(Health(kind="http"), target)

        asyncio.run(ask(60))
        time.sleep(0.1)
        server.shutdown()
    assert not server.accidents


@pytest.mark.parametrize("where", [{"port": 0}, {"socket": True}])
async def test_an_unhealthy_app_is_started_anew(
    node: Running, control: FakeControl, where: dict[str, Any]
) -> None:
    node.install("a", {"web": {"command": SERVE, "health": CHECK, **where}})
    await soon(has(control, "a", web_0="running"), "it is healthy")
    before = pids(control, "a")
    assert node.now is not None
    address = node.now.address("a", "", 0)
    assert (address.port is None, address.socket is None) == ("socket" in where, "port" in where)
    ill = node.settings.apps_dir / "a" / "data" / "ill"
    ill.touch()
    await soon(lambda: control.state("a", "web-0") == "crashed", "it is restarted for its illness")
    ill.unlink()
    await soon(has(control, "a", web_0="running"), "it is healthy again")
    assert pids(control, "a") != before


async def test_who_never_gets_healthy_fails(node: Running, control: FakeControl) -> None:
    never = {**CHECK, "kind": "exec", "command": "exit 1"}
    node.install("a", {"web": {"command": SLEEP, "health": never, "restart": {"policy": "never"}}})
    await soon(has(control, "a", web_0="failed"), "it has failed")
    assert "health check" in control.instance("a", "web-0").message  # type: ignore[union-attr]


async def test_a_command_beside_it_tells_that_it_is_healthy(node: Running, control: FakeControl) -> None:
    check = {**CHECK, "kind": "exec", "command": 'test -n "$PORT"'}
    node.install("a", {"web": {"command": SLEEP, "health": check, "port": 0}})
    await soon(lambda: (told := control.instance("a", "web-0")) and told.health == "healthy", "it is healthy")


async def test_a_check_that_is_given_up_before_it_has_begun_leaves_nothing(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = processes.Processes.start, asyncio.Event()

    async def slow(self: processes.Processes, what: processes.Start) -> processes.Kept:
        kept = await start(self, what)
        if what.record.name == "~web-0":
            begun.set()
            await asyncio.sleep(0.5)
        return kept

    monkeypatch.setattr(processes.Processes, "start", slow)
    check = {**CHECK, "kind": "exec", "command": "exec sleep 600"}
    node.install("a", {"web": {"command": SLEEP, "health": check}})
    async with asyncio.timeout(20):
        await begun.wait()
    control.change("a", desired="stopped")
    await soon(has(control, "a", web_0="stopped"), "it is stopped")
    record = node.settings.apps_dir / "a" / "records" / "~web-0"
    await soon(lambda: not processes.is_kept(record), "the check has ended, too")
