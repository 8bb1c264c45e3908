"""Nobody but its node speaks of an app, and what it says is shown."""

import pytest
import redis
from engine import reap
from nodes import Node, manifest
from wishing import change, events

from storage import apps, attempts, jobs, why
from storage.apps import Instance, LogLine, Phase, Run, Sample, ScheduleState
from storage.attempts import Holder, Unregistered, rq_time
from storage.calls import script
from storage.errors import Invalid, NotFound, Stale
from storage.store import Store

pytestmark = pytest.mark.stack


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


async def test_what_a_node_has_to_say_of_an_app_is_shown_until_it_no_longer_holds(
    store: Store, node: Node
) -> None:
    app = await node.install(manifest())
    for message in ("The disk is full.", ""):
        await store.call(apps.observe(node.holder, app, [], message=message))
        assert (await apps.get(store, "hello")).message == message


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
