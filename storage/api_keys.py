"""API keys: secrets that act for their owner, never above its role, and known here by their digest alone."""

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, replace

from storage import users
from storage.calls import command, script, text
from storage.errors import Conflict, Denied, Invalid, NotFound
from storage.identity import Identity, RoleLetter, is_above, lesser
from storage.records import genuine, opened, signed
from storage.seal import Seal
from storage.store import Store

PREFIX = "cb_"
#: How many keys one user may have.
LIMIT = 100
#: What a secret that was chosen elsewhere must be like: not easily guessed, and not taken for one of ours.
CHOSEN = re.compile(r"(?!cb_)[!-~]{16,512}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key without its secret; `prefix` is how it begins, for people who look for it.

    A key with a `scope` counts for the dialect of that name alone.
    """

    id: str
    owner: str
    name: str
    role: RoleLetter
    prefix: str
    created_ms: int
    scope: str = ""

    def record(self, seal: Seal, digest: str) -> str:
        """Return the key as it lies in Redis, signed as a whole."""
        return signed(seal, "apikey", digest, asdict(self))

    @classmethod
    def opened(cls, seal: Seal, digest: str, raw: bytes) -> "ApiKey":
        """Return the key of a signed record. Raises Forged."""
        return cls(**opened(seal, "apikey", digest, raw))


_SHA256 = hashlib.sha256()


def digest_of(secret: str) -> str:
    """Return what is kept of a key. A secret of 256 random bits needs no salt and no slow hash."""
    code = _SHA256.copy()  # which is there already: a quarter less than asking for a new one
    code.update(secret.encode())
    return code.hexdigest()


def digest_of_chosen(seal: Seal, secret: str) -> str:
    """Return what is kept of a secret that somebody chose: it may be guessable, so not without our own key.

    A UUID is the same in capitals (RFC 9562, section 4).
    """
    return "chosen." + seal.signature("chosen key", secret.lower() if _UUID.fullmatch(secret) else secret)


def new(store: Store, *, owner: str, name: str, role: RoleLetter) -> tuple[ApiKey, str]:
    """Return a key that is not kept yet, and its secret."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(store.new_id("key"), owner, name, role, secret[:7], store.now_ms())
    return key, secret


async def create(store: Store, caller: Identity, *, name: str, role: RoleLetter) -> tuple[ApiKey, str]:
    """Create a key for the caller's user; the secret is returned this once.

    Raises Denied for a role above the caller's own, or when the user has 100 keys.
    """
    if caller.user_id is None or is_above(role, caller.role):
        raise Denied(f"A key of role '{role}' would be above your own role.")
    key, secret = new(store, owner=caller.user_id, name=name, role=role)
    await _keep(store, caller, key, digest_of(secret))
    return key, secret


async def adopt(
    store: Store, caller: Identity, secret: str, *, name: str, role: RoleLetter, scope: str = ""
) -> ApiKey:
    """Let a secret that was chosen elsewhere act for the caller's user, as a Bearer token or as X-API-Key.

    It takes the place of the key that it was before. Raises Invalid for a secret of fewer than 16 characters, Denied
    as `create` does, Conflict where it acts for somebody else.
    """
    if not CHOSEN.fullmatch(secret):
        raise Invalid("The token must be 16 to 512 visible ASCII characters, not beginning with 'cb_'.")
    if caller.user_id is None or is_above(role, caller.role):
        raise Denied(f"A key of role '{role}' would be above your own role.")
    key = ApiKey(store.new_id("key"), caller.user_id, name, role, secret[:4], store.now_ms(), scope)
    digest = digest_of_chosen(store.seal, secret)
    if (raw := await store.call(command("GET", f"h:apikey:{digest}"))) is not None:
        before = ApiKey.opened(store.seal, digest, raw)
        if before.owner != key.owner:
            raise Conflict("This token acts for another user already; choose another one.")
        key = replace(key, id=before.id, created_ms=before.created_ms)
    await _keep(store, caller, key, digest)
    return key


async def _keep(store: Store, caller: Identity, key: ApiKey, digest: str) -> None:
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
    """Revoke a key of the caller's user; an admin may revoke anybody's.

    Raises NotFound, or Denied where the caller is a key and this one may do more.
    """
    await _check_not_above(store, caller, key_id)
    owner = "" if caller.role == "a" else caller.user_id or "-"
    outcome = await store.call(
        script("apikey_revoke", store.now_ms(), caller.actor, key_id, owner, read=text)
    )
    if outcome == "missing":
        raise NotFound(f"You have no API key '{key_id}'.")


async def _check_not_above(store: Store, caller: Identity, key_id: str) -> None:
    if caller.kind != "key" or caller.user_id is None or caller.role == "a":
        return
    owner = await users.get(store, caller.user_id)
    for key in await owned_by(store, owner.id):
        role = lesser(key.role, owner.role)
        if key.id == key_id and is_above(role, caller.role):
            raise Denied(f"A key of role '{role}' is above the role of yours.")
