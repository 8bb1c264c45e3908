"""The supervisor on real processes and a control plane in memory: wishes, crashes, releases, what an app is told."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import orjson
import pytest
from controls import (
    SEAL,
    SERVE,
    SLEEP,
    FakeControl,
    Running,
    alive,
    app_of,
    has,
    lay_out,
    pids,
    python,
    shell,
    signed,
    soon,
    supervisor_for,
    wished,
)
from servers import SECRET_KEY

from storage.errors import NotFound, NotRunning
from workers.supervisor import processes, supervised
from workers.supervisor import supervisor as module


async def test_what_is_wished_runs_and_what_is_not_wished_ends(node: Running, control: FakeControl) -> None:
    node.install("a", {"web": {"command": SLEEP, "scale": 2}})
    await soon(has(control, "a", web_0="running", web_1="running"), "both run")
    before = pids(control, "a")
    control.change("a", wishes=wished(control.apps["a"], "web", scale=3))
    await soon(has(control, "a", web_0="running", web_1="running", web_2="running"), "three run")
    control.change("a", wishes=wished(control.apps["a"], "web", scale=1))
    await soon(has(control, "a", web_0="running"), "one runs")
    assert pids(control, "a") == {"web-0": before["web-0"]}
    generation = control.change("a", desired="stopped").generation
    await soon(has(control, "a", web_0="stopped"), "it is stopped")
    assert not any(alive(pid) for pid in before.values())
    assert control.told["a"][0] == generation


async def test_an_instance_says_why_it_cannot_be_started(node: Running, control: FakeControl) -> None:
    lay_out(node.settings.apps_dir, "a").joinpath("out").symlink_to("/")
    node.install("a", {"web": {"command": SLEEP, "working_directory": "out"}})
    await soon(has(control, "a", web_0="failed"), "it has failed")
    assert control.told["a"][1][0].message == "The working directory of 'web' is not in the release."


@pytest.mark.proves("F59")
async def test_a_crashing_app_is_restarted_until_its_attempts_are_spent(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": shell("echo going down; exit 3")}})
    await soon(has(control, "a", web_0="failed"), "it has failed")
    told = control.instance("a", "web-0")
    assert told is not None
    assert (told.restart_count, told.exit_code) == (3, 3)
    assert told.message.startswith("It ended with exit code 3.\ngoing down")
    await soon(lambda: control.text.count("going down") == 4, "all it said is told")
    control.change("a", wishes=wished(control.apps["a"], "web", restarts=1))
    await soon(lambda: control.text.count("going down") == 8, "a start gives it its attempts back")


@pytest.mark.proves("F59")
async def test_a_killed_app_comes_back_and_a_stop_in_between_wins(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": SLEEP}}, restart={"policy": "always", "backoff_s": 0.3})
    await soon(has(control, "a", web_0="running"), "it runs")
    os.kill(pids(control, "a")["web-0"], signal.SIGKILL)
    await soon(has(control, "a", web_0="crashed"), "its end was noticed")
    await soon(has(control, "a", web_0="running"), "it runs again")
    os.kill(pids(control, "a")["web-0"], signal.SIGKILL)
    await soon(has(control, "a", web_0="crashed"), "its end was noticed")
    control.change("a", desired="stopped")
    await soon(has(control, "a", web_0="stopped"), "it is stopped")
    await asyncio.sleep(0.4)
    assert has(control, "a", web_0="stopped")()


@pytest.mark.proves("F59")
def _environ(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_many_starts_and_stops_leave_at_most_one_process(node: Running, control: FakeControl) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    for number in range(40):
        control.change("a", desired="stopped" if number % 2 else "running")
        await asyncio.sleep(0.005)
    control.change("a", desired="running")
    await soon(lambda: control.state("a", "web-0") == "running" and control.told["a"][0] == 42, "it runs")
    found = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if _environ(path).find(b"HOSTLER_INSTANCE=a/web-0/") >= 0
        and str(node.settings.apps_dir).encode() in _environ(path)
    ]
    assert found == [str(pids(control, "a")["web-0"])]


async def test_a_squareberg_app_without_its_socket_has_failed(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.supervisor.instance.SQUAREBERG_SOCKET_S", 0.2)
    node.install(
        "a", {"web": {"command": SLEEP, "socket": True}}, kind="squareberg", restart={"policy": "never"}
    )
    await soon(has(control, "a", web_0="failed"), "it has failed")
    assert "socket" in control.instance("a", "web-0").message  # type: ignore[union-attr]


async def test_too_much_memory_ends_it(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.end()
    monkeypatch.setattr(module, "SAMPLE_S", 0.1)
    node.start()
    greedy = python("import time\nkept=bytearray(80*1024*1024)\ntime.sleep(600)")
    limits = {"memory_limit_bytes": 40 * 1024 * 1024, "restart": {"policy": "never"}}
    node.install("a", {"web": {"command": greedy, **limits}, "small": {"command": SLEEP}})
    await soon(has(control, "a", small_0="running", web_0="failed"), "it was ended")
    assert "of memory" in control.instance("a", "web-0").message  # type: ignore[union-attr]
    await soon(lambda: [each for each in control.sampled if each.process == "small"], "samples are kept")


async def test_a_memory_that_makes_no_sense_costs_no_process_and_no_other_app(
    node: Running, control: FakeControl
) -> None:
    for name in ("a", "b"):
        node.install(name, {"web": {"command": SLEEP}})
    await soon(
        lambda: {"a", "b"} <= set(control.told) and all(has(control, n, web_0="running")() for n in "ab"),
        "run",
    )
    before = pids(control, "a"), pids(control, "b")
    await node.end()
    path = node.settings.apps_dir / "a" / "state.json"
    remembered = orjson.loads(path.read_bytes())
    remembered["lives"]["web-0"] = {"state": "?"}
    path.write_bytes(orjson.dumps(remembered))
    control.told.clear()
    node.start()
    for name in ("a", "b"):
        await soon(has(control, name, web_0="running"), f"{name} is cared for")
    assert (pids(control, "a"), pids(control, "b")) == before


@pytest.mark.proves("F46")
async def test_a_full_disk_stops_restarts_and_says_so(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    monkeypatch.setattr(supervised, "DISK_FLOOR_BYTES", 1 << 62)
    os.kill(pids(control, "a")["web-0"], signal.SIGKILL)
    await soon(lambda: "disk" in control.told["a"][3], "it is said")
    assert has(control, "a", web_0="crashed")()
    monkeypatch.undo()
    await soon(has(control, "a", web_0="running"), "it runs again once there is room")


async def test_a_job_can_have_an_app_stand_still_and_run_another_release(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": shell("pwd; exec sleep 600")}})
    await soon(has(control, "a", web_0="running"), "it runs")
    assert node.now is not None
    before = pids(control, "a")["web-0"]
    async with node.now.held("a"):
        assert not alive(before)
        lay_out(node.settings.apps_dir, "a", "2.0.0")
    await soon(
        lambda: any(line.endswith("releases/2.0.0") for line in control.text), "the other release runs"
    )
    lay_out(node.settings.apps_dir, "a", "3.0.0")
    await node.now.apply(control.apps["a"])
    assert await node.now.until("a", lambda all_of_it: bool(all_of_it) and all_of_it[0].state == "running", 5)
    await soon(lambda: any(line.endswith("releases/3.0.0") for line in control.text), "what is current runs")


class SlowStarts:
    """Lets starts of instances take as long as it is told to, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = 0, asyncio.Event()
        start = processes.Processes.start

        async def slowly(given: processes.Processes, what: processes.Start) -> processes.Kept:
            self.begun += 1
            await self.go_on.wait()
            return await start(given, what)

        monkeypatch.setattr(processes.Processes, "start", slowly)


async def test_a_release_that_comes_while_an_instance_of_the_old_one_is_being_started_replaces_it(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = SlowStarts(monkeypatch)
    monkeypatch.setattr(module, "POLL_S", 3600)
    node.install("a", {"web": {"command": shell("pwd; exec sleep 600")}})
    await soon(lambda: starts.begun == 1, "it is being started")
    lay_out(node.settings.apps_dir, "a", "2.0.0")
    control.change("a")
    await soon(lambda: control.told.get("a", (0,))[0] == 2, "the wish was heard of")
    starts.go_on.set()
    await soon(lambda: any(each.endswith("/releases/2.0.0") for each in control.text), "the new release runs")
    await soon(has(control, "a", web_0="running"), "it runs")
    instance = control.instance("a", "web-0")
    assert (starts.begun, instance and instance.restart_count) == (2, 0)


async def test_a_restart_that_is_asked_for_while_an_instance_is_being_started_comes_after_that(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = SlowStarts(monkeypatch)
    node.install("a", {"web": {"command": SLEEP}})
    await soon(lambda: starts.begun == 1, "it is being started")
    control.change("a", wishes=wished(control.apps["a"], "web", restarts=1))
    await soon(lambda: control.told.get("a", (0,))[0] == 2, "the wish was heard of")
    starts.go_on.set()
    await soon(lambda: starts.begun == 2, "it is started again")
    await soon(has(control, "a", web_0="running"), "it runs")
    await asyncio.sleep(0.3)
    assert starts.begun == 2


@pytest.mark.parametrize("what", ["held", "forgotten", "scaled"])
async def test_what_is_just_being_started_ends_before_an_app_stands_still(
    node: Running, control: FakeControl, what: str
) -> None:
    node.install("a", {"web": {"command": SLEEP, "scale": 2}})
    assert node.now is not None
    app, records = control.apps["a"], node.now.places("a").records
    await soon(lambda: len(processes.live(records)) == 2, "two are being started")
    if what == "held":
        async with node.now.held("a"):
            assert processes.live(records) == []
    elif what == "forgotten":
        await node.now.forget("a")
        assert processes.live(records) == []
    else:
        control.change("a", wishes=wished(app, "web", scale=1))
        await soon(has(control, "a", web_0="running"), "one runs")
        assert processes.live(records) == [records / "web-0"]


async def test_a_forgotten_app_ends_and_a_foreign_one_is_left_alone(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    pid = pids(control, "a")["web-0"]
    assert node.now is not None
    await node.now.forget("a")
    assert not alive(pid)
    with pytest.raises(NotFound):
        node.now.address("a", "", 0)
    other = supervisor_for(node.settings, control, name="other")  # one that shares the machine
    task = asyncio.create_task(other.run())
    await soon(other.begun.is_set, "it has begun")
    assert other.observed("a") == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_app_that_the_control_plane_no_longer_knows_is_stopped_after_a_while(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.1)
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    pid = pids(control, "a")["web-0"]
    del control.apps["a"]
    control.wake()
    await asyncio.sleep(0.3)
    assert alive(pid)
    monkeypatch.setattr(module, "GONE_S", 0.0)
    control.wake()
    await soon(lambda: not alive(pid), "it was stopped")
    assert (node.settings.apps_dir / "a" / "data").is_dir()


async def test_configuration_and_variables_reach_the_app_and_secrets_of_the_worker_do_not(
    node: Running, control: FakeControl
) -> None:
    lay_out(node.settings.apps_dir, "a")
    app = app_of(
        "a",
        {
            "web": {
                "command": 'cat "$HOSTLER_CONFIG_FILE"; env; echo whole; exec sleep 600',
                "env": {"MORE": "said"},
            }
        },
    )
    configured = replace(app.with_config(SEAL, {"password": "hidden"}), configured=True)
    control.wish(signed(configured))
    await soon(lambda: "whole" in control.text, "it has said all")
    assert "MORE=said" in control.text
    assert '  "password": "hidden"' in control.text
    assert "HOSTLER_APP=a" in control.text
    assert not any(SECRET_KEY in line or "HOSTLER_SECRET_KEY" in line for line in control.text)


async def test_an_app_tells_its_watchers_what_it_wants(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install("a", {"web": {"command": SLEEP}})
    await soon(has(control, "a", web_0="running"), "it runs")
    assert node.now is not None
    socket = node.now.places("a").events
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        assert (await client.post("/emit", json={"event": "tick", "data": {"n": 1}})).status_code == 204
        assert (await client.post("/emit", json={"event": "tick"})).status_code == 204
        assert (await client.post("/emit", content=b"{")).status_code == 400
        assert (await client.post("/emit", json={"event": "\n"})).status_code == 400
        assert (await client.get("/emit")).status_code == 404
        assert (await client.post("/emit", content=b"x" * 70_000)).status_code == 413
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://app"
    ) as client:
        control.away = True
        assert (await client.post("/emit", json={"event": "away"})).status_code == 503
        control.away = False
        monkeypatch.setattr("workers.supervisor.events.PER_S", 0)
        answers = [(await client.post("/emit", json={"event": "flood"})).status_code for _ in range(200)]
    assert control.emitted[:2] == [("a", "tick", '{"n":1}'), ("a", "tick", "null")]
    assert 429 in answers


async def test_an_app_that_is_stopped_has_no_address(node: Running, control: FakeControl) -> None:
    node.install(
        "a",
        {"setup": {"command": SLEEP, "type": "oneshot"}, "web": {"command": SERVE, "port": 0}},
        desired="stopped",
    )
    await soon(lambda: "a" in control.told, "it is known")
    assert node.now is not None
    for process in ("web", ""):  # the first that listens
        with pytest.raises(NotRunning):
            node.now.address("a", process, 0)
    for process in ("none", "../x"):
        with pytest.raises(NotFound):
            node.now.address("a", process, 0)
        with pytest.raises(NotFound):
            node.now.log_file("a", process, 0)
    with pytest.raises(NotFound, match="'setup' of app 'a' has neither a socket nor a port"):
        node.now.address("a", "setup", 0)


async def test_an_accident_with_one_app_does_not_silence_the_others(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 'while [ ! -e "$HOSTLER_DATA_DIR/go" ]; do sleep 0.05; done; echo here; exec sleep 600'
    for name in ("a", "b"):
        node.install(name, {"web": {"command": shell(waits)}})
        await soon(has(control, name, web_0="running"), "it runs")
    assert node.now is not None

    async def accident(*_: object) -> bool:
        raise RuntimeError("an accident")

    node.now._outboxes["a"] = SimpleNamespace(send=accident)  # type: ignore[assignment]
    monkeypatch.setattr(node.now.supervised("a").runs, "tick", lambda: 1 / 0)
    for name in ("a", "b"):
        (node.now.places(name).data / "go").touch()
    await soon(lambda: control.text == ["here"], "the other one is told of")


async def test_an_app_that_is_gone_and_ends_slowly_holds_nobody_up(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GONE_S", 0)
    stubborn = {"command": shell("trap '' TERM; while :; do sleep 0.1; done"), "stop_timeout_s": 3}
    node.install("a", {"web": stubborn})
    await soon(has(control, "a", web_0="running"), "it runs")
    pid = pids(control, "a")["web-0"]
    del control.apps["a"]
    control.wake()
    supervisor = node.now
    assert supervisor is not None
    await soon(lambda: supervisor._going, "it is being stopped")
    node.install("b", {"web": {"command": SLEEP}})
    await soon(has(control, "b", web_0="running"), "another one was begun")
    assert alive(pid)
    await soon(lambda: not alive(pid), "it has ended")
