"""A worker that comes after another one: what it takes over, restarts, refuses to believe, and leaves alone."""

import asyncio
import os
import signal
from dataclasses import replace

import httpx
import pytest
from controls import (
    SEAL,
    SLEEP,
    FakeControl,
    Running,
    alive,
    has,
    lay_out,
    pids,
    shell,
    soon,
    supervisor_for,
    wished,
)

from storage.apps import Phase
from workers.installs import updating
from workers.installs.releases import Note, Releases
from workers.supervisor import ending, processes, state
from workers.supervisor import supervisor as module


async def test_a_later_worker_takes_over_what_runs(node: Running, control: FakeControl) -> None:
    node.install(
        "a", {"web": {"command": SLEEP, "port": 0}, "once": {"command": "exit 0", "type": "oneshot"}}
    )
    await soon(has(control, "a", once_0="completed", web_0="running"), "it runs")
    before, port = pids(control, "a"), control.instance("a", "web-0").port  # type: ignore[union-attr]
    await node.again()
    await soon(has(control, "a", once_0="completed", web_0="running"), "it was taken over")
    assert (pids(control, "a"), control.instance("a", "web-0").port) == (before, port)  # type: ignore[union-attr]
    os.kill(before["web-0"], signal.SIGTERM)  # also the end of what it has not started is noticed
    await soon(lambda: pids(control, "a").get("web-0") not in {None, before["web-0"]}, "it was started again")


async def test_what_ended_while_no_worker_was_there_is_restarted_as_its_policy_says(
    node: Running, control: FakeControl
) -> None:
    node.install(
        "a", {"web": {"command": SLEEP}, "never": {"command": SLEEP, "restart": {"policy": "never"}}}
    )
    await soon(has(control, "a", never_0="running", web_0="running"), "both run")
    before = pids(control, "a")
    await node.end()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    await soon(lambda: not processes.live(node.settings.apps_dir / "a" / "records"), "both are gone")
    await node.again()
    await soon(has(control, "a", never_0="failed", web_0="running"), "one was restarted")
    told = control.instance("a", "web-0")
    assert told is not None
    assert told.restart_count == 1


async def test_without_redis_apps_go_on_and_are_restarted_and_it_is_told_afterwards(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": shell("echo up; exec sleep 600")}})
    await soon(has(control, "a", web_0="running"), "it runs")
    control.away = True
    await node.end()
    supervisor = node.start()  # a worker that never saw Redis
    await soon(lambda: supervisor.observed("a"), "it was taken over")
    first = supervisor.observed("a")[0].pid
    assert first == pids(control, "a")["web-0"]
    os.kill(first, signal.SIGKILL)
    await soon(lambda: supervisor.observed("a")[0].pid not in {None, first}, "it was restarted")
    await soon(lambda: supervisor.observed("a")[0].state == "running", "it runs")
    control.away, control.lose_replies = False, True
    await soon(lambda: pids(control, "a")["web-0"] == supervisor.observed("a")[0].pid, "it is told")
    await soon(lambda: control.text == ["up", "up"], "each line is told once")


async def test_a_wish_that_was_altered_on_the_disk_is_not_acted_on(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": SLEEP}}, desired="stopped")
    await soon(lambda: "a" in control.told, "it is known")
    await node.end()
    memory = state.read(node.settings.apps_dir / "a" / "state.json")
    assert memory is not None
    forged = replace(control.apps["a"], desired="running").signed_wish(type(SEAL)("another key " + "x" * 40))
    memory.wish = forged.encode()
    memory.write(node.settings.apps_dir / "a" / "state.json")
    control.away = True
    supervisor = node.start()
    await soon(supervisor.begun.is_set, "it has begun")
    assert supervisor.observed("a") == []


async def test_an_older_wish_that_is_put_back_is_refused(node: Running, control: FakeControl) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    old = control.apps["a"]
    control.change("a", desired="stopped")
    await soon(has(control, "a", web_0="stopped"), "it is stopped")
    control.wish(old)
    await asyncio.sleep(0.2)
    assert has(control, "a", web_0="stopped")()


async def test_after_a_reboot_only_apps_that_start_by_themselves_do(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install("yes", {"web": {"command": SLEEP}})
    node.install("no", {"web": {"command": SLEEP}}, autostart=False)
    await soon(has(control, "yes", web_0="running"), "it runs")
    await soon(has(control, "no", web_0="running"), "it runs")
    await node.end()
    await ending.stop_all(node.settings.apps_dir)
    monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    await node.again()
    await soon(has(control, "yes", web_0="running"), "it was started")
    await soon(lambda: control.apps["no"].desired == "stopped", "the other is wished to rest")
    assert control.told["no"][1] == []


async def test_a_restart_that_a_worker_left_half_done_is_no_crash_to_the_next_one(
    node: Running, control: FakeControl
) -> None:
    slow = 'trap "until [ -e $HOSTLER_DATA_DIR/go ]; do sleep 0.05; done; exit 3" TERM'
    command = shell(f"{slow}; while :; do sleep 0.05; done")
    node.install("a", {"web": {"command": command, "restart": {"policy": "never"}}})
    await soon(has(control, "a", web_0="running"), "it runs")
    before = pids(control, "a")["web-0"]
    await asyncio.sleep(0.2)  # the shell has set its trap
    control.change("a", wishes=wished(control.apps["a"], "web", restarts=1))
    await soon(has(control, "a", web_0="stopping"), "it is being stopped")
    await node.again()
    await soon(has(control, "a", web_0="stopping"), "it still is")
    (node.settings.apps_dir / "a" / "data" / "go").touch()
    await soon(lambda: pids(control, "a").get("web-0") not in {None, before}, "it was started again")
    assert not alive(before)


async def test_what_a_job_has_stand_still_is_no_crash_to_a_worker_that_comes_after_a_kill(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    control.away = True  # so that what is told, and remembered on the way, lags behind
    assert node.now is not None
    async with node.now.held("a"):
        memory = state.read(node.now.places("a").state)
        assert memory is not None
        assert (memory.lives["web-0"]["state"], memory.lives["web-0"]["alive"]) == ("stopped", False)


async def test_two_workers_of_one_name_never_care_for_apps_at_once(
    node: Running, control: FakeControl
) -> None:
    assert node.now is not None
    await soon(node.now.begun.is_set, "it has begun")
    second = supervisor_for(node.settings, control)
    task = asyncio.create_task(second.run())
    await asyncio.sleep(0.3)
    assert not second.begun.is_set()
    await node.end()
    await soon(second.begun.is_set, "it has begun")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_app_that_was_taken_over_still_tells_its_watchers(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    supervisor = await node.again()
    await soon(has(control, "a", web_0="running"), "it was taken over")
    transport = httpx.AsyncHTTPTransport(uds=str(supervisor.places("a").events))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        assert (await client.post("/emit", json={"event": "tick"})).status_code == 204
    assert control.emitted == [("a", "tick", "null")]


@pytest.mark.proves("F51")
@pytest.mark.parametrize(("stage", "data"), [("stopping", "new"), ("switching", "old"), ("back", "old")])
async def test_an_app_whose_update_was_given_up_runs_the_release_that_is_wished(
    node: Running, control: FakeControl, stage: str, data: str
) -> None:
    print_release = shell('basename "$(pwd -P)"; cat "$HOSTLER_DATA_DIR/kept"; exec sleep 600')
    node.install("a", {"web": {"command": print_release}}, desired="stopped")
    await soon(lambda: "a" in control.told, "it is known")
    assert node.now is not None
    app = node.now.places("a")
    await node.end()
    releases = Releases(app.root)
    for name in ("1.0.0", "2.0.0"):
        lay_out(node.settings.apps_dir, "a", name)
        releases.finish(name, Note(name, name))
    (app.data / "kept").write_text("new\n")
    (app.root / "snapshot").mkdir()
    (app.root / "snapshot" / "kept").write_text("old\n")
    updating.JournalFile(app).write(updating.Journal("a job", "1.0.0", "2.0.0", stage, True))
    control.change("a", desired="running", phase=Phase.UPDATING)
    await node.again()
    await soon(
        lambda: "waits for its update" in control.told.get("a", (0, [], {}, ""))[3], "it waits for its job"
    )
    control.change("a", phase=Phase.READY)
    await soon(lambda: len(control.text) == 2, "it runs")
    assert control.text == ["1.0.0", data]
    assert not updating.JournalFile(app).path.exists()
    assert not (app.root / "snapshot").exists()
