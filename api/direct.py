"""A straight way to endpoints that carry their caller's admission: the same endpoints, without Falcon's routing.

It follows from the declarations and is for paths without variables. Request, response and errors are Falcon's and ours
as they are everywhere; tests/api/test_direct.py holds the answers of both ways against each other.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import falcon
from falcon.asgi import Request, Response

from api import errors
from api.endpoint import Endpoint, Group
from api.exchange import WHOLE

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NO_BODY = frozenset({204, 304})


def endpoints(groups: Iterable[Group]) -> dict[tuple[str, str], Endpoint]:
    """Return the endpoints that are served straight, by method and path."""
    return {
        (endpoint.method, endpoint.path): endpoint
        for group in groups
        for endpoint in group.endpoints
        if endpoint.carries and "{" not in endpoint.path
    }


class Direct:
    """Serves requests for endpoints as Falcon's application would, with `always` as header fields of every answer."""

    def __init__(
        self,
        app: "falcon.asgi.App[Any, Any]",
        always: Mapping[str, str],
        begin: Callable[[Request], str],
        end: Callable[[Request, Response], None],
    ) -> None:
        self._request_options, self._response_options = app.req_options, app.resp_options
        self._common = [(name.lower().encode(), value.encode()) for name, value in always.items()]
        self._names = {name for name, _ in self._common}
        self.lines = _lines(self._common)
        self._begin, self._end = begin, end

    async def serve(self, endpoint: Endpoint, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request whose method and path are those of `endpoint`."""
        first = await receive()
        if first["type"] == "http.disconnect":
            return
        req = Request(scope, receive, first_event=first, options=self._request_options)
        resp = Response(options=self._response_options)
        req.uri_template = endpoint.path
        try:
            resp.set_header("X-Request-Id", self._begin(req))
            req.context.whole_body = None if first.get("more_body") else first.get("body", b"")
            await endpoint(req, resp)
        except Exception as error:
            await errors.handle(req, resp, error, {})
        self._end(req, resp)
        await self._send(resp, scope, send)

    async def _send(self, resp: Response, scope: Any, send: Any) -> None:
        status = resp.status_code
        bodiless = status in _NO_BODY
        own = resp._asgi_headers(None if bodiless else falcon.MEDIA_JSON)
        names = {name for name, _ in own}
        common, lines = self._common, self.lines
        if not names.isdisjoint(self._names):  # the endpoint has said something else
            common = [pair for pair in common if pair[0] not in names]
            lines = _lines(common)
        body = None if bodiless else resp.data or b""
        whole = (scope.get("extensions") or {}).get(WHOLE)
        if whole is not None:
            if _CONTROL.search(b"".join([value for _, value in own])):
                raise ValueError("A header's value holds what none may hold.")
            await whole(status, lines + _lines(own), body)
            return
        headers = [*common, *own]
        if body is not None:
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body or b""})


def _lines(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%s: %s\r\n" % pair for pair in pairs])
