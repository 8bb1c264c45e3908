"""Hand-offs: how somebody who is signed in passes a session on to a browser, by a token that counts once."""

import hashlib
import secrets

from storage import admission, sessions, users
from storage.admission import Presented
from storage.api_keys import ApiKey
from storage.calls import command, script, text
from storage.errors import Denied, InvalidCredentials, NotFound, Unauthenticated
from storage.identity import Identity
from storage.records import opened, signed
from storage.seal import Forged
from storage.store import Store

TOKEN_S = 60


async def create(store: Store, caller: Identity, *, lasts_s: int = TOKEN_S) -> str:
    """Return a token that becomes a session of the caller's once, within `lasts_s` seconds.

    It ends with what it came from: a logout, a new password or a revoked key. Raises Denied for who has no account.
    """
    fields = {
        "kind": caller.kind,
        "family": caller.family,
        "generation": 0,
        "until": store.now_ms() + lasts_s * 1000,
    }
    if caller.kind == "user":
        fields |= {"subject": caller.id, "generation": (await users.get(store, caller.id)).generation}
    elif caller.kind == "key":
        fields["subject"] = await _digest_of(store, caller)
    else:
        raise Denied("Only a user or an API key has a session to hand on.")
    token = secrets.token_urlsafe(32)
    name = _name(token)
    record = signed(store.seal, "handoff", name, fields)
    await store.call(script("handoff", store.now_ms(), caller.actor, name, record, lasts_s * 1000))
    return token


async def of_admin(store: Store, *, lasts_s: int) -> str | None:
    """Return a token that becomes a session of the oldest admin once, within `lasts_s` seconds; None without one.

    For who holds the secret key anyway, as `hostler up` does.
    """
    found, _ = await users.page(store, 1000, 0)
    admin = next((user for user in found if user.role == "a"), None)
    if admin is None:
        return None
    identity = Identity("user", admin.id, "a", admin.username, "", user_id=admin.id)
    return await create(store, identity, lasts_s=lasts_s)


async def spend(store: Store, token: str) -> str:
    """Return the session's token that a hand-off stands for; of many calls at once, one succeeds.

    Raises Unauthenticated for one that is unknown, spent or late, or whose origin has ended meanwhile.
    """
    refusal = Unauthenticated("The token is unknown, was used before, or is too old.")
    name = _name(token)
    raw = await store.call(script("handoff_spend", store.now_ms(), name))
    if raw is None:
        raise refusal
    try:
        fields = opened(store.seal, "handoff", name, raw)
    except Forged:
        raise refusal from None
    if fields["until"] <= store.now_ms():
        raise refusal
    family = fields["family"] or None
    if fields["kind"] == "key":
        session = await sessions.issue_for_key(store, fields["subject"], family=family)
    else:
        try:
            user = await users.get(store, fields["subject"])
        except (NotFound, Forged):
            raise refusal from None
        if user.generation != fields["generation"]:
            raise refusal
        session = await sessions.issue(store, user, family=family)
    if (await _admitted(store, Presented("bearer", session))) is None:
        raise refusal
    return session


async def session_of_key(store: Store, secret: str) -> str:
    """Return a session's token that acts as an API key. Raises InvalidCredentials."""
    identity = await _admitted(store, Presented("key", secret))
    if identity is None or identity.kind != "key":
        raise InvalidCredentials("The API key is not valid, or no longer.")
    return await sessions.issue_for_key(store, await _digest_of(store, identity))


async def _digest_of(store: Store, key: Identity) -> str:
    """Return the digest of the key that `key` is; the index alone, which nobody signs, is not believed."""
    digest = text(await store.call(command("HGET", "h:apikeys", key.id)))
    raw = await store.call(command("GET", f"h:apikey:{digest}"))
    if raw is None or ApiKey.opened(store.seal, digest, raw).id != key.id:
        raise Unauthenticated("The API key is not valid any more.")
    return digest


async def _admitted(store: Store, presented: Presented) -> Identity | None:
    return (await admission.admit(store, presented, "", counted=False)).identity


def _name(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
