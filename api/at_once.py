"""Looks at one record, answered without a task: read, admitted and rendered in callbacks of the loop.

Only what is usual is done here: a caller that this process knows by an API key, a record that is there. Whatever else
comes up is left to the ordinary way, which is the only one that knows errors; tests/api/test_at_once.py holds the
answers of both against each other. What belongs together shares one admission: all that arrives in one turn of the
loop from one caller.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from falcon.uri import parse_query_string

from api.endpoint import Endpoint, load
from api.exchange import ADMITTED
from api.measuring import Requests
from storage import admission, carrying
from storage.admission import Admission, Known
from storage.calls import Call
from storage.carrying import Rated
from storage.errors import HostlerError
from storage.store import Store

#: Fields of a request that the ordinary way reads; of the others the answer to a look does not depend.
_OF_NOTE = frozenset({b"x-api-key", b"x-worker-token", b"cookie", b"x-request-id", b"range", b"traceparent"})
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
    """Answers looks where it can: called with a request's scope, it tells whether it will see to the request."""

    def __init__(
        self, store: Store, lines: bytes, looks: Mapping[str, Endpoint], requests: Requests, check_response: Any,
        *, alone: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._store, self._looks = store, looks
        self._template = lines.replace(b"%", b"%%") + _LINES
        self._observe, self._check, self._alone = requests.observe, check_response, alone
        self._asked = lru_cache(maxsize=_MOST_REMEMBERED)(self._ask)
        self._remembered: dict[tuple[Any, ...], tuple[Any, bytes]] = {}

    def __call__(self, exchange: Answering, otherwise: Callable[[], None]) -> bool:
        """Begin to answer a GET without a body, or refuse to; `otherwise` is called where it turns out no look."""
        scope = exchange.scope
        endpoint = self._looks.get(scope["path"])
        if endpoint is None or (self._alone and (scope.get("server") or (0, 0))[1] in self._alone):
            return False
        secret = _credential(scope["headers"])
        known = admission.recognise_key(self._store, secret) if secret is not None else None
        if known is None or not _may(endpoint, known):
            return False
        call = self._asked(endpoint.path, scope["query_string"])
        if call is None:
            return False
        looking = _Looking(self, endpoint, call, known, exchange, otherwise, time.perf_counter())
        return carrying.look(self._store, known, call, looking.told)

    def answer(self, looking: "_Looking", rated: Rated, body: bytes) -> None:
        """Write the answer to a look that was admitted, and count it."""
        request_id = secrets.token_hex(8)
        reset_s = -(-(self._store.now_ms() + rated.reset_ms) // 1000)
        lines = self._template % (request_id.encode(), rated.limit, rated.remaining, reset_s)
        seconds = time.perf_counter() - looking.began
        self._observe("GET", looking.endpoint.path, 200, seconds, request_id, "")
        looking.exchange.answer_at_once(200, lines, body)

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

    def body(self, endpoint: Endpoint, call: Call[Any], reply: Any) -> bytes | None:
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


@dataclass(slots=True)
class _Looking:
    """One look under way."""

    at_once: AtOnce
    endpoint: Endpoint
    call: Call[Any]
    known: Known
    exchange: Answering
    otherwise: Callable[[], None]
    began: float

    def told(self, rated: Rated | HostlerError | None, reply: Any) -> None:
        """Write what the look has shown; else have the request served, told what is known of its caller by now."""
        if isinstance(rated, Rated) and rated.allowed:
            body = self.at_once.body(self.endpoint, self.call, reply)
            if body is not None:
                self.at_once.answer(self, rated, body)
                return
            self.exchange.scope["extensions"][ADMITTED] = Admission(
                self.known.identity, *rated
            )  # it was counted
        elif isinstance(rated, HostlerError):
            self.exchange.scope["extensions"][ADMITTED] = rated
        self.otherwise()


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


def _may(endpoint: Endpoint, known: Known) -> bool:
    identity = known.identity
    return identity.scope in {"", endpoint.group.dialect.name} and identity.role in endpoint.letters
