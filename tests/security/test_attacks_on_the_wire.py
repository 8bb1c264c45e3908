"""Attacks below and on HTTP: sizes, framings, forms, patterns, and what answers give away."""

import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from target import LEAKS, Target, drain, statuses

POST = "POST /api/jobs/submit HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"


def _head(
    target: Target, *more: str, path: str = "/api/jobs/submit", content_type: str = "application/json"
) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"X-API-Key: {target.keys['operator']}",
        f"Content-Type: {content_type}",
    ]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def _pour(raw: socket.socket, head: bytes, piece: bytes, most_bytes: int) -> int:
    """Send a head and then `piece` again and again, until the other side has had enough; return how much it took."""
    raw.sendall(head)
    taken = 0
    raw.settimeout(5)
    while taken < most_bytes:
        try:
            taken += raw.send(piece)
        except OSError:
            break
    return taken


FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.proves("A44")
@pytest.mark.parametrize(
    ("path", "content_type", "expected"),
    [
        ("/api/jobs/submit", "application/json", 413),
        ("/api/keys", "application/json", 413),
        ("/api/apps", "application/json", 413),
        ("/api/releases", "application/json", 413),
        ("/api/products/none/configure", "application/json", 413),
        ("/api/v1/processes", "application/json", 413),
        ("/api/auth", "application/json", 413),
        ("/api/jobs/submit-batch", "application/json", 413),
        ("/api/files/upload", FORM, 400),
    ],
)
def test_a_body_that_is_too_long_is_refused_early(
    target: Target, path: str, content_type: str, expected: int, evidence: list[str]
) -> None:
    start, limit = (PART, 9 << 20) if expected == 400 else (b'{"name": "', 1 << 20)
    limit = 16 << 20 if path.endswith("batch") else limit
    with target.connection() as raw:  # announced
        head = _head(target, f"Content-Length: {10 << 30}", path=path, content_type=content_type)
        began = time.monotonic()
        raw.sendall(head + start)
        assert statuses(drain(raw, quiet_s=0.1)) == [expected]
        assert time.monotonic() - began < 5
    with target.connection() as raw:  # endless, in chunks
        head = _head(target, "Transfer-Encoding: chunked", path=path, content_type=content_type)
        head += f"{len(start):x}\r\n".encode() + start + b"\r\n"
        chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
        taken = _pour(raw, head, chunk, 200 << 20)
        answer = drain(raw, quiet_s=0.1)
        assert statuses(answer) in ([expected], []), answer[:100]  # a reset may overtake the answer
        assert taken < limit + (8 << 20), (
            f"{taken >> 20} MiB were taken"
        )  # what the sockets' buffers hold comes on top
    evidence.append(f"{path}: {expected}; of endless chunks {taken >> 10} KiB went out, buffers included")


@pytest.mark.proves("A44")
def test_a_body_that_lies_about_its_length_does_nothing(target: Target) -> None:
    body = b'{"command": "true", "name": "lied"}'
    with target.connection() as raw:
        raw.sendall(_head(target, f"Content-Length: {len(body) + 10}") + body)
        raw.shutdown(socket.SHUT_WR)
        assert statuses(drain(raw)) in ([], [400])
    # shorter than what follows: the rest is a request of its own, and no valid one
    answer = target.ask_raw(_head(target, "Content-Length: 2") + b"{}" + body)
    assert statuses(answer)[0] == 400
    assert not {200, 201} & set(statuses(answer))
    for length in ("-1", "+5", "0x10", "1e3", "5 5", "", "9" * 30, "\uff15"):
        answer = target.ask_raw(_head(target, f"Content-Length: {length}") + body)
        assert not {200, 201} & set(statuses(answer)), length
    assert "lied" not in target.client("viewer").get("/api/jobs/list").text


@pytest.mark.proves("A44")
@pytest.mark.parametrize("about", ["head", "body"])
def test_slow_clients_do_not_keep_others_out(target: Target, about: str, evidence: list[str]) -> None:
    head = _head(target, "Content-Length: 1000")
    slow = [socket.create_connection(("127.0.0.1", target.web_port), 10) for _ in range(150)]
    stop = threading.Event()

    def drip() -> None:
        at = 0
        while not stop.wait(0.5):
            for raw in slow:
                try:
                    raw.send(head[at : at + 1] if about == "head" else b" ")
                except OSError:
                    continue
            at += 1

    for raw in slow:
        raw.sendall(head if about == "body" else head[:20])
    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        client, times = target.client("viewer"), []
        for _ in range(100):
            began = time.perf_counter()
            assert client.get("/api/auth/me").status_code == 200
            times.append(time.perf_counter() - began)
    finally:
        stop.set()
        dripping.join()
        for raw in slow:
            raw.close()
    assert statistics.quantiles(times, n=100)[97] < 1
    evidence.append(f"150 slow {about}s: others wait {statistics.median(times) * 1000:.0f} ms at the median")


def _disposition(name: bytes = b"file", filename: bytes = b"a") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"; filename="' + filename + b'"\r\n'


DISPOSITION = b"Content-Disposition: form-data"
FORMS: dict[str, tuple[str, bytes]] = {
    "no final boundary": ("x", PART + b"data"),
    "no boundary at all": ("x", b"a" * 100_000),
    "ten thousand parts": ("x", b"--x\r\n" + DISPOSITION + b'; name="a"\r\n\r\nb\r\n' * 10_000 + b"--x--\r\n"),
    "ten thousand files": ("x", (PART + b"b\r\n") * 10_000 + b"--x--\r\n"),
    "a megabyte of headers": ("x", b"--x\r\n" + _disposition() + b"X: " + b"a" * (1 << 20) + b"\r\n\r\nb\r\n--x--\r\n"),
    "many headers": ("x", b"--x\r\n" + b"X: a\r\n" * 100_000 + b"\r\nb\r\n--x--\r\n"),
    "a boundary of 7 kB": ("x" * 7_000, PART.replace(b"--x", b"--" + b"x" * 7_000) + b"\r\n--" + b"x" * 7_000 + b"--"),
    "a long preamble": ("x", b"a" * 5_000_000 + b"\r\n" + PART + b"b\r\n--x--\r\n"),
    "a long epilogue": ("x", PART + b"b\r\n--x--\r\n" + b"a" * 5_000_000),
    "nested": ("x", b"--x\r\n" + DISPOSITION + b'; name="file"\r\nContent-Type: multipart/a; boundary=y\r\n\r\n--y\r\n'
               b'Content-Disposition: file; filename="a"\r\n\r\nb\r\n--y--\r\n--x--\r\n'),
    "quotes without end": ("x", b"--x\r\n" + DISPOSITION + b'; name="' + b'\\"' * 4_000 + b"\r\n\r\nb\r\n--x--\r\n"),
    "semicolons": ("x", b"--x\r\nContent-Disposition: form-data" + b"; a=" * 2_000 + b"\r\n\r\nb\r\n--x--\r\n"),
    "no name": ("x", b"--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n--x--\r\n"),
    "encoded": ("x", b"--x\r\n" + _disposition() + b"Content-Transfer-Encoding: base64\r\n\r\nYQ==\r\n--x--\r\n"),
    "dashes": ("-" * 70, b"-" * 4_000_000),
    "almost boundaries": ("x", PART + b"\r\n--" * 1_000_000),
}  # fmt: skip


@pytest.mark.proves("A45")
def test_a_hostile_form_is_refused_cheaply(target: Target, evidence: list[str]) -> None:
    client, spent = target.client("operator"), {}
    for name, (boundary, body) in FORMS.items():
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        before_s = target.cpu_s("web")
        raw = _head(
            target,
            f"Content-Length: {len(body)}",
            path="/api/files/upload",
            content_type=headers["Content-Type"],
        )
        answer = target.ask_raw(raw + body)
        spent[name] = target.cpu_s("web") - before_s
        assert statuses(answer) in ([400], [431], []), f"{name}: {answer[:100]!r}"
        assert spent[name] < 1, f"{name}: {spent[name]:.1f} s"
    assert client.get("/api/files/list").status_code == 200
    worst = max(spent, key=lambda name: spent[name])
    evidence.append(f"{len(FORMS)} forms: 400, at most {spent[worst] * 1000:.0f} ms of CPU ({worst})")


def _field(evil: str) -> bytes:
    """Return as much of a string as a field of a head takes."""
    return evil[:4000].encode().replace(b"\t", b"x").strip()


EVIL = ("a" * 50_000 + "!", "a@" * 25_000, "(" * 50_000, "-" * 50_000 + "_", "0 " * 25_000, "*/" * 25_000, "%" * 50_000,
        "é" * 25_000, "\t" * 50_000 + "x", "1" * 50_000, "a." * 25_000, "\\" * 50_000, ",-" * 25_000)  # fmt: skip


@pytest.mark.proves("A47")
def test_no_pattern_of_ours_can_be_made_to_loop(target: Target, evidence: list[str]) -> None:
    admin, agent, spent = target.client("admin"), target.client("agent"), {}
    for evil in EVIL:
        quoted = {"job_id": evil[:1200]}
        asks: list[tuple[str, Any]] = [
            ("email", lambda evil=evil: admin.post("/api/users", json={
                "username": evil, "email": evil, "password": evil})),
            ("order", lambda evil=evil: admin.post("/api/jobs/submit", json={
                "command": evil, "tags": [evil], "env": {evil: evil}, "artifacts": [evil], "fileUrl": evil,
                "workingDirectory": evil, "runAt": evil, "webhook": evil, "dependsOn": [evil], "timeout": evil,
            })),
            ("cron", lambda evil=evil: admin.post("/api/jobs/submit", json={
                "command": "true", "schedule": {"cron": evil, "timezone": evil}})),
            ("cron fields", lambda evil=evil: admin.post("/api/jobs/submit", json={
                "command": "true", "schedule": f"{evil[:190 // 2]} * * * *"})),
            ("url", lambda evil=evil: admin.post("/api/jobs/submit", json={
                "command": "true", "fileUrl": "https://" + evil[:2000]})),
            ("worker", lambda evil=evil: agent.post("/api/workers/register", json={"workerId": evil, "tags": [evil]})),
            ("query", lambda quoted=quoted: admin.get("/api/jobs/list", params={
                "tags": quoted["job_id"], "workerId": quoted["job_id"], "sort": "x"})),
            ("header", lambda evil=evil: admin.get("/api/auth/me", headers={
                "X-Request-Id": _field(evil), "Range": b"bytes=" + _field(evil),
                "If-None-Match": _field(evil)})),
            ("login", lambda evil=evil: admin.post("/api/auth/login", json={"email": evil, "password": "x"})),
            ("idempotency", lambda evil=evil: admin.post(
                "/api/jobs/submit", json={}, headers={"Idempotency-Key": _field(evil)})),
        ]  # fmt: skip
        for name, ask in asks:
            before_s = target.cpu_s("web")
            answer = ask()
            took_s = target.cpu_s("web") - before_s
            spent[name] = max(spent.get(name, 0), took_s)
            assert answer.status_code < 500, f"{name}: {answer.text}"
            assert took_s < 0.1, f"{name} took {took_s:.2f} s of CPU for {evil[:10]!r}"
    globs = ["**/" * 300 + "x", "*" * 1000, "?*" * 400 + "z", "[" * 500, "[a-" * 200, "{a,b}" * 100]
    job = target.run(
        "mkdir -p " + "/".join("abcdefghij") + "; touch " + "a" * 200 + " a/b/" + "a" * 200,
        artifacts=globs,
        timeout=20,
    )
    assert job["status"] == "completed", job
    worst = max(spent, key=lambda name: spent[name])
    evidence.append(
        f"{len(EVIL)} strings in {len(spent)} places: at most {spent[worst] * 1000:.0f} ms of CPU ({worst})"
    )


@pytest.mark.proves("A48")
def test_numbers_and_orders_beyond_reason_are_refused(target: Target, evidence: list[str]) -> None:
    admin, refused = target.client("admin"), 0
    for path in (
        "/api/jobs/list",
        "/api/files/list",
        "/api/workers/list",
        "/api/users",
        "/api/schedules",
        "/jobs/list",
    ):
        for query in (
            {"limit": -1}, {"limit": 0}, {"limit": 10**9}, {"limit": "1e3"}, {"limit": "NaN"}, {"limit": ""},
            {"offset": -1}, {"offset": 10**30}, {"sort": "__class__"}, {"sort": "-__dict__"}, {"limit": "1;"},
            {"limit": "\uff11" * 30},
        ):  # fmt: skip
            answer = admin.get(path, params=query)
            assert answer.status_code == 400, f"{path} {query}: {answer.text[:200]}"
            refused += 1
        answer = admin.get(path, params={"offset": 10**9, "limit": 1})
        assert answer.status_code == 200
        assert not any(answer.json().get(name) for name in ("jobs", "files", "workers", "users", "schedules"))
    orders: list[dict[str, Any]] = [
        {"timeout": 0}, {"timeout": -1}, {"timeout": 10**18}, {"timeout": 1.5}, {"timeout": True}, {"timeout": "1"},
        {"retries": 10**9}, {"retries": -1}, {"delay": 1e308}, {"delay": -1}, {"delay": "Infinity"},
        {"schedule": "* * * * * *"}, {"schedule": "@reboot"}, {"schedule": "0 0 30 2 *"}, {"schedule": "*/0 * * * *"},
        {"schedule": "0-59/0 * * * *"}, {"schedule": {"cron": "* * * * *", "timezone": "../../etc/passwd"}},
        {"priority": "__class__"}, {"tags": ["t"] * 17}, {"artifacts": ["a"] * 65}, {"dependsOn": ["job-x"] * 101},
        {"env": {f"E{n}": "x" for n in range(201)}}, {"env": {"A": "x" * 40_000}}, {"metadata": {"a": "x" * 20_000}},
        {"name": "n" * 201}, {"runAt": "9999999999999"}, {"runAt": "0001-01-01T00:00:00"},
        {"backoff": {"factor": 1e9}},
        {"concurrencyKey": "k" * 201}, {"command": "x" * 70_000},
    ]  # fmt: skip
    for order in orders:
        answer = admin.post("/api/jobs/submit", json={"command": "true", **order})
        assert answer.status_code == 400, f"{str(order)[:60]}: {answer.status_code} {answer.text[:200]}"
    for path in (
        "/api/jobs/job-x/log?limit=1000000000",
        "/api/jobs/job-x/log?limit=-1",
        "/api/jobs/job-x/log?limit=0",
    ):
        assert admin.get(path).status_code == 400
    deep = '{"command":' + "[" * 100_000 + "]" * 100_000 + "}"
    headers = {"Content-Type": "application/json"}
    assert admin.post("/api/jobs/submit", content=deep, headers=headers).status_code == 400
    digits = '{"command":"true","timeout":' + "9" * 100_000 + "}"
    assert admin.post("/api/jobs/submit", content=digits, headers=headers).status_code == 400
    evidence.append(f"{refused} queries, {len(orders)} orders, deep and long JSON: 400")


def _smuggled(target: Target) -> dict[str, bytes]:
    key = target.keys["operator"].encode()
    inner = b"POST /api/jobs/submit HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key
    inner += b'\r\nContent-Type: application/json\r\nContent-Length: 38\r\n\r\n{"command": "true", "name":"smuggled"}'
    start = (
        b"POST /api/jobs/cancel HTTP/1.1\r\nHost: x\r\nX-API-Key: "
        + key
        + b"\r\nContent-Type: application/json\r\n"
    )
    chunked = b"0\r\n\r\n" + inner
    length = b"Content-Length: " + str(len(chunked)).encode() + b"\r\n"
    return {
        "CL.TE": start + length + b"Transfer-Encoding: chunked\r\n\r\n" + chunked,
        "TE.CL": start + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunked,
        "TE twice": start + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked,
        "TE twice the same": start
        + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked,
        "TE list": start + b"Transfer-Encoding: identity, chunked\r\n\r\n" + chunked,
        "TE not last": start + b"Transfer-Encoding: chunked, identity\r\n\r\n" + chunked,
        "TE x": start + b"Transfer-Encoding: xchunked\r\n" + length + b"\r\n" + chunked,
        "TE quoted": start + b'Transfer-Encoding: "chunked"\r\n' + length + b"\r\n" + chunked,
        "TE trailing space": start + b"Transfer-Encoding : chunked\r\n" + length + b"\r\n" + chunked,
        "TE tab": start + b"Transfer-Encoding:\x0bchunked\r\n" + length + b"\r\n" + chunked,
        "obs-fold": start + b"Transfer-Encoding:\r\n chunked\r\n" + length + b"\r\n" + chunked,
        "bare CR": start + b"X: a\rTransfer-Encoding: chunked\r\n" + length + b"\r\n" + chunked,
        "bare LF": start + b"X: a\nTransfer-Encoding: chunked\r\n" + length + b"\r\n" + chunked,
        "LF for all": start.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n" + inner,
        "CL list": start + b"Content-Length: 0, " + str(len(chunked)).encode() + b"\r\n\r\n" + chunked,
        "CL twice": start + b"Content-Length: 0\r\n" + length + b"\r\n" + chunked,
        "CL twice the same": start + length + length + b"\r\n" + chunked,
        "CL plus": start + b"Content-Length: +0\r\n\r\n" + chunked,
        "chunk size 0x": start + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + inner,
        "chunk size huge": start + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\n" + inner,
        "chunk without CRLF": start + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n" + inner,
        "chunk LF": start + b"Transfer-Encoding: chunked\r\n\r\n0\n\n" + inner,
        "NUL in name": start + b"Content-Length\x00: 0\r\n\r\n" + chunked,
        "space before colon": start + b"Content-Length : 0\r\n\r\n" + chunked,
        "no name": start + b": x\r\n" + length + b"\r\n" + chunked,
    }


@pytest.mark.proves("A49")
def test_no_request_hides_in_another(target: Target, evidence: list[str]) -> None:
    kinds = _smuggled(target)
    for name, request in kinds.items():
        answer = target.ask_raw(request)
        assert statuses(answer) in ([400], []), f"{name}: {statuses(answer)} {answer[:200]!r}"
    assert "smuggled" not in target.client("viewer").get("/api/jobs/list").text
    evidence.append(f"{len(kinds)} framings: 400 and closed, nothing smuggled")


def _odd_heads(target: Target) -> Iterator[tuple[str, bytes, set[int]]]:
    get = b"GET /api/auth/me HTTP/1.1\r\nHost: x\r\n"
    yield "200 fields", get + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n", {431, 400}
    yield "64 kB field", get + b"X: " + b"a" * 65_536 + b"\r\n\r\n", {431, 400}
    yield (
        "33 kB of fields",
        get + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 700) for n in range(60)) + b"\r\n",
        {431},
    )
    yield "URI 20 kB", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414}
    yield "query 20 kB", b"GET /?" + b"a=b&" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414}
    yield "URI without end", b"GET /" + b"a" * 200_000, {414, 431}
    yield "bad UTF-8", b"GET /\xff\xfe%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}
    yield "encoded bad UTF-8", b"GET /api/jobs/%ff%fe%c0/log HTTP/1.1\r\nHost: x\r\n\r\n", {400, 401, 404}
    yield "NUL in URI", b"GET /a\x00b HTTP/1.1\r\nHost: x\r\n\r\n", {400}
    yield "NUL in field", get + b"X: a\x00b\r\n\r\n", {400}
    yield "control in field name", get + b"X\x01: a\r\n\r\n", {400}
    yield "HTTP/0.9", b"GET /\r\n\r\n", {400, 505}
    yield "HTTP/2.0", b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", {400, 505}
    yield "h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 405, 501, 505}
    yield "TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}
    yield (
        "absolute-form",
        b"GET http://evil.example/api/auth/me HTTP/1.1\r\nHost: x\r\n\r\n",
        {400, 401, 404, 421},
    )
    yield "CONNECT", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", {400, 404, 405}
    yield "odd method", b"G\xffT / HTTP/1.1\r\nHost: x\r\n\r\n", {400}
    yield "long method", b"A" * 5_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414, 431}
    yield "asterisk", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 405}
    yield "no path", b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", {400}
    yield "two hosts", b"GET /api/auth/me HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", {400}
    yield "no host", b"GET /api/auth/me HTTP/1.1\r\n\r\n", {400}
    yield "evil host", b'GET /nowhere HTTP/1.1\r\nHost: a"><script>\r\n\r\n', {400, 404}
    yield (
        "upgrade h2c",
        get + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
        {401},
    )


@pytest.mark.proves("A50")
def test_an_odd_head_gets_a_plain_refusal(target: Target, evidence: list[str]) -> None:
    seen, wrong, before = set(), [], len(target.logged("web"))
    for name, request, expected in _odd_heads(target):
        answer = target.ask_raw(request, timeout_s=3)
        found = statuses(answer)
        if not (found and found[0] in expected) and not (found == [] and 400 in expected and answer == b""):
            wrong.append(f"{name}: {found} {answer[:80]!r}")
        seen |= set(found)
        assert b"script" not in answer, name
        assert not re.search(rb"^server:", answer, re.IGNORECASE | re.MULTILINE), name
        body = answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")
        assert not LEAKS.search(body), f"{name}: {body}"
    assert not wrong, wrong
    assert "Traceback" not in target.logged("web")[before:]
    evidence.append(f"answers {sorted(seen)}, no trace in answer or log")


@pytest.mark.proves("A57")
def test_no_mistake_is_answered_with_what_is_inside(target: Target, evidence: list[str]) -> None:
    before = len(target.mistakes)
    operator, admin = target.client("operator"), target.client("admin")
    headers = {"Content-Type": "application/json"}
    for body in (
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"a":NaN}',
        b'{"command":"\\ud800"}',
        b'{"command":1e999}',
        b"1" * 5000,
    ):
        operator.post("/api/jobs/submit", content=body, headers=headers)
        operator.post("/api/auth/login", content=body, headers=headers)
    for path in (
        "/nowhere",
        "/api/jobs/x/why",
        "/api/jobs/status",
        "/api/files/x",
        "/api/users/x",
        "/api/schedules/x",
    ):
        admin.get(path)
        admin.delete(path)
    with target.redis() as client:  # what Redis holds is not what it should be
        for name in (
            "h:file:file-00000000000000000000",
            "h:schedule:schedule-x",
            "h:worker:odd",
            "h:user:odd",
        ):
            client.lpush(name, "odd")
        client.set("h:job:job-00000000000000000000", "odd")
        client.hset("h:job:job-11111111111111111111", mapping={"state": "odd", "spec": "{", "attempt": "NaN"})
        try:
            for path in (
                "/api/files/file-00000000000000000000", "/api/schedules/schedule-x", "/api/workers/odd",
                "/api/users/odd",
                "/api/jobs/status?jobId=job-00000000000000000000", "/api/jobs/status?jobId=job-11111111111111111111",
                "/api/jobs/job-00000000000000000000/log", "/api/jobs/job-11111111111111111111/why",
            ):  # fmt: skip
                answer = admin.get(path)
                assert answer.status_code in {404, 500}, f"{path}: {answer.text}"
                assert json.loads(answer.text)["code"]
        finally:
            client.delete("h:file:file-00000000000000000000", "h:schedule:schedule-x", "h:worker:odd", "h:user:odd",
                          "h:job:job-00000000000000000000", "h:job:job-11111111111111111111")  # fmt: skip
    target.judge(before)
    judged = len(target.mistakes) - before
    evidence.append(f"{judged} answers of 4xx and 5xx: a code and a sentence, nothing else")


@pytest.mark.proves("A59")
def test_what_is_public_tells_nothing_and_no_page_elsewhere_may_read(
    target: Target, evidence: list[str]
) -> None:
    from api.app import groups
    from api.endpoint import Role

    public = [
        each.path
        for group in groups()
        for each in group.endpoints
        if Role.PUBLIC in each.role and each.method == "GET"
    ]
    private = [*target.users.values(), *target.users, "operator@example.org", socket.gethostname(), "worker-"]
    for path in [*public, "/metrics", "/api/metrics", "/api/health", "/api/health/live", "/api/health/ready"]:
        if "{" in path or "openapi" in path or "docs" in path or "shim" in path:  # files of the repository
            continue
        answer = target.client().get(path)
        for word in private:
            if word not in {"admin", "operator", "viewer"}:
                assert word not in answer.text, f"{path} tells {word}"
        assert not re.search(r"\b(job|user|key|file)-[0-9a-z]{20}", answer.text), path
    asked = 0
    for path in [*public, "/api/auth/me", "/api/jobs/list", "/nowhere"]:
        if "{" in path:
            continue
        for method in ("GET", "OPTIONS"):
            for origin in ("https://evil.example", "null", target.url):
                answer = target.client("viewer").request(
                    method, path, headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
                )
                asked += 1
                assert "access-control-allow-origin" not in answer.headers, path
                assert "access-control-allow-credentials" not in answer.headers
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["x-frame-options"] == "DENY"
                assert "content-security-policy" in answer.headers
                assert answer.headers["referrer-policy"] == "no-referrer"
                assert "server" not in answer.headers
    evidence.append(
        f"{len(public)} public paths tell nothing; {asked} answers: no CORS, all security headers"
    )
