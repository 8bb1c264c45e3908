"""Requests to addresses that users name, held to the public internet and to what the operator allows.

Where they may go is judged before anything is sent (`targets.py`), and the connection goes to the very address that was
judged (`connections.py`). Redirects are an answer, not an order. A deadline and a count of bytes cover the whole
exchange, from the look-up to the last byte.
"""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import httpcore

from integrations.connections import INTERNET, Network, Watch, exchange
from integrations.targets import allowed_by, check_url, judged
from storage.errors import Invalid, TooLarge, Unavailable

#: How much of the answer to a webhook is read before the line is cut.
ANSWER_LIMIT_BYTES = 64 * 1024
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
    allowed = allowed_by(tuple(allow))
    target = judged(url, allowed)
    watch = Watch(target.host, timeout_s, cancelled)
    with exchange("GET", target, allowed, headers={}, body=None, watch=watch, network=network) as response:
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
    allowed = allowed_by(tuple(allow))
    target = judged(url, allowed)
    _refuse_framing(headers)
    watch = Watch(target.host, timeout_s, lambda: False)
    with exchange(
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
    allowed = allowed_by(tuple(allow))
    target = judged(url, allowed)
    _refuse_framing(headers)
    watch = Watch(target.host, timeout_s, lambda: False)
    with exchange(
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


__all__ = [
    "ANSWER_LIMIT_BYTES",
    "INTERNET",
    "Fetched",
    "Network",
    "Reply",
    "ask",
    "check_url",
    "deliver",
    "fetch",
]
