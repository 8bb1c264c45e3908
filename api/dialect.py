"""A dialect: how one family of clients spells requests, successes and errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import HostlerError, Invalid, TooMany

Body = dict[str, Any]

#: How much of what was asked a refusal repeats: of its sentence, of each detail, and how many of those.
SENTENCE_LIMIT_CHARS = 1000
DETAIL_LIMIT_CHARS = 300
DETAILS_LIMIT = 20


class InvalidQuery(Invalid):
    """A parameter of the query does not make sense; the body, if there is one, was not read."""


def _unchanged(body: Any) -> Any:
    return body


@dataclass(frozen=True)
class Dialect:
    """One spelling: the body of an error with its status, and the envelope of a success.

    `any_type`: bodies are JSON whatever their Content-Type says, as for servers that never look at it.
    """

    name: str
    error: Callable[[HostlerError, int], Body]
    success: Callable[[Any], Any] = _unchanged
    any_type: bool = False


#: CMD Executor's heading for each kind of error; what is not named here takes its status's.
_TITLES: Mapping[str, str] = {
    "INVALID_CREDENTIALS": "Invalid credentials",
    "INVALID_FILE": "Invalid file",
}
_TITLES_BY_STATUS: Mapping[int, str] = {
    400: "Invalid request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Payload too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Unprocessable",
    429: "Too Many Requests",
    500: "Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def _described(error: HostlerError) -> Body:
    """Return what every dialect but cbox's adds to its own error body."""
    body: Body = {"code": error.code}
    if error.details:
        shown = list(error.details.items())[:DETAILS_LIMIT]
        body["details"] = {_cut(name): _cut(what) if isinstance(what, str) else what for name, what in shown}
    if len(error.details) > DETAILS_LIMIT:
        body["furtherDetails"] = len(error.details) - DETAILS_LIMIT
    if isinstance(error, TooMany):
        body["retryAfter"] = error.retry_after_s
    return body


def _sentence(error: HostlerError) -> str:
    return _cut(str(error), SENTENCE_LIMIT_CHARS)


def _cut(said: str, limit_chars: int = DETAIL_LIMIT_CHARS) -> str:
    """Return both ends of what is too long: the one says what it is about, the other what is wrong with it."""
    if len(said) <= limit_chars:
        return said
    kept = limit_chars // 2 - 1
    return f"{said[:kept]}…{said[-kept:]}"


def _executor_error(error: HostlerError, status: int) -> Body:
    title = _TITLES.get(error.code) or _TITLES_BY_STATUS.get(status, "Error")
    return {"error": title, "message": _sentence(error), **_described(error)}


def _plain_error(error: HostlerError, status: int) -> Body:
    return {"error": _sentence(error), **_described(error)}


#: cbox-init's page shows these bodies, and they hold nothing else, whatever was wrong with a body.
_CBOX_PHRASES: Mapping[str, str] = {
    "INVALID_REQUEST": "invalid request body",
    "UNAUTHENTICATED": "unauthorized",
    "METHOD_NOT_ALLOWED": "method not allowed",
    "ROUTE_NOT_FOUND": "not found",
    "TOO_MANY_REQUESTS": "rate limit exceeded",
    "HOSTLER_ERROR": "internal server error",
}


def _cbox_error(error: HostlerError, status: int) -> Body:
    phrase = None if isinstance(error, InvalidQuery) else _CBOX_PHRASES.get(error.code)
    return {"error": phrase or _sentence(error)}


def _squareberg_error(error: HostlerError, status: int) -> Body:
    return {"detail": _sentence(error), **_plain_error(error, status)}


EXECUTOR = Dialect("executor", _executor_error, lambda body: {"success": True, **body})
CONTEXTBAY = Dialect("contextbay", _plain_error)
#: ContextBay's own rows, whose fields are written with underscores; Hostler's own in its manner are not.
CONTEXTBAY_ROWS = Dialect("contextbay rows", _plain_error)
CBOX = Dialect("cbox", _cbox_error, any_type=True)
SQUAREBERG = Dialect("squareberg", _squareberg_error)
CUBY = Dialect("cuby", _plain_error)

#: Which dialect an unknown path is answered in: that of its longest prefix here.
BY_PREFIX: Mapping[str, Dialect] = {
    "/": CONTEXTBAY,
    "/api/jobs": EXECUTOR,
    "/api/workers": EXECUTOR,
    "/api/files": EXECUTOR,
    "/api/schedules": EXECUTOR,
    "/api/auth/login": EXECUTOR,
    "/api/auth/logout": EXECUTOR,
    "/api/auth/refresh": EXECUTOR,
    "/jobs": EXECUTOR,
    "/uploads": EXECUTOR,
    "/api/v1": CBOX,
    "/registry": SQUAREBERG,
    "/apps": SQUAREBERG,
    "/api/backup-jobs": CONTEXTBAY_ROWS,
    "/api/config": CUBY,
    "/api/install": CUBY,
    "/api/marketplace": CUBY,
    "/api/plugins": CUBY,
    "/api/processcubes": CUBY,
    "/api/products": CUBY,
    "/api/setup": CUBY,
    "/api/shim": CUBY,
}


def of_path(path: str) -> Dialect:
    """Return the dialect of the longest prefix of `path`."""
    prefixes = [prefix for prefix in BY_PREFIX if path == prefix or path.startswith(prefix.rstrip("/") + "/")]
    return BY_PREFIX[max(prefixes, key=len)] if prefixes else CONTEXTBAY
