"""Install, update, rollback, configure, uninstall: what each leaves on the disk and in the record, and after what."""

import asyncio
import errno
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from fake_node import PRODUCTS, Around, Node, leftovers

from storage import apps, manifests
from storage.apps import Instance, Phase
from storage.errors import Conflict, NotFound
from storage.watch import events_after
from workers import archives
from workers.installs import snapshots, tasks, updating
from workers.installs.tasks import TASKS


async def test_an_installed_app_runs_the_release_that_current_leads_to(node: Node) -> None:
    await node.thing("1.0", hello="hello")
    ending = await node.install()

    assert (ending.outcome, ending.facts) == ("completed", {})
    app = await node.app()
    assert (app.phase, app.version, app.progress) == (Phase.READY, "1.0", 100)
    assert [each.dir for each in app.releases] == ["1.0"]
    assert (node.root() / "current" / "hello").read_text() == "hello"
    assert node.supervisor.applied["thing"].version == "1.0"


async def test_an_app_that_is_not_well_in_time_says_what_it_waits_for(node: Node) -> None:
    await node.thing("1.0", waits="")
    ending = await node.install()
    assert ending.outcome == "failed"
    said = "'thing' is installed, but 'main' did not get well in time: It waits for 'db'."
    assert ending.facts["message"] == said
    assert (await node.app()).phase is Phase.READY, "it goes on waiting"


def test_a_migration_that_others_wait_for_may_take_its_time() -> None:
    once, web = {"command": "true", "type": "oneshot"}, {"command": "true", "depends_on": ["migrate"]}
    running = [Instance("migrate-0", "migrate", 0, "running"), Instance("web-0", "web", 0, "starting")]
    over = [replace(running[0], state="completed"), running[1]]
    awaited = manifests.load({"id": "shop", "processes": {"migrate": once, "web": web}})
    assert [updating.under_way(awaited, each) for each in (running, over)] == [True, False]
    alone = manifests.load({"id": "shop", "processes": {"migrate": once, "web": {"command": "true"}}})
    assert not updating.under_way(alone, running)


async def test_two_instances_of_a_product_live_side_by_side(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    await node.install(alias="second")
    assert node.files() == {"thing", "thing__second"}
    await node.change("uninstall", "thing")
    assert node.files() == {"thing__second"}
    assert (await node.app("thing__second")).phase is Phase.READY


async def test_an_install_step_sees_its_release_and_nothing_of_hostlers_secrets(node: Node) -> None:
    step = '\n[install]\ncommand = "env > seen; echo HOSTLER_PROGRESS=50; touch made"\n'
    await node.thing("1.0", step)
    assert (await node.install()).outcome == "completed"
    assert node.job is not None
    assert "script" in node.job.steps
    current = node.root() / "current"
    assert (current / "made").exists()
    seen = (current / "seen").read_text()
    assert "SECRET" not in seen
    assert "REDIS" not in seen
    assert "HOSTLER_APP=thing" in seen
    assert not (current / ".install").exists()


async def test_an_install_step_that_fails_leaves_nothing_and_says_why(node: Node) -> None:
    await node.publish(PRODUCTS / "fails-install")
    ending = await node.install("fails-install")
    assert (ending.outcome, ending.reason, ending.exit_code) == ("failed", "exit_code", 7)
    assert node.files() == set()
    app = await node.app("fails-install")
    assert (app.phase, app.error) == (Phase.FAILED, "The install step ended with exit code 7: two")
    assert node.job is not None
    assert b"one\n" in node.job.heard


async def test_a_failed_install_can_be_tried_again(node: Node) -> None:
    await node.thing("1.0", '\n[install]\ncommand = "exit 1"\n')
    assert (await node.install()).outcome == "failed"
    assert (await node.change("install")).outcome == "failed"
    assert (await node.change("uninstall")).outcome == "completed"
    with pytest.raises(NotFound):
        await node.app()


async def test_an_archive_that_was_changed_in_the_store_is_refused(node: Node) -> None:
    release = await node.thing("1.0")
    node.store.objects.path(release.source["key"]).write_bytes(b"something else")  # type: ignore[attr-defined]
    ending = await node.install()
    assert (ending.outcome, ending.reason) == ("failed", "integrity")
    assert "sha256 differs" in (await node.app()).error
    assert node.files() == set()


async def test_an_app_that_needs_its_configuration_waits_for_it(node: Node) -> None:
    await node.publish(PRODUCTS / "plugin")
    await node.install("plugin")
    assert (await node.app("plugin")).phase is Phase.NEEDS_CONFIG
    assert node.supervisor.observed("plugin") == []

    ending = await node.change("configure", "plugin", config={"greeting": "hello", "token": "secret"})
    assert ending.outcome == "completed"
    assert (await node.app("plugin")).phase is Phase.READY
    assert [each.state for each in node.supervisor.observed("plugin")] == ["running"]


async def test_an_app_without_a_release_needs_only_its_manifest(node: Node) -> None:
    inline = manifests.load({"id": "plain", "kind": "cbox", "processes": {"a": {"command": ["sleep", "9"]}}})
    await apps.install(node.store, "user:u", inline=inline)
    assert (await node.work()).outcome == "completed"
    assert (await node.app("plain")).phase is Phase.READY
    assert (node.root("plain") / "current").is_dir()


async def test_an_app_without_a_release_is_updated_by_another_manifest(node: Node) -> None:
    def inline(command: str) -> manifests.Manifest:
        return manifests.load(
            {"id": "plain", "kind": "cbox", "processes": {"a": {"command": [command, "9"]}}}
        )

    await node.install("", inline=inline("sleep"))
    assert (await node.change("update", "plain", inline=inline("wait"))).outcome == "completed"
    app = await node.app("plain")
    assert app.manifest is not None
    assert app.manifest.processes[0].command == ("wait", "9")
    assert (await node.change("rollback", "plain")).outcome == "completed"
    app = await node.app("plain")
    assert app.manifest is not None
    assert app.manifest.processes[0].command == ("sleep", "9")


@pytest.mark.parametrize("stage", ["stopping", "switching", "trying", "back"])
async def test_what_a_job_that_was_given_up_left_of_its_update_is_in_nobodys_way(
    node: Node, stage: str
) -> None:
    await node.thing("1.0")
    await node.install()
    (node.root() / "data" / "kept").write_text("dear")
    journal = {
        "job": "job-earlier",
        "origin": "1.0",
        "target": "1.5",
        "stage": stage,
        "built": True,
        "why": "",
    }
    (node.root() / "update.json").write_text(json.dumps(journal))
    await node.thing("2.0")
    assert (await node.change("update")).outcome == "completed"
    assert (node.root() / "current").resolve().name == "2.0"
    assert (node.root() / "data" / "kept").read_text() == "dear"
    assert not (node.root() / "update.json").exists()


async def test_an_update_keeps_data_and_earlier_releases(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    (node.root() / "data" / "kept").write_text("dear")
    await node.thing("2.0", news="new")
    assert (await node.change("update")).outcome == "completed"

    app = await node.app()
    assert (app.phase, app.version, [each.dir for each in app.releases]) == (
        Phase.READY,
        "2.0",
        ["2.0", "1.0"],
    )
    assert (node.root() / "current" / "news").read_text() == "new"
    assert (node.root() / "data" / "kept").read_text() == "dear"
    assert not (node.root() / "snapshot").exists()
    assert not (node.root() / "update.json").exists()


async def test_an_update_that_does_not_get_well_is_taken_back_with_its_data(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    (node.root() / "data" / "kept").write_text("dear")
    before = (node.root() / "data" / "starts").read_text()
    await node.thing("2.0", sick="")
    ending = await node.change("update")

    assert ending.outcome == "failed"
    assert "'main' did not get well: it ended with exit code 9." in str(ending.facts["message"])
    app = await node.app()
    assert (app.phase, app.version, [each.dir for each in app.releases]) == (Phase.READY, "1.0", ["1.0"])
    assert "taken back" in app.error
    assert (node.root() / "current").resolve().name == "1.0"
    assert not (node.root() / "releases" / "2.0").exists()
    starts = (node.root() / "data" / "starts").read_text()
    assert starts == before + "True 1.0\n"  # what 2.0 wrote is gone
    assert not (node.root() / "update.json").exists()


async def test_an_update_that_cannot_be_built_leaves_the_old_release_running(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    await node.thing("2.0", '\n[install]\ncommand = "exit 3"\n')
    assert (await node.change("update")).exit_code == 3
    app = await node.app()
    assert (app.phase, app.version) == (Phase.READY, "1.0")
    assert {path.name for path in (node.root() / "releases").iterdir()} == {"1.0"}
    assert (node.root() / "data" / "starts").read_text() == "True 1.0\n"  # it was not even stopped


async def test_a_rollback_goes_to_any_release_that_is_kept(node: Node) -> None:
    for version in "1.0", "2.0", "3.0":
        await node.thing(version)
        await (node.install() if version == "1.0" else node.change("update"))
    assert (await node.change("rollback", version="1.0")).outcome == "completed"
    assert (await node.app()).version == "1.0"
    assert (node.root() / "current").resolve().name == "1.0"
    assert (await node.change("rollback")).outcome == "completed"
    assert (await node.app()).version == "3.0"
    with pytest.raises(Conflict):
        await node.change("rollback", version="9.9")


async def test_five_releases_are_kept(node: Node) -> None:
    for number in range(1, 8):
        await node.thing(f"{number}.0")
        await (node.install() if number == 1 else node.change("update"))
    kept = {f"{number}.0" for number in range(3, 8)}
    assert {path.name for path in (node.root() / "releases").iterdir()} == kept
    assert {each.dir for each in (await node.app()).releases} == kept

    await node.thing("8.0", sick="")  # one that was taken back costs none of them
    assert (await node.change("update")).outcome == "failed"
    assert {path.name for path in (node.root() / "releases").iterdir()} == kept
    assert {each.dir for each in (await node.app()).releases} == kept


async def test_an_uninstall_keeps_data_only_when_told_so(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    (node.root() / "data" / "kept").write_text("dear")
    await node.change("uninstall", keep_data=True)
    assert {path.name for path in node.root().iterdir()} == {"data"}

    await node.install()
    assert (node.root() / "data" / "kept").read_text() == "dear"
    await node.change("uninstall")
    assert node.files() == set()
    with pytest.raises(NotFound):
        await node.app()


@pytest.mark.parametrize("at", ["resolve", "fetch", "manifest", "script", "whole"])
async def test_a_cancel_at_any_step_leaves_nothing(node: Node, at: str) -> None:
    await node.thing("1.0", '\n[install]\ncommand = "sleep 60"\n' if at == "script" else "")
    await apps.install(node.store, "user:u", product="thing")
    offer = await node.claim()
    reached = asyncio.Event()
    job = Around(
        node.store, node.supervisor, node.holder, "none", lambda name: reached.set() if name == at else None
    )
    task = asyncio.ensure_future(TASKS["app.install"](offer, job))
    if at != "script":
        job._step = lambda name: _cancel(job, task) if name == at else None
    else:
        await asyncio.wait_for(reached.wait(), 5)  # noqa: TID251
        while not leftovers(offer.job_id):
            await asyncio.sleep(0.01)
        _cancel(job, task)
    async with asyncio.timeout(10):
        ending = await task
    await node.settle(offer, ending)
    assert ending.outcome == "cancelled"
    assert node.files() == set()
    assert leftovers(offer.job_id) == []
    with pytest.raises(NotFound):
        await node.app()


def _cancel(job: object, task: "asyncio.Future[object]") -> None:
    job.why_stopped = "cancelled"  # type: ignore[attr-defined]
    task.cancel()


async def test_an_update_that_is_cancelled_while_it_tries_goes_back(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    await node.thing("2.0")
    await apps.change(node.store, "user:u", "thing", "update")
    offer = await node.claim()
    job = Around(node.store, node.supervisor, node.holder, "none", lambda _: None)
    task = asyncio.ensure_future(TASKS["app.update"](offer, job))
    job._step = lambda name: _cancel(job, task) if name == "try" else None
    until = node.supervisor.until

    async def never(*asked: Any) -> bool:
        node.supervisor.until = until  # type: ignore[method-assign]
        await asyncio.Event().wait()
        return True

    node.supervisor.until = never  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        ending = await task
    await node.settle(offer, ending)
    assert ending.outcome == "cancelled"
    app = await node.app()
    assert (app.phase, app.version) == (Phase.READY, "1.0")
    assert not (node.root() / "releases" / "2.0").exists()


@pytest.mark.parametrize("during", ["snapshot", "back"])
async def test_an_update_that_is_cancelled_while_data_are_copied_loses_none(
    node: Node, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    await node.thing("1.0")
    await node.install()
    data = node.root() / "data"
    for number in range(20):
        (data / f"order-{number}").write_text("paid")
    await node.thing("2.0", sick="")
    await apps.change(node.store, "user:u", "thing", "update")
    offer = await node.claim()
    job = Around(node.store, node.supervisor, node.holder, "none", lambda _: None)
    at_once, copied = snapshots._Copying._file, [0]

    def slowly(*given: Any) -> None:
        time.sleep(0.02)
        copied[0] += 1
        at_once(*given)

    monkeypatch.setattr(snapshots._Copying, "_file", slowly)
    task = asyncio.ensure_future(TASKS["app.update"](offer, job))
    while during not in job.steps or copied[0] < 5:
        await asyncio.sleep(0.005)
        copied[0] *= during in job.steps
    _cancel(job, task)
    async with asyncio.timeout(10):
        ending = await task
    await node.settle(offer, ending)
    assert ending.outcome == "cancelled"
    app = await node.app()
    assert (app.phase, app.version) == (Phase.READY, "1.0")
    assert len(list(data.glob("order-*"))) == 20
    assert (
        sorted(each.name for each in node.root().iterdir() if each.name.startswith((".", "snap", "update")))
        == []
    )


async def test_a_full_disk_is_named_and_nothing_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(archives, "extract", full)
    await node.thing("1.0")
    ending = await node.install()
    assert ending.facts["message"] == "The disk of this node is full."
    assert (await node.app()).error == "The disk of this node is full."
    assert node.files() == set()


async def test_events_tell_of_an_install_from_begin_to_end(node: Node) -> None:
    await node.thing("1.0")
    await node.install()
    told = [event async for page in events_after(node.store, "0-0") for event in page]
    installs = [event.fields for event in told if event.name == "app.install"]
    progress = [int(each["progress"]) for each in installs]
    assert progress == sorted(progress)
    assert (progress[-1], installs[-1]["status"]) == (100, "installed")
    assert {each["status"] for each in installs[:-1]} == {"installing"}
    assert json.dumps(installs)  # plain words


async def test_an_install_step_that_says_the_same_progress_for_ever_is_told_of_once(node: Node) -> None:
    await node.thing(
        "1.0", '\n[install]\ncommand = "for i in 1 2 3 4 5 6; do echo ::progress 40; sleep 0.03; done"\n'
    )
    await node.install()
    told = [event.fields async for page in events_after(node.store, "0-0") for event in page]
    steps = [each for each in told if each.get("message") == "Running the install step."]
    assert [each["progress"] for each in steps] == ["50", "64"]


async def test_who_clears_up_while_redis_is_away_does_not_keep_the_worker_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "STUBBORN_S", 0.05)
    clearing = asyncio.create_task(tasks._shielded(asyncio.Event().wait()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    clearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await clearing


async def test_what_clears_up_is_seen_through_when_it_is_cancelled_meanwhile() -> None:
    go_on, done = asyncio.Event(), []

    async def clear_up() -> None:
        await go_on.wait()
        done.append(True)

    clearing = asyncio.create_task(tasks._shielded(clear_up()))
    await asyncio.sleep(0)
    clearing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await clearing
    assert done
