"""Users: unique by name, never without an admin, and believed only when we signed them."""

import asyncio
import hashlib
import itertools
import json

import pytest
import redis

from storage import users
from storage.api_keys import create as create_key
from storage.errors import Conflict, Denied, HostlerError, Invalid, NotFound
from storage.identity import Identity, RoleLetter
from storage.seal import Forged
from storage.store import Store
from storage.users import User

_numbers = itertools.count()


async def new_user(store: Store, name: str = "", role: RoleLetter = "r") -> User:
    name = name or f"user{next(_numbers)}"
    return await users.create(
        store, actor="test", username=name, email=f"{name}@example.org", password="correct horse", role=role
    )


async def test_a_user_is_found_by_id_and_by_either_name_in_any_case(store: Store) -> None:
    user = await new_user(store, "Ada")
    assert await users.get(store, user.id) == user
    for name in ("ada", "ADA", " Ada@Example.ORG "):
        assert await users.named(store, name) == user
    assert await users.named(store, "nobody") is None


async def test_a_password_is_kept_as_an_argon2id_hash_alone(store: Store, redis_client: redis.Redis) -> None:
    user = await new_user(store)
    raw = redis_client.get(f"h:user:{user.id}")
    assert b"$argon2id$" in raw
    assert b"correct horse" not in raw


@pytest.mark.parametrize("username", ["", "a b", "a@b", "x" * 65, "ада", "a\n", "../a"])
async def test_a_username_of_other_characters_is_refused(store: Store, username: str) -> None:
    with pytest.raises(Invalid):
        await users.create(
            store, actor="test", username=username, email="a@example.org", password="12345678", role="r"
        )


@pytest.mark.parametrize(("username", "email"), [("ADA", "other@example.org"), ("other", "Ada@example.ORG")])
async def test_a_taken_name_is_refused_in_any_case(store: Store, username: str, email: str) -> None:
    await new_user(store, "ada")
    with pytest.raises(Conflict):
        await users.create(store, actor="test", username=username, email=email, password="12345678", role="r")
    assert (await users.page(store, 10, 0))[1] == 1


async def test_of_many_that_take_one_name_at_once_one_gets_it(store: Store) -> None:
    outcomes = await asyncio.gather(*(new_user(store, "ada") for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(outcome, User) for outcome in outcomes) == 1
    assert (await users.page(store, 10, 0))[1] == 1


async def test_users_are_listed_from_the_oldest_in_parts(store: Store) -> None:
    made = [await new_user(store) for _ in range(5)]
    first, total = await users.page(store, 3, 0)
    second, _ = await users.page(store, 3, 3)
    assert sorted(user.id for user in first + second) == sorted(user.id for user in made)
    assert total == 5
    assert await users.page(store, 3, 99) == ([], 5)


async def test_a_renamed_user_frees_its_old_name_and_answers_to_the_new(store: Store) -> None:
    user = await new_user(store, "ada")
    await users.update(
        store, user.id, actor="test", changes={"username": "lovelace", "email": "l@example.org"}
    )
    assert await users.named(store, "ada") is None
    assert await users.named(store, "ada@example.org") is None
    assert await users.named(store, "LOVELACE") is not None
    await new_user(store, "ada")


async def test_a_user_may_change_the_case_of_its_own_name_but_not_take_anothers(store: Store) -> None:
    user = await new_user(store, "ada")
    await new_user(store, "grace")
    await users.update(store, user.id, actor="test", changes={"username": "Ada"})
    with pytest.raises(Conflict):
        await users.update(store, user.id, actor="test", changes={"username": "Grace"})
    assert (await users.get(store, user.id)).username == "Ada"


async def test_changes_at_the_same_time_all_survive(store: Store) -> None:
    user = await new_user(store, "ada")
    await asyncio.gather(
        users.update(store, user.id, actor="test", changes={"username": "lovelace"}),
        users.update(store, user.id, actor="test", changes={"email": "new@example.org"}),
        users.update(store, user.id, actor="test", changes={"role": "w"}),
    )
    after = await users.get(store, user.id)
    assert (after.username, after.email, after.role, after.generation) == (
        "lovelace",
        "new@example.org",
        "w",
        2,
    )


async def test_the_last_admin_is_neither_demoted_nor_deleted(store: Store) -> None:
    admin = await new_user(store, role="a")
    await new_user(store, role="w")
    with pytest.raises(Conflict):
        await users.update(store, admin.id, actor="test", changes={"role": "w"})
    with pytest.raises(Conflict):
        await users.delete(store, admin.id, actor="test")
    assert (await users.get(store, admin.id)).role == "a"


async def test_admins_that_demote_and_delete_one_another_at_once_leave_one(store: Store) -> None:
    admins = [await new_user(store, role="a") for _ in range(6)]
    attacks = [
        users.update(store, admin.id, actor="test", changes={"role": "r"})
        if number % 2
        else users.delete(store, admin.id, actor="test")
        for number, admin in enumerate(admins)
    ]
    outcomes = await asyncio.gather(*attacks, return_exceptions=True)
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
    left = [user for user in (await users.page(store, 10, 0))[0] if user.role == "a"]
    assert len(left) == 1


async def test_a_promoted_user_counts_as_an_admin(store: Store) -> None:
    admin, other = await new_user(store, role="a"), await new_user(store, role="r")
    await users.update(store, other.id, actor="test", changes={"role": "a"})
    await users.delete(store, admin.id, actor="test")
    with pytest.raises(Conflict):
        await users.delete(store, other.id, actor="test")


async def test_a_deleted_user_leaves_nothing_behind_but_the_audit_log(
    store: Store, redis_client: redis.Redis
) -> None:
    await new_user(store, role="a")
    before = set(redis_client.keys())
    user = await new_user(store, "ada", role="w")
    caller = Identity("user", user.id, "w", "ada", "jti", user_id=user.id)
    await create_key(store, caller, name="ci", role="w")
    await users.delete(store, user.id, actor="test")
    assert set(redis_client.keys()) == before
    with pytest.raises(NotFound):
        await users.get(store, user.id)
    with pytest.raises(NotFound):
        await users.delete(store, user.id, actor="test")


async def test_of_fifty_first_admins_at_once_one_is_made(store: Store) -> None:
    outcomes = await asyncio.gather(
        *(
            users.create_first(
                store, username=f"admin{n}", email=f"admin{n}@example.org", password="12345678"
            )
            for n in range(50)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, User) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Denied) for outcome in outcomes) == 49
    assert (await users.page(store, 10, 0))[1] == 1


async def test_a_role_written_into_redis_is_not_believed(store: Store, redis_client: redis.Redis) -> None:
    user = await new_user(store, role="r")
    raw = redis_client.get(f"h:user:{user.id}")
    redis_client.set(f"h:user:{user.id}", raw.replace(b'"role":"r"', b'"role":"a"'))
    with pytest.raises(Forged):
        await users.get(store, user.id)


async def test_an_admins_record_under_another_id_or_name_is_not_believed(
    store: Store, redis_client: redis.Redis
) -> None:
    admin, user = await new_user(store, "root", role="a"), await new_user(store, "ada")
    redis_client.set(f"h:user:{user.id}", redis_client.get(f"h:user:{admin.id}"))
    with pytest.raises(Forged):
        await users.get(store, user.id)
    redis_client.set("h:user:by:grace", admin.id)
    assert await users.named(store, "grace") is None


async def test_forged_users_are_left_out_of_lists(store: Store, redis_client: redis.Redis) -> None:
    user, other = await new_user(store), await new_user(store)
    redis_client.set(f"h:user:{user.id}", b"x\n{}")
    assert (await users.page(store, 10, 0))[0] == [other]


async def test_every_change_is_in_the_audit_log_whose_chain_shows_tampering(
    store: Store, redis_client: redis.Redis
) -> None:
    user = await new_user(store)
    await users.update(store, user.id, actor="user:admin", changes={"role": "w"})
    await users.delete(store, user.id, actor="user:admin")
    lines = [fields for _, fields in redis_client.xrange("h:audit")]
    said = [json.loads(fields[b"line"])[1:] for fields in lines]
    assert said == [
        ["test", "user.create", user.id],
        ["user:admin", "user.update", user.id],
        ["user:admin", "user.delete", user.id],
    ]
    head = ""
    for fields in lines:
        head = hashlib.sha1(head.encode() + fields[b"line"], usedforsecurity=False).hexdigest()
        assert fields[b"digest"].decode() == head
    assert redis_client.get("h:audit:head").decode() == head


async def test_a_refused_change_is_not_in_the_audit_log(store: Store, redis_client: redis.Redis) -> None:
    admin = await new_user(store, role="a")
    before = redis_client.xlen("h:audit")
    with pytest.raises(HostlerError):
        await users.delete(store, admin.id, actor="test")
    assert redis_client.xlen("h:audit") == before
