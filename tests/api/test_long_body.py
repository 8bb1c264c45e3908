"""Long bodies over raw sockets, against a real server: every byte once, and what follows them on its own."""

import contextlib
import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from test_server import LIFESPAN, serve

from api.long_body import LONG_BYTES, PIECE_BYTES

#: Answers how long a body was and its digest; /slow takes its time over each piece, /late before the first, /early
#: answers before the body, /part before its end. /place reads in place; /cancel gives that up after a moment; /threads
#: answers who has received; for /starved no thread can be started meanwhile.
_APP = (
    """
import asyncio, concurrent.futures, contextlib, hashlib, threading
from api import long_body
@contextlib.contextmanager
def no_threads():
    def start(thread):
        raise RuntimeError("can't start new thread")
    kept, long_body._threads = long_body._threads, concurrent.futures.ThreadPoolExecutor(1)
    begin, threading.Thread.start = threading.Thread.start, start
    try:
        yield
    finally:
        threading.Thread.start = begin
        late, long_body._threads = long_body._threads, kept
        assert late._work_queue.qsize()
        late.submit(int).result()  # what was left in its queue comes first
async def read_in_place(read_into, digest, names):
    room, size = bytearray(3_000_000), 0
    while True:
        at = 10
        def look(end):
            nonlocal at
            names.add(threading.current_thread().name.partition("_")[0])
            digest.update(memoryview(room)[at:end])
            at = end
            return True
        got = await read_into(room, at, len(room) - 10, look)
        assert 10 + got == at
        assert room[:10] == room[-10:] == bytes(10)
        if not got:
            return size
        size += got
"""
    + LIFESPAN
    + """
    if scope["path"] == "/late":
        await asyncio.sleep(0.2)
    digest, size, kept = hashlib.sha256(), 0, []
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        kept.append(message["body"])  # a piece that is held must not change under its holder
        size += len(message["body"])
        if scope["path"] == "/slow":
            await asyncio.sleep(0.01)
        read_into = scope["extensions"].get("hostler.in-place")
        if read_into and message["more_body"] and scope["path"] in ("/place", "/threads", "/cancel", "/starved"):
            for piece in kept:
                digest.update(piece)
            kept, names = [], set()
            reading = asyncio.ensure_future(read_in_place(read_into, digest, names))
            if scope["path"] == "/cancel":
                await asyncio.sleep(0.01)
                reading.cancel()
                await asyncio.wait([reading])
                break
            with no_threads() if scope["path"] == "/starved" else contextlib.nullcontext():
                size += await reading
            if scope["path"] == "/threads":
                scope["path"] = ",".join(names)
            break
        if not message["more_body"] or (scope["path"] == "/part" and size >= 200_000):
            break
        if scope["path"] != "/keep":
            digest.update(kept.pop())
    for piece in kept:
        digest.update(piece)
    body = f"{scope['path']} {size} {digest.hexdigest()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server, number = serve(tmp_path_factory.mktemp("server"), _APP)
    yield number
    server.send_signal(signal.SIGTERM)
    server.wait(20)


def head(path: str, size: int, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{more}\r\n".encode()


def expected(path: str, body: bytes) -> bytes:
    return f"{path} {len(body)} {hashlib.sha256(body).hexdigest()}".encode()


class Connection:
    """One connection, and the answers that come by it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def answer(self) -> bytes:
        assert b" 200 " in self.file.readline()
        length = 0
        while (line := self.file.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return self.file.read(length)


SIZES = [
    LONG_BYTES - 1,
    LONG_BYTES,
    LONG_BYTES + 1,
    PIECE_BYTES * 3,
    PIECE_BYTES * 3 + 1,
    5_000_011,
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", ["/", "/slow", "/keep", "/place"])
def test_every_byte_arrives_once_and_the_connection_serves_on(port: int, path: str, size: int) -> None:
    body = os.urandom(size)
    with Connection(port) as connection:
        for each in (body, b"short", body[::-1]):
            connection.socket.sendall(head(path, len(each)) + each)
            assert connection.answer() == expected(path, each)


def test_requests_that_follow_in_the_same_write_are_served_in_turn(port: int) -> None:
    bodies = [os.urandom(size) for size in (700_000, 10, 0, 300_000, LONG_BYTES, 1)]
    with Connection(port) as connection:
        connection.socket.sendall(b"".join(head("/", len(each)) + each for each in bodies))
        assert [connection.answer() for _ in bodies] == [expected("/", each) for each in bodies]


def test_an_answer_before_a_long_body_loses_nothing_of_it(port: int) -> None:
    body = os.urandom(3_000_000)
    with Connection(port) as connection:
        connection.socket.sendall(head("/slow", 3) + b"abc" + head("/late", len(body)) + body)
        assert connection.answer() == expected("/slow", b"abc")
        assert connection.answer() == expected("/late", body)


@pytest.mark.parametrize(("path", "most"), [("/", 200_000), ("/place", 200_000), ("/place", 900_000)])
def test_a_body_in_pieces_of_any_size_with_pauses_is_the_same_body(port: int, path: str, most: int) -> None:
    body, chance, at = os.urandom(5 * most), random.Random(4), 0  # noqa: S311
    with Connection(port) as connection:
        connection.socket.sendall(head(path, len(body)))
        while at < len(body):
            size = chance.choice([1, 100, 10_000, 70_000, most])
            connection.socket.sendall(body[at : at + size])
            at += size
            time.sleep(chance.choice([0, 0.001, 0.01]))
        assert connection.answer() == expected(path, body)


def test_a_body_that_comes_fast_is_received_by_a_thread(port: int) -> None:
    body = os.urandom(1_000_000) * 50
    with Connection(port) as connection:
        connection.socket.sendall(head("/threads", len(body)) + body + head("/", 2) + b"ok")
        names, _, rest = connection.answer().partition(b" ")
        assert b"receive" in names.split(b",")
        assert b" ".join([b"", rest]) == expected("", body)
        assert connection.answer() == expected("/", b"ok")


def test_a_body_that_no_thread_can_be_started_for_is_read_by_the_loop(port: int) -> None:
    body = os.urandom(1_000_000) * 50
    with Connection(port) as connection:
        for path, each in (("/starved", body), ("/", b"ok"), ("/place", body)):
            connection.socket.sendall(head(path, len(each)) + each)
            assert connection.answer() == expected(path, each)


def test_more_bodies_than_threads_arrive_together(port: int) -> None:
    bodies = [os.urandom(1_000_000) * 12 for _ in range(5)]

    def send(body: bytes) -> bytes:
        with Connection(port) as connection:
            connection.socket.sendall(head("/place", len(body)) + body)
            return connection.answer()

    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(send, bodies)) == [expected("/place", body) for body in bodies]


def test_a_body_that_is_given_up_leaves_the_server_serving(port: int) -> None:
    for _ in range(5):
        with Connection(port) as connection, contextlib.suppress(ConnectionError):
            connection.socket.sendall(head("/cancel", 100_000_000) + bytes(100_000_000))
    body = os.urandom(2_000_000)
    with Connection(port) as connection:
        connection.socket.sendall(head("/place", len(body)) + body)
        assert connection.answer() == expected("/place", body)


def test_a_client_that_expects_to_be_asked_is_asked(port: int) -> None:
    body = os.urandom(400_000)
    with Connection(port) as connection:
        connection.socket.sendall(head("/", len(body), "Expect: 100-continue\r\n"))
        assert b"100 Continue" in connection.file.readline()
        assert connection.file.readline() == b"\r\n"
        connection.socket.sendall(body)
        assert connection.answer() == expected("/", body)


def test_a_body_that_nobody_wants_ends_the_connection_once_it_is_long(port: int) -> None:
    with Connection(port) as connection:
        connection.socket.sendall(head("/early", 50_000_000) + b"x" * 1000)
        assert connection.answer().startswith(b"/early 0")
        with pytest.raises(ConnectionError):
            connection.socket.sendall(b"x" * 49_000_000)


def test_a_short_rest_that_nobody_wants_is_read_and_the_connection_serves_on(port: int) -> None:
    with Connection(port) as connection:
        connection.socket.sendall(head("/part", LONG_BYTES) + b"x" * (LONG_BYTES - 20_000))
        assert connection.answer().startswith(b"/part 2")
        connection.socket.sendall(b"x" * 20_000 + head("/", 3) + b"abc")
        assert connection.answer() == expected("/", b"abc")


@pytest.mark.parametrize(("path", "size"), [("/", 400_000), ("/place", 400_000), ("/place", 4_000_000)])
def test_a_body_that_stops_is_given_up(port: int, path: str, size: int) -> None:
    with Connection(port) as connection:
        connection.socket.sendall(head(path, 10_000_000) + b"x" * size)
        began = time.monotonic()
        assert connection.file.read() == b""
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("path", ["/slow", "/place"])
def test_a_client_that_leaves_in_the_middle_leaves_the_server_serving(port: int, path: str) -> None:
    for size in (100, 300_000, 2_000_000, 8_000_000):
        with Connection(port) as connection:
            connection.socket.sendall(head(path, 10_000_000) + b"x" * size)
    with Connection(port) as connection:
        connection.socket.sendall(head("/", 2) + b"ok")
        assert connection.answer() == expected("/", b"ok")


def test_bodies_that_nobody_wants_hold_no_memory_while_their_ends_are_waited_for(port: int) -> None:
    workers = [each for each in psutil.process_iter() if f"127.0.0.1:{port}" in listened_at(each)]
    with contextlib.ExitStack() as stack:
        for number in range(220):
            connection = stack.enter_context(Connection(port))
            connection.socket.sendall(head("/early", 10_000_000) + b"x")
            assert connection.answer().startswith(b"/early 0")
            connection.socket.sendall(b"x")
            if number == 20:
                before = sum(each.memory_info().rss for each in workers)
        connection.socket.sendall(b"x")
        with Connection(port) as last:  # what came before it has been read
            last.socket.sendall(head("/", 2) + b"ok")
            assert last.answer() == expected("/", b"ok")
        assert sum(each.memory_info().rss for each in workers) - before < 200 * PIECE_BYTES / 2


def listened_at(process: psutil.Process) -> list[str]:
    try:
        found = process.net_connections("tcp")
    except psutil.Error:
        return []
    return [f"{each.laddr.ip}:{each.laddr.port}" for each in found if each.status == psutil.CONN_LISTEN]
