"""The supervisor on real processes and a control plane in memory: wishes, crashes, restarts of its own, outages."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from controls import (
    SEAL,
    FakeControl,
    alive,
    app_of,
    lay_out,
    python,
    shell,
    signed,
    soon,
    supervisor_for,
    wished,
)
from servers import SECRET_KEY

from settings import Settings
from storage.apps import Phase
from storage.errors import NotFound, NotRunning
from workers.installs import updating
from workers.installs.releases import Note, Releases
from workers.supervisor import ending, instance, processes, state, supervised
from workers.supervisor import supervisor as module
from workers.supervisor.supervisor import Supervisor

SLEEP = shell("exec sleep 600")
#: Serves 204 on PORT, or on HOSTLER_SOCKET.
SERVE = python(
    "import os,socket\n"
    "path=os.environ.get('HOSTLER_SOCKET')\n"
    "s=socket.socket(socket.AF_UNIX) if path else socket.socket()\n"
    "path or s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n"
    "s.bind(path or ('127.0.0.1',int(os.environ['PORT'])))\n"
    "s.listen()\n"
    "while 1:\n"
    "  c,_=s.accept()\n"
    "  if not c.recv(9999): continue\n"
    "  up=not os.path.exists(os.environ['HOSTLER_DATA_DIR']+'/ill')\n"
    "  c.sendall(b'HTTP/1.1 %d X\\r\\nContent-Length: 0\\r\\n\\r\\n' % (204 if up else 500)); c.close()\n"
)
CHECK = {"kind": "http", "path": "/", "delay_s": 0.0, "period_s": 0.1, "timeout_s": 1, "failures": 2}


@pytest.fixture
def settings() -> Any:
    work = Path(tempfile.mkdtemp(prefix="hostler-test-"))
    work.chmod(0o711)
    settings = Settings.from_env({"HOSTLER_SECRET_KEY": SECRET_KEY, "HOSTLER_WORK_DIR": str(work)})
    settings.apps_dir.mkdir()
    yield settings
    asyncio.run(ending.stop_all(settings.apps_dir))
    shutil.rmtree(work)


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


class Running:
    """Supervisors that follow one another, as workers do."""

    def __init__(self, settings: Settings, control: FakeControl) -> None:
        self.settings, self.control = settings, control
        self.now: Supervisor | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, **how: Any) -> Supervisor:
        self.now = supervisor_for(self.settings, self.control, **how)
        self._task = asyncio.create_task(self.now.run())
        return self.now

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def again(self) -> Supervisor:
        await self.end()
        self.control.told.clear()
        return self.start()

    def install(self, name: str, given: Any, **more: Any) -> None:
        lay_out(self.settings.apps_dir, name)
        self.control.wish(app_of(name, given, **more))


@pytest.fixture
async def node(settings: Settings, control: FakeControl) -> AsyncIterator[Running]:
    running = Running(settings, control)
    running.start()
    yield running
    control.away = False
    await running.end()


def pids(control: FakeControl, app: str) -> dict[str, int]:
    return {each.id: each.pid for each in control.told[app][1] if each.pid is not None}


def has(control: FakeControl, name: str, **states: str) -> Callable[[], bool]:
    """Whether these instances, and no others, were told to be in these states."""
    wanted = {each.replace("_", "-"): word for each, word in states.items()}
    return lambda: name in control.told and {each.id: each.state for each in control.told[name][1]} == wanted


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


def _environ(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


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


async def test_dependencies_are_waited_for_also_those_of_other_apps(
    node: Running, control: FakeControl
) -> None:
    node.install(
        "late",
        {
            "web": {"command": SLEEP, "depends_on": ["db", "base"]},
            "db": {"command": SERVE, "port": 0, "health": CHECK},
        },
    )
    await soon(lambda: control.state("late", "db-0") == "running", "the database runs")
    waiting = control.instance("late", "web-0")
    assert waiting is not None
    assert (waiting.state, waiting.message) == (
        "starting",
        "It waits for app 'base', which is not on this node.",
    )
    node.install("base", {"setup": {"command": "exit 0", "type": "oneshot"}})
    await soon(lambda: control.state("late", "web-0") == "running", "it runs")


async def test_who_depends_on_what_has_failed_fails_at_once_and_is_taken_up_with_it(
    node: Running, control: FakeControl
) -> None:
    setup = {"command": shell("sleep 0.2; test -e $HOSTLER_DATA_DIR/right"), "type": "oneshot"}
    node.install("base", {"setup": {**setup, "restart": {"policy": "never"}}})
    node.install(
        "shop",
        {"web": {"command": SLEEP, "depends_on": ["api"]}, "api": {"command": SLEEP, "depends_on": ["base"]}},
    )
    await soon(has(control, "shop", web_0="failed", api_0="failed"), "nobody waits for what will not come")
    because = "It depends on app 'base', which has failed: It ended with exit code 1."
    assert [control.message("shop", each) for each in ("api-0", "web-0")] == [
        because, f"It depends on 'api', which has failed: {because}",
    ]  # fmt: skip
    assert node.now is not None
    (node.now.places("base").data / "right").touch()
    await node.again()  # a later worker knows, too, who is not to blame
    control.change("base", wishes=wished(control.apps["base"], "setup", restarts=1))
    await soon(has(control, "shop", web_0="running", api_0="running"), "they go on by themselves")


async def test_a_oneshot_at_work_is_waited_for_longer_than_what_is_not_there(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "DEPENDENCY_PATIENCE_S", 0.1)
    node.install(
        "a",
        {
            "web": {"command": SLEEP, "depends_on": ["api"]},
            "api": {"command": SLEEP, "depends_on": ["migrate"]},
            "migrate": {
                "command": shell("until test -e $HOSTLER_DATA_DIR/go; do sleep 0.1; done"),
                "type": "oneshot",
            },
            "other": {"command": SLEEP, "depends_on": ["base"]},
        },
    )
    late = {"web_0": "starting", "api_0": "starting", "migrate_0": "running", "other_0": "failed"}
    await soon(has(control, "a", **late), "only what is not there is given up")
    assert node.now is not None
    (node.now.places("a").data / "go").touch()
    await soon(lambda: control.state("a", "web-0") == "running", "it starts after the oneshot")
    node.install("base", {"web": {"command": SLEEP}})
    await soon(lambda: control.state("a", "other-0") == "running", "what was given up is taken up")


async def test_apps_that_wait_for_one_another_say_so_and_fail(node: Running, control: FakeControl) -> None:
    node.install("a", {"web": {"command": SLEEP, "depends_on": ["b"]}})
    node.install("b", {"web": {"command": SLEEP, "depends_on": ["a"]}})
    await soon(has(control, "a", web_0="failed"), "one has failed")
    await soon(has(control, "b", web_0="failed"), "and so has the other")
    assert control.message("a", "web-0") == "It would have to wait for 'b', which waits for it."


@pytest.mark.parametrize("where", [{"port": 0}, {"socket": True}])
async def test_an_unhealthy_app_is_started_anew(
    node: Running, control: FakeControl, where: dict[str, Any]
) -> None:
    node.install("a", {"web": {"command": SERVE, "health": CHECK, **where}})
    await soon(has(control, "a", web_0="running"), "it is healthy")
    before = pids(control, "a")
    assert node.now is not None
    address = node.now.address("a", "", 0)
    assert (address.port is None, address.socket is None) == ("socket" in where, "port" in where)
    ill = node.settings.apps_dir / "a" / "data" / "ill"
    ill.touch()
    await soon(lambda: control.state("a", "web-0") == "crashed", "it is restarted for its illness")
    ill.unlink()
    await soon(has(control, "a", web_0="running"), "it is healthy again")
    assert pids(control, "a") != before


async def test_who_never_gets_healthy_fails(node: Running, control: FakeControl) -> None:
    never = {**CHECK, "kind": "exec", "command": "exit 1"}
    node.install("a", {"web": {"command": SLEEP, "health": never, "restart": {"policy": "never"}}})
    await soon(has(control, "a", web_0="failed"), "it has failed")
    assert "health check" in control.instance("a", "web-0").message  # type: ignore[union-attr]


async def test_a_command_beside_it_tells_that_it_is_healthy(node: Running, control: FakeControl) -> None:
    check = {**CHECK, "kind": "exec", "command": 'test -n "$PORT"'}
    node.install("a", {"web": {"command": SLEEP, "health": check, "port": 0}})
    await soon(lambda: (told := control.instance("a", "web-0")) and told.health == "healthy", "it is healthy")


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


async def test_runs_that_are_asked_for_by_hand_are_kept_in_a_history(
    node: Running, control: FakeControl
) -> None:
    job = {"command": "exit 7", "type": "scheduled", "schedule": "0 0 1 1 *"}
    node.install("a", {"report": job})
    await soon(lambda: "a" in control.told and control.told["a"][2]["report"].next_ms, "it is armed")
    control.change("a", wishes=wished(control.apps["a"], "report", triggers=2))
    await soon(lambda: len(control.runs) == 2, "both have run")
    await soon(has(control, "a"), "nothing is left of them")
    told = control.told["a"][2]["report"]
    assert {(run.exit_code, run.cause) for run in control.runs.values()} == {(7, "trigger")}
    assert (told.run_count, told.last_exit_code, told.success_rate) == (2, 7, 0.0)
    control.change("a", wishes=wished(control.apps["a"], "report", paused=True))
    await soon(lambda: control.told["a"][2]["report"].next_ms is None, "it is paused")


async def test_runs_that_were_asked_for_and_have_not_begun_end_with_a_stop(
    node: Running, control: FakeControl
) -> None:
    job = {"command": SLEEP, "type": "scheduled", "schedule": "0 0 1 1 *"}
    node.install("a", {"report": job})
    await soon(lambda: "a" in control.told and control.told["a"][2]["report"].next_ms, "it is armed")
    control.change("a", wishes=wished(control.apps["a"], "report", triggers=2))
    await soon(has(control, "a", report_0="running"), "one runs, and one waits for it")
    control.change("a", desired="stopped")
    await soon(has(control, "a"), "nothing runs")
    await asyncio.sleep(3 * module.TICK_S)
    assert has(control, "a")(), "what is stopped stays so"
    assert control.told["a"][2]["report"].run_count == 1


async def test_runs_that_were_asked_for_are_carried_out_by_a_later_worker(
    node: Running, control: FakeControl
) -> None:
    command = shell('until [ -e "$HOSTLER_DATA_DIR/go" ]; do sleep 0.05; done')
    node.install("a", {"report": {"command": command, "type": "scheduled", "schedule": "0 0 1 1 *"}})
    await soon(lambda: "a" in control.told and control.told["a"][2]["report"].next_ms, "it is armed")
    control.change("a", wishes=wished(control.apps["a"], "report", triggers=2))
    await soon(has(control, "a", report_0="running"), "one runs, and one waits for it")
    await node.again()
    await soon(has(control, "a", report_0="running"), "it was taken over")
    assert node.now is not None
    cared = node.now.supervised("a")
    assert [cared.runs.of("report", number) for number in (1, 2)] == [None, None], "neither is over"
    (node.settings.apps_dir / "a" / "data" / "go").touch()
    await soon(lambda: len(control.runs) == 2, "both have run")
    assert {(run.exit_code, run.cause) for run in control.runs.values()} == {(0, "trigger")}
    for number in (1, 2):
        run = cared.runs.of("report", number)
        assert run is not None
        assert run.exit_code == 0


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


async def test_each_run_of_a_oneshot_process_is_kept_whatever_brought_it_about(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"once": {"command": "exit 4", "type": "oneshot", "restart": {"policy": "never"}}})
    await soon(lambda: [run.cause for run in control.runs.values()] == ["start"], "its first run is kept")
    told = control.instance("a", "once-0")
    (run,) = control.runs.values()
    assert told is not None
    assert (run.exit_code, run.started_ms, run.process) == (4, told.started_ms, "once")
    control.change("a", wishes=wished(control.apps["a"], "once", triggers=1))
    await soon(
        lambda: [run.cause for run in control.runs.values()] == ["start", "trigger"], "the second, too"
    )


async def test_a_run_that_ended_while_redis_was_away_is_kept_though_its_worker_died(
    node: Running, control: FakeControl
) -> None:
    waits = 'while [ ! -e "$HOSTLER_DATA_DIR/go" ]; do sleep 0.05; done; exit 4'
    once = {"command": shell(waits), "type": "oneshot", "restart": {"policy": "never"}}
    node.install("a", {"once": once})
    await soon(has(control, "a", once_0="running"), "it runs")
    assert node.now is not None
    places = node.now.places("a")
    control.away = True
    (places.data / "go").touch()
    await soon(lambda: b"untold" in places.state.read_bytes(), "its end is remembered")
    left = places.state.read_bytes()
    await node.end()
    places.state.write_bytes(left)  # as one that is killed leaves it
    node.start()
    control.away = False
    await soon(lambda: [run.exit_code for run in control.runs.values()] == [4], "it is told of")
    await soon(lambda: b"untold" not in places.state.read_bytes(), "and not any more")


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


async def test_a_check_that_is_given_up_before_it_has_begun_leaves_nothing(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = processes.Processes.start, asyncio.Event()

    async def slow(self: processes.Processes, what: processes.Start) -> processes.Kept:
        kept = await start(self, what)
        if what.record.name == "~web-0":
            begun.set()
            await asyncio.sleep(0.5)
        return kept

    monkeypatch.setattr(processes.Processes, "start", slow)
    check = {**CHECK, "kind": "exec", "command": "exec sleep 600"}
    node.install("a", {"web": {"command": SLEEP, "health": check}})
    async with asyncio.timeout(20):
        await begun.wait()
    control.change("a", desired="stopped")
    await soon(has(control, "a", web_0="stopped"), "it is stopped")
    record = node.settings.apps_dir / "a" / "records" / "~web-0"
    await soon(lambda: not processes.is_kept(record), "the check has ended, too")


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
