"""Health checks, asked of real servers."""

import asyncio
import http.server
import ssl
import threading
import time

import pytest

from storage.manifests.parts import Health
from workers.supervisor import health


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
