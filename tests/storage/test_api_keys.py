"""API keys: known by their digest alone, never above their owner, gone when they are revoked."""

import asyncio

import pytest
import redis

from storage import api_keys, users
from storage.admission import Presented, admit
from storage.api_keys import LIMIT
from storage.errors import Conflict, Denied, Invalid, NotFound
from storage.identity import Identity, RoleLetter
from storage.store import Store


async def new_caller(store: Store, name: str, role: RoleLetter) -> Identity:
    user = await users.create(
        store, actor="test", username=name, email=f"{name}@example.org", password="correct horse", role=role
    )
    return Identity("user", user.id, role, name, "jti", user_id=user.id)


async def who(store: Store, secret: str) -> Identity | None:
    return (await admit(store, Presented("key", secret), "192.0.2.1")).identity


async def test_a_key_acts_for_its_owner_with_its_own_role(store: Store) -> None:
    caller = await new_caller(store, "ada", "w")
    key, secret = await api_keys.create(store, caller, name="ci", role="r")
    assert secret.startswith("cb_")
    identity = await who(store, secret)
    assert identity is not None
    assert (identity.kind, identity.id, identity.user_id) == ("key", key.id, caller.id)
    assert (identity.role, identity.name) == ("r", "ci")


async def test_the_secret_of_a_key_is_nowhere_in_redis(store: Store, redis_client: redis.Redis) -> None:
    caller = await new_caller(store, "ada", "w")
    _, secret = await api_keys.create(store, caller, name="ci", role="r")
    await who(store, secret)
    keys = redis_client.keys()
    everything, names = b"".join(map(redis_client.dump, keys)), b"".join(keys)
    for part in (secret.encode(), secret.removeprefix("cb_").encode(), secret[:12].encode()):
        assert part not in everything
        assert part not in names


@pytest.mark.parametrize(("own", "wanted"), [("r", "w"), ("r", "a"), ("w", "a")])
async def test_no_key_is_made_above_its_maker(store: Store, own: RoleLetter, wanted: RoleLetter) -> None:
    caller = await new_caller(store, "ada", own)
    with pytest.raises(Denied):
        await api_keys.create(store, caller, name="ci", role=wanted)
    assert await api_keys.owned_by(store, caller.id) == []


async def test_a_key_makes_no_key_above_its_own_role(store: Store) -> None:
    caller = await new_caller(store, "ada", "a")
    _, secret = await api_keys.create(store, caller, name="reader", role="r")
    by_key = await who(store, secret)
    assert by_key is not None
    with pytest.raises(Denied):
        await api_keys.create(store, by_key, name="more", role="w")
    await api_keys.create(store, by_key, name="as much", role="r")
    assert len(await api_keys.owned_by(store, caller.id)) == 2


async def test_a_workers_token_makes_no_keys(store: Store) -> None:
    with pytest.raises(Denied):
        await api_keys.create(store, Identity("worker", "w1", "w", "w1", "reg"), name="ci", role="r")


async def test_a_keys_role_drops_with_its_owners_and_never_rises_above_its_own(store: Store) -> None:
    await new_caller(store, "root", "a")
    caller = await new_caller(store, "ada", "a")
    _, secret = await api_keys.create(store, caller, name="ci", role="w")
    for owners, effective in (("r", "r"), ("w", "w"), ("a", "w")):
        await users.update(store, caller.id, actor="test", changes={"role": owners})
        identity = await who(store, secret)
        assert identity is not None
        assert identity.role == effective


async def test_a_key_is_over_once_it_is_revoked(store: Store) -> None:
    caller = await new_caller(store, "ada", "w")
    key, secret = await api_keys.create(store, caller, name="ci", role="r")
    await api_keys.revoke(store, caller, key.id)
    assert await who(store, secret) is None
    assert await api_keys.owned_by(store, caller.id) == []
    with pytest.raises(NotFound):
        await api_keys.revoke(store, caller, key.id)


async def test_a_key_revokes_itself_and_its_equals_and_none_that_may_do_more(store: Store) -> None:
    caller = await new_caller(store, "ada", "a")
    await new_caller(store, "root", "a")
    strong, secret = await api_keys.create(store, caller, name="deploy", role="a")
    _, weak = await api_keys.create(store, caller, name="reader", role="r")
    equal, _ = await api_keys.create(store, caller, name="another reader", role="r")
    by_key = await who(store, weak)
    assert by_key is not None
    with pytest.raises(Denied):
        await api_keys.revoke(store, by_key, strong.id)
    assert await who(store, secret) is not None
    await api_keys.revoke(store, by_key, equal.id)
    await users.update(
        store, caller.id, actor="test", changes={"role": "r"}
    )  # none may do more than read now
    await api_keys.revoke(store, by_key, strong.id)
    assert await who(store, secret) is None
    await api_keys.revoke(store, by_key, by_key.id)
    assert await who(store, weak) is None


async def test_a_key_dies_with_its_owner(store: Store) -> None:
    caller = await new_caller(store, "ada", "w")
    _, secret = await api_keys.create(store, caller, name="ci", role="r")
    await users.delete(store, caller.id, actor="test")
    assert await who(store, secret) is None
    with pytest.raises(NotFound):
        await api_keys.create(store, caller, name="late", role="r")


async def test_anothers_key_does_not_exist_for_anybody_but_an_admin(store: Store) -> None:
    ada, eve, root = [
        await new_caller(store, name, role) for name, role in (("ada", "w"), ("eve", "w"), ("root", "a"))
    ]
    key, secret = await api_keys.create(store, ada, name="ci", role="r")
    with pytest.raises(NotFound):
        await api_keys.revoke(store, eve, key.id)
    assert await api_keys.owned_by(store, eve.id) == []
    assert await who(store, secret) is not None
    assert await api_keys.owned_by(store, None) == [key]
    await api_keys.revoke(store, root, key.id)
    assert await who(store, secret) is None
    assert await api_keys.owned_by(store, ada.id) == []


async def test_a_user_has_at_most_a_hundred_keys(store: Store) -> None:
    caller = await new_caller(store, "ada", "w")
    outcomes = await asyncio.gather(
        *(api_keys.create(store, caller, name=f"key {n}", role="r") for n in range(LIMIT + 5)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Denied) for outcome in outcomes) == 5
    assert len(await api_keys.owned_by(store, caller.id)) == LIMIT


async def test_a_key_whose_record_was_altered_or_moved_is_not_believed(
    store: Store, redis_client: redis.Redis
) -> None:
    caller = await new_caller(store, "ada", "a")
    _, secret = await api_keys.create(store, caller, name="ci", role="r")
    name = f"h:apikey:{api_keys.digest_of(secret)}"
    raw = redis_client.get(name)
    redis_client.set(name, raw.replace(b'"role":"r"', b'"role":"a"'))
    assert await who(store, secret) is None
    redis_client.set(f"h:apikey:{api_keys.digest_of('cb_mine')}", raw)
    assert await who(store, "cb_mine") is None


async def test_a_chosen_secret_acts_for_its_owner_within_its_scope_alone(
    store: Store, redis_client: redis.Redis
) -> None:
    caller = await new_caller(store, "ada", "a")
    token = "your-secure-token-here"
    key = await api_keys.adopt(store, caller, token, name="cbox", role="w", scope="cbox")
    for by in ("bearer", "key"):
        identity = (await admit(store, Presented(by, token), "192.0.2.1")).identity
        assert identity is not None
        assert (identity.id, identity.role, identity.scope) == (key.id, "w", "cbox")
    for by in ("cookie", "worker"):
        assert (await admit(store, Presented(by, token), "192.0.2.1")).identity is None
    everything = b"".join([*map(redis_client.dump, redis_client.keys()), *redis_client.keys()])
    assert token.encode() not in everything
    again = await api_keys.adopt(store, caller, token, name="cbox", role="r", scope="cbox")
    assert again.id == key.id
    assert [each.role for each in await api_keys.owned_by(store, caller.id)] == ["r"]
    await api_keys.revoke(store, caller, key.id)
    assert await who(store, token) is None


@pytest.mark.parametrize("token", ["short", "with a space in it", "cb_" + "x" * 40, "x" * 513, "näme" * 8])
async def test_a_chosen_secret_that_can_be_guessed_or_confused_is_refused(store: Store, token: str) -> None:
    caller = await new_caller(store, "ada", "a")
    with pytest.raises(Invalid):
        await api_keys.adopt(store, caller, token, name="cbox", role="w")
    assert await api_keys.owned_by(store, caller.id) == []


async def test_a_chosen_secret_of_somebody_else_is_not_taken_over(store: Store) -> None:
    ada, bob = await new_caller(store, "ada", "a"), await new_caller(store, "bob", "w")
    await api_keys.adopt(store, ada, "the-same-token-twice", name="cbox", role="a")
    with pytest.raises(Conflict):
        await api_keys.adopt(store, bob, "the-same-token-twice", name="mine", role="r")
    identity = await who(store, "the-same-token-twice")
    assert identity is not None
    assert identity.user_id == ada.id
    with pytest.raises(Denied):
        await api_keys.adopt(store, bob, "another-token-at-all", name="mine", role="a")


async def test_a_chosen_secret_is_taken_again_by_who_has_as_many_keys_as_may_be(store: Store) -> None:
    caller = await new_caller(store, "ada", "w")
    token = "chosen-elsewhere-long-ago"
    key = await api_keys.adopt(store, caller, token, name="cbox", role="w")
    await asyncio.gather(
        *(api_keys.create(store, caller, name=f"key {n}", role="r") for n in range(LIMIT - 1))
    )
    assert (await api_keys.adopt(store, caller, token, name="cbox", role="r")).id == key.id
    with pytest.raises(Denied):
        await api_keys.adopt(store, caller, f"{token}-another", name="cbox", role="r")
