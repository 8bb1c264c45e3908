"""An agent is known to one server, speaks to no other, and takes no answer for what it is not."""

import asyncio
import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from fake_server import Answer, FakeServer
from faulty_api import GET_JOB, REGISTER, RESULT, Client, FaultyApi, plane
from line_talk import complete, job, refusal

from storage import fleet
from storage.errors import Conflict, Denied, Invalid, NotFound, Stale, TooLarge, Unauthenticated, Unavailable
from storage.store import Store
from workers.control_plane import TokenFile


async def test_calls_that_are_refused_together_register_once(
    api: FaultyApi, client: Client, store: Store
) -> None:
    await store.call(fleet.depart("agent-1", reason="removed", forget=True))
    await asyncio.gather(*(client.beat() for _ in range(5)))
    assert api.count(REGISTER) == 2


async def test_a_restart_proves_itself_with_its_token(api: FaultyApi, client: Client, tmp_path: Path) -> None:
    stranger = plane(api.url, tmp_path / "..", "agent-1")  # without the file
    with pytest.raises(Conflict):
        await stranger.register()
    await stranger.close()
    again = plane(api.url, tmp_path)
    await again.register()
    await again.close()


async def test_a_restart_with_an_api_key_proves_itself_too(
    api: FaultyApi, client: Client, tmp_path: Path
) -> None:
    again = plane(api.url, tmp_path, secret=None, api_key="cb_not-even-needed")
    await again.register()
    await again.close()


async def test_nobody_registers_without_a_right_to(api: FaultyApi, tmp_path: Path) -> None:
    for more in ({"secret": None}, {"secret": "guessed"}, {"secret": None, "api_key": "cb_guessed"}):
        stranger = plane(api.url, tmp_path, "agent-2", **more)
        with pytest.raises((Unauthenticated, Denied)):
            await stranger.register()
        await stranger.close()


async def test_a_name_that_the_api_does_not_take_is_told(api: FaultyApi, tmp_path: Path) -> None:
    odd = plane(api.url, tmp_path, "agent-3", facts={"tags": ["no spaces"]})
    with pytest.raises(Invalid, match="tags"):
        await odd.register()
    await odd.close()


def test_a_token_is_kept_for_its_owner_one_server_and_one_name(tmp_path: Path) -> None:
    kept = TokenFile(tmp_path / "registration.json")
    assert kept.read("https://a", "agent") is None
    kept.write("https://a", "agent", "secret")
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.read("https://a", "agent") == "secret"
    assert kept.read("https://b", "agent") is None
    assert kept.read("https://a", "other") is None
    kept.path.write_bytes(b"{torn")
    assert kept.read("https://a", "agent") is None
    assert [each.name for each in tmp_path.iterdir()] == ["registration.json"]
    kept.remove()
    kept.remove()


async def test_the_api_says_how_often_it_wants_to_hear(faked: Client) -> None:
    assert faked.plane.heartbeat_s == 3.0


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (Answer(502, b"<html>"), Unavailable),
        (Answer(404, b"<html>a proxy that lost its upstream"), Unavailable),
        (Answer(200, b"<html>sign in to this wireless network"), Unavailable),
        (Answer(200, b"[]"), Unavailable),
        (Answer(302, b"", {"Location": "https://elsewhere.example/"}), Unavailable),
        (Answer(drop=True), Unavailable),
        (refusal(429, "TOO_MANY_REQUESTS"), Unavailable),
        (refusal(503, "UNAVAILABLE"), Unavailable),
        (refusal(404, "NOT_FOUND"), NotFound),
        (refusal(409, "STALE_ATTEMPT"), Stale),
        (refusal(409, "CONFLICT"), Conflict),
        (refusal(413, "TOO_LARGE"), TooLarge),
        (refusal(403, "DENIED"), Denied),
        (refusal(422, "UNPROCESSABLE"), Invalid),
    ],
)
async def test_answers_mean_what_they_should(
    fake: FakeServer, faked: Client, answer: Answer, raised: type[Exception]
) -> None:
    fake.on(f"GET {GET_JOB}", job())
    offer = await faked.offer()
    fake.on(f"POST {RESULT}", answer)
    with pytest.raises(raised) as caught:
        await complete(faked, offer)
    assert caught.type is raised


async def test_a_retry_after_is_handed_on(fake: FakeServer, faked: Client) -> None:
    fake.on("GET /x", Answer(429, {"message": "Slow down."}, {"X-Error-Code": "X", "Retry-After": "7"}))
    with pytest.raises(Unavailable) as caught:
        await faked.plane.call("GET", "/x")
    assert caught.value.retry_after_s == 7


async def test_a_token_goes_to_nobody_else(fake: FakeServer, faked: Client, tmp_path: Path) -> None:
    other = FakeServer()
    other.on("GET /loot", Answer(200, b"loot"))
    try:
        fake.on("GET /file", Answer(302, b"", {"Location": f"{other.url}/loot", "X-Error-Code": "X"}))
        fake.on(
            f"GET {GET_JOB}",
            job(fileUrl=f"{other.url}/loot"),
            job(jobId="job-2", fileUrl=f"{fake.url}/file?a=b"),
        )
        outside, inside = await faked.offer(), await faked.offer()
        assert outside.spec["file_url"] == f"{other.url}/loot"
        assert "file" not in outside.spec
        assert inside.spec["file"] == "/file?a=b"
        with pytest.raises(Unavailable, match="redirects"):
            await faked.line.fetch_file(inside, tmp_path / "f", limit_bytes=100)
        assert other.asked == []
        assert fake.last("/file").headers["x-worker-token"] == "token-1"
    finally:
        other.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://hostler.example:444/f", "http://hostler.example/f", "https://hostler.example.org/f",
        "https://hostler.example@evil.example/f", "//evil.example/f", "https://[::1/f", "/f",
    ],
)  # fmt: skip
async def test_only_the_very_same_origin_is_ours(tmp_path: Path, url: str) -> None:
    strict = plane("https://hostler.example/", tmp_path)
    assert strict.path_of("https://HOSTLER.example:443/f?x=1") == "/f?x=1"
    assert strict.path_of(url) is None
    await strict.close()


async def test_a_server_nobody_vouches_for_is_not_spoken_to(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    heard = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head)
        body = json.dumps({"token": "t"}).encode()
        writer.write(
            b"HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    stranger, friend = plane(url, tmp_path), plane(url, tmp_path, ca_file=certificate)
    with pytest.raises(Unavailable, match="certificate"):
        await stranger.register()
    assert heard == []
    await friend.register()
    assert len(heard) == 2
    await stranger.close()
    await friend.close()
    server.close()
    await server.wait_closed()


def _certificate(directory: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate_file, key_file = directory / "ca.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_file, key_file


async def test_a_proxy_is_used_for_elsewhere_and_not_for_this_machine(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = FakeServer()
    try:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        here = plane(fake.url, tmp_path)
        await here.register()
        assert proxy.asked == []
        elsewhere = plane("http://hostler.invalid", tmp_path, "agent-2")
        with pytest.raises(Unavailable):
            await elsewhere.register()
        assert proxy.asked[0].headers["host"] == "hostler.invalid"
        await here.close()
        await elsewhere.close()
    finally:
        proxy.close()
