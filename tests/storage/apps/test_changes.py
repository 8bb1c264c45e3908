"""What runs of an app is changed as the table of actions allows, and the last change wins."""

import asyncio

import pytest
from nodes import Node, manifest
from wishing import SECRET, change

from storage import apps, jobs
from storage.errors import Conflict, Invalid, NotFound
from storage.jobs import State
from storage.store import Store

pytestmark = pytest.mark.stack


async def test_an_app_that_is_not_to_start_is_installed_and_no_more(store: Store, node: Node) -> None:
    app = await node.install(manifest(), start=False)
    assert (app.status, app.desired) == ("installed", "stopped")
    assert not app.wanted(app.processes[0]).running
    await change(store, "start")
    app = await apps.get(store, "hello")
    assert (app.status, app.wanted(app.processes[0]).running) == ("starting", True)
    await change(store, "stop")
    assert (await node.observe("hello")).status == "stopped"


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
