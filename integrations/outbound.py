"""Requests to addresses that users name, held to the public internet and to what the operator allows.

Three rules defend what stands behind the firewall. A name is looked up once, every address found is judged,
and the connection goes to the very address that was judged, while TLS still proves the name: a second,
different answer of the name server comes too late. Redirects are an answer, not an order. A deadline and a
count of bytes cover the whole exchange, from the look-up to the last byte.

Messages name the host and never the rest of the URL, which may hold a token; they are the same whether a port
was closed, silent, or open and speaking something else.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import SplitResult, urlsplit

import httpcore

from settings import __version__
from storage.errors import Conflict, Invalid, TooLarge, Unavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AddressRange = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_LIMIT_CHARS = 2048
CHUNK_BYTES = 64 * 1024
#: How much of the answer to a webhook is read before the line is cut.
ANSWER_LIMIT_BYTES = 64 * 1024
#: The longest wait for one address to accept a connection, and for its TLS handshake.
CONNECT_S = 10.0
#: How often a wait looks whether it was cancelled.
LOOK_S = 0.25
#: How many addresses of one name are tried.
ADDRESSES_TRIED = 4

DEFAULT_PORTS = {"https": 443, "http": 80}
#: Statuses that say "not now" rather than "no".
WORTH_ANOTHER_TRY = {408, 425, 429}
#: What a caller may not set: these frame the message, and belong to the one who sends it.
FRAMING_HEADERS = {
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NETLOC = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]{1,5})?")
_VISIBLE_ASCII = re.compile(r"[!-~]+")

_UNICAST6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Refused although Python's `is_global`, in one version or another, lets them pass.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's wire server: a public address that answers from inside
        "192.0.0.0/24",  # protocol assignments, a cloud's metadata among them (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # protocol assignments, Teredo among them (RFC 2928, RFC 4380)
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4: an IPv4 address in disguise (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)


@dataclass(frozen=True)
class Fetched:
    """What was fetched: its length, its SHA-256 as 64 hex digits, and the type the server gave it."""

    size_bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True)
class Reply:
    """What a server answered, whole; whether its status is good news is for the asker to say."""

    status: int
    body: bytes


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _connect(address: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=timeout_s)


@functools.cache
def _public_authorities() -> ssl.SSLContext:
    """Return public authorities, or those of SSL_CERT_FILE; reading them takes tens of milliseconds."""
    import httpx  # noqa: PLC0415  with its command line it takes 6 MiB, which processes that call nobody can spare

    return httpx.create_ssl_context()


@dataclass(frozen=True)
class Network:
    """The way out: how a name becomes addresses, an address a socket, and whose certificates count."""

    look_up: Callable[[str, int], Sequence[str]] = _look_up
    connect: Callable[[str, int, float], socket.socket] = _connect
    tls: Callable[[], ssl.SSLContext] = _public_authorities


INTERNET = Network()


@dataclass(frozen=True)
class _Allowed:
    """The operator's exceptions: names and networks that may be private and may be spoken to without TLS."""

    names: frozenset[str]
    networks: tuple[AddressRange, ...]

    def name(self, host: str) -> bool:
        return host in self.names

    def address(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


@functools.lru_cache(maxsize=16)
def _allowed(words: tuple[str, ...]) -> _Allowed:
    names, networks = set(), []
    for word in words:
        try:
            networks.append(ipaddress.ip_network(word.strip("[]"), strict=False))
        except ValueError:
            names.add(word.lower())
    return _Allowed(frozenset(names), tuple(networks))


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped or NAT64 address stands for, any other as it is."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST6:
        return False
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address in network for network in _REFUSED)


def _may_reach(address: Address, allowed: _Allowed) -> bool:
    address = _unwrapped(address)
    return allowed.address(address) or _is_public(address)


def _forbidden(host: str) -> Invalid:
    return Invalid(f"'{host}' is not a host that Hostler may reach.")


def _unreachable(host: str) -> Unavailable:
    return Unavailable(f"'{host}' cannot be reached, or does not answer as it should.")


@dataclass(frozen=True)
class _Target:
    """A URL that passed the checks, in the parts that a request is made of."""

    scheme: str
    host: str
    port: int
    path: str  # with the query
    address: Address | None  # when the host is one

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def url(self) -> httpcore.URL:
        return httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=self.path)


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Take `url` apart; raise Invalid for what parsers are known to read in more than one way."""
    if len(url) > URL_LIMIT_CHARS:
        raise Invalid(f"The URL is longer than {URL_LIMIT_CHARS:,} characters.")
    if not _VISIBLE_ASCII.fullmatch(url) or "\\" in url:
        raise Invalid("The URL holds a space, a backslash, a control character or a letter outside ASCII.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid("The URL has no valid host and port.") from error
    if "@" in parts.netloc:
        raise Invalid("The URL holds a user name or a password; send those in headers.")
    if not _NETLOC.fullmatch(parts.netloc) or port == 0:
        raise Invalid("The URL has no valid host and port.")
    return parts, port


def _literal(host: str, *, bracketed: bool) -> Address | None:
    """Return the address that `host` spells, or None for a name; raise Invalid for what is neither.

    Which host counts as IPv4 is the WHATWG URL Standard's rule ("ends in a number"). The only spelling taken
    is four decimal numbers, for 127.1, 0x7f000001, 2130706433 and 0177.0.0.1 are addresses to some resolvers.
    """
    labels = host.split(".")
    try:
        if bracketed:
            return ipaddress.IPv6Address(host)
        if _NUMERIC_LABEL.fullmatch(labels[-1]):
            return ipaddress.IPv4Address(host)
    except ValueError as error:
        raise Invalid(f"'{host}' is not an address in its usual spelling.") from error
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid(f"'{host}' is not a host name.")
    return None


def _target(url: str, allowed: _Allowed) -> _Target:
    parts, port = _split(url)
    host = parts.hostname or ""
    if parts.scheme not in DEFAULT_PORTS:
        raise Invalid("The URL must start with https://.")
    address = _literal(host, bracketed="[" in parts.netloc)
    excepted = allowed.name(host) or (address is not None and allowed.address(_unwrapped(address)))
    if not excepted:
        if address is not None and not _is_public(_unwrapped(address)):
            raise _forbidden(host)
        if host == "localhost" or host.endswith(".localhost"):  # loopback by RFC 6761, whatever DNS says
            raise _forbidden(host)
        if parts.scheme != "https":
            raise Invalid("The URL must start with https://.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], path, address)


def check_url(url: str, *, allow: Sequence[str] = ()) -> None:
    """Refuse a URL that may not be requested, as far as its text tells; nothing is looked up.

    `allow` holds host names, addresses and networks that may be private and may use http://. Raises Invalid.
    """
    _target(url, _allowed(tuple(allow)))


class _Watch:
    """How long an exchange may still take, and whether anybody still wants it."""

    def __init__(self, host: str, timeout_s: float, cancelled: Callable[[], bool]) -> None:
        self._host = host
        self._end = time.monotonic() + timeout_s
        self._cancelled = cancelled

    def left_s(self, at_most_s: float) -> float:
        """Return how long to wait now; raise Unavailable after the deadline, Conflict when cancelled."""
        if self._cancelled():
            raise Conflict(f"The request to '{self._host}' was cancelled.")
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise _unreachable(self._host)
        return min(left_s, at_most_s)


class _Stream(httpcore.NetworkStream):
    """A socket on which every wait ends at the watch's deadline, however slowly bytes drip in."""

    def __init__(self, connection: socket.socket, watch: _Watch) -> None:
        self._socket = connection
        self._watch = watch

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout  # the watch has one for the whole
        while True:
            self._socket.settimeout(self._watch.left_s(LOOK_S))
            try:
                return self._socket.recv(max_bytes)
            except TimeoutError:
                continue
            except OSError as error:
                raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        rest = memoryview(buffer)
        while rest:
            self._socket.settimeout(self._watch.left_s(LOOK_S))
            try:
                rest = rest[self._socket.send(rest[:CHUNK_BYTES]) :]
            except TimeoutError:
                continue
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        self._socket.settimeout(self._watch.left_s(CONNECT_S))
        try:
            return _Stream(
                ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._watch
            )
        except (OSError, ValueError) as error:
            raise httpcore.ConnectError(str(error)) from error
        finally:
            self._socket.close()  # wrapping moved it into the new socket, or failed

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket):
            return self._socket
        return None


class _Pinned(httpcore.NetworkBackend):
    """Looks a name up once, judges all its addresses, and connects to one of those."""

    def __init__(self, target: _Target, allowed: _Allowed, network: Network, watch: _Watch) -> None:
        self._target = target
        self._allowed = allowed
        self._network = network
        self._watch = watch

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del timeout, local_address, socket_options
        failure: OSError | None = None
        for address in self._addresses()[:ADDRESSES_TRIED]:
            try:
                connection = self._network.connect(str(address), port, self._watch.left_s(CONNECT_S))
            except OSError as error:
                failure = error
            else:
                return _Stream(connection, self._watch)
        raise httpcore.ConnectError(f"No address of {host} accepts connections.") from failure

    def _addresses(self) -> list[Address]:
        if self._target.address is not None:
            return [self._target.address]  # judged with the URL
        addresses = [ipaddress.ip_address(word) for word in self._answers()]
        if self._allowed.name(self._target.host):
            return addresses
        # One private address among public ones is enough: an honest name has none.
        if not all(_may_reach(address, self._allowed) for address in addresses):
            raise _forbidden(self._target.host)
        return addresses

    def _answers(self) -> Sequence[str]:
        """Look the name up in a thread of its own: the system's resolver knows no deadline."""
        answer: concurrent.futures.Future[Sequence[str]] = concurrent.futures.Future()

        def look_up() -> None:
            try:
                answer.set_result(self._network.look_up(self._target.host, self._target.port))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=look_up, name="outbound-look-up", daemon=True).start()
        while not answer.done():
            concurrent.futures.wait([answer], timeout=self._watch.left_s(LOOK_S))
        try:
            return answer.result()
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{self._target.host} has no address.") from error


@contextlib.contextmanager
def _exchange(
    method: str,
    target: _Target,
    allowed: _Allowed,
    *,
    headers: Mapping[str, str],
    body: bytes | None,
    watch: _Watch,
    network: Network,
) -> Iterator[httpcore.Response]:
    """Send one request and hand out its response.

    httpcore and not httpx's client, because it follows no redirect, decodes nothing and reads no environment.
    """
    sent = {
        "host": target.authority,
        "user-agent": f"hostler/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
        **{name.lower(): value for name, value in headers.items()},
    }
    backend = _Pinned(target, allowed, network, watch)
    tls = network.tls() if target.scheme == "https" else None
    try:
        lines = [(name.encode("ascii"), value.encode("ascii")) for name, value in sent.items()]
        with (
            httpcore.ConnectionPool(ssl_context=tls, network_backend=backend) as pool,
            pool.stream(method, target.url(), headers=lines, content=body) as response,
        ):
            yield response
    except (httpcore.LocalProtocolError, UnicodeEncodeError) as error:
        raise Invalid("A header's name or value holds characters that HTTP forbids.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise _unreachable(target.host) from error


def fetch(
    url: str,
    into: BinaryIO,
    *,
    limit_bytes: int,
    timeout_s: float,
    allow: Sequence[str] = (),
    cancelled: Callable[[], bool] = lambda: False,
    network: Network = INTERNET,
) -> Fetched:
    """Write what `url` holds to `into`, byte for byte as it was sent, within `timeout_s` seconds in all.

    When this raises, `into` may hold a part of it. Raises Invalid for a target that may not be reached or an
    answer other than 200, TooLarge beyond `limit_bytes`, Conflict when `cancelled` says so, and Unavailable
    for what may be tried again.
    """
    allowed = _allowed(tuple(allow))
    target = _target(url, allowed)
    watch = _Watch(target.host, timeout_s, cancelled)
    with _exchange("GET", target, allowed, headers={}, body=None, watch=watch, network=network) as response:
        _refuse_status(target.host, response.status)
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        too_large = TooLarge(f"The file at '{target.host}' is larger than {limit_bytes:,} bytes.")
        if int(headers.get(b"content-length", "0")) > limit_bytes:
            raise too_large
        size_bytes, digest = 0, hashlib.sha256()
        for chunk in response.iter_stream():
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise too_large
            digest.update(chunk)
            into.write(chunk)
    content_type = headers.get(b"content-type", "")
    usable = len(content_type) <= 255 and content_type.isascii() and content_type.isprintable()
    return Fetched(
        size_bytes,
        digest.hexdigest(),
        content_type if content_type and usable else "application/octet-stream",
    )


def _refuse_status(host: str, status: int) -> None:
    if status == 200:
        return
    sentence = f"'{host}' answered {status} where a file was expected."
    if 300 <= status < 400:
        raise Invalid(f"'{host}' answered {status}, a redirect, and redirects are not followed.")
    if status >= 500 or status in WORTH_ANOTHER_TRY:
        raise Unavailable(sentence)
    raise Invalid(sentence)


def ask(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    limit_bytes: int,
    timeout_s: float,
    allow: Sequence[str] = (),
    network: Network = INTERNET,
) -> Reply:
    """Return what `url` answers within `timeout_s` seconds in all.

    Raises Invalid for a target or a header that is not allowed, Unavailable for one that cannot be reached, breaks off
    or answers more than `limit_bytes`.
    """
    allowed = _allowed(tuple(allow))
    target = _target(url, allowed)
    _refuse_framing(headers)
    watch = _Watch(target.host, timeout_s, lambda: False)
    with _exchange(
        method, target, allowed, headers=headers, body=body, watch=watch, network=network
    ) as response:
        parts, size_bytes = [], 0
        for chunk in response.iter_stream():
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise Unavailable(f"'{target.host}' answers more than {limit_bytes:,} bytes.")
            parts.append(chunk)
        return Reply(response.status, b"".join(parts))


def _refuse_framing(headers: Mapping[str, str]) -> None:
    if framing := sorted(name for name in headers if name.lower() in FRAMING_HEADERS):
        raise Invalid(f"The header {framing[0]} cannot be set.")


def deliver(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    timeout_s: float = 10,
    allow: Sequence[str] = (),
    network: Network = INTERNET,
) -> int:
    """POST `body` to `url` within `timeout_s` seconds in all, and return the answer's status, whatever it is.

    The answer's body is read up to 64 KiB and thrown away. Raises Invalid for a target or a header that is
    not allowed, Unavailable for what may be tried again.
    """
    allowed = _allowed(tuple(allow))
    target = _target(url, allowed)
    _refuse_framing(headers)
    watch = _Watch(target.host, timeout_s, lambda: False)
    with _exchange(
        "POST", target, allowed, headers=headers, body=body, watch=watch, network=network
    ) as response:
        # The status is the answer; a body that breaks off or never ends changes nothing about it.
        with contextlib.suppress(Unavailable, httpcore.NetworkError, httpcore.ProtocolError):
            read_bytes = 0
            for chunk in response.iter_stream():
                read_bytes += len(chunk)
                if read_bytes > ANSWER_LIMIT_BYTES:
                    break
        return response.status
