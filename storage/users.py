"""Users: who they are, what they may do, and which changes to them are allowed."""

import re
import unicodedata
from dataclasses import asdict, dataclass, replace
from typing import Any

from storage.calls import command, script, text
from storage.errors import Conflict, Denied, Invalid, NotFound
from storage.identity import LADDER, RoleLetter
from storage.records import genuine, opened, signed
from storage.seal import Forged, Seal
from storage.store import Store

USERNAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ATTEMPTS = 50

_REFUSALS = {
    "username": (Conflict, "A user with this username exists."),
    "email": (Conflict, "A user with this email exists."),
    "last_admin": (Conflict, "This is the last admin; make somebody else an admin first."),
    "not_first": (Denied, "This installation has its first admin already."),
    "missing": (NotFound, "There is no such user."),
}


@dataclass(frozen=True, slots=True)
class User:
    """One user. A new password or role counts `generation` up, which ends every session of before."""

    id: str
    username: str
    email: str
    role: RoleLetter
    password_hash: str
    generation: int
    created_ms: int
    updated_ms: int

    @property
    def names(self) -> tuple[str, str]:
        """Return what the user may log in with, as `name_key` spells it."""
        return name_key(self.username), name_key(self.email)

    def record(self, seal: Seal) -> str:
        """Return the user as it lies in Redis, signed as a whole."""
        return signed(seal, "user", self.id, {**asdict(self), "names": self.names})

    @classmethod
    def opened(cls, seal: Seal, user_id: str, raw: bytes) -> "User":
        """Return the user of a signed record. Raises Forged."""
        fields = opened(seal, "user", user_id, raw)
        return cls(**{name: fields[name] for name in cls.__slots__})


def name_key(name: str) -> str:
    """Return the spelling under which names are compared: `Ada@Example.org` is `ada@example.org`."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


async def get(store: Store, user_id: str) -> User:
    """Return one user. Raises NotFound, or Forged when its record was written by somebody else."""
    return (await _read(store, user_id))[0]


async def recover(store: Store, user_id: str) -> None:
    """Put a user's record into the indexes. Raises NotFound, Forged."""
    user = await get(store, user_id)
    indexes = [command("SET", f"h:user:by:{name}", user_id) for name in user.names]
    indexes.append(command("ZADD", "h:users", user.created_ms, user_id))
    indexes += [command("SADD", "h:users:admins", user_id)] if user.role == "a" else []
    await store.calls(*indexes)


async def _read(store: Store, user_id: str) -> tuple[User, bytes]:
    raw = await store.call(command("GET", f"h:user:{user_id}"))
    if raw is None:
        raise NotFound(f"There is no user '{user_id}'.")
    return User.opened(store.seal, user_id, raw), raw


async def named(store: Store, name: str) -> User | None:
    """Return the user whose username or email is `name`, in any case."""
    key = name_key(name)
    user_id = await store.call(command("GET", f"h:user:by:{key}", read=text))
    if not user_id:
        return None
    try:
        user = await get(store, user_id)
    except (NotFound, Forged):
        return None
    return user if key in user.names else None


async def page(store: Store, limit: int, offset: int) -> tuple[list[User], int]:
    """Return `limit` users from `offset` on, the oldest first, and how many there are in all."""
    ids, total = await store.calls(
        command("ZRANGE", "h:users", offset, offset + limit - 1), command("ZCARD", "h:users")
    )
    if not ids:
        return [], int(total)
    raws = await store.call(command("MGET", *(b"h:user:" + user_id for user_id in ids)))
    found = genuine(
        zip(map(text, ids), raws, strict=True), lambda name, raw: User.opened(store.seal, name, raw)
    )
    return found, int(total)


async def any_exist(store: Store) -> bool:
    """Tell whether this installation has a user."""
    return bool(await store.call(command("EXISTS", "h:users")))


async def new(store: Store, *, username: str, email: str, password: str, role: RoleLetter) -> User:
    """Return a user that is not kept yet, its password hashed. Raises Invalid."""
    _check_names(username, role)
    now_ms = store.now_ms()
    return User(
        id=store.new_id("user"),
        username=username,
        email=email.strip(),
        role=role,
        password_hash=await store.passwords.hash(password),
        generation=1,
        created_ms=now_ms,
        updated_ms=now_ms,
    )


async def keep(
    store: Store, user: User, *, actor: str, first: bool = False, key: tuple[str, str, str] = ("", "", "")
) -> None:
    """Keep a new user, and the API key whose id, digest and record are `key`, in one step.

    Raises Conflict when a name is taken, and Denied when `first` and there are users already.
    """
    rank = "first" if first else "any"
    outcome = await store.call(
        script(
            "user_create",
            user.created_ms,
            actor,
            user.id,
            user.record(store.seal),
            *user.names,
            user.role,
            rank,
            *key,
            read=text,
        )
    )
    _refuse(outcome)


async def create(
    store: Store, *, actor: str, username: str, email: str, password: str, role: RoleLetter
) -> User:
    """Create a user. Raises Invalid, or Conflict when a name is taken."""
    user = await new(store, username=username, email=email, password=password, role=role)
    await keep(store, user, actor=actor)
    return user


async def create_first(store: Store, *, username: str, email: str, password: str) -> User:
    """Create the first admin where there is no user; of many calls at once, one succeeds. Raises Denied."""
    async with store.passwords.turn():  # so that those who come late do not burn a hash each
        if await any_exist(store):
            _refuse("not_first")
        user = await new(store, username=username, email=email, password=password, role="a")
        await keep(store, user, actor="system:setup", first=True)
    return user


async def update(store: Store, user_id: str, *, actor: str, changes: dict[str, Any]) -> User:
    """Change a user's `username`, `email`, `password` or `role`.

    A new password or role ends its sessions; a new password revokes its API keys too, for whoever knew the old one
    may have made some. Raises NotFound, Invalid, or Conflict when a name is taken or the last admin would be none.
    """
    changes = dict(changes)
    if "password" in changes:
        changes["password_hash"] = await store.passwords.hash(changes.pop("password"))
    if "email" in changes:
        changes["email"] = changes["email"].strip()
    for _ in range(_ATTEMPTS):
        before, raw = await _read(store, user_id)
        after = replace(before, **changes, updated_ms=max(store.now_ms(), before.updated_ms))
        _check_names(after.username, after.role)
        if (after.role, after.password_hash) != (before.role, before.password_hash):
            after = replace(after, generation=before.generation + 1)
        keys = "revoke" if after.password_hash != before.password_hash else ""
        outcome = await _replace(store, raw, before, after, actor=actor, keys=keys)
        if outcome != "changed":
            _refuse(outcome)
            return after
    raise Conflict(f"User '{user_id}' is being changed by others; try again.")


async def rehash(store: Store, user: User, password: str) -> None:
    """Keep the same password under today's parameters; no session ends, a change that came between wins."""
    current, raw = await _read(store, user.id)
    if current.password_hash == user.password_hash:
        after = replace(current, password_hash=await store.passwords.hash(password))
        await _replace(store, raw, current, after, actor="system:rehash")


async def _replace(store: Store, raw: bytes, before: User, after: User, *, actor: str, keys: str = "") -> str:
    record = after.record(store.seal)
    arguments = (actor, after.id, raw, record, *before.names, *after.names, after.role, keys)
    return await store.call(script("user_replace", store.now_ms(), *arguments, read=text))


async def delete(store: Store, user_id: str, *, actor: str) -> None:
    """Delete a user, its sessions and API keys. Raises NotFound, or Conflict for the last admin."""
    _refuse(await store.call(script("user_delete", store.now_ms(), actor, user_id, read=text)))


def _check_names(username: str, role: str) -> None:
    if not USERNAME.fullmatch(username):
        problem = "Only letters, digits, '.', '_' and '-', at most 64."
        raise Invalid(f"username: {problem}", details={"username": problem})
    if role not in LADDER or len(role) != 1:
        raise Invalid(f"'{role}' is not a role.", details={"role": "One of a, w, r."})


def _refuse(outcome: str) -> None:
    """Raise what a script refused with; `ok` passes."""
    if outcome != "ok":
        error, message = _REFUSALS[outcome]
        raise error(message)
