"""Sessions and workers' tokens: what they say, how long they last, and how they end."""

import secrets
from dataclasses import dataclass
from typing import Any, Literal

from storage.calls import script
from storage.errors import Unauthenticated
from storage.identity import Identity
from storage.seal import Forged
from storage.store import Store
from storage.users import User

SESSION_S = 24 * 3600
#: A session that has expired may still be traded in for a new one for so long.
REFRESH_GRACE_S = 7 * 24 * 3600
#: What ended before its time is remembered until nobody could trade it in any more.
_REMEMBER_S = SESSION_S + REFRESH_GRACE_S + 3600


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that we signed says; whether that still holds is storage/admission.py's question.

    The subject is a user's id, a worker's, or the digest of the API key that a session came by.
    """

    kind: Literal["session", "key", "worker"]
    subject: str
    token_id: str
    family: str = ""
    generation: int = 0


async def issue(store: Store, user: User, *, family: str | None = None) -> str:
    """Return a token for `user`, good for 24 h; `family` is that of the token it replaces, if any."""
    now_s = store.now_ms() // 1000
    return await store.keyring.sign(
        {
            "typ": "session",
            "sub": user.id,
            "role": user.role,
            "gen": user.generation,
            "jti": secrets.token_urlsafe(16),
            "fam": family or secrets.token_urlsafe(16),
            "iat": now_s,
            "exp": now_s + SESSION_S,
        }
    )


async def issue_for_key(store: Store, digest: str, *, family: str | None = None) -> str:
    """Return a token that acts as the API key of that digest for 24 h, at most as long as the key lasts."""
    now_s = store.now_ms() // 1000
    return await store.keyring.sign(
        {
            "typ": "key",
            "sub": digest,
            "gen": 0,
            "jti": secrets.token_urlsafe(16),
            "fam": family or secrets.token_urlsafe(16),
            "iat": now_s,
            "exp": now_s + SESSION_S,
        }
    )


async def issue_worker_token(store: Store, worker_id: str, registration: str) -> str:
    """Return the token of one registration of a worker, good until it registers again or leaves."""
    return await store.keyring.sign(
        {
            "typ": "worker",
            "sub": worker_id,
            "role": "worker",
            "jti": registration,
            "iat": store.now_ms() // 1000,
        }
    )


async def read(store: Store, token: str, *, grace_s: int = 0) -> Claims:
    """Return what a token of ours says that expired at most `grace_s` ago. Raises Unauthenticated."""
    claims = await store.keyring.read(token)
    if claims.get("typ") == "worker":
        return Claims("worker", str(claims["sub"]), str(claims["jti"]))
    if claims.get("typ") not in {"session", "key"} or not _well_formed(claims):
        raise Unauthenticated("The token is not one of a session.")
    if claims["exp"] + grace_s <= store.now_ms() / 1000:
        raise Unauthenticated("The session has expired.")
    return Claims(claims["typ"], claims["sub"], claims["jti"], claims["fam"], claims["gen"])


def _well_formed(claims: dict[str, Any]) -> bool:
    numbers = all(type(claims.get(name)) is int for name in ("exp", "gen"))
    return numbers and all(
        isinstance(claims.get(name), str) and claims[name] for name in ("sub", "jti", "fam")
    )


async def refresh(store: Store, token: str) -> tuple[str, User]:
    """Trade a session's token in for a new one, at most once, and up to 7 days after it expired.

    For a minute the old token, unless expired, still serves the requests that were under way with it.
    A token that comes a second time was copied, so every token that descends from the same login ends.
    Raises Unauthenticated, also when the user is gone or its password or role has changed since.
    """
    claims = await read(store, token, grace_s=REFRESH_GRACE_S)
    if claims.kind != "session":
        raise Unauthenticated("Only a user's session can be refreshed.")
    raw = await store.call(
        script(
            "refresh",
            store.now_ms(),
            claims.subject,
            claims.token_id,
            claims.family,
            claims.generation,
            _REMEMBER_S,
        )
    )
    if raw is None:
        raise Unauthenticated("The session has ended; log in again.")
    try:
        user = User.opened(store.seal, claims.subject, raw)
    except Forged:
        raise Unauthenticated("The session has ended; log in again.") from None
    return await issue(store, user, family=claims.family), user


async def revoke(store: Store, identity: Identity) -> None:
    """End the session that `identity` came by, with every token of it, at once and everywhere. Safe to run twice."""
    ended = identity.family or identity.token_id
    await store.call(script("revoke", store.now_ms(), identity.actor, ended, _REMEMBER_S))
