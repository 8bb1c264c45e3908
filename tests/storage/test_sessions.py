"""Sessions last a day, are refreshed once, and end when they should."""

import asyncio
from typing import Any

import pytest

from storage import sessions, users
from storage.admission import Presented, admit
from storage.calls import command
from storage.errors import Unauthenticated
from storage.identity import Identity
from storage.sessions import REFRESH_GRACE_S, SESSION_S
from storage.store import Store
from storage.users import User


class Clock:
    """A clock for a store, that the test sets; it starts ten days ago, so that no token is from the future."""

    def __init__(self, store: Store) -> None:
        self.ms = store.now_ms() - 10 * 24 * 3600 * 1000
        store.now_ms = lambda: self.ms  # type: ignore[method-assign]


async def new_user(store: Store, name: str = "ada") -> User:
    return await users.create(
        store, actor="test", username=name, email=f"{name}@example.org", password="correct horse", role="w"
    )


async def who(store: Store, token: str) -> Identity | None:
    return (await admit(store, Presented("bearer", token), "192.0.2.1")).identity


async def test_a_session_stands_for_its_user_until_it_expires(store: Store) -> None:
    clock = Clock(store)
    user = await new_user(store)
    token = await sessions.issue(store, user)
    identity = await who(store, token)
    assert identity is not None
    assert (identity.kind, identity.id, identity.role, identity.name) == ("user", user.id, "w", "ada")
    clock.ms += SESSION_S * 1000 - 1000
    assert await who(store, token) is not None
    clock.ms += 1000
    assert await who(store, token) is None


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "99999999999"},
        {"exp": True},
        {"exp": 99999999999.5},
        {"exp": None},
        {"typ": "refresh"},
        {"typ": None},
        {"gen": "1"},
        {"jti": ""},
        {"fam": None},
    ],
)
async def test_a_session_whose_claims_have_other_types_is_refused(
    store: Store, claims: dict[str, Any]
) -> None:
    user = await new_user(store)
    now_s = store.now_ms() // 1000
    good = {"typ": "session", "sub": user.id, "role": "w", "gen": 1, "jti": "j", "fam": "f", "iat": now_s}
    good["exp"] = now_s + 60
    assert await who(store, await store.keyring.sign(good)) is not None
    assert await who(store, await store.keyring.sign({**good, "jti": "k", **claims})) is None


async def test_logging_out_ends_the_session_at_once_also_for_refreshing(store: Store) -> None:
    token = await sessions.issue(store, await new_user(store))
    identity = await who(store, token)
    assert identity is not None
    await sessions.revoke(store, identity)
    await sessions.revoke(store, identity)
    assert await who(store, token) is None
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, token)


async def test_logging_out_leaves_the_users_other_sessions(store: Store) -> None:
    user = await new_user(store)
    here, there = await sessions.issue(store, user), await sessions.issue(store, user)
    identity = await who(store, here)
    assert identity is not None
    await sessions.revoke(store, identity)
    assert await who(store, there) is not None


async def test_a_refreshed_session_goes_on_under_another_id_and_the_old_token_is_over_a_minute_later(
    store: Store,
) -> None:
    user = await new_user(store)
    old = await sessions.issue(store, user)
    new, same = await sessions.refresh(store, old)
    assert same == user
    assert await who(store, old) is not None  # it serves what was under way
    key = f"h:revoked:{(await sessions.read(store, old)).token_id}"
    await store.call(command("SET", key, f"refreshed {store.now_ms() - 61_000}"))
    assert await who(store, old) is None
    identity = await who(store, new)
    assert identity is not None
    assert identity.token_id != (await sessions.read(store, old)).token_id


async def test_a_token_that_is_refreshed_twice_ends_its_whole_family(store: Store) -> None:
    user = await new_user(store)
    unrelated = await sessions.issue(store, user)
    first = await sessions.issue(store, user)
    second, _ = await sessions.refresh(store, first)
    third, _ = await sessions.refresh(store, second)
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, first)
    assert await who(store, third) is None
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, third)
    assert await who(store, unrelated) is not None


async def test_of_many_refreshes_at_once_one_succeeds(store: Store) -> None:
    token = await sessions.issue(store, await new_user(store))
    outcomes = await asyncio.gather(
        *(sessions.refresh(store, token) for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1


async def test_an_expired_session_is_refreshed_within_the_grace_and_not_after(store: Store) -> None:
    clock = Clock(store)
    user = await new_user(store)
    early, late = await sessions.issue(store, user), await sessions.issue(store, user)
    clock.ms += (SESSION_S + REFRESH_GRACE_S - 1) * 1000
    new, _ = await sessions.refresh(store, early)
    assert (await sessions.read(store, new)).subject == user.id
    clock.ms += 2000
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, late)


@pytest.mark.parametrize("changes", [{"password": "another horse"}, {"role": "r"}])
async def test_a_changed_password_or_role_ends_every_session(store: Store, changes: dict[str, Any]) -> None:
    user = await new_user(store)
    token = await sessions.issue(store, user)
    await users.update(store, user.id, actor="test", changes=changes)
    assert await who(store, token) is None
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, token)


async def test_a_changed_name_ends_no_session(store: Store) -> None:
    user = await new_user(store)
    token = await sessions.issue(store, user)
    await users.update(store, user.id, actor="test", changes={"username": "lovelace"})
    identity = await who(store, token)
    assert identity is not None
    assert identity.name == "lovelace"


async def test_a_deleted_users_session_is_over(store: Store) -> None:
    user = await new_user(store)
    token = await sessions.issue(store, user)
    await users.delete(store, user.id, actor="test")
    assert await who(store, token) is None
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, token)


async def test_a_workers_token_is_no_session_and_cannot_be_refreshed(store: Store) -> None:
    token = await sessions.issue_worker_token(store, "worker-001", "registration-1")
    with pytest.raises(Unauthenticated):
        await sessions.refresh(store, token)
