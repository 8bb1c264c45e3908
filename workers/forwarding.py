"""What a node answers about its apps: requests passed on to their processes, files of their releases, their logs.

Nothing that opens Hostler's doors reaches an app: credentials stay here, and a short-lived signed header says who asks.
"""

import asyncio
import contextlib
import io
import mimetypes
import os
import re
import secrets
import stat
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx

from storage.errors import BadGateway, GatewayTimeout, Invalid, NotFound
from storage.relay import PIECE_BYTES, Ask, Head
from storage.seal import Seal
from workers.supervisor import plain_http
from workers.supervisor.logs import OLDER_KEPT
from workers.supervisor.places import connectable

#: The header in which an app is told who asks, and for how long it may believe it.
IDENTITY_HEADER = "X-Hostler-Identity"
IDENTITY_S = 60
#: How long a process may take to accept a connection.
CONNECT_S = 5.0
#: How many lines of a log are given at once, and how far back they are looked for.
MOST_LINES, MOST_LOG_BYTES = 10_000, 8 * 1024 * 1024

#: What belongs to one connection and not to the message (RFC 9110, section 7.6.1).
_HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
}  # fmt: skip
#: What opens our doors, or says what only we may say. What else begins with x-hostler- is ours alone too.
_OURS = {
    "authorization", "cookie", "x-api-key", "x-worker-token", "x-enroll-secret", "x-forwarded-user", "forwarded",
    "x-real-ip",
}  # fmt: skip
#: What follows from the body as we send it.
_FRAMING = {"host", "content-length", "expect"}
#: What an app may not say under our name.
_NOT_BACK = {
    "set-cookie", "set-cookie2", "server", "date", "content-length", "strict-transport-security", "clear-site-data",
    "www-authenticate", "alt-svc", "public-key-pins", "service-worker-allowed", "report-to", "nel", "x-accel-redirect",
    "x-sendfile",
}  # fmt: skip
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[^\x00\r\n]*")
_PRINTABLE = re.compile(r"[\t\x20-\x7e]*")
_PATH = re.compile(r"[\x21-\x7e]{1,8192}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: What `mimetypes` guesses differently from one machine to the next.
_TYPES = {
    ".js": "text/javascript", ".mjs": "text/javascript", ".cjs": "text/javascript", ".json": "application/json",
    ".map": "application/json", ".css": "text/css", ".html": "text/html", ".htm": "text/html",
    ".svg": "image/svg+xml", ".wasm": "application/wasm", ".md": "text/markdown", ".woff2": "font/woff2",
    ".woff": "font/woff", ".ico": "image/x-icon", ".txt": "text/plain", ".webmanifest": "application/manifest+json",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process of an app listens: a unix socket, which is its user's, else a port on 127.0.0.1."""

    socket: Path | None = None
    port: int | None = None
    uid: int | None = None


class Apps(Protocol):
    """What is asked of the supervisor. Names are checked by it: an unknown one never becomes a path."""

    def address(self, instance_id: str, process: str, index: int) -> Address:
        """Return where an instance listens; process "" is the one that serves the routes.

        Raises NotFound for an app, process or index that is not on this node, NotRunning.
        """

    def release(self, instance_id: str) -> Path:
        """Return the directory of the active release. Raises NotFound."""

    def log_file(self, instance_id: str, process: str, index: int) -> Path:
        """Return where an instance's output goes; process "" is the first. Raises NotFound."""


def identity_key(seal: Seal, instance_id: str) -> str:
    """Return the key with which one app checks who asks, as its environment has it in HOSTLER_IDENTITY_KEY.

    It is derived for this app alone: with it, an app can deceive nobody but itself.
    """
    return seal.signature("app identity", instance_id)


class Forwarder:
    """Answers questions to the apps of this node; `handle` is what storage.relay.serve wants."""

    def __init__(self, apps: Apps, seal: Seal) -> None:
        self._apps, self._seal = apps, seal

    async def handle(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        """Yield the head of an answer, then its body.

        Raises NotFound, NotRunning, Invalid, BadGateway, GatewayTimeout.
        """
        answer = {"http": self._http, "file": self._file, "log": self._log}[ask.kind]
        async with contextlib.aclosing(answer(ask)) as parts:
            async for part in parts:
                yield part

    async def _http(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        address = self._apps.address(ask.app, ask.process, ask.index)
        request = _request(ask, address, self._identity(ask))
        with _door(ask.app, address) as uds:
            async with contextlib.aclosing(_passed_on(ask, request, plain_http.transport(uds))) as parts:
                async for part in parts:
                    yield part

    def _identity(self, ask: Ask) -> list[tuple[str, str]]:
        if ask.caller is None:
            return []
        now_s = int(time.time())
        claims = {
            **ask.caller, "iss": "hostler", "aud": ask.app, "iat": now_s, "exp": now_s + IDENTITY_S,
            "jti": secrets.token_urlsafe(12),
        }  # fmt: skip
        import jwt  # noqa: PLC0415  it takes 6 MiB, and many nodes have no app that is asked anything

        token = jwt.encode(claims, identity_key(self._seal, ask.app), algorithm="HS256")
        return [(IDENTITY_HEADER, token)]

    async def _file(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        release = self._apps.release(ask.app)
        for path in filter(None, (ask.path, ask.fallback)):
            if (file := await asyncio.to_thread(_opened_below, release, ask.within, path)) is not None:
                break
        else:
            raise NotFound(f"{ask.app} has no file {ask.path!r}.")
        with file:
            found = os.fstat(file.fileno())
            if found.st_size > ask.limit_bytes:
                raise BadGateway(f"{path!r} of {ask.app} has more than {ask.limit_bytes} bytes.")
            etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
            yield Head(200, (("content-type", content_type(path)), ("etag", etag)))
            while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield data

    async def _log(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        path = self._apps.log_file(ask.app, ask.process, ask.index)
        lines = max(1, min(ask.lines, MOST_LINES))
        limit_bytes = min(ask.limit_bytes, MOST_LOG_BYTES)
        text = await asyncio.to_thread(tail, path, lines, limit_bytes)
        yield Head(200, (("content-type", "text/plain; charset=utf-8"),))
        yield text


# HTTP


@contextlib.contextmanager
def _door(app: str, address: Address) -> Iterator[str | None]:
    """Yield the path of the socket to connect to, None for a port. Raises BadGateway where it is not the app's."""
    if address.socket is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(connectable(address.socket, address.uid))
        except NotFound:
            raise BadGateway(f"{app} cannot be reached where it should listen.") from None
        yield path


async def _passed_on(
    ask: Ask, request: httpx.Request, transport: httpx.AsyncHTTPTransport
) -> AsyncGenerator[Head | bytes, None]:
    async with transport:
        try:
            response = await transport.handle_async_request(request)
            try:
                if not 200 <= response.status_code <= 599:
                    raise BadGateway(f"{ask.app} answered with the status {response.status_code}.")
                yield Head(response.status_code, tuple(_back(response.headers.multi_items())))
                async for data in response.aiter_raw():
                    yield data
            finally:
                await response.aclose()
        except httpx.TimeoutException:
            raise GatewayTimeout(f"{ask.app} did not answer within {ask.timeout_s:g} s.") from None
        except httpx.ConnectError:
            raise BadGateway(f"{ask.app} cannot be reached where it should listen.") from None
        except (httpx.TransportError, httpx.StreamError):
            raise BadGateway(f"{ask.app} broke its answer off, or it is no HTTP.") from None


def _request(ask: Ask, address: Address, more: list[tuple[str, str]]) -> httpx.Request:
    """Return the request as the app gets it. Raises Invalid."""
    if ask.method not in _METHODS:
        raise Invalid(f"{ask.method!r} is no method that is passed on to an app.")
    raw_path = ask.path + (f"?{ask.query}" if ask.query else "")
    if not ask.path.startswith("/") or not _PATH.fullmatch(raw_path):
        raise Invalid("The path to pass on to an app is no path of a URL.")
    url = httpx.URL("http://localhost", port=address.port, raw_path=raw_path.encode("ascii"))
    headers = [*_onward(ask.headers), *more]
    headers += [(f"X-Forwarded-{name.title()}", value) for name, value in ask.forwarded.items()]
    timeout = httpx.Timeout(ask.timeout_s, connect=min(CONNECT_S, ask.timeout_s))
    content = ask.body if ask.body or ask.method in {"POST", "PUT", "PATCH"} else None
    extensions = {"timeout": timeout.as_dict()}
    return httpx.Request(ask.method, url, headers=headers, content=content, extensions=extensions)


def _onward(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Yield the headers that an app may see: none of one connection, that opens doors, or that is ours to say."""
    headers = list(headers)
    dropped = _HOP_BY_HOP | _OURS | _FRAMING | _named_by_connection(headers)
    for name, value in headers:
        lower = name.lower()
        # an underscore becomes a hyphen in some servers, and so a header of ours
        if "_" in name or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            continue
        if lower not in dropped and not lower.startswith(("x-hostler-", "x-forwarded-")):
            yield name, value


def _back(headers: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Yield the headers of an app's answer that its client may see."""
    dropped = _HOP_BY_HOP | _NOT_BACK | _named_by_connection(headers)
    for name, value in headers:
        lower = name.lower()
        theirs = lower not in dropped and not lower.startswith(
            ("x-hostler-", "access-control-", "x-ratelimit-")
        )
        if theirs and _TOKEN.fullmatch(name) and _PRINTABLE.fullmatch(value):
            yield lower, value


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> set[str]:
    values = (value for name, value in headers if name.lower() == "connection")
    return {word.strip().lower() for value in values for word in value.split(",")}


# Files


#: Python's own table, without what the machine adds to it.
_PYTHONS_OWN = mimetypes.MimeTypes().types_map[True]


def content_type(path: str | os.PathLike[str]) -> str:
    """Return the media type that the name of a file tells, by one table on every machine."""
    suffix = Path(path).suffix.lower()
    kind = _TYPES.get(suffix) or _PYTHONS_OWN.get(suffix, "application/octet-stream")
    is_text = kind.startswith("text/") or kind in {"application/json", "image/svg+xml"}
    return f"{kind}; charset=utf-8" if is_text else kind


def _opened_below(release: Path, within: str, path: str) -> BinaryIO | None:
    """Open a regular file below `within` of a release; None when there is none, or it lies elsewhere.

    A link may lead around inside; the way it leads to is then walked without following any, since the app may change
    what we have looked at.
    """
    parts = [part for part in f"{within}/{path}".split("/") if part not in {"", "."}]
    if ".." in parts or any("\\" in part or "\0" in part for part in parts):
        return None
    try:
        top = release.resolve(strict=True)
        root = top.joinpath(*(part for part in within.split("/") if part)).resolve(strict=True)
        target = top.joinpath(*parts).resolve(strict=True)
        if not root.is_relative_to(top) or not target.is_relative_to(root):
            return None
        return _opened(_walked(top, target.relative_to(top).parts))
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle, until Python 3.13
        return None


def _walked(top: Path, parts: tuple[str, ...]) -> int:
    """Return a descriptor of the file at `parts` below `top`, following no link. Raises OSError."""
    if os.open not in os.supports_dir_fd:
        return os.open(top.joinpath(*parts), _READ)
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = inner
        return os.open(parts[-1] if parts else ".", _READ, dir_fd=directory)
    finally:
        os.close(directory)


#: Not to hang on a pipe, and not to follow a link in the last place.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _opened(descriptor: int) -> BinaryIO | None:
    """Return the file behind a descriptor, which is closed unless it is a regular file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


# Logs


def tail(path: Path, lines: int, limit_bytes: int) -> bytes:
    """Return the last lines of a log, from the files it was rotated to as well, as far as they go without a gap."""
    found: list[bytes] = []
    for each in (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, OLDER_KEPT + 1))):
        older, is_whole = _last_lines(each, lines - len(found), limit_bytes - sum(map(len, found)))
        found = older + found
        if not is_whole or len(found) >= lines:
            break
    return b"".join(found)


def _last_lines(path: Path, lines: int, limit_bytes: int) -> tuple[list[bytes], bool]:
    """Return the last lines of one file, and whether nothing before them was left out for want of bytes."""
    try:
        file = _opened(os.open(path, _READ))
    except OSError:
        return [], True
    if file is None:
        return [], True
    with file:
        at = file.seek(0, os.SEEK_END)
        data = bytearray()
        while at > 0 and data.count(b"\n") <= lines and len(data) < limit_bytes:
            step = min(64 * 1024, at, limit_bytes - len(data))
            file.seek(at - step)
            data[:0] = file.read(step)
            at -= step
            if data.startswith(b"\0"):  # the file begins with a hole where it has been rotated
                data, at = data.lstrip(b"\0"), 0
    # not splitlines, which also ends lines where a progress bar begins anew
    whole = io.BytesIO(data).readlines()
    if at > 0 and len(whole) > 1:
        whole = whole[1:]  # the first may have begun earlier
    if whole and not whole[-1].endswith(b"\n"):
        whole[-1] += b"\n"
    return whole[-lines:], at == 0
