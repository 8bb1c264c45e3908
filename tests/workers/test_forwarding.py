"""What passes to an app and back: nothing that opens our doors, no more than agreed, no file from elsewhere."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import jwt
import pytest
from servers import SECRET_KEY

from storage.errors import BadGateway, GatewayTimeout, Invalid, NotFound, NotRunning
from storage.relay import Answer, Ask, Head
from storage.seal import Seal
from workers import forwarding
from workers.forwarding import Address, Forwarder
from workers.supervisor.logs import Tail

SEAL = Seal(SECRET_KEY)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Apps:
    """An app in a directory, as its supervisor tells of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.at = Address(socket=root / "app.sock")

    def address(self, instance_id: str, process: str, index: int) -> Address:
        if instance_id != "app" or process not in {"", "web"} or index != 0:
            raise NotFound(f"There is no {instance_id}.")
        if self.at == Address():
            raise NotRunning("app is not running.")
        return self.at

    def release(self, instance_id: str) -> Path:
        return self.root / "current"

    def log_file(self, instance_id: str, process: str, index: int) -> Path:
        return self.root / "web-0.log"


class Server:
    """An app's server that notes what it is asked, and answers with fixed bytes or as a coroutine does."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.says: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]] = OK

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length" in line), 0
        )
        self.requests.append(head + await reader.readexactly(length))
        try:
            if isinstance(self.says, bytes):
                writer.write(self.says)
                await writer.drain()
            else:
                await self.says(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the last request."""
        lines = self.requests[-1].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.fixture
def apps(tmp_path: Path) -> Apps:
    release = tmp_path / "releases" / "1.0.0"
    (release / "dist" / "assets").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/1.0.0")
    return Apps(tmp_path)


@pytest.fixture
async def server(apps: Apps) -> AsyncIterator[Server]:
    server = Server()
    async with await asyncio.start_unix_server(server.serve, str(apps.root / "app.sock")):
        yield server


async def answer(apps: Apps, **asked: object) -> Answer:
    """Return what the forwarder answers, whole."""
    head, body = Head(0), b""
    async for part in Forwarder(apps, SEAL).handle(Ask(**{"app": "app", "timeout_s": 5, **asked})):
        if isinstance(part, Head):
            head = part
        else:
            body += part
    return Answer(head.status, head.headers, body)


# HTTP


async def test_a_request_reaches_the_socket_with_its_path_query_and_body(apps, server):
    found = await answer(apps, method="POST", path="/a%2Fb/%C3%A4", query="x=1&y=%20", body=b"hello")
    assert (found.status, found.body) == (200, b"ok")
    assert server.requests[0].startswith(b"POST /a%2Fb/%C3%A4?x=1&y=%20 HTTP/1.1\r\n")
    assert server.requests[0].endswith(b"\r\n\r\nhello")


async def test_a_request_reaches_a_port(apps, server):
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        apps.at = Address(port=listening.sockets[0].getsockname()[1])
        assert (await answer(apps)).body == b"ok"


async def test_no_credential_and_nothing_that_only_we_may_say_reaches_an_app(apps, server):
    sent = {
        "Authorization": "Bearer t", "Cookie": "auth_token=t", "X-API-Key": "k", "X-Worker-Token": "w",
        "X-Hostler-Identity": "forged", "X_Hostler_Identity": "forged", "X-Hostler-Else": "forged",
        "X-Forwarded-For": "6.6.6.6", "X-Forwarded-User": "admin", "Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6",
        "Connection": "X-Hop, close", "X-Hop": "1", "TE": "trailers", "Upgrade": "websocket", "Host": "evil",
        "Transfer-Encoding": "chunked", "Content-Length": "999", "Proxy-Authorization": "p",
        "Accept": "text/x", "X-Mine": "stays", "Content-Type": "text/y",
    }  # fmt: skip
    forwarded = {"for": "192.0.2.1", "proto": "https", "host": "hostler.example", "prefix": "/apps/app"}
    await answer(apps, headers=tuple(sent.items()), forwarded=forwarded)
    assert server.headers == {
        "host": "localhost", "accept": "text/x", "x-mine": "stays", "content-type": "text/y",
        "x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https", "x-forwarded-host": "hostler.example",
        "x-forwarded-prefix": "/apps/app",
    }  # fmt: skip


async def test_an_app_can_verify_who_asks_and_no_other_app_takes_it_for_its_own(apps, server):
    await answer(apps, caller={"sub": "usr-1", "name": "ada", "role": "w", "kind": "user"})
    token = server.headers["x-hostler-identity"]
    key = forwarding.identity_key(SEAL, "app")
    claims = jwt.decode(token, key, algorithms=["HS256"], audience="app", issuer="hostler")
    assert (claims["sub"], claims["name"], claims["role"]) == ("usr-1", "ada", "w")
    assert claims["exp"] - claims["iat"] == forwarding.IDENTITY_S
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(token, key, algorithms=["HS256"], audience="app__two")
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, forwarding.identity_key(SEAL, "app__two"), algorithms=["HS256"], audience="app")


async def test_an_answer_brings_no_cookie_and_no_header_that_speaks_for_us(apps, server):
    server.says = (
        b"HTTP/1.1 201 Created\r\nSet-Cookie: a=b\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"
        b"Access-Control-Allow-Origin: *\r\nStrict-Transport-Security: max-age=1\r\nX-Hostler-Identity: x\r\n"
        b"Transfer-Encoding: chunked\r\nServer: s\r\nETag: \"1\"\r\nContent-Type: text/x\r\nX-Odd: \xff\r\n\r\n"
        b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    )  # fmt: skip
    found = await answer(apps)
    assert (found.status, found.body) == (201, b"abc")
    assert found.headers == (("etag", '"1"'), ("content-type", "text/x"))


async def test_a_redirect_is_handed_back_and_not_followed(apps, server):
    server.says = (
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/secret\r\nContent-Length: 0\r\n\r\n"
    )
    found = await answer(apps)
    assert (found.status, len(server.requests)) == (302, 1)


@pytest.mark.parametrize(
    "asked", [{"method": "CONNECT"}, {"method": "get"}, {"path": "no-slash"}, {"path": "/a b"}, {"path": "/a\r\nX: y"},
              {"query": "a\r\nb"}],
)  # fmt: skip
async def test_what_is_no_request_is_refused(apps, server, asked):
    with pytest.raises(Invalid):
        await answer(apps, **asked)
    assert server.requests == []


async def test_an_app_that_is_not_there_not_running_or_not_listening_is_told_apart(apps):
    for asked in ({"app": "other"}, {"process": "db"}, {"index": 1}):
        with pytest.raises(NotFound):
            await answer(apps, **asked)
    with pytest.raises(BadGateway, match="cannot be reached"):
        await answer(apps)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        apps.at = Address(port=probe.getsockname()[1])
        with pytest.raises(BadGateway, match="cannot be reached"):
            await answer(apps)
    apps.at = Address()
    with pytest.raises(NotRunning):
        await answer(apps)


async def test_an_app_that_hangs_resets_or_talks_nonsense_is_a_bad_gateway_or_a_timeout(apps, server):
    async def hang(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        await writer.drain()
        writer.transport.abort()

    server.says = hang
    with pytest.raises(GatewayTimeout):
        await answer(apps, timeout_s=0.2)
    for says in (reset, b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"):
        server.says = says
        with pytest.raises(BadGateway):
            await answer(apps)


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="the socket is only looked at here")
async def test_a_link_where_the_socket_should_be_leads_nowhere(apps, server):
    (apps.root / "link.sock").symlink_to(apps.root / "app.sock")
    apps.at = Address(socket=apps.root / "link.sock")
    with pytest.raises(BadGateway):
        await answer(apps)
    assert server.requests == []


# Files


async def test_a_file_of_the_release_comes_with_its_type(apps):
    release = apps.root / "current"
    (release / "dist" / "index.html").write_text("<p>")
    (release / "dist" / "assets" / "a.js").write_text("1")
    (release / "dist" / "assets" / "blob.xyz").write_bytes(b"\0")
    for path, kind in (
        ("index.html", "text/html; charset=utf-8"), ("/assets/a.js", "text/javascript; charset=utf-8"),
        ("assets/blob.xyz", "application/octet-stream"),
    ):  # fmt: skip
        found = await answer(apps, kind="file", within="dist", path=path)
        assert (found.status, found.header("content-type")) == (200, kind)
    missing = await answer(apps, kind="file", within="dist", path="app/route", fallback="index.html")
    assert (missing.body, missing.header("content-type")) == (b"<p>", "text/html; charset=utf-8")


async def test_a_link_that_stays_inside_leads_on(apps):
    (apps.root / "current" / "dist" / "real.txt").write_text("here")
    (apps.root / "current" / "dist" / "link.txt").symlink_to("real.txt")
    assert (await answer(apps, kind="file", within="dist", path="link.txt")).body == b"here"


async def test_no_path_and_no_link_leads_out(apps, tmp_path):
    release = apps.root / "current"
    (tmp_path / "secret").write_text("s")
    (release / "hostler.toml").write_text("inside the release, outside of dist")
    (release / "dist" / "out").symlink_to(tmp_path / "secret")
    (release / "dist" / "up").symlink_to("..")
    (release / "dist" / "loop").symlink_to("loop")
    os.mkfifo(release / "dist" / "pipe")
    for path in ("../hostler.toml", "../../../secret", str(tmp_path / "secret"), "out", "up/hostler.toml", "loop",
                 "pipe", "assets", ".", "..", "a\0b", "..\\hostler.toml", "nowhere", "x" * 5000):  # fmt: skip
        with pytest.raises(NotFound):
            await answer(apps, kind="file", within="dist", path=path)
    with pytest.raises(NotFound):
        await answer(apps, kind="file", within="../../..", path="secret")


async def test_a_file_that_is_too_large_is_not_begun(apps):
    (apps.root / "current" / "dist" / "big").write_bytes(b"x" * 1001)
    with pytest.raises(BadGateway, match="more than 1000 bytes"):
        await answer(apps, kind="file", within="dist", path="big", limit_bytes=1000)


# Logs


async def test_the_end_of_a_log_reaches_back_into_the_file_before_it(apps):
    log = apps.root / "web-0.log"
    assert (await answer(apps, kind="log")).body == b""
    log.with_name("web-0.log.1").write_bytes(b"".join(b"old %d\n" % number for number in range(100)))
    log.write_bytes(b"new 0\nnew 1\nunfinished")
    assert (await answer(apps, kind="log", lines=2)).body == b"new 1\nunfinished\n"
    assert (await answer(apps, kind="log", lines=4)).body == b"old 99\nnew 0\nnew 1\nunfinished\n"
    assert len((await answer(apps, kind="log", lines=500)).body.splitlines()) == 103


async def test_a_file_that_is_too_long_to_give_whole_is_not_preceded_by_an_older_one(apps, monkeypatch):
    monkeypatch.setattr(forwarding, "MOST_LOG_BYTES", 1000)
    log = apps.root / "web-0.log"
    log.with_name("web-0.log.1").write_bytes(b"old\n" * 100)
    log.write_bytes(b"".join(b"new %03d %s\n" % (number, b"x" * 91) for number in range(20)))
    numbers = [line[:7] for line in (await answer(apps, kind="log", lines=500)).body.splitlines()]
    assert numbers == [b"new %03d" % number for number in range(11, 20)]


async def test_a_progress_bar_that_begins_anew_ends_no_line(apps):
    (apps.root / "web-0.log").write_bytes(b"10 %\r100 %\r\n" * 100)
    assert (await answer(apps, kind="log", lines=10)).body == b"10 %\r100 %\r\n" * 10


async def test_the_hole_that_rotation_leaves_is_no_part_of_a_log(apps):
    log = apps.root / "web-0.log"
    log.write_bytes(b"old\n" * 40_000 + b"new\n")
    tail = Tail(log, position=160_000)
    assert tail.rotate(limit_bytes=1)
    assert (await answer(apps, kind="log", lines=3)).body == b"old\nold\nnew\n"


async def test_a_log_is_read_within_bounds_and_only_where_it_is(apps, monkeypatch):
    monkeypatch.setattr(forwarding, "MOST_LOG_BYTES", 1000)
    log = apps.root / "web-0.log"
    log.write_bytes(b"x" * 5000 + b"\n" + b"y" * 90 + b"\n")
    found = await answer(apps, kind="log", lines=10)
    assert found.body == b"y" * 90 + b"\n"
    log.unlink()
    (apps.root / "secret").write_text("s\n")
    log.symlink_to(apps.root / "secret")
    assert (await answer(apps, kind="log", lines=10)).body == b""
