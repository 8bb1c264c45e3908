"""An app is installed, brought to another release and taken away by one job at a time, or left as it was."""

from typing import Any

import pytest
import redis
from engine import reap
from nodes import Node, manifest
from wishing import change, events

from storage import apps, jobs, quarantine
from storage.apps import LogLine, Phase, Run, Sample
from storage.attempts import rq_time
from storage.calls import command, script
from storage.errors import Conflict, NotFound, Unprocessable
from storage.jobs import State
from storage.store import Store

pytestmark = pytest.mark.stack


async def test_an_install_is_a_job_of_the_node_that_was_chosen(store: Store, node: Node) -> None:
    app, submitted = await apps.install(store, "user:u", inline=manifest(), alias="two")
    assert (app.instance_id, app.status, app.node, app.job) == (
        "hello__two",
        "installing",
        "node-1",
        submitted.id,
    )
    job = await jobs.get(store, submitted.id)
    assert job.queue == "node.node-1"
    assert job.spec["task"] == "app.install"
    assert job.spec["name"] == "install hello__two"
    assert (await events(store, "app.install"))[0]["status"] == "installing"
    claimed = await node.claim()
    assert claimed.read_spec(store.seal)["release"]["source"] == {"kind": "inline"}


async def test_an_instance_is_installed_once_and_refused_without_a_trace(store: Store, node: Node) -> None:
    await apps.install(store, "user:u", inline=manifest())
    before = await store.call(command("ZCARD", "h:jobs"))
    with pytest.raises(Conflict, match="installed already"):
        await apps.install(store, "user:u", inline=manifest())
    assert await store.call(command("ZCARD", "h:jobs")) == before
    await apps.install(store, "user:u", inline=manifest(), alias="other")
    assert len(await apps.every(store)) == 2


async def test_an_install_under_an_idempotency_key_happens_once(store: Store, node: Node) -> None:
    _, first = await apps.install(store, "user:u", inline=manifest(), idempotency_key="k")
    _, again = await apps.install(store, "user:u", inline=manifest(), idempotency_key="k")
    assert again == first
    with pytest.raises(Unprocessable):
        await apps.install(store, "user:u", inline=manifest(), alias="b", idempotency_key="k")


@pytest.mark.parametrize(
    ("action", "how"),
    [
        ("start", {}), ("stop", {}), ("restart", {}), ("scale", {"scale": {"web": 2}}), ("rollback", {}),
        ("update", {"inline": manifest(version="2")}), ("configure", {"config": {}}), ("install", {}),
    ],
)  # fmt: skip
async def test_nothing_but_an_uninstall_is_done_during_an_install(
    store: Store, node: Node, action: str, how: dict[str, Any]
) -> None:
    _, installing = await apps.install(store, "user:u", inline=manifest())
    with pytest.raises(Conflict):
        await change(store, action, **how)
    await change(store, "uninstall")
    assert (await jobs.get(store, installing.id)).state is State.CANCELLED
    assert (await apps.get(store, "hello")).status == "removing"


async def test_a_cancelled_install_leaves_nothing(store: Store, node: Node) -> None:
    _, submitted = await apps.install(store, "user:u", inline=manifest())
    await jobs.cancel(store, "user:u", submitted.id)
    with pytest.raises(NotFound):
        await apps.get(store, "hello")
    assert (await events(store, "app.removed"))[0]["app"] == "hello"
    assert await store.call(command("KEYS", "h:app*")) == []


async def test_an_install_that_fails_says_so_and_can_be_tried_again(store: Store, node: Node) -> None:
    await apps.install(store, "user:u", inline=manifest())
    claimed = await node.claim()
    job = (claimed.job_id, claimed.attempt)
    await store.call(apps.installing(node.holder, "hello", job=job, progress=40, message="unpacking"))
    await store.call(apps.installing(node.holder, "hello", job=job, error="The archive is damaged."))
    await node.settle(claimed, "failed", "invalid")
    app = await apps.get(store, "hello")
    assert (app.status, app.error, app.progress) == ("failed", "The archive is damaged.", 40)
    last = (await events(store, "app.install"))[-1]
    assert (last["status"], last["error"]) == ("failed", "The archive is damaged.")
    with pytest.raises(Conflict):
        await change(store, "start")
    again = await jobs.retry(store, "user:u", claimed.job_id)
    app = await apps.get(store, "hello")
    assert (app.status, app.job, app.error) == ("installing", again.id, "")


async def test_a_job_whose_node_dies_goes_back_to_that_node_and_in_the_end_to_quarantine(
    store: Store, redis_client: redis.Redis
) -> None:
    node = await Node.online(store)
    await apps.install(store, "user:u", inline=manifest())
    for number in (1, 2, 3):
        claimed = await node.claim()
        redis_client.zadd("h:leases", {claimed.job_id: 1})
        redis_client.set("h:reaper:last", "99999999999999")
        await reap(store)
        job = await jobs.get(store, claimed.job_id)
        assert job.queue == "node.node-1"
        assert job.state is (State.QUEUED if number < 3 else State.FAILED)
    app = await apps.get(store, "hello")
    assert (app.status, app.job) == ("failed", "")
    assert "quarantined" in app.error
    again = await quarantine.release(store, "user:u", claimed.job_id)
    assert (await apps.get(store, "hello")).job == again.id
    with pytest.raises(NotFound):
        await quarantine.release(store, "user:u", claimed.job_id)


async def test_an_update_that_fails_leaves_the_app_as_it_was(store: Store, node: Node) -> None:
    await node.install(manifest())
    await change(store, "update", inline=manifest(version="2.0"))
    assert (await apps.get(store, "hello")).status == "updating"
    claimed = await node.claim()
    await node.release(claimed, manifest(version="2.0"), phase=Phase.UPDATING)
    app = await node.release(claimed, manifest(), discard=["2.0"])
    await node.settle(claimed, "failed", "exit_code")
    assert (app.phase, app.version, [each.dir for each in app.releases]) == (Phase.READY, "1.0", ["1.0"])
    await change(store, "update", inline=manifest(version="2.0"))
    claimed = await node.claim()
    await node.settle(claimed, "failed", "exit_code")
    app = await apps.get(store, "hello")
    assert (app.phase, app.version) == (Phase.READY, "1.0")


async def test_an_uninstall_that_is_taken_back_before_it_began_leaves_no_app_that_is_never_anything_else(
    store: Store, node: Node
) -> None:
    """Its node is away; the update that the uninstall ended can have nothing to say any more."""
    await node.install(manifest())
    await change(store, "update", inline=manifest(version="2.0"))
    updating = await node.claim()
    removing = await change(store, "uninstall")
    await node.settle(updating, "cancelled", "cancelled")
    await jobs.cancel(store, "user:u", removing.id)
    assert (await apps.get(store, "hello")).phase is Phase.READY
    await change(store, "update", inline=manifest(version="2.0"))
    await node.claim()
    again = await change(store, "uninstall")
    await jobs.cancel(store, "user:u", again.id)
    assert (await apps.get(store, "hello")).phase is Phase.READY


async def test_an_update_that_an_uninstall_ends_does_not_make_an_app_anything_but_removing(
    store: Store, node: Node
) -> None:
    await node.install(manifest())
    await change(store, "update", inline=manifest(version="2.0"))
    updating = await node.claim()
    await change(store, "uninstall")
    for how in ({"phase": Phase.UPDATING}, {}):  # it hears of its end a moment later, and takes itself back
        app = await node.release(updating, manifest(version="2.0"), **how)
        assert (app.status, app.phase_before) == ("removing", Phase.READY)
    with pytest.raises(Conflict, match="while it is removing"):
        await change(store, "start")


async def test_an_uninstall_of_what_is_being_installed_that_is_taken_back_leaves_a_failed_app(
    store: Store, node: Node
) -> None:
    await apps.install(store, "user:u", inline=manifest())
    installing = await node.claim()
    removing = await change(store, "uninstall")
    await node.settle(installing, "cancelled", "cancelled")
    await jobs.cancel(store, "user:u", removing.id)
    assert (await apps.get(store, "hello")).phase is Phase.FAILED
    await change(store, "install")


async def test_a_stopped_app_stays_stopped_across_an_update(store: Store, node: Node) -> None:
    await node.install(manifest())
    await change(store, "stop")
    await node.settle(await node.claim())
    await change(store, "update", inline=manifest(version="2.0"))
    claimed = await node.claim()
    app = await node.release(claimed, manifest(version="2.0"))
    assert (app.phase, app.desired, app.status) == (Phase.READY, "stopped", "stopped")


async def test_five_releases_are_kept_and_any_of_them_is_gone_back_to(store: Store, node: Node) -> None:
    await node.install(manifest(version="1"))
    for version in range(2, 8):
        await change(store, "update", inline=manifest(version=str(version)))
        claimed = await node.claim()
        app = await node.release(claimed, manifest(version=str(version)))
        await node.settle(claimed)
    assert [each.version for each in app.releases] == ["7", "6", "5", "4", "3"]
    with pytest.raises(Conflict, match="no earlier release 2"):
        await change(store, "rollback", version="2")
    submitted = await change(store, "rollback", version="4")
    assert (await jobs.get(store, submitted.id)).spec["dir"] == "4"
    assert (await apps.get(store, "hello")).status == "updating"


async def test_the_job_names_the_release_before_when_none_is_named(store: Store, node: Node) -> None:
    await node.install(manifest())
    with pytest.raises(Conflict, match="no earlier release"):
        await change(store, "rollback")


async def test_an_uninstalled_app_leaves_nothing_behind(store: Store, node: Node) -> None:
    cube = {"engine_url": "http://localhost:8000"}
    await node.install(manifest(links=cube))
    assert (await events(store, "processcube.registered"))[0]["engineUrl"] == "http://localhost:8000"
    await store.call(apps.append(node.holder, "hello", [LogLine("", 1, "web", 0, "stdout", "info", "x")]))
    await store.call(apps.sample(node.holder, "hello", [Sample(1, "web", 0, 1.0, 1, 0.1)]))
    await store.call(apps.ran(node.holder, "hello", Run("r", "web", 0, 1, 2, 0, None, "start")))
    submitted = await change(store, "uninstall", keep_data=True)
    assert (await jobs.get(store, submitted.id)).spec["keep_data"] is True
    claimed = await node.claim()
    await store.call(apps.forget(node.holder, "hello"))
    await node.settle(claimed)
    assert await store.call(command("KEYS", "h:app*")) == []
    assert (await events(store, "app.removed"))[-1]["app"] == "hello"
    assert await events(store, "processcube.unregistered")


async def test_an_app_is_abandoned_only_while_its_node_is_away(store: Store, node: Node) -> None:
    await node.install(manifest())
    with pytest.raises(Conflict, match="online"):
        await apps.abandon(store, "user:u", "hello")
    await store.call(script("depart", "node-1", "", rq_time(), "silent", "", ""))
    waiting = await change(store, "uninstall")
    await apps.abandon(store, "user:u", "hello")
    assert (await jobs.get(store, waiting.id)).state is State.CANCELLED
    with pytest.raises(NotFound):
        await apps.get(store, "hello")
