"""A wish counts as Hostler signed it, and what is secret in it stays so."""

from typing import Any

import pytest
import redis
from nodes import Node, manifest
from wishing import SECRET, change

from storage import apps
from storage.apps import Phase
from storage.calls import command
from storage.errors import Conflict, Invalid, NotFound
from storage.store import Store

pytestmark = pytest.mark.stack


def everything(client: redis.Redis) -> bytes:
    """Return all that lies in Redis, as it is."""
    read: dict[bytes, Any] = {
        b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange, b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1), b"zset": lambda key: client.zrange(key, 0, -1),
    }  # fmt: skip
    keys: Any = client.keys("*")
    return b"\n".join(repr(read[client.type(key)](key)).encode() for key in keys)


async def test_an_app_waits_for_the_configuration_that_its_schema_asks_for(store: Store, node: Node) -> None:
    app = await node.install(manifest(config=SECRET))
    assert (app.status, app.configured) == ("needs_config", False)
    assert not app.wanted(app.processes[0]).running
    with pytest.raises(Conflict, match="needs its configuration"):
        await change(store, "start")
    with pytest.raises(Invalid, match=r"config\.url: is required"):
        await change(store, "configure", config={"password": "abcd"})
    with pytest.raises(Invalid) as refused:
        await change(store, "configure", config={"url": "u", "password": "ab"})
    assert "'ab'" not in str(refused.value)
    submitted = await change(store, "configure", config={"url": "u", "password": "abcd"})
    claimed = await node.claim()
    assert claimed.job_id == submitted.id
    app = await apps.configured(store, node.holder, "hello", job=(claimed.job_id, claimed.attempt))
    assert (app.phase, app.status) == (Phase.READY, "starting")


async def test_secrets_are_sealed_masked_and_kept_where_the_mask_is_written(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    app = await node.install(manifest(config=SECRET), config={"url": "u", "password": "tell-nobody"})
    assert app.masked_config(store.seal) == {"url": "u", "password": "********"}
    await change(store, "configure", config={"url": "v", "password": "********"})
    app = await apps.get(store, "hello")
    assert app.config(store.seal) == {"url": "v", "password": "tell-nobody"}
    assert b"tell-nobody" not in everything(redis_client)


async def test_what_a_manifest_puts_into_the_environment_lies_sealed_in_redis(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    def given(version: str) -> Any:
        return manifest(
            version=version, processes={"web": {"command": "x", "env": {"PASSWORD": f"hush-{version}"}}}
        )

    await node.install(given("1"))
    submitted = await change(store, "update", inline=given("2"))
    assert b"hush-" not in everything(redis_client)
    claimed = await node.claim()
    assert claimed.job_id == submitted.id
    release = claimed.read_spec(store.seal)["release"]
    assert release["manifest"]["processes"]["web"]["env"] == {"PASSWORD": "hush-2"}
    app = await node.release(claimed, given("2"))
    assert app.processes[0].env == {"PASSWORD": "hush-2"}
    assert [each.manifest["processes"]["web"]["env"]["PASSWORD"] for each in app.releases] == [
        "hush-2",
        "hush-1",
    ]
    assert app.manifest == given("2")


async def test_a_configuration_that_is_missing_is_not_made_up_for_by_a_forged_phase(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await node.install(manifest(config=SECRET))
    redis_client.hset("h:app:hello", "phase", "ready")
    app = await apps.get(store, "hello")
    assert not app.wanted(app.processes[0]).running


async def test_a_wish_that_hostler_did_not_sign_is_nobodys_wish(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await node.install(manifest())
    await node.install(manifest(id="other"))
    raw = redis_client.hget("h:app:hello", "wish")
    assert isinstance(raw, bytes)
    redis_client.hset("h:app:hello", "wish", raw.replace(b'["serve"]', b'["evil!"]'))
    assert [each.instance_id for each in await apps.of_node(store, "node-1")] == ["other"]
    with pytest.raises(NotFound):
        await change(store, "start")
    redis_client.hset("h:app:hello", "wish", redis_client.hget("h:app:other", "wish") or b"")
    assert [each.instance_id for each in await apps.every(store)] == ["other"]


async def test_wishes_are_ordered_also_across_a_new_install(store: Store, node: Node) -> None:
    first = await node.install(manifest())
    await change(store, "stop")
    assert (await apps.get(store, "hello")).age > first.age
    await store.call(apps.forget(node.holder, "hello"))
    assert (await node.install(manifest())).age > first.age


async def test_a_wish_is_checked_once_and_whoever_alters_it_gains_nothing_by_that(
    store: Store, node: Node
) -> None:
    app, _ = await apps.install(store, "user:u", inline=manifest())
    again = await apps.get(store, app.instance_id)
    assert again.manifest is app.manifest  # a list of a thousand apps is read in a moment
    key = f"h:app:{app.instance_id}"
    await store.call(command("HSET", key, "wish", app.wish.replace(b'"running"', b'"stopped"')))
    with pytest.raises(NotFound):
        await apps.get(store, app.instance_id)
    await store.call(command("HSET", "h:app:other", "wish", app.wish, "phase", "ready", "node", app.node))
    with pytest.raises(NotFound):
        await apps.get(store, "other")
