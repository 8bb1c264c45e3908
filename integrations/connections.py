"""Connections that lead to judged addresses alone, within one deadline.

A name is looked up once, every address found is judged, and the connection goes to the very address that was judged,
while TLS still proves the name: a second, different answer of the name server comes too late. What fails is said in the
same words whether a port was closed, silent, or open and speaking something else.
"""

import concurrent.futures
import contextlib
import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore

from integrations.targets import Address, Allowed, Target, forbidden, may_reach
from settings import __version__
from storage.errors import Conflict, Invalid, Unavailable

CHUNK_BYTES = 64 * 1024
#: The longest wait for one address to accept a connection, and for its TLS handshake.
CONNECT_S = 10.0
#: How often a wait looks whether it was cancelled.
LOOK_S = 0.25
#: How many addresses of one name are tried.
ADDRESSES_TRIED = 4


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


def _unreachable(host: str) -> Unavailable:
    return Unavailable(f"'{host}' cannot be reached, or does not answer as it should.")


class Watch:
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

    def __init__(self, connection: socket.socket, watch: Watch) -> None:
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

    def __init__(self, target: Target, allowed: Allowed, network: Network, watch: Watch) -> None:
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
        if not all(may_reach(address, self._allowed) for address in addresses):
            raise forbidden(self._target.host)
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
def exchange(
    method: str,
    target: Target,
    allowed: Allowed,
    *,
    headers: Mapping[str, str],
    body: bytes | None,
    watch: Watch,
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
