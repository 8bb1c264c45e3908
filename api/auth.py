"""The gate that every request passes: credentials become an identity, within a rate, from no foreign page."""

from datetime import UTC, datetime
from typing import Any

from falcon.asgi import Request, Response

from api import addresses
from api.exchange import ADMITTED
from storage import admission
from storage.admission import Admission, Presented
from storage.carrying import Carrier
from storage.errors import Denied, HostlerError, TooMany, Unauthenticated
from storage.identity import Identity
from storage.sessions import SESSION_S
from storage.store import Store

COOKIE = "auth_token"
_SAFE = {"GET", "HEAD", "OPTIONS"}


class Gate:
    """Admits requests: who is asking, and may they go on now."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def presented(self, req: Request) -> Presented | None:
        """Return the credential by which a request is judged."""
        return credential(req)

    def unnamed(self, req: Request) -> Identity | None:
        """Return whom a request without a credential stands for, if anybody."""
        return None

    async def admit(self, req: Request, resp: Response | None, *, optional: bool) -> Identity | None:
        """Return who is asking; nobody, or somebody unbelievable, is None where identity is `optional`.

        Counts the request, and tells in `resp` what is left. Raises TooMany, Unauthenticated, or Denied for a
        cookie that another site's page may have made the browser send.
        """
        address = addresses.counted_as(addresses.peer(req, self.store.settings))
        presented = self.presented(req)
        unnamed = self.unnamed(req) if presented is None else None
        result = await admission.admit(self.store, presented, address)
        self._hold_to_rate(resp, result)
        identity = result.identity or unnamed
        if identity is not None and identity.by_cookie and not came_from_us(req, self.store):
            if not optional:
                raise Denied("A session cookie counts here only with our own Origin.")
            return None
        if identity is None and not optional:
            if presented is None:
                raise Unauthenticated("Authentication is required.")
            raise Unauthenticated("The credentials are not valid, or no longer.")
        return identity

    async def carrier(self, req: Request, resp: Response) -> tuple[Store, Identity] | None:
        """Return a store whose first step admits the caller with it, and whom it would admit; None for a stranger.

        Nothing is decided yet: that step refuses, or raises Changed, where the caller is no longer let in so.
        """
        if (admitted := req.scope.get("extensions", {}).get(ADMITTED)) is not None:
            return self._admitted_before(admitted, resp)
        presented = self.presented(req)
        known = None if presented is None else await admission.recognise(self.store, presented)
        if known is None or (known.identity.by_cookie and not came_from_us(req, self.store)):
            return None
        return Carrier(self.store, known, lambda result: self._hold_to_rate(resp, result)), known.identity

    def _admitted_before(self, admitted: Admission | HostlerError, resp: Response) -> tuple[Store, Identity]:
        """Return what `carrier` does for a caller whom this very request has been admitted for already."""
        if isinstance(admitted, HostlerError):
            raise admitted
        self._hold_to_rate(resp, admitted)
        if admitted.identity is None:
            raise Unauthenticated("Authentication is required.")
        return self.store, admitted.identity

    def _hold_to_rate(self, resp: Response | None, result: Admission) -> None:
        if resp is not None:
            _tell_rate(resp, result, self.store.now_ms())
        if not result.allowed:
            raise TooMany("Rate limit exceeded", retry_after_s=max(1, -(-result.reset_ms // 1000)))

    async def still_admits(self, req: Request, identity: Identity) -> bool:
        """Tell whether a connection admitted as `identity` still would be; ask every few seconds."""
        presented = self.presented(req)
        result = await admission.admit(self.store, presented, "", counted=False)
        now = result.identity or (self.unnamed(req) if presented is None else None)
        return now is not None and (now.kind, now.id, now.role) == (identity.kind, identity.id, identity.role)


def credential(req: Request) -> Presented | None:
    """Return the credential that a request carries in its headers; one in a URL is not looked at.

    Where there are several, a header goes before the cookie.
    """
    method, _, value = (req.get_header("Authorization") or "").partition(" ")
    if method.lower() == "bearer" and value.strip():
        return Presented("bearer", value.strip())
    if key := req.get_header("X-API-Key"):
        return Presented("key", key)
    if token := req.get_header("X-Worker-Token"):
        return Presented("worker", token)
    # of several cookies with our name, one may have been planted by a neighbouring host: none is believed
    values = req.get_cookie_values(COOKIE) or []
    return Presented("cookie", values[0]) if len(values) == 1 and values[0] else None


def came_from_us(req: Request, store: Store) -> bool:
    """Tell whether a request may use its cookie: reads may, changes and WebSockets need our own Origin."""
    if req.method in _SAFE and req.scope["type"] != "websocket":
        return True
    return addresses.is_own_origin(req, store.settings)


def set_session(req: Request, resp: Response, store: Store, token: str) -> None:
    """Give the browser the session as a cookie that scripts cannot read and other sites cannot send."""
    _set_cookie(req, resp, store, token, max_age=SESSION_S)


def clear_session(req: Request, resp: Response, store: Store) -> None:
    """Take the session's cookie back."""
    _set_cookie(req, resp, store, "", expires=datetime.fromtimestamp(0, UTC))


def _set_cookie(req: Request, resp: Response, store: Store, value: str, **lasting: Any) -> None:
    secure = addresses.over_tls(req, store.settings)
    resp.set_cookie(COOKIE, value, path="/", secure=secure, http_only=True, same_site="Strict", **lasting)


def _tell_rate(resp: Response, result: Admission, now_ms: int) -> None:
    resp.set_headers(
        {
            "X-RateLimit-Limit": str(result.limit),
            "X-RateLimit-Remaining": str(result.remaining),
            "X-RateLimit-Reset": str(-(-(now_ms + result.reset_ms) // 1000)),
        }
    )
