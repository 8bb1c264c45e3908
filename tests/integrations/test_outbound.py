"""Requests to addresses that users name: what is refused, what is pinned, what is cut off."""

import contextlib
import datetime
import hashlib
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from integrations.outbound import ANSWER_LIMIT_BYTES, Fetched, Network, Reply, ask, check_url, deliver, fetch
from storage.errors import Conflict, HostlerError, Invalid, TooLarge, Unavailable

LOOPBACK = ["127.0.0.1"]
PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"

Talk = Callable[[socket.socket, bytes], None]


class Server:
    """A loopback server that reads a request whole, and then talks as it likes."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None) -> None:
        self.requests: list[bytes] = []
        self.gone = threading.Event()
        self._talk, self._tls = talk, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                if self.gone.is_set():
                    return
                connection.settimeout(5)
                if self._tls:
                    with self._tls.wrap_socket(connection, server_side=True) as secured:
                        self._answer(secured)
                else:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (received := connection.recv(65536)):
                return
            request += received
        head, _, body = request.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        while lengths and len(body) < int(lengths[0].partition(b":")[2]):
            body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        self._talk(connection, request)

    def close(self) -> None:
        self.gone.set()
        with socket.create_connection(("127.0.0.1", self.port)):
            self._thread.join(timeout=10)
        self._listener.close()
        assert not self._thread.is_alive()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(talk: bytes | Talk = OK, tls: ssl.SSLContext | None = None) -> Server:
        server = Server(talk if callable(talk) else lambda connection, _: connection.sendall(talk), tls)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


class FakeInternet:
    """Name servers that answer as told, one answer a look-up, and wires that all end at one loopback port."""

    def __init__(self, *answers: list[str], port: int | None = None) -> None:
        self._answers = list(answers)
        self._port = port
        self.looked_up: list[str] = []
        self.connected: list[str] = []

    def look_up(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        return self._answers.pop(0)

    def connect(self, address: str, port: int, timeout_s: float) -> socket.socket:
        self.connected.append(address)
        if self._port is None:
            raise ConnectionRefusedError
        return socket.create_connection(("127.0.0.1", self._port), timeout=timeout_s)

    def network(self, tls: ssl.SSLContext | None = None) -> Network:
        context = tls or ssl.create_default_context()
        return Network(look_up=self.look_up, connect=self.connect, tls=lambda: context)


class Certificates:
    """A certificate authority of this test's own, and a server certificate for `name`."""

    def __init__(self, folder, name: str) -> None:
        authority_key, server_key = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        now = datetime.datetime.now(datetime.UTC)

        def signed(subject: x509.Name, key, *extensions: x509.ExtensionType) -> x509.Certificate:
            builder = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(authority_name)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(hours=1))
                .not_valid_after(now + datetime.timedelta(hours=1))
            )
            for extension in extensions:
                builder = builder.add_extension(extension, critical=False)
            return builder.sign(authority_key, hashes.SHA256())

        authority = signed(authority_name, authority_key, x509.BasicConstraints(ca=True, path_length=0))
        server = signed(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            server_key,
            x509.SubjectAlternativeName([x509.DNSName(name)]),
        )
        pem = serialization.Encoding.PEM
        chain = folder / "server.pem"
        chain.write_bytes(
            server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + server.public_bytes(pem)
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(chain)
        self.client = ssl.create_default_context(cadata=authority.public_bytes(pem).decode())


def get(url: str, **options) -> tuple[Fetched, bytes]:
    into = io.BytesIO()
    options = {"limit_bytes": 1_000_000, "timeout_s": 5, "allow": LOOPBACK} | options
    return fetch(url, into, **options), into.getvalue()


def local(server: Server, path: str = "/") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


# The text of a URL


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:8443/a/b?c=d#e",
        "https://EXAMPLE.com/%2e%2e/",
        "https://xn--bcher-kva.example/",
        "https://93.184.216.34/",
        "https://[2606:2800:220:1::1]/",
        "https://[64:ff9b::5db8:d822]/",  # NAT64 of a public address
        "https://a_b.example/",
    ],
)
def test_a_public_https_url_passes(url):
    check_url(url)


PRIVATE_HOSTS = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",  # noqa: S104  nothing is bound here
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fec0::1]",
    "[fd00::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[100::1]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:5db8:d822::]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a00:1]",
    "[64:ff9b:1::5db8:d822]",
    "[2001::1]",
    "[5f00::1]",
    "[4000::1]",
    "localhost",
    "LOCALHOST",
    "app.localhost",
]


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_a_host_that_is_not_public_is_refused_in_one_sentence(host):
    for port in ("", ":6379"):
        with pytest.raises(Invalid) as refusal:
            check_url(f"https://{host}{port}/")
        assert str(refusal.value) == f"'{host.strip('[]').lower()}' is not a host that Hostler may reach."


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "0",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.0x4",
        "127.0.0.1.",
        "example.com.",
        ".",
        "..",
        "a..b",
        "-a.example",
        "a-.example",
        "%31%32%37.0.0.1",
        "127.0.0.1%00.example.com",
        "example.com%2f",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]x:80",
        "a[::1]",
        "[::1%25eth0]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "[v1.x]",
        "a'b.example",
        "a,b.example",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
    ],
)
def test_an_unusual_spelling_of_a_host_is_refused(host):
    with pytest.raises(Invalid):
        check_url(f"https://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https:///path",
        "https:example.com",
        "//example.com/",
        "example.com",
        "http://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "unix:///run/redis.sock",
        "ftp://example.com/",
        "javascript:alert(1)",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://example.com@127.0.0.1/",
        "https://127.0.0.1#@example.com/",
        "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\.example.com/",
        "https://example.com:0/",
        "https://example.com:/",
        "https://example.com:65536/",
        "https://example.com:80:80/",
        "https://example.com:+443/",
        "https://example.com/a b",
        " https://example.com/",
        "https://exam\nple.com/",
        "https://example.com/\r\nHost: x",
        "https://example.com/\x00",
        "https://example.com/\x7f",
        "https://１２７.0.0.1/",  # noqa: RUF001  digits of another width, which some parsers fold into ours
        "https://127。0。0。1/",
        "https://bücher.example/",
        "https://example.com/ü",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_parsers_might_read_in_two_ways_is_refused(url):
    with pytest.raises(Invalid):
        check_url(url)


def test_no_refusal_repeats_what_may_be_secret():
    for url in (
        "https://user:hunter2@example.com/",
        "http://example.com/?token=hunter2",
        "https://[::1]/hunter2",
    ):
        with pytest.raises(Invalid) as refusal:
            check_url(url)
        assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://127.0.0.1:8080/", ["127.0.0.1"]),
        ("http://[::1]/", ["::1"]),
        ("http://[::1]/", ["[::1]"]),
        ("http://[::ffff:10.1.2.3]/", ["10.0.0.0/8"]),
        ("https://10.1.2.3/", ["192.168.0.0/16", "10.0.0.0/8"]),
        ("http://Build.Internal/", ["build.internal"]),
        ("http://localhost/", ["LOCALHOST"]),
    ],
)
def test_what_the_operator_allows_passes_even_without_tls(url, allow):
    check_url(url, allow=allow)
    with pytest.raises(Invalid):
        check_url(url)


def test_an_exception_covers_nothing_beside_itself():
    for url in (
        "http://127.0.0.2/",
        "http://sub.build.internal/",
        "http://user@127.0.0.1/",
        "ftp://127.0.0.1/",
    ):
        with pytest.raises(Invalid):
            check_url(url, allow=["127.0.0.1", "build.internal"])


# Names


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["10.0.0.7"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%1"],
        [PUBLIC, "127.0.0.1"],
    ],
)
def test_a_name_that_leads_inside_is_refused_before_any_connection(answer):
    internet = FakeInternet(answer, answer)
    for port in (443, 6379):
        with pytest.raises(Invalid, match=r"^'inside\.example' is not a host that Hostler may reach\.$"):
            get(f"https://inside.example:{port}/", allow=[], network=internet.network())
    assert internet.connected == []


def test_the_address_that_was_judged_is_the_one_connected_to(serve, tmp_path):
    certificates = Certificates(tmp_path, "rebinding.example")
    server = serve(OK, certificates.server)
    internet = FakeInternet([PUBLIC], ["127.0.0.1"], port=server.port)
    fetched, body = get("https://rebinding.example/", allow=[], network=internet.network(certificates.client))
    assert (fetched.size_bytes, body) == (5, b"hello")
    assert internet.looked_up == ["rebinding.example"]
    assert internet.connected == [PUBLIC]


def test_a_second_request_looks_the_name_up_and_judges_it_anew(serve, tmp_path):
    certificates = Certificates(tmp_path, "rebinding.example")
    server = serve(OK, certificates.server)
    internet = FakeInternet([PUBLIC], ["127.0.0.1"], port=server.port)
    get("https://rebinding.example/", network=internet.network(certificates.client))
    with pytest.raises(Invalid):
        get("https://rebinding.example/", allow=[], network=internet.network(certificates.client))
    assert internet.connected == [PUBLIC]


def test_the_next_address_is_tried_when_one_refuses(serve):
    server = serve()
    internet = FakeInternet(["127.0.0.9", "127.0.0.1"])

    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        if address == "127.0.0.9":
            raise ConnectionRefusedError
        return socket.create_connection((address, port), timeout=timeout_s)

    network = Network(look_up=internet.look_up, connect=connect)
    assert get(f"http://two.example:{server.port}/", allow=["two.example"], network=network)[1] == b"hello"


def test_a_name_in_an_allowed_network_still_needs_tls():
    with pytest.raises(Invalid, match="https"):
        get("http://inside.example/", allow=["10.0.0.0/8"], network=FakeInternet().network())


def test_a_name_that_nobody_knows_may_be_tried_again():
    def look_up(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Unavailable):
        get("https://nobody.example/", network=Network(look_up=look_up))


def test_a_look_up_that_never_ends_is_cut_at_the_deadline():
    released = threading.Event()

    def look_up(host: str, port: int) -> list[str]:
        released.wait(10)
        return [PUBLIC]

    started = time.monotonic()
    with pytest.raises(Unavailable):
        get("https://slow.example/", timeout_s=0.3, network=Network(look_up=look_up))
    assert time.monotonic() - started < 3
    released.set()


# TLS


def test_a_certificate_for_another_name_is_refused(serve, tmp_path):
    certificates = Certificates(tmp_path, "right.example")
    server = serve(OK, certificates.server)
    internet = FakeInternet([PUBLIC], [PUBLIC], port=server.port)
    network = internet.network(certificates.client)
    with pytest.raises(Unavailable):
        get("https://wrong.example/", network=network)
    assert server.requests == []
    assert get("https://right.example/", network=network)[1] == b"hello"


def test_a_certificate_of_an_unknown_authority_is_refused(serve, tmp_path):
    server = serve(OK, Certificates(tmp_path, "right.example").server)
    internet = FakeInternet([PUBLIC], port=server.port)
    with pytest.raises(Unavailable):
        get("https://right.example/", network=internet.network())
    assert server.requests == []


def test_the_name_is_sent_to_the_server_and_not_the_address(serve, tmp_path):
    certificates = Certificates(tmp_path, "named.example")
    asked: list[str | None] = []
    certificates.server.sni_callback = lambda connection, name, context: asked.append(name)
    server = serve(OK, certificates.server)
    get(
        "https://named.example/",
        network=FakeInternet([PUBLIC], port=server.port).network(certificates.client),
    )
    assert asked == ["named.example"]
    assert b"host: named.example\r\n" in server.requests[0].lower()


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


def test_every_refusal_is_one_of_hostlers_own_errors():
    for number in range(256):
        with contextlib.suppress(HostlerError):
            check_url(f"https://exa{chr(number)}mple.com/")
        with contextlib.suppress(HostlerError):
            check_url(f"https://{ipaddress.IPv4Address(number << 24)}/")


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
