"""An app goes to a node that can take it, or is refused with the reason."""

import pytest
import redis
from engine import claim, register
from nodes import Node, manifest
from wishing import change

from storage import apps, jobs
from storage.attempts import rq_time
from storage.calls import script
from storage.errors import Conflict, Unprocessable
from storage.store import Store

pytestmark = pytest.mark.stack


async def test_the_least_loaded_node_that_fits_is_chosen(store: Store) -> None:
    await Node.online(store, "a", tags='["gpu"]')
    await Node.online(store, "b")
    await register(store, "pulls-over-http", kind="agent")
    first, _ = await apps.install(store, "user:u", inline=manifest(), alias="1")
    second, _ = await apps.install(store, "user:u", inline=manifest(), alias="2")
    third, _ = await apps.install(store, "user:u", inline=manifest(), alias="3", tags=["gpu"])
    assert [first.node, second.node, third.node] == ["a", "b", "a"]
    named, _ = await apps.install(store, "user:u", inline=manifest(), alias="4", node="b")
    assert named.node == "b"


async def test_an_install_without_a_node_that_can_take_it_says_why(store: Store) -> None:
    with pytest.raises(Conflict, match="no node yet"):
        await apps.install(store, "user:u", inline=manifest())
    node = await Node.online(store, "a")
    with pytest.raises(Unprocessable, match="tags gpu"):
        await apps.install(store, "user:u", inline=manifest(), tags=["gpu"])
    with pytest.raises(Unprocessable, match="no node 'b'"):
        await apps.install(store, "user:u", inline=manifest(), node="b")
    await store.call(script("depart", "a", node.holder.registration, rq_time(), "gone", "", ""))
    with pytest.raises(Conflict, match="online"):
        await apps.install(store, "user:u", inline=manifest())
    with pytest.raises(Conflict, match="offline"):
        await apps.install(store, "user:u", inline=manifest(), node="a")


async def test_a_node_that_drains_goes_on_with_its_apps_and_takes_nothing_else(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await node.install(manifest())
    redis_client.hset("h:worker:node-1", "drain", "1")
    submitted = await change(store, "stop")
    await jobs.submit(store, "user:u", jobs.Order(command="true"))
    assert (await node.claim()).job_id == submitted.id
    assert await claim(store, node.holder) == []
