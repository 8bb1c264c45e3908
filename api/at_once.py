"""Looks at one record, and orders of one plain job, answered without a task: all in callbacks of the loop.

Only what is usual is done here: a caller that this process knows by an API key, a record that is there, an order of
which the body says all. Whatever else comes up is left to the ordinary way, which is the only one that knows errors;
tests/api/test_at_once.py holds the answers of both against each other. What arrives from one caller in one turn of the
loop shares one admission (storage/together.py).
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import orjson
from falcon.uri import parse_query_string

from api.endpoint import Endpoint, load
from api.exchange import ADMITTED, BEGUN
from api.measuring import Requests
from storage import admission, together
from storage.admission import Admission, Known
from storage.calls import Call
from storage.errors import HostlerError
from storage.jobs import Order, Submitted
from storage.store import Store
from storage.together import Rated

log = logging.getLogger("hostler.api")

#: Fields of a request that the ordinary way reads; on the others the answer does not depend.
_OF_NOTE = frozenset({
    b"x-api-key", b"x-worker-token", b"cookie", b"x-request-id", b"range", b"traceparent", b"idempotency-key",
    b"expect",
})  # fmt: skip
_BEARER = b"Bearer "
_LINES = (
    b"x-request-id: %b\r\nx-ratelimit-limit: %d\r\nx-ratelimit-remaining: %d\r\nx-ratelimit-reset: %d\r\n"
    b"content-type: application/json\r\n"
)
#: So many answers are remembered with the reply that they were made from, for clients that ask until something changes;
#: neither may be longer than the second number of bytes.
_MOST_REMEMBERED = 1024
_LONGEST_REMEMBERED = 4096


class Answering(Protocol):
    """What takes an answer: the exchange of api/exchange.py."""

    scope: Any

    def answer_at_once(self, status: int, lines: bytes, body: bytes) -> None:
        """Write a whole answer."""
        ...


class AtOnce:
    """Answers where it can: told of a request's exchange, each way says whether it will see to the request.

    Where it turns out later that it cannot, `otherwise` is called, which serves the request in the ordinary way.
    """

    def __init__(
        self, store: Store, lines: bytes, endpoints: Mapping[tuple[str, str], Endpoint], requests: Requests,
        check_response: Any, *, alone: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._store = store
        self._looks = {path: each for (_, path), each in endpoints.items() if each.look}
        self._accepting = {path: each for (_, path), each in endpoints.items() if each.accepting}
        self._template = lines.replace(b"%", b"%%") + _LINES
        self._observe, self._check, self._alone = requests.observe, check_response, alone
        self._asked = lru_cache(maxsize=_MOST_REMEMBERED)(self._ask)
        self._remembered: dict[tuple[Any, ...], tuple[Any, bytes]] = {}

    def look(self, exchange: Answering, otherwise: Callable[[], None]) -> bool:
        """Begin to answer a GET without a body."""
        scope = exchange.scope
        endpoint = self._looks.get(scope["path"])
        known = self._known(endpoint, scope)
        if endpoint is None or known is None:
            return False
        call = self._asked(endpoint.path, scope["query_string"])
        if call is None:
            return False
        asking = _Asking(self, endpoint, known, exchange, otherwise, partial(self._shown, endpoint, call))
        return together.look(self._store, known, call, asking.told)

    def accepts(self, path: str) -> bool:
        """Tell whether a POST to `path` may be one that `accept` answers, once its body is there."""
        return path in self._accepting

    def accept(self, exchange: Answering, body: bytes, otherwise: Callable[[], None]) -> bool:
        """Begin to answer a POST of one job, whose whole body is `body`."""
        scope = exchange.scope
        endpoint = self._accepting.get(scope["path"])
        known = self._known(endpoint, scope)
        if endpoint is None or known is None or scope["query_string"] or not _is_json(scope["headers"]):
            return False
        asking = _Asking(self, endpoint, known, exchange, otherwise, partial(self._promised, endpoint))
        try:
            wanted = _wanted(endpoint, body)
            return wanted is not None and together.order(
                self._store, known, wanted, asking.request_id, asking.told
            )
        except Exception:
            # a body that is wrong, perhaps as nobody thought of, in the middle of what the connection has read: the
            # ordinary way meets it again, and tells of it
            return False

    def _known(self, endpoint: Endpoint | None, scope: Any) -> Known | None:
        """Return the caller, if it is known to this process, may call the endpoint, and says nothing else of note."""
        if endpoint is None or (self._alone and (scope.get("server") or (0, 0))[1] in self._alone):
            return None
        secret = _credential(scope["headers"])
        known = admission.recognise_key(self._store, secret) if secret is not None else None
        return known if known is not None and _may(endpoint, known) else None

    def answer(self, asking: "_Asking", rated: Rated, body: bytes) -> None:
        """Write the answer to a request that was admitted, and count it."""
        endpoint, status = asking.endpoint, asking.endpoint.status.value
        reset_s = -(-(self._store.now_ms() + rated.reset_ms) // 1000)
        request_id = asking.request_id
        lines = self._template % (request_id.encode(), rated.limit, rated.remaining, reset_s)
        seconds = time.perf_counter() - asking.began
        self._observe(endpoint.method, endpoint.path, status, seconds, request_id, "")
        asking.exchange.answer_at_once(status, lines, body)

    def _ask(self, path: str, query_string: bytes) -> Call[Any] | None:
        """Return what a request's query asks of Redis; None for one that is not as it should be."""
        endpoint = self._looks[path]
        look = endpoint.look
        if look is None or endpoint.query is None:
            return None
        try:
            params = parse_query_string(query_string.decode("latin-1"), keep_blank=True, csv=False)
            return look.asks(load(endpoint.query, params))
        except HostlerError:
            return None

    def _shown(self, endpoint: Endpoint, call: Call[Any], reply: Any) -> bytes | None:
        """Return the answer to a reply of Redis, from memory if it is still the same; None for the ordinary way."""
        key = (endpoint.path, *call.words)
        kept = self._remembered.get(key)
        if kept is not None and kept[0] == reply:
            return kept[1]
        try:
            shown = endpoint.look.shows(call.read(reply)) if endpoint.look is not None else None
            body = None if shown is None else endpoint.rendered(shown, self._check)
        except Exception:  # a record that somebody else wrote into: others are told in the same callback
            return None  # whatever it is, the ordinary way meets it again, and tells of it
        if body is None:
            return None
        if len(body) <= _LONGEST_REMEMBERED and _size_bytes(reply) <= _LONGEST_REMEMBERED:
            self._remembered.pop(key, None)
            if len(self._remembered) >= _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = reply, body
        return body

    def _promised(self, endpoint: Endpoint, submitted: Submitted) -> bytes:
        """Return the answer to a job that is accepted: the ordinary way would accept another."""
        if endpoint.accepting is None:
            raise TypeError(f"{endpoint.path} accepts no jobs.")
        return endpoint.rendered(endpoint.accepting.shows(submitted), self._check)


@dataclass(slots=True)
class _Asking:
    """One request under way; `renders` makes its answer of what Redis said, or None for the ordinary way."""

    at_once: AtOnce
    endpoint: Endpoint
    known: Known
    exchange: Answering
    otherwise: Callable[[], None]
    renders: Callable[[Any], bytes | None]
    request_id: str = field(default_factory=lambda: os.urandom(8).hex())
    began: float = field(default_factory=time.perf_counter)

    def told(self, rated: Rated | HostlerError | None, said: Any) -> None:
        """Write the answer; else have the request served, told what is known of its caller by now."""
        if isinstance(rated, Rated) and rated.allowed:
            try:
                if (body := self.renders(said)) is not None:
                    self.at_once.answer(self, rated, body)
                    return
            except Exception:
                # what was done is done and not repeated, and others are told in the same callback
                log.exception("an answer could not be written", extra={"request_id": self.request_id})
                rated = HostlerError("This was done; the answer to it could not be written.")
        extensions = self.exchange.scope["extensions"]
        extensions[BEGUN] = self.request_id, self.began  # a job may have been made that names it
        if isinstance(rated, Rated):  # it was counted
            extensions[ADMITTED] = Admission(self.known.identity, *rated)
        elif isinstance(rated, HostlerError):
            extensions[ADMITTED] = rated
        self.otherwise()


def _wanted(endpoint: Endpoint, body: bytes) -> Order | None:
    """Return what a body orders; None for one that asks for more than a plain job. Raises for one that is wrong."""
    if endpoint.accepting is None or endpoint.body is None or not 0 < len(body) <= endpoint.body_limit_bytes:
        return None
    value = orjson.loads(body)
    return endpoint.accepting.orders(load(endpoint.body, value)) if isinstance(value, dict) else None


def _size_bytes(reply: Any) -> int:
    """Return how much a reply of Redis holds; a record may hold far more than is shown of it."""
    if isinstance(reply, list):
        return sum(map(_size_bytes, reply))
    return len(reply) if isinstance(reply, bytes) else 0


def _credential(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the bearer's secret of a request that says nothing else of note."""
    found = None
    for name, value in headers:
        if name == b"authorization":
            if found is not None or not value.startswith(_BEARER):
                return None
            found = value[7:]
        elif name in _OF_NOTE:
            return None
    return None if found is None else found.decode("latin-1")


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request says once what its body is, and that in the usual words."""
    return [value for name, value in headers if name == b"content-type"] == [b"application/json"]


def _may(endpoint: Endpoint, known: Known) -> bool:
    identity = known.identity
    return identity.scope in {"", endpoint.group.dialect.name} and identity.role in endpoint.letters
