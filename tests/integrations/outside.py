"""The outside world of these tests: servers that talk as told, name servers, and a certificate authority."""

import contextlib
import datetime
import io
import socket
import ssl
import threading
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from integrations.outbound import Fetched, Network, fetch

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
