"""Which HTTP status tells of which error, and how an error becomes an answer."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import falcon
import orjson
from falcon.asgi import Request, Response, WebSocket
from marshmallow import ValidationError

from api import dialect
from storage import errors
from storage.errors import HostlerError

log = logging.getLogger("hostler.api")

#: From the most general to the most special: the last class that fits decides.
STATUS: Mapping[type[HostlerError], int] = {
    HostlerError: 500,
    errors.Invalid: 400,
    errors.Unprocessable: 422,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.TooMany: 429,
    errors.Unavailable: 503,
    errors.BadGateway: 502,
    errors.GatewayTimeout: 504,
    errors.NotConfigured: 503,
}


class RouteNotFound(errors.NotFound):
    """No such path."""

    code = "ROUTE_NOT_FOUND"


class MethodNotAllowed(HostlerError):
    """The path exists, but not for this method."""

    code = "METHOD_NOT_ALLOWED"


class UnsupportedMediaType(HostlerError):
    """The body is of a type that is not understood here."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class RangeNotSatisfiable(HostlerError):
    """The Range header asks for bytes that do not exist."""

    code = "RANGE_NOT_SATISFIABLE"


#: Errors that only HTTP has.
HTTP_STATUS: Mapping[type[HostlerError], int] = {
    MethodNotAllowed: 405,
    UnsupportedMediaType: 415,
    RangeNotSatisfiable: 416,
}


def status_of(error: type[HostlerError]) -> int:
    """Return the HTTP status for a kind of error."""
    table = {**STATUS, **HTTP_STATUS}
    return next(table[kind] for kind in error.__mro__ if kind in table)


def invalid(problems: ValidationError) -> errors.Invalid:
    """Turn what marshmallow found into an error whose message names the first field."""
    details = _flatten(problems.messages)
    field, problem = next(iter(details.items()))
    if problem == "Missing data for required field.":
        message = f"{field} is required"
    elif problem == "Unknown field.":
        message = f"{field} is not a known field"
    else:
        message = f"{field}: {problem}" if field else problem
    return errors.Invalid(message, details=dict(details))


def _flatten(messages: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(messages, dict):
        flat: dict[str, str] = {}
        for name, inner in messages.items():
            dot = "" if str(name).startswith("[") else "."
            path = prefix if name == "_schema" else f"{prefix}{dot}{name}".lstrip(".")
            flat |= _flatten(inner, path)
        return flat
    if isinstance(messages, list):
        return {prefix: " ".join(str(message) for message in messages)}
    return {prefix: str(messages)}


def answer(req: Request, resp: Response, error: HostlerError) -> None:
    """Write `error` into `resp` in the dialect of the path."""
    status = status_of(type(error))
    spoken = getattr(req.context, "dialect", None) or dialect.of_path(req.path)
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = orjson.dumps(spoken.error(error, status))
    resp.stream = None
    resp.set_header("X-Error-Code", error.code)
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        resp.set_header("Retry-After", str(retry_after_s))
    if status == 401:
        resp.set_header("WWW-Authenticate", "Bearer")


def _translate(error: Exception, req: Request) -> HostlerError:
    if isinstance(error, HostlerError):
        return error
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"{req.path} does not know {req.method}.")
    if isinstance(error, falcon.HTTPRouteNotFound | falcon.HTTPNotFound):
        return RouteNotFound("There is nothing at this path.")
    if isinstance(error, falcon.HTTPError):
        return errors.Invalid(error.description or error.title or "The request could not be read.")
    log.error(
        "unhandled error", exc_info=error, extra={"path": req.path, "request_id": req.context.request_id}
    )
    return HostlerError("Something went wrong on our side; the log names it by the request id.")


async def handle(
    req: Request, resp: Response | None, error: Exception, params: Any, ws: WebSocket | None = None
) -> None:
    """Answer any exception that a request raises, or close its WebSocket; nothing of its trace leaves the server."""
    if isinstance(error, falcon.HTTPStatus):
        raise error
    told = _translate(error, req)
    if ws is not None:
        with suppress(falcon.WebSocketDisconnected):
            await refuse(ws, told)
    elif resp is not None:
        answer(req, resp, told)


async def refuse(ws: WebSocket, error: HostlerError) -> None:
    """Close a WebSocket with 4000 + status and the sentence; where it was not accepted yet, the server answers 403."""
    await ws.close(4000 + status_of(type(error)), str(error).encode()[:120].decode("utf-8", "ignore"))
