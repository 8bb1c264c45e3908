"""What the gunicorn worker refuses below HTTP, over raw sockets against a real server."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port

from settings import process_environment

#: What every application begins with: what gunicorn tells it of its own life.
LIFESPAN = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
"""
_APP = (
    LIFESPAN
    + """
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(1)
        await send({"type": "websocket.send", "text": "still here"})
        return
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    said = b"late" if b"x-late" in dict(scope["headers"]) else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})
"""
)


def serve(folder: Path, app: str = _APP) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a gunicorn with our worker and short deadlines, around a tiny application; answers it and its port."""
    (folder / "tiny.py").write_text(app)
    number = free_port()
    (folder / "conf.py").write_text(
        "import api.server\napi.server.HEAD_DEADLINE_S = api.server.BODY_IDLE_S = 0.5\n"
        "api.server.STALL_S = api.server.GOODBYE_S = 0.5\n"
        f"bind = '127.0.0.1:{number}'\nworker_class = 'api.server.Worker'\ncontrol_socket_disable = True\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", str(folder / "conf.py"), "tiny:app"],
        env={**process_environment(), "PYTHONPATH": f"{folder}:{os.getcwd()}"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 15
    while True:
        try:
            socket.create_connection(("127.0.0.1", number), 1).close()
            return server, number
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that lives as long as this module's tests."""
    server, number = serve(tmp_path_factory.mktemp("server"))
    yield number
    server.send_signal(signal.SIGTERM)
    server.wait(20)


def ask(port: int, raw: bytes, *, then: bytes = b"", pause_s: float = 0.0) -> bytes:
    """Send bytes as they are, and return all that comes until the server closes or says no more for 3 s."""
    with socket.create_connection(("127.0.0.1", port), 3) as connection:
        try:
            connection.sendall(raw)
            if then:
                time.sleep(pause_s)
                connection.sendall(then)
        except OSError:
            pass  # refused while it was sent
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
                if received.endswith(b"ok"):
                    break
        except OSError:
            pass
        return received


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def test_an_ordinary_request_is_answered(port: int) -> None:
    assert status(ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == 200


def test_an_upgrade_that_nobody_knows_is_passed_over(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
    assert status(ask(port, head)) == 200


def test_an_offer_to_speak_http2_is_passed_over_and_its_body_read_as_such(port: int) -> None:
    head = (
        b"POST / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\nHost: x\r\n"
        b"HTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n\r\n"
    )
    hidden = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 3) as connection:
        for body in (hidden, b"abcd"):
            connection.sendall(head % len(body) + body)
            assert status(answer := connection.recv(65536)) == 200
            assert answer.count(b"HTTP/1.1 ") == 1
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
    assert status(ask(port, head % 4, then=b"abcd", pause_s=0.2)) == 200


def test_a_body_that_arrives_in_two_pieces_is_read_whole(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"
    assert status(ask(port, head, then=b"cd", pause_s=0.2)) == 200


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: 1\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000, 431),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: foo\r\nContent-Length: 4\r\n\r\nabcd",
            400,
        ),
    ],
    ids=[
        "headers",
        "header size",
        "uri",
        "endless header",
        "length and chunked",
        "chunked twice",
        "two lengths",
        "upgrade with a body",
    ],
)
def test_a_head_that_is_too_much_or_ambiguous_is_refused_and_closed(
    port: int, raw: bytes, expected: int
) -> None:
    answer = ask(port, raw)
    assert status(answer) == expected
    assert not answer.endswith(b"ok")


def test_a_head_that_drips_in_is_given_up(port: int) -> None:
    began = time.monotonic()
    answer = ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n")
    assert status(answer) == 408
    assert time.monotonic() - began < 3


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    assert ask(port, b"") == b""


def test_a_body_that_never_comes_is_given_up(port: int) -> None:
    began = time.monotonic()
    answer = ask(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    assert not answer.endswith(b"ok")
    assert time.monotonic() - began < 3


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"


def test_what_comes_after_a_body_is_no_header(port: int) -> None:
    assert ask(port, CHUNKED + b"X-Late: 1\r\n\r\n").endswith(b"ok")


@pytest.mark.parametrize("line", [b"a" * 65536, b"a" * 1000 + b"\r\nX-B: "])
def test_what_comes_after_a_body_comes_to_an_end(port: int, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(CHUNKED + b"X-A: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(line * (64 * 1024 * 1024 // len(line)))


async def test_a_websocket_outlives_the_clock_of_its_handshake(port: int) -> None:
    from websockets.asyncio.client import connect

    async with connect(f"ws://127.0.0.1:{port}/") as ws:
        assert await asyncio.wait_for(ws.recv(), 3) == "still here"  # noqa: TID251


def test_workers_leave_when_their_master_was_killed(tmp_path: Path) -> None:
    server, number = serve(tmp_path)
    server.kill()
    server.wait(10)
    deadline = time.monotonic() + 15
    while True:
        try:
            socket.create_connection(("127.0.0.1", number), 1).close()
        except OSError:
            break
        assert time.monotonic() < deadline, "the port is still taken"
        time.sleep(0.1)


_LOOKS = (
    LIFESPAN
    + """
    body, more = scope["path"].encode(), True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
class AtOnce:
    def look(self, exchange, otherwise):
        return self.tell(exchange, exchange.scope["path"].encode(), otherwise)
    def accepts(self, path):
        return path.startswith("/order")
    def accept(self, exchange, body, otherwise):
        return self.tell(exchange, b"at once:" + body, otherwise)
    def tell(self, exchange, body, otherwise):
        path = exchange.scope["path"]
        if path.endswith("never") or not path.startswith(("/look", "/order")):
            return False
        tell = otherwise if path.endswith("none") else lambda: self.answer(exchange, body)
        asyncio.get_running_loop().call_later(0.05, tell)
        return True
    def answer(self, exchange, body):
        try:
            exchange.answer_at_once(200, b"", b"%d failed ok" % self.failed if body == b"/look/failed" else body)
        except Exception:
            self.failed += 1
    failed = 0
app.at_once = AtOnce()
"""
)


def test_looks_and_what_follows_them_in_the_same_write_are_answered_in_turn(tmp_path: Path) -> None:
    server, number = serve(tmp_path, _LOOKS)
    try:
        paths = ["/look/none", "/next", "/look/one", "/look/none", "/look/none", "/ok"]
        answer = ask(number, b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
        bodies = [
            part.partition(b"\r\n\r\n")[2].decode() for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
        ]
        assert bodies == paths
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def order(path: str, body: bytes, *more: str) -> bytes:
    """Return a POST as it goes over the wire."""
    fields = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(fields).encode() + body


#: What `ask` waits for no longer than until it is answered.
END = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"


def bodies(answer: bytes) -> list[str]:
    parts = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    return [part.partition(b"\r\n\r\n")[2].decode() for part in parts]


def test_orders_are_answered_at_once_where_all_of_them_is_there_and_in_turn(tmp_path: Path) -> None:
    server, number = serve(tmp_path, _LOOKS)
    look = b"GET /look/one HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        sent = [
            order("/order/one", b"1"), look, order("/order/none", b"2"), order("/order/never", b"3"),
            order("/other", b"4"), order("/order/two", b"5"), look,
        ]  # fmt: skip
        # what is behind another waits for it, and is then served in the ordinary way
        assert bodies(ask(number, b"".join([*sent, END]))) == [
            "at once:1", "/look/one", "/order/none2", "/order/never3", "/other4", "/order/two5", "/look/one", "/ok",
        ]  # fmt: skip
        for path, expected in {"one": "at once:", "none": "/order/none", "never": "/order/never"}.items():
            assert bodies(ask(number, order(f"/order/{path}", b"ok"))) == [f"{expected}ok"]
        assert bodies(ask(number, order("/order/one", b"", "Connection: close"))) == ["at once:"]
        # nor does one behind an order that is refused take its place, whatever it is
        for behind, expected in ((order("/order/two", b"2"), "/order/two2"), (look, "/look/one")):
            answer = ask(number, order("/order/never", b"1") + behind + END)
            assert bodies(answer) == ["/order/never1", expected, "/ok"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def test_an_order_whose_rest_is_long_in_coming_is_served_in_the_ordinary_way(tmp_path: Path) -> None:
    server, number = serve(tmp_path, _LOOKS)
    whole = order("/order/one", b"12345")
    try:
        with socket.create_connection(("127.0.0.1", number), 10) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (whole[:-5], whole[-5:-2], whole[-2:]):  # as most clients do, only slower
                client.sendall(piece)
                time.sleep(0.005)
            time.sleep(0.3)
            assert bodies(client.recv(65536)) == ["at once:12345"]
            for piece, pause_s in ((whole[:20], 0.05), (whole[20:-3], 0.4), (whole[-3:], 0.1)):
                client.sendall(piece)
                time.sleep(pause_s)
            assert bodies(client.recv(65536)) == ["/order/one12345"]
            client.sendall(whole)
            time.sleep(0.3)
            assert bodies(client.recv(65536)) == ["at once:12345"]
            chunked = b"POST /order/one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            client.sendall(chunked)
            time.sleep(0.3)
            assert bodies(client.recv(65536)) == ["at once:abc"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def test_what_is_under_way_when_the_connection_ends_fails_no_callback(tmp_path: Path) -> None:
    server, number = serve(tmp_path, _LOOKS)
    try:
        for first in (b"GET /look/one HTTP/1.1\r\nHost: x\r\n\r\n", order("/order/one", b"1")):
            assert status(ask(number, first + order("/other", b"2") + b"this is no HTTP\r\n\r\n")) == 400
        time.sleep(0.1)
        failed = ask(number, b"GET /look/failed HTTP/1.1\r\nHost: x\r\n\r\n")
        assert bodies(failed) == ["0 failed ok"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


_ENDLESS = (
    LIFESPAN
    + """
    await receive()
    gone = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not gone.done():
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
"""
)


def test_who_takes_nothing_of_an_answer_is_cut_off_and_who_is_slow_is_not(tmp_path: Path) -> None:
    server, number = serve(tmp_path, _ENDLESS)
    asked = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        with socket.socket() as idle, socket.socket() as slow:
            for client in (idle, slow):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(10)
                client.connect(("127.0.0.1", number))
                client.sendall(asked)
            # more than the kernel keeps for it, so that the server sees some of it go
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert slow.recv(1 << 20)
                time.sleep(0.001)
            until = time.monotonic() + 3
            with contextlib.suppress(ConnectionResetError):
                while idle.recv(1 << 20):
                    assert time.monotonic() < until, "it goes on"
            assert slow.recv(1 << 20)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
