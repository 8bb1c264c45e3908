"""The first start: a bucket to keep files in, and an admin to begin with."""

import secrets
from dataclasses import dataclass

from settings import Settings
from storage import api_keys, users
from storage.errors import Denied
from storage.store import Store

DEFAULT_EMAIL = "admin@localhost"


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin that the first start created, with what nobody can be told a second time."""

    email: str
    username: str
    password: str
    api_key: str


async def prepare(settings: Settings) -> Admin | None:
    """Make what an empty installation needs; return its new admin, or None when there are users already.

    Safe to run twice, and by several processes at once. Raises Unavailable, or Forged when the data was
    written under another HOSTLER_SECRET_KEY.
    """
    store = Store(settings)
    try:
        await store.objects.ensure_bucket()
        return await first_admin(store)
    finally:
        await store.close()


async def first_admin(store: Store) -> Admin | None:
    """Create the first admin and its API key in one step, unless there are users; else None."""
    await store.keyring.check()
    if await users.any_exist(store):
        return None
    email = store.settings.admin_email or DEFAULT_EMAIL
    password = store.settings.admin_password or secrets.token_urlsafe(18)
    user = await users.new(store, username="admin", email=email, password=password, role="a")
    key, secret = api_keys.new(store, owner=user.id, name="hostler up", role="a")
    digest = api_keys.digest_of(secret)
    try:
        await users.keep(
            store,
            user,
            actor="system:bootstrap",
            first=True,
            key=(key.id, digest, key.record(store.seal, digest)),
        )
    except Denied:  # somebody else was first
        return None
    return Admin(email, user.username, password, secret)
