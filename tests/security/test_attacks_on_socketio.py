"""Attacks on connections by Socket.IO, spoken as any client may speak it."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from target import Target
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

POLL = "/socket.io/?EIO=4&transport=polling"


@contextlib.contextmanager
def _socket(target: Target, **headers: str) -> Iterator[ClientConnection]:
    """Open a WebSocket, and take what it says first."""
    origin: Any = headers.pop("Origin", None)
    url = f"ws://127.0.0.1:{target.web_port}/socket.io/?EIO=4&transport=websocket"
    with connect(url, additional_headers=headers, origin=origin, max_size=None) as ws:
        assert str(ws.recv(timeout=10)).startswith('0{"sid":')
        yield ws


@contextlib.contextmanager
def _entered(target: Target, token: str) -> Iterator[ClientConnection]:
    """Open a WebSocket, and say who we are."""
    with _socket(target) as ws:
        ws.send(f"40{json.dumps({'token': token})}")
        assert str(ws.recv(timeout=10)).startswith('40{"sid":')
        yield ws


def _hear_out(ws: ClientConnection) -> NoReturn:
    while True:
        ws.recv(timeout=20)


def _ends(ws: ClientConnection) -> float:
    """Hear a socket out, and return how long that took, in seconds."""
    began = time.monotonic()
    with pytest.raises(ConnectionClosed):
        _hear_out(ws)
    return time.monotonic() - began


@pytest.mark.proves("A41")
def test_a_page_elsewhere_opens_no_socketio_with_our_cookie(target: Target, evidence: list[str]) -> None:
    cookie = f"auth_token={target.login('viewer')['token']}"
    origins = (None, "null", "https://evil.example", f"{target.url}.evil.example", "http://127.0.0.1")
    for origin in origins:
        headers = {"Cookie": cookie, **({"Origin": origin} if origin else {})}
        answer = target.client(**headers).get(POLL)
        assert answer.status_code == 403, origin
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        with pytest.raises(InvalidStatus) as refused, _socket(target, **headers):
            pass
        assert refused.value.response.status_code == 403, origin
    for more in ({"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}):
        assert target.client(Cookie=cookie, **more).get(POLL).status_code == 403
    assert target.client(Cookie=cookie, Origin=target.url).get(f"{POLL}&j=1").status_code == 403
    with _socket(target, Cookie=cookie, Origin=target.url) as ws:
        ws.send("40")
        assert str(ws.recv(timeout=10)).startswith('40{"sid":')
    evidence.append(f"Socket.IO: {len(origins)} origins with the cookie, by polling and by WebSocket: 403")


@pytest.mark.proves("A42")
def test_a_socketio_connection_that_is_abused_ends(target: Target, evidence: list[str]) -> None:
    token = target.login("viewer")["token"]
    floods = (["x" * 10_000_000], [f"p{number}" for number in range(10_000)])
    for flood in floods:
        with _entered(target, token) as ws:
            with contextlib.suppress(ConnectionClosed):
                for name in flood:
                    ws.send("42" + json.dumps(["subscribe:logs", {"productId": name}]))
            _ends(ws)
    with _socket(target) as ws:
        for namespace in ("/admin", "/plugins/../x", "/plugins/%2e%2e%2fx", "/plugins/nobody"):
            ws.send(f"40{namespace},{json.dumps({'token': token})}")
            answered = str(ws.recv(timeout=10))
            assert answered.startswith(f"44{namespace},"), answered
    for credentials in ({"token": target.workers["agent"]}, {"apiKey": "cb_x"}, {}, {"apiKey": {"$ne": ""}}):
        with _socket(target) as ws:
            ws.send(f"40{json.dumps(credentials)}")
            assert str(ws.recv(timeout=10)).startswith("44"), credentials
    evidence.append("Socket.IO: 10 MB, 10,000 subscriptions, other namespaces, no name: ended")


@pytest.mark.proves("A42")
def test_a_socketio_connection_ends_soon_after_its_session(target: Target, evidence: list[str]) -> None:
    token = target.login("viewer")["token"]
    with _entered(target, token) as ws:
        assert target.client(Authorization=f"Bearer {token}").post("/api/auth/logout").status_code == 200
        took_s = _ends(ws)
    assert took_s < 7
    evidence.append(f"Socket.IO: ended {took_s:.1f} s after logging out")
