"""Requests to addresses that users name: what comes back, what is cut off, what a webhook is."""

import contextlib
import hashlib
import io
import socket
import threading
import time

import pytest
from outside import LOOPBACK, FakeInternet, Talk, get, local

from integrations.outbound import ANSWER_LIMIT_BYTES, Fetched, Reply, ask, deliver, fetch
from storage.errors import Conflict, Invalid, TooLarge, Unavailable

# Answers


def test_a_file_is_fetched_with_its_size_digest_and_type(serve):
    body = bytes(range(256)) * 1000
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/zip\r\nContent-Length: {len(body)}\r\n\r\n"
    server = serve(head.encode() + body)
    fetched, written = get(local(server, "/a%20b?c=d"))
    assert written == body
    assert fetched == Fetched(len(body), hashlib.sha256(body).hexdigest(), "application/zip")
    request = server.requests[0].lower()
    assert request.startswith(b"get /a%20b?c=d http/1.1\r\n")
    assert b"accept-encoding: identity\r\n" in request


@pytest.mark.parametrize("content_type", [b"", b"\xfftext", b"a" * 300])
def test_a_useless_content_type_is_replaced(serve, content_type):
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type + b"\r\nContent-Length: 0\r\n\r\n")
    assert get(local(server))[0].content_type == "application/octet-stream"


def test_compressed_bytes_are_kept_and_counted_as_sent(serve):
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n\x1f\x8b\x08ab")
    fetched, body = get(local(server), limit_bytes=5)
    assert (fetched.size_bytes, body) == (5, b"\x1f\x8b\x08ab")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(serve, status):
    inside = serve()
    server = serve(
        f"HTTP/1.1 {status} Moved\r\nLocation: {local(inside)}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    with pytest.raises(Invalid, match="redirect"):
        get(local(server))
    assert deliver(local(server), b"{}", headers={}, allow=LOOPBACK) == status
    assert inside.requests == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (204, Invalid),
        (206, Invalid),
        (403, Invalid),
        (404, Invalid),
        (408, Unavailable),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
def test_another_status_than_200_fails_without_a_word_of_the_body(serve, status, kind):
    server = serve(f"HTTP/1.1 {status} Hunter2\r\nContent-Length: 7\r\n\r\nhunter2".encode())
    with pytest.raises(kind) as failure:
        get(local(server))
    assert str(failure.value) == f"'127.0.0.1' answered {status} where a file was expected."


def test_closed_silent_and_alien_ports_are_told_apart_by_nobody(serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    alien = serve(b"-ERR unknown command 'GET'\r\n")
    silent = serve(lambda connection, _: connection.recv(1))
    broken = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
    sentences = set()
    for port in (closed, alien.port, silent.port, broken.port):
        with pytest.raises(Unavailable) as failure:
            get(f"http://127.0.0.1:{port}/", timeout_s=0.5)
        sentences.add(str(failure.value))
    assert len(sentences) == 1


# Limits


def test_a_file_that_announces_too_much_is_refused_unread(serve):
    into = io.BytesIO()
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\nhello")
    with pytest.raises(TooLarge, match="1,000 bytes"):
        fetch(local(server), into, limit_bytes=1000, timeout_s=5, allow=LOOPBACK)
    assert into.getvalue() == b""


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def test_a_file_without_end_is_cut_at_the_limit(serve):
    into = io.BytesIO()
    with pytest.raises(TooLarge):
        fetch(local(serve(endless)), into, limit_bytes=100_000, timeout_s=5, allow=LOOPBACK)
    assert len(into.getvalue()) <= 100_000


def test_a_file_of_just_the_limit_is_taken(serve):
    assert get(local(serve()), limit_bytes=5)[1] == b"hello"
    with pytest.raises(TooLarge):
        get(local(serve()), limit_bytes=4)


def drip(head: bytes, drop: bytes) -> Talk:
    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        for _ in range(500):
            connection.sendall(drop)
            time.sleep(0.02)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["body", "headers", "informational"],
)
def test_a_drip_feed_ends_at_the_deadline(serve, talk):
    server = serve(talk)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        get(local(server), timeout_s=0.4)
    assert 0.3 < time.monotonic() - started < 3


def test_a_receiver_that_does_not_read_ends_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, but nobody reads
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        started = time.monotonic()
        with pytest.raises(Unavailable):
            deliver(url, b"x" * 20_000_000, headers={}, timeout_s=0.4, allow=LOOPBACK)
        assert time.monotonic() - started < 3


def test_a_cancelled_fetch_stops_while_the_server_is_silent(serve):
    cancelled = threading.Event()

    def talk(connection: socket.socket, request: bytes) -> None:
        cancelled.set()
        connection.recv(1)

    with pytest.raises(Conflict, match="cancelled"):
        get(local(serve(talk)), cancelled=cancelled.is_set)


def test_headers_without_end_are_refused(serve):
    server = serve(b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 1_000_000)
    with pytest.raises(Unavailable):
        get(local(server))


# Webhooks


def test_a_webhook_delivers_its_body_and_headers(serve):
    server = serve(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok")
    body = b'{"event": "job.completed"}'
    headers = {"Content-Type": "application/json", "X-Hostler-Signature": "sha256=00"}
    assert deliver(local(server, "/hook?a=b"), body, headers=headers, allow=LOOPBACK) == 202
    head, _, received = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert b"content-length: 26" in head.lower()
    assert b"x-hostler-signature: sha256=00" in head.lower()
    assert received == body


@pytest.mark.parametrize("status", [200, 404, 410, 500, 503])
def test_a_webhook_returns_any_status(serve, status):
    server = serve(f"HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n".encode())
    assert deliver(local(server), b"", headers={}, allow=LOOPBACK) == status


def test_a_webhooks_answer_is_read_no_further_than_its_limit(serve):
    sent_bytes = []

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while sum(sent_bytes) < 100 * 1024 * 1024:
                sent_bytes.append(connection.send(b"x" * 65536))

    started = time.monotonic()
    server = serve(talk)
    assert deliver(local(server), b"", headers={}, allow=LOOPBACK) == 200
    assert time.monotonic() - started < 5
    server.close()
    server.close = lambda: None
    assert sum(sent_bytes) < ANSWER_LIMIT_BYTES + 16 * 1024 * 1024  # what the kernel holds comes on top


def test_a_webhooks_answer_that_never_ends_still_counts(serve):
    server = serve(drip(b"HTTP/1.1 204 No\r\n\r\n", b"x"))
    assert deliver(local(server), b"", headers={}, timeout_s=1, allow=LOOPBACK) == 204
    server = serve(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"))
    assert deliver(local(server), b"", headers={}, timeout_s=0.4, allow=LOOPBACK) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "other.example"},
        {"transfer-encoding": "chunked"},
        {"Content-Length": "0"},
        {"X-A": "b\r\nX-C: d"},
        {"X A": "b"},
        {"X-A\r\n": "b"},
        {"X-A": "ü"},
        {"X-A": "b\x00"},
    ],
)
def test_a_header_that_would_change_the_message_is_refused(serve, headers):
    server = serve()
    with pytest.raises(Invalid, match="header"):
        deliver(local(server), b"", headers=headers, allow=LOOPBACK)
    assert server.requests == []


def test_a_webhook_to_the_inside_is_refused():
    internet = FakeInternet(["10.0.0.7"])
    with pytest.raises(Invalid):
        deliver("https://inside.example/", b"", headers={}, network=internet.network())
    with pytest.raises(Invalid):
        deliver("https://127.0.0.1:6379/", b"", headers={})
    assert internet.connected == []


def test_proxies_of_the_environment_are_not_used(serve, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(local(serve()))[1] == b"hello"


QUESTION = {"limit_bytes": 1000, "timeout_s": 5}


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_a_question_is_answered_with_status_and_body_whatever_they_are(serve, status):
    server = serve(b"HTTP/1.1 %d Said\r\nLocation: http://10.0.0.1/\r\nContent-Length: 2\r\n\r\n{}" % status)
    headers = {"Authorization": "Bearer k"}
    reply = ask("PUT", local(server, "/a?b=c"), headers=headers, body=b"[]", allow=LOOPBACK, **QUESTION)
    assert reply == Reply(status, b"{}")
    [asked] = server.requests
    assert asked.startswith(b"PUT /a?b=c HTTP/1.1\r\n")
    assert asked.endswith(b"[]")
    assert b"authorization: Bearer k" in asked


@pytest.mark.parametrize("framing", [b"Content-Length: 2000\r\n", b""])
def test_an_answer_that_is_too_large_is_no_answer(serve, framing):
    server = serve(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + b"x" * 2000)
    with pytest.raises(Unavailable, match="more than 1,000 bytes"):
        ask("GET", local(server), headers={}, allow=LOOPBACK, **QUESTION)


def test_a_question_is_held_to_the_rules_for_addresses_and_headers(serve):
    server = serve()
    with pytest.raises(Invalid):
        ask("GET", local(server), headers={}, **QUESTION)
    with pytest.raises(Invalid, match="cannot be set"):
        ask("GET", local(server), headers={"Host": "inside"}, allow=LOOPBACK, **QUESTION)
    internet = FakeInternet(["10.0.0.7"])
    with pytest.raises(Invalid):
        ask("GET", "https://inside.example/", headers={}, network=internet.network(), **QUESTION)
    assert internet.connected == []
    assert server.requests == []
