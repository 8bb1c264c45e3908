"""Apps: each change is accepted with its job or refused with it, and nobody but their node speaks of them."""

import asyncio
from typing import Any

import pytest
import redis
from engine import claim, reap, register
from nodes import Node, manifest

from storage import apps, attempts, jobs, quarantine, why
from storage.apps import Instance, LogLine, Phase, Run, Sample, ScheduleState
from storage.attempts import Holder, Unregistered, rq_time
from storage.calls import command, pairs, script
from storage.errors import Conflict, Invalid, NotFound, Stale, Unprocessable
from storage.jobs import State
from storage.store import Store

pytestmark = pytest.mark.stack

SECRET = {
    "type": "object",
    "properties": {
        "url": {"type": "string"},
        "password": {"type": "string", "minLength": 3, "writeOnly": True},
    },
    "required": ["url"],
}


async def events(store: Store, name: str) -> list[dict[str, str]]:
    entries = await store.call(command("XRANGE", "h:events", "-", "+"))
    found = [pairs(fields) for _, fields in entries]
    return [each for each in found if each["e"] == name]


def everything(client: redis.Redis) -> bytes:
    """Return all that lies in Redis, as it is."""
    read: dict[bytes, Any] = {
        b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange, b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1), b"zset": lambda key: client.zrange(key, 0, -1),
    }  # fmt: skip
    keys: Any = client.keys("*")
    return b"\n".join(repr(read[client.type(key)](key)).encode() for key in keys)


async def change(store: Store, action: str, instance_id: str = "hello", **how: Any) -> jobs.Submitted:
    return await apps.change(store, "user:u", instance_id, action, **how)


@pytest.fixture
async def node(store: Store) -> Node:
    return await Node.online(store)


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


async def test_an_installed_app_runs_and_is_shown_as_its_instances_are(store: Store, node: Node) -> None:
    app = await node.install(manifest())
    assert (app.phase, app.status, app.job) == (Phase.READY, "starting", "")
    assert not app.settled
    app = await node.observe("hello", "running")
    assert (app.status, app.settled) == ("running", True)
    for states, status in (
        (["crashed"], "crashed"),
        (["failed"], "failed"),
        (["starting"], "starting"),
        (["completed"], "completed"),
    ):
        assert (await node.observe("hello", *states)).status == status
    told = [each["status"] for each in await events(store, "app.status")]
    assert told[-5:] == ["running", "crashed", "failed", "starting", "completed"]


async def test_an_app_that_is_not_to_start_is_installed_and_no_more(store: Store, node: Node) -> None:
    app = await node.install(manifest(), start=False)
    assert (app.status, app.desired) == ("installed", "stopped")
    assert not app.wanted(app.processes[0]).running
    await change(store, "start")
    app = await apps.get(store, "hello")
    assert (app.status, app.wanted(app.processes[0]).running) == ("starting", True)
    await change(store, "stop")
    assert (await node.observe("hello")).status == "stopped"


async def test_what_is_seen_of_an_earlier_wish_does_not_take_a_later_one_back(
    store: Store, node: Node
) -> None:
    await node.install(manifest())
    before = await node.observe("hello", "running")
    await change(store, "stop")
    await store.call(
        apps.observe(node.holder, before, [Instance("web-0", "web", 0, "running", restart_count=1)])
    )
    assert (await events(store, "app.status"))[-1]["status"] == "stopping"
    assert not (await apps.get(store, "hello")).settled


async def test_a_later_action_overtakes_an_earlier_one(store: Store, node: Node) -> None:
    await node.install(manifest())
    waiting = await change(store, "stop")
    started = await change(store, "start")
    job = await jobs.get(store, waiting.id)
    assert (job.state, job.reason) == (State.CANCELLED, "overtaken")
    await node.claim()
    await change(store, "stop")
    assert (await jobs.get(store, started.id)).cancel_requested
    assert (await apps.get(store, "hello")).desired == "stopped"


async def test_starts_and_stops_at_once_leave_one_wish_and_one_job(store: Store, node: Node) -> None:
    before = await node.install(manifest())
    actions = ["start", "stop"] * 10
    done = await asyncio.gather(*(change(store, each) for each in actions), return_exceptions=True)
    accepted = [each for each in done if isinstance(each, jobs.Submitted)]
    assert all(isinstance(each, jobs.Submitted | Conflict) for each in done)
    assert (await apps.get(store, "hello")).generation == before.generation + len(accepted)
    states = [(await jobs.get(store, each.id)).state for each in accepted]
    assert states.count(State.QUEUED) == 1


async def test_only_one_job_works_on_the_files_of_an_app(store: Store, node: Node) -> None:
    await node.install(manifest(config=SECRET), config={"url": "x"})
    await change(store, "configure", config={"url": "y"})
    with pytest.raises(Conflict, match="works on it"):
        await change(store, "configure", config={"url": "z"})
    with pytest.raises(Conflict, match="works on it"):
        await change(store, "update", inline=manifest(version="2.0"))
    await change(store, "stop")


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


async def test_an_attempt_that_is_over_says_nothing_more(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await apps.install(store, "user:u", inline=manifest())
    first = await node.claim()
    redis_client.zadd("h:leases", {first.job_id: 1})
    redis_client.set("h:reaper:last", "99999999999999")
    await reap(store)
    await node.claim()
    with pytest.raises(Stale):
        await store.call(
            apps.installing(node.holder, "hello", job=(first.job_id, first.attempt), progress=90)
        )
    with pytest.raises(Stale):
        await node.release(first, manifest())


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


async def test_scaling_counts_up_and_down_within_bounds_and_none_stops(store: Store, node: Node) -> None:
    app = await node.install(
        manifest(processes={"web": {"command": "x", "max_scale": 4}, "w": {"command": "y"}})
    )
    await change(store, "scale", scale={"web": 3})
    assert (await apps.get(store, "hello")).scale == {"web": 3, "w": 1}
    await change(store, "scale", process="web", delta=-2)
    assert (await apps.get(store, "hello")).scale == {"web": 1, "w": 1}
    for count in (5, -1):
        with pytest.raises(Invalid, match="from 0 to 4"):
            await change(store, "scale", scale={"web": count})
    with pytest.raises(NotFound, match="no process 'nope'"):
        await change(store, "scale", scale={"nope": 1})
    with pytest.raises(Invalid, match="process: is required"):
        await change(store, "scale", delta=1)
    await change(store, "scale", scale={"web": 0})
    app = await apps.get(store, "hello")
    assert [app.wanted(each).running for each in app.processes] == [False, True]
    await change(store, "scale", scale={"w": 0})
    assert (await apps.get(store, "hello")).desired == "stopped"
    await change(store, "scale", scale={"web": 2})
    app = await apps.get(store, "hello")
    assert [app.wanted(each).running for each in app.processes] == [True, False]


async def test_one_process_is_stopped_started_and_restarted_by_itself(store: Store, node: Node) -> None:
    await node.install(manifest(processes={"web": {"command": "x"}, "w": {"command": "y"}}))

    async def wanted() -> dict[str, tuple[bool, int]]:
        app = await apps.get(store, "hello")
        return {each.name: (app.wanted(each).running, app.wanted(each).restarts) for each in app.processes}

    await change(store, "stop", process="web")
    assert await wanted() == {"web": (False, 0), "w": (True, 0)}
    await change(store, "restart", process="w")
    assert await wanted() == {"web": (False, 0), "w": (True, 1)}
    await change(store, "stop")
    await change(store, "start", process="web")
    assert await wanted() == {"web": (True, 0), "w": (False, 1)}
    await change(store, "start")
    await change(store, "restart")
    assert await wanted() == {"web": (True, 1), "w": (True, 2)}


async def test_a_start_gives_what_has_failed_its_attempts_back(store: Store, node: Node) -> None:
    await node.install(manifest())
    app = await node.observe("hello", "failed")
    before = app.wanted(app.processes[0]).restarts
    await change(store, "start")
    app = await apps.get(store, "hello")
    assert app.wanted(app.processes[0]).restarts == before + 1


async def test_schedules_are_paused_resumed_and_triggered(store: Store, node: Node) -> None:
    tick = {"command": "x", "type": "scheduled", "schedule": "* * * * *"}
    await node.install(manifest(processes={"tick": tick, "web": {"command": "y"}}))
    await change(store, "pause")
    app = await apps.get(store, "hello")
    assert [app.wanted(each).paused for each in app.processes] == [True, False]
    await change(store, "resume", process="tick")
    submitted = await change(store, "trigger", process="tick")
    assert (await jobs.get(store, submitted.id)).spec["trigger"] == 1
    with pytest.raises(Invalid):
        await change(store, "pause", process="web")


async def test_a_process_that_shall_not_start_by_itself_does_not(store: Store, node: Node) -> None:
    app = await node.install(
        manifest(processes={"web": {"command": "x"}, "w": {"command": "y", "initial": "stopped"}})
    )
    assert [app.wanted(each).running for each in app.processes] == [True, False]


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


async def test_apps_of_a_silent_node_are_unknown_and_their_jobs_wait_for_it(store: Store, node: Node) -> None:
    await node.install(manifest())
    await node.observe("hello", "running")
    await store.call(script("depart", "node-1", "", rq_time(), "silent", "", ""))
    app = await apps.get(store, "hello")
    assert (app.online, app.status) == (False, "unknown")
    assert (await events(store, "app.status"))[-1]["status"] == "unknown"
    submitted = await change(store, "stop")
    reasons = await why.waiting(store, await jobs.get(store, submitted.id))
    assert [each["code"] for each in reasons] == ["node_offline", "position"]


async def test_a_node_that_was_silent_and_is_back_is_told_of_with_its_apps(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await node.install(manifest())
    await node.observe("hello", "running")

    async def told() -> str:
        return (await events(store, "app.status"))[-1]["status"]

    for comes_back in ("beat", "register"):
        redis_client.zadd("h:workers:seen", {"node-1": 1})
        redis_client.set("h:reaper:last", "99999999999999")
        await reap(store)
        assert await told() == "unknown"
        if comes_back == "beat":
            await store.call(attempts.beat(node.holder, [], lease_s=15, rq_ttl_s=0, status={}))
        else:
            node = await Node.online(store)
        assert await told() == "running"


async def test_a_configuration_that_is_missing_is_not_made_up_for_by_a_forged_phase(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await node.install(manifest(config=SECRET))
    redis_client.hset("h:app:hello", "phase", "ready")
    app = await apps.get(store, "hello")
    assert not app.wanted(app.processes[0]).running


async def test_what_a_node_has_to_say_of_an_app_is_shown_until_it_no_longer_holds(
    store: Store, node: Node
) -> None:
    app = await node.install(manifest())
    for message in ("The disk is full.", ""):
        await store.call(apps.observe(node.holder, app, [], message=message))
        assert (await apps.get(store, "hello")).message == message


async def test_a_node_that_drains_goes_on_with_its_apps_and_takes_nothing_else(
    store: Store, node: Node, redis_client: redis.Redis
) -> None:
    await node.install(manifest())
    redis_client.hset("h:worker:node-1", "drain", "1")
    submitted = await change(store, "stop")
    await jobs.submit(store, "user:u", jobs.Order(command="true"))
    assert (await node.claim()).job_id == submitted.id
    assert await claim(store, node.holder) == []


async def test_nobody_speaks_of_an_app_but_its_node_under_its_registration(store: Store, node: Node) -> None:
    app = await node.install(manifest())
    other = await Node.online(store, "node-2")
    stale = Holder("node-1", "earlier")
    line = LogLine("", 1, "web", 0, "stdout", "info", "x")
    run = Run("r", "web", 0, 1, 2, 0, None, "start")
    usage = Sample(1, "web", 0, 1.0, 1, 0.1)
    for holder, refused in ((stale, Unregistered), (other.holder, NotFound)):
        for call in (
            apps.observe(holder, app, []), apps.forget(holder, "hello"), apps.append(holder, "hello", [line]),
            apps.installing(holder, "hello", job=("job-x", 1)), apps.sample(holder, "hello", [usage]),
            apps.ran(holder, "hello", run), apps.say(holder, "plugin.emit", {}, instance_id="hello"),
        ):  # fmt: skip
            with pytest.raises(refused):
                await store.call(call)
    assert (await apps.get(store, "hello")).observed_generation == 0


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


async def test_after_a_reboot_an_app_without_autostart_rests(store: Store, node: Node) -> None:
    await node.install(manifest(), autostart=False)
    app = await apps.rest(store, node.holder, "hello")
    assert (app.desired, app.status) == ("stopped", "stopped")
    await apps.set_autostart(store, "user:u", "hello", True)
    assert (await apps.get(store, "hello")).autostart


async def test_lines_are_kept_once_told_to_followers_and_read_on_from_any(store: Store, node: Node) -> None:
    await node.install(manifest())
    lines = [LogLine("", i, "web", i % 2, "stdout", "info", f"line {i}") for i in range(4)]
    await store.call(apps.append(node.holder, "hello", lines, batch=1))
    await store.call(apps.append(node.holder, "hello", lines, batch=1))
    found = await apps.lines(store, "hello", limit=3)
    assert [each.text for each in found] == ["line 1", "line 2", "line 3"]
    assert [each.text for each in await apps.lines(store, "hello", after=found[0].id)] == ["line 2", "line 3"]
    assert [each.instance for each in await apps.lines(store, "hello", index=1)] == ["web-1", "web-1"]
    for wrong in (
        "$",
        "1",
        "18446744073709551616-0",
        "9" * 30 + "-0",
    ):  # Redis would complain of the last two
        with pytest.raises(Invalid, match="after"):
            await apps.lines(store, "hello", after=wrong)
    assert [await apps.keeps(store, "hello", each) for each in (found[0].id, "1-0")] == [True, False]


async def test_samples_and_runs_are_rings(store: Store, node: Node) -> None:
    await node.install(manifest())
    for i in range(3):
        await store.call(apps.sample(node.holder, "hello", [Sample(i, "web", 0, 1.5, 100, 0.1)]))
        for _ in range(2):
            await store.call(
                apps.ran(node.holder, "hello", Run(f"r{i}", "web", 0, i, i + 1, 0, None, "start"))
            )
    assert [each.at_ms for each in await apps.samples(store, "hello", limit=2)] == [1, 2]
    assert [each.id for each in await apps.runs(store, "hello")] == ["r2", "r1", "r0"]


async def test_what_a_node_counts_of_schedules_is_shown(store: Store, node: Node) -> None:
    tick = {"command": "x", "type": "scheduled", "schedule": "* * * * *"}
    app = await node.install(manifest(processes={"tick": tick}))
    await store.call(apps.observe(node.holder, app, [], schedules={"tick": ScheduleState(run_count=7)}))
    app = await apps.get(store, "hello")
    assert (app.schedules["tick"].run_count, app.status) == (7, "running")


async def test_waiting_for_a_job_ends_with_it_or_with_patience(store: Store, node: Node) -> None:
    _, submitted = await apps.install(store, "user:u", inline=manifest())
    assert await apps.finished(store, submitted.id, 0.01) is None
    claimed = await node.claim()
    await node.release(claimed, manifest())
    waiting = asyncio.ensure_future(apps.finished(store, submitted.id, 5))
    await node.settle(claimed)
    job = await waiting
    assert job is not None
    assert job.state is State.COMPLETED


async def test_an_unknown_action_names_those_there_are(store: Store, node: Node) -> None:
    with pytest.raises(Invalid, match="unknown action: dance"):
        await change(store, "dance")


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
