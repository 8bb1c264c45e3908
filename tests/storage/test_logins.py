"""Logins: the right password opens, and guessing is slowed down without locking others out."""

import asyncio
import json

import argon2
import pytest
import redis

from storage import logins, sessions, users
from storage.admission import Presented, admit
from storage.errors import InvalidCredentials, TooMany
from storage.passwords import Passwords
from storage.store import Store
from storage.users import User

HERE, THERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
async def ada(store: Store) -> User:
    return await users.create(
        store, actor="test", username="ada", email="ada@example.org", password="correct horse", role="w"
    )


async def fail(store: Store, name: str, peer: str = HERE) -> type[Exception]:
    with pytest.raises((InvalidCredentials, TooMany)) as caught:
        await logins.login(store, name, "wrong horse", peer)
    return caught.type


async def test_either_name_opens_with_the_right_password(store: Store, ada: User) -> None:
    assert await logins.login(store, "ada", "correct horse", HERE) == ada
    assert await logins.login(store, "ADA@example.org", "correct horse", HERE) == ada


async def test_an_unknown_account_fails_like_a_wrong_password_and_costs_a_verification(
    store: Store, ada: User
) -> None:
    messages = []
    for name in ("ada", "nobody"):
        before = store.passwords.verified
        with pytest.raises(InvalidCredentials) as caught:
            await logins.login(store, name, "wrong horse", HERE)
        messages.append((str(caught.value), caught.value.code, caught.value.details))
        assert store.passwords.verified == before + 1
    assert messages[0] == messages[1]


async def test_the_sixth_failure_in_a_minute_is_told_to_wait_even_with_the_right_password(
    store: Store, ada: User
) -> None:
    assert [await fail(store, "ada") for _ in range(6)] == [InvalidCredentials] * 5 + [TooMany]
    with pytest.raises(TooMany) as caught:
        await logins.login(store, "ada", "correct horse", HERE)
    assert 0 < caught.value.retry_after_s <= 60


async def test_unknown_accounts_are_slowed_down_just_the_same(store: Store, ada: User) -> None:
    assert [await fail(store, "nobody") for _ in range(6)] == [InvalidCredentials] * 5 + [TooMany]


async def test_guesses_from_one_address_do_not_lock_the_owner_out_elsewhere(store: Store, ada: User) -> None:
    for _ in range(8):
        await fail(store, "ada")
    assert await logins.login(store, "ada", "correct horse", THERE) == ada


async def test_one_address_fails_twenty_times_in_a_minute_whatever_the_accounts(store: Store) -> None:
    outcomes = [await fail(store, f"nobody{n}") for n in range(22)]
    assert outcomes == [InvalidCredentials] * 20 + [TooMany] * 2
    assert await fail(store, "nobody0", THERE) is InvalidCredentials


async def test_one_account_fails_a_hundred_times_in_a_quarter_whatever_the_addresses(
    store: Store, ada: User
) -> None:
    outcomes = [await fail(store, "ada", f"203.0.113.{n // 4}") for n in range(104)]
    assert outcomes == [InvalidCredentials] * 100 + [TooMany] * 4
    with pytest.raises(TooMany) as caught:
        await logins.login(store, "ada", "correct horse", THERE)
    assert caught.value.retry_after_s > 60


async def test_a_success_clears_the_failures_of_the_account_from_that_address(
    store: Store, ada: User
) -> None:
    for _ in range(3):
        for _ in range(4):
            await fail(store, "ada")
        await logins.login(store, "ada", "correct horse", HERE)


async def test_successes_are_not_counted(store: Store, ada: User, redis_client: redis.Redis) -> None:
    for _ in range(30):
        await logins.login(store, "ada", "correct horse", HERE)
    assert redis_client.get(f"h:throttle:peer:{HERE}") == b"0"


async def test_two_hundred_guesses_at_once_test_five_passwords(store: Store, ada: User) -> None:
    before = store.passwords.verified
    outcomes = await asyncio.gather(
        *(logins.login(store, "ada", f"guess number {n}", HERE) for n in range(200)), return_exceptions=True
    )
    assert sum(isinstance(outcome, InvalidCredentials) for outcome in outcomes) == 5
    assert sum(isinstance(outcome, TooMany) for outcome in outcomes) == 195
    assert store.passwords.verified == before + 5


async def test_a_dozen_of_the_owners_logins_at_once_all_succeed(store: Store, ada: User) -> None:
    assert (
        await asyncio.gather(*(logins.login(store, "ada", "correct horse", HERE) for _ in range(12)))
        == [ada] * 12
    )


async def test_a_login_brings_an_old_hash_up_to_date_and_ends_no_session(store: Store, ada: User) -> None:
    session = Presented("bearer", await sessions.issue(store, ada))
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    await logins.login(store, "ada", "correct horse", HERE)
    encoded = (await users.get(store, ada.id)).password_hash
    assert not store.passwords.outdated(encoded)
    assert (await admit(store, session, HERE)).identity is not None
    await logins.login(store, "ada", "correct horse", HERE)
    assert (await users.get(store, ada.id)).password_hash == encoded


async def test_successes_and_failures_are_in_the_audit_log_without_what_was_typed(
    store: Store, ada: User, redis_client: redis.Redis
) -> None:
    await fail(store, "my password by mistake")
    await fail(store, "ada")
    await logins.login(store, "ada", "correct horse", HERE)
    lines = [json.loads(fields[b"line"])[1:] for _, fields in redis_client.xrange("h:audit")][-3:]
    assert lines == [
        ["user:unknown", "session.login_failed", HERE],
        [f"user:{ada.id}", "session.login_failed", HERE],
        [f"user:{ada.id}", "session.login", HERE],
    ]
