"""Attacks on live connections, and by what jobs print."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import time
from typing import Any, NoReturn

import pytest
from target import ROOT, Target
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect


def _socket(target: Target, query: str = "", **headers: str) -> ClientConnection:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    origin: Any = given.pop("Origin", None)
    return connect(
        f"ws://127.0.0.1:{target.web_port}/api/jobs/stream{query}",
        additional_headers=given,
        origin=origin,
        max_size=None,
    )


@pytest.mark.proves("A41")
def test_a_page_elsewhere_opens_no_socket_with_our_cookie(target: Target, evidence: list[str]) -> None:
    token = target.login("viewer")["token"]
    cookie = f"auth_token={token}"
    origins = (
        None,
        "null",
        "https://evil.example",
        f"{target.url}.evil.example",
        f"https://127.0.0.1:{target.web_port}",
        "http://127.0.0.1",
    )
    for origin in origins:
        with pytest.raises(InvalidStatus) as refused:
            _socket(target, Cookie=cookie, **({"Origin": origin} if origin else {}))
        assert refused.value.response.status_code == 403, origin
    with _socket(target, Cookie=cookie, Origin=target.url):
        pass
    for headers in ({}, {"Authorization": "Bearer x"}, {"Sec_WebSocket_Protocol": token}):
        with pytest.raises(InvalidStatus):
            _socket(target, **headers)
    evidence.append(f"{len(origins)} origins with the cookie: 403")


def _hear_out(ws: ClientConnection, within_s: float = 20) -> NoReturn:
    while True:
        ws.recv(timeout=within_s)


def _closed_with(ws: ClientConnection, within_s: float = 20) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        _hear_out(ws, within_s)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


@pytest.mark.proves("A42")
def test_a_socket_that_is_abused_closes(target: Target, evidence: list[str]) -> None:
    key = {"X_API_Key": target.keys["viewer"]}
    codes: dict[str, int] = {}
    with _socket(target, **key) as ws:
        with contextlib.suppress(ConnectionClosed):
            ws.send("x" * 10_000_000)
        with pytest.raises(ConnectionClosed):  # a reset may overtake the goodbye
            _hear_out(ws)
    with _socket(target, **key) as ws:
        ws.send("x" * 70_000)
        codes["70 kB frame"] = _closed_with(ws)
    with _socket(target, **key) as ws:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(500):
                ws.send("subscribe")
        codes["500 messages"] = _closed_with(ws)
    with _socket(target, **key) as ws:
        with contextlib.suppress(ConnectionClosed):
            ws.send(b"\0" * 100)
        codes["binary"] = _closed_with(ws)
    with _socket(target, "?jobId=job-00000000000000000000", **key) as ws:
        codes["unknown job"] = _closed_with(ws)
    with _socket(target, "?jobId=../../x", **key) as ws:
        codes["no job"] = _closed_with(ws)
    assert codes == {
        "70 kB frame": 1009,
        "500 messages": 1008,
        "binary": 1003,
        "unknown job": 4404,
        "no job": 4404,
    }
    with _socket(target, **key) as ws:
        offered = ws.response.headers.get("Sec-WebSocket-Extensions") if ws.response else None
    assert offered is None  # no compression, so no bomb
    with pytest.raises(InvalidStatus):
        _socket(target, X_Worker_Token=target.workers["agent"])
    evidence.append(f"{codes}, no compression")


@pytest.mark.proves("A42")
def test_a_socket_closes_soon_after_its_session(target: Target, evidence: list[str]) -> None:
    token = target.login("viewer")["token"]
    with _socket(target, Authorization=f"Bearer {token}") as ws:
        assert target.client(Authorization=f"Bearer {token}").post("/api/auth/logout").status_code == 200
        began = time.monotonic()
        assert _closed_with(ws) == 4401
    took_s = time.monotonic() - began
    assert took_s < 7
    evidence.append(f"4401 {took_s:.1f} s after logging out")


@pytest.mark.proves("A43")
def test_what_a_job_prints_obeys_nobody_but_is_kept(target: Target, evidence: list[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m\x1b[31mred\x1b[0m"
    evil += "<script>alert(1)</script>\u202egnp\r\x08x"
    job_id = target.submit('printf %s "$EVIL"; echo', env={"EVIL": evil})
    assert target.finished(job_id)["stdout"] == evil + "\n"
    viewer = target.client("viewer")
    raw = viewer.get(f"/api/jobs/{job_id}/log")
    assert raw.content == evil.encode() + b"\n"
    assert raw.headers["content-type"].startswith("text/plain")
    as_json = viewer.get(f"/api/jobs/{job_id}/log", headers={"Accept": "application/json"})
    assert not re.search(rb"[\x00-\x1f\x7f]", as_json.content)
    assert as_json.headers["content-type"].startswith("application/json")
    for answer in (raw, as_json):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    shown = _on_a_terminal(target, "jobs", "log", job_id)
    for forbidden in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e", "\x08"):
        assert forbidden not in shown, repr(shown)
    assert "red" in shown
    evidence.append("kept as printed, encoded in JSON; a terminal sees the colour alone")


def _on_a_terminal(target: Target, *arguments: str) -> str:
    ours, theirs = pty.openpty()
    env = {
        "PATH": target.environment["PATH"],
        "HOME": str(target.directory),
        "HOSTLER_URL": target.url,
        "HOSTLER_API_KEY": target.keys["viewer"],
        "TERM": "xterm",
    }
    command = [sys.executable, "-P", "-c", "from cli.main import main; main()", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone once nobody writes to it
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")
