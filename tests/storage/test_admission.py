"""Admission: one round trip tells who asks and whether it is too often."""

import asyncio
import itertools
from dataclasses import replace

import pytest
import redis

from storage import sessions, users
from storage.admission import Presented, admit
from storage.store import Store
from storage.users import User

_numbers = itertools.count()
ADDRESS = "192.0.2.1"


def limit(store: Store, per_s: int) -> None:
    store.settings = replace(store.settings, rate_limit_per_s=per_s)


async def new_session(store: Store) -> tuple[User, Presented]:
    name = f"user{next(_numbers)}"
    user = await users.create(
        store, actor="test", username=name, email=f"{name}@example.org", password="correct horse", role="w"
    )
    return user, Presented("bearer", await sessions.issue(store, user))


async def test_without_credentials_nobody_is_known_and_the_address_is_counted(store: Store) -> None:
    limit(store, 10)
    first, second = await admit(store, None, ADDRESS), await admit(store, None, ADDRESS)
    assert first.identity is None
    assert (first.allowed, first.limit, first.remaining) == (True, 10, 9)
    assert second.remaining == 8
    assert 0 < second.reset_ms <= 1000


async def test_of_a_hundred_requests_at_once_exactly_the_limit_passes(store: Store) -> None:
    limit(store, 10)
    _, presented = await new_session(store)
    await store.keyring.check()
    results = await asyncio.gather(*(admit(store, presented, ADDRESS) for _ in range(100)))
    passed = [result for result in results if result.allowed]
    assert len(passed) == 10
    assert sorted(result.remaining for result in passed) == list(range(10))
    assert all(result.remaining == 0 for result in results if not result.allowed)


async def test_a_place_is_free_again_a_second_after_it_was_taken(store: Store) -> None:
    limit(store, 2)
    assert (await admit(store, None, ADDRESS)).allowed
    assert (await admit(store, None, ADDRESS)).allowed
    refused = await admit(store, None, ADDRESS)
    assert not refused.allowed
    await asyncio.sleep(refused.reset_ms / 1000 + 0.01)
    assert (await admit(store, None, ADDRESS)).allowed


async def test_identities_are_counted_apart_from_one_another_and_from_their_address(store: Store) -> None:
    limit(store, 1)
    (_, one), (_, other) = await new_session(store), await new_session(store)
    for presented in (one, other, None):
        assert (await admit(store, presented, ADDRESS)).allowed
        assert not (await admit(store, presented, ADDRESS)).allowed
    assert (await admit(store, None, "192.0.2.2")).allowed


async def test_a_session_that_has_ended_counts_for_its_address_and_not_for_its_user(store: Store) -> None:
    limit(store, 3)
    user, stale = await new_session(store)
    await users.update(store, user.id, actor="test", changes={"password": "another horse"})
    fresh = Presented("bearer", await sessions.issue(store, await users.get(store, user.id)))
    for _ in range(5):
        assert (await admit(store, stale, ADDRESS)).identity is None
    assert not (await admit(store, None, ADDRESS)).allowed
    assert (await admit(store, fresh, ADDRESS)).remaining == 2


async def test_what_is_asked_again_for_a_long_connection_is_not_counted(store: Store) -> None:
    limit(store, 1)
    _, presented = await new_session(store)
    for _ in range(5):
        result = await admit(store, presented, ADDRESS, counted=False)
        assert result.allowed
        assert result.identity is not None
    assert (await admit(store, presented, ADDRESS)).allowed


async def test_counts_of_the_past_leave_no_key_behind(store: Store, redis_client: redis.Redis) -> None:
    await admit(store, None, ADDRESS)
    assert 0 < redis_client.pttl(f"h:rate:address:{ADDRESS}") <= 1000


async def test_a_role_that_somebody_wrote_into_redis_makes_nobody_an_admin(
    store: Store, redis_client: redis.Redis
) -> None:
    user, presented = await new_session(store)
    name = f"h:user:{user.id}"
    raw = redis_client.get(name)
    redis_client.set(name, raw.replace(b'"role":"w"', b'"role":"a"'))
    assert (await admit(store, presented, ADDRESS)).identity is None
    redis_client.set(name, raw)
    assert (await admit(store, presented, ADDRESS)).identity is not None


@pytest.mark.parametrize(
    "record", [b"", b"\n", b"x\nnot json", b"x\n[]", b"x\n7", b"\xff\xfe", b'x\n{"generation":1}']
)
async def test_garbage_in_place_of_a_user_is_nobody(
    store: Store, redis_client: redis.Redis, record: bytes
) -> None:
    user, presented = await new_session(store)
    redis_client.set(f"h:user:{user.id}", record)
    assert (await admit(store, presented, ADDRESS)).identity is None


async def test_a_workers_token_is_good_for_its_own_registration_alone(
    store: Store, redis_client: redis.Redis
) -> None:
    token = await sessions.issue_worker_token(store, "worker-001", "registration-1")
    assert (await admit(store, Presented("worker", token), ADDRESS)).identity is None
    redis_client.hset("h:worker:worker-001", "registration", "registration-1")
    for by in ("worker", "bearer"):
        identity = (await admit(store, Presented(by, token), ADDRESS)).identity  # type: ignore[arg-type]
        assert identity is not None
        assert (identity.kind, identity.role, identity.id) == ("worker", "worker", "worker-001")
        assert (identity.token_id, identity.user_id) == ("registration-1", None)
    redis_client.hset("h:worker:worker-001", "registration", "registration-2")
    assert (await admit(store, Presented("worker", token), ADDRESS)).identity is None


async def test_a_credential_counts_only_where_its_kind_belongs(
    store: Store, redis_client: redis.Redis
) -> None:
    _, session = await new_session(store)
    redis_client.hset("h:worker:worker-001", "registration", "registration-1")
    worker = await sessions.issue_worker_token(store, "worker-001", "registration-1")
    for presented in (
        Presented("worker", session.secret),
        Presented("key", session.secret),
        Presented("cookie", worker),
        Presented("key", worker),
        Presented("cookie", "cb_" + "x" * 43),
        Presented("worker", "cb_" + "x" * 43),
    ):
        assert (await admit(store, presented, ADDRESS)).identity is None
