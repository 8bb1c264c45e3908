"""The marketplace as Hostler keeps it: the key for the one above, and the lists that an admin keeps without one."""

import re
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from storage import api_keys
from storage.api_keys import ApiKey
from storage.calls import command, script, text
from storage.errors import Denied, Invalid, NotFound
from storage.identity import Identity, RoleLetter, is_above
from storage.records import opened, signed
from storage.seal import Forged
from storage.store import Store

#: The key speaks Cuby's dialect and no other: the marketplace knows it too.
SCOPE = "cuby"
KEY_NAME = "marketplace"
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
#: Fewer different digits than this and a person typed it; of a hundred million drawn by chance, about eight.
LEAST_DIGITS = 8

Listed = Literal["courses", "videos"]
LIST_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The marketplace's key without its secret; `prefix` is how it begins."""

    id: str
    digest: str
    owner: str
    role: RoleLetter
    prefix: str
    sealed: str
    stored_ms: int


def read_key(given: str) -> str:
    """Return a UUID of version 4 in its usual spelling. Raises Invalid for anything else, or an obvious one."""
    secret = given.strip().lower()
    problem = ""
    if not UUID4.fullmatch(secret):
        problem = "The API key must be a UUID of version 4."
    elif len(set(secret) - {"-"}) < LEAST_DIGITS:
        problem = "The API key is too regular to be a secret; use a random UUID of version 4."
    if problem:
        raise Invalid(problem, details={"apiKey": problem})
    return secret


def new_key() -> str:
    """Return a random UUID of version 4."""
    return str(uuid.uuid4())


async def store_key(store: Store, caller: Identity, given: str, *, role: RoleLetter) -> StoredKey:
    """Keep the marketplace's key: it acts for the caller's user from now on, and the one before it does not any more.

    Safe to run twice. Raises Invalid, or Denied for a role above the caller's.
    """
    if caller.user_id is None:
        raise Denied("The key acts for whoever stores it, so a user or an API key has to.")
    if is_above(role, caller.role):
        raise Denied(f"A key of role '{role}' would be above your own role.")
    secret = read_key(given)
    digest = api_keys.digest_of_chosen(store.seal, secret)
    login = ApiKey(store.new_id("key"), caller.user_id, KEY_NAME, role, secret[:4], store.now_ms(), SCOPE)
    sealed = store.seal.encrypt("marketplace key", secret.encode(), bound_to=digest)
    key = StoredKey(login.id, digest, login.owner, role, login.prefix, sealed, login.created_ms)
    outcome = await store.call(
        script(
            "marketplace_key", login.created_ms, caller.actor, login.owner, login.id, digest,
            login.record(store.seal, digest), signed(store.seal, "marketplace", "key", asdict(key)), read=text,
        )
    )  # fmt: skip
    if outcome == "missing":
        raise NotFound(f"There is no user '{login.owner}'.")
    return key


async def key(store: Store) -> StoredKey | None:
    """Return the marketplace's key, or None where none is kept or the one that is was not written by us."""
    raw = await store.call(command("GET", "h:marketplace:key"))
    try:
        return StoredKey(**opened(store.seal, "marketplace", "key", raw)) if raw else None
    except Forged:
        return None


def secret_of(store: Store, stored: StoredKey) -> str:
    """Return the key itself, for the marketplace above alone. Raises Forged."""
    return store.seal.decrypt("marketplace key", stored.sealed, bound_to=stored.digest).decode()


async def lets_in(store: Store, stored: StoredKey) -> bool:
    """Tell whether the key still logs in: it ends when it is revoked, and with its owner."""
    return bool(await store.call(command("EXISTS", f"h:apikey:{stored.digest}")))


async def listed(store: Store, which: Listed) -> list[dict[str, Any]]:
    """Return the list that an admin keeps, as it was kept."""
    raw = await store.call(command("GET", f"h:marketplace:{which}"))
    found: list[dict[str, Any]] = orjson.loads(raw) if raw else []
    return found


async def keep_list(store: Store, actor: str, which: Listed, entries: list[dict[str, Any]]) -> None:
    """Replace a list. Raises Invalid for more than 1000 entries. Safe to run twice."""
    if len(entries) > LIST_LIMIT:
        raise Invalid(f"A list of {which} has at most {LIST_LIMIT} entries.")
    kept = orjson.dumps(entries)
    await store.call(
        script("keep_setting", store.now_ms(), actor, f"h:marketplace:{which}", kept, f"marketplace.{which}")
    )


async def complete_setup(store: Store, actor: str) -> int:
    """Note that the set-up is complete, and return since when (ms): the first call decides. Safe to run twice."""
    now_ms = store.now_ms()
    return int(
        await store.call(script("keep_setting", now_ms, actor, "h:setup", now_ms, "setup.complete", "once"))
    )


async def setup_completed_ms(store: Store) -> int | None:
    """Return when the set-up was declared complete, or None."""
    raw = await store.call(command("GET", "h:setup"))
    return int(raw) if raw else None


async def autostart(store: Store) -> bool:
    """Tell whether apps that are installed from now on come back after a reboot of their node."""
    return bool(await store.call(command("GET", "h:autostart")) != b"0")


async def keep_autostart(store: Store, actor: str, enabled: bool) -> None:
    """Say so. Safe to run twice."""
    now_ms = store.now_ms()
    await store.call(script("keep_setting", now_ms, actor, "h:autostart", int(enabled), "autostart"))
