"""API keys: secrets that act for their owner, never above its role, and known here by their digest alone."""

import hashlib
import secrets
from dataclasses import asdict, dataclass

from storage.calls import command, script, text
from storage.errors import Denied, NotFound
from storage.identity import LADDER, Identity, RoleLetter
from storage.records import genuine, opened, signed
from storage.seal import Seal
from storage.store import Store

PREFIX = "cb_"
#: How many keys one user may have.
LIMIT = 100


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key without its secret; `prefix` is how it begins, for people who look for it."""

    id: str
    owner: str
    name: str
    role: RoleLetter
    prefix: str
    created_ms: int

    def record(self, seal: Seal, digest: str) -> str:
        """Return the key as it lies in Redis, signed as a whole."""
        return signed(seal, "apikey", digest, asdict(self))

    @classmethod
    def opened(cls, seal: Seal, digest: str, raw: bytes) -> "ApiKey":
        """Return the key of a signed record. Raises Forged."""
        return cls(**opened(seal, "apikey", digest, raw))


def digest_of(secret: str) -> str:
    """Return what is kept of a key. A secret of 256 random bits needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new(store: Store, *, owner: str, name: str, role: RoleLetter) -> tuple[ApiKey, str]:
    """Return a key that is not kept yet, and its secret."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(store.new_id("key"), owner, name, role, secret[:7], store.now_ms())
    return key, secret


async def create(store: Store, caller: Identity, *, name: str, role: RoleLetter) -> tuple[ApiKey, str]:
    """Create a key for the caller's user; the secret is returned this once.

    Raises Denied for a role above the caller's own, or when the user has 100 keys.
    """
    if caller.user_id is None or LADDER.index(role) > LADDER.index(caller.role):
        raise Denied(f"A key of role '{role}' would be above your own role.")
    key, secret = new(store, owner=caller.user_id, name=name, role=role)
    digest = digest_of(secret)
    record = key.record(store.seal, digest)
    outcome = await store.call(
        script(
            "apikey_create", key.created_ms, caller.actor, key.owner, key.id, digest, record, LIMIT, read=text
        )
    )
    if outcome == "missing":
        raise NotFound(f"There is no user '{key.owner}'.")
    if outcome == "full":
        raise Denied(f"You have {LIMIT} API keys, which is the most; revoke one first.")
    return key, secret


async def owned_by(store: Store, owner: str | None) -> list[ApiKey]:
    """Return the keys of one user, or of all users for None, the oldest first."""
    index = "h:apikeys" if owner is None else f"h:apikeys:{owner}"
    digests = [text(digest) for digest in await store.call(command("HVALS", index))]
    if not digests:
        return []
    raws = await store.call(command("MGET", *(f"h:apikey:{digest}" for digest in digests)))
    keys = genuine(zip(digests, raws, strict=True), lambda name, raw: ApiKey.opened(store.seal, name, raw))
    return sorted(keys, key=lambda key: key.id)


async def revoke(store: Store, caller: Identity, key_id: str) -> None:
    """Revoke a key of the caller's user; an admin may revoke anybody's. Raises NotFound."""
    owner = "" if caller.role == "a" else caller.user_id or "-"
    outcome = await store.call(
        script("apikey_revoke", store.now_ms(), caller.actor, key_id, owner, read=text)
    )
    if outcome == "missing":
        raise NotFound(f"You have no API key '{key_id}'.")
