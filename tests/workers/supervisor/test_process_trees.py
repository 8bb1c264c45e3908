"""Keepers and what they keep, as real processes: started, found again, ended whole, apart from one another."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from controls import alive, python, shell, soon

from storage.errors import Conflict
from workers.supervisor import ending, places, processes, state
from workers.supervisor.places import Places
from workers.supervisor.processes import Kept, Processes, Start
from workers.supervisor.supervisor import Lock
from workers.supervisor.users import APP_USERS

UID = APP_USERS[-1]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it needs Linux")


@pytest.fixture
async def app() -> AsyncIterator[Places]:
    """An app's places; whatever lives below them at the end of the test is killed."""
    root = Path(tempfile.mkdtemp(prefix="hostler-test-"))
    root.chmod(0o711)
    app = places.of(root, "app")
    app.make(None)
    yield app
    for record in processes.live(app.records):
        kept = await Processes("none").adopt(record)
        if kept is not None:
            kept.kill()
            await kept.ended
    shutil.rmtree(root)


Starting = Callable[..., Any]


@pytest.fixture
async def start(app: Places) -> AsyncIterator[Starting]:
    """Start commands as instances of one app."""
    made: list[Processes] = []

    async def start(argv: list[str], *, name: str = "web-0", isolation: str = "none", **more: Any) -> Kept:
        starter = Processes(isolation)
        made.append(starter)
        given: dict[str, Any] = {
            "mark": f"app/{name}", "nonce": secrets.token_hex(8), "argv": argv, "environment": {"PATH": os.defpath},
            "directory": app.data, "record": app.records / name, "log": app.logs / f"{name}.log",
            "stop_signal": signal.SIGTERM, "stop_timeout_s": 5, "uid": UID if isolation == "uid" else None,
            "writable": (app.data,), "readable": (app.config.parent,), "facts": {"port": 7}, **more,
        }  # fmt: skip
        if isolation == "uid":
            app.make(UID)
        return await starter.start(Start(**given))

    yield start
    for starter in made:
        starter.close()


async def test_how_it_ended_is_known_and_what_it_printed_is_kept(app: Places, start: Starting) -> None:
    kept = await start(shell("echo out; echo err >&2; exit 3"))
    assert (await kept.ended).exit_code == 3
    assert app.log("web", 0).read_text() == "out\nerr\n"
    assert not processes.is_kept(kept.record)


async def test_what_has_ended_before_it_is_looked_at_says_when_it_began(app: Places) -> None:
    (record := app.records / "once-0").write_text(
        '{"nonce":"n","pid":7,"started_ms":1000,"exit_code":4,"ended_ms":1001}'
    )
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = Kept(record, "n", gone.pid)
    await kept.running()
    assert (kept.pid, kept.started_ms) == (7, 1000)
    assert (await kept.ended).exit_code == 4


async def test_what_cannot_be_started_says_when_that_was_tried(start: Starting) -> None:
    before = time.time_ns() // 1_000_000
    kept = await start(["/nowhere"])
    assert (await kept.ended).exit_code == 127
    assert before <= kept.started_ms == processes.read(kept.record)["started_ms"] <= time.time() * 1000


async def test_a_stop_is_the_signal_it_asked_for(app: Places, start: Starting) -> None:
    code = "import signal,time,sys\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(9))\nprint('up')\ntime.sleep(600)"
    kept = await start(python(code), stop_signal=signal.SIGINT)
    await soon(lambda: "up" in app.log("web", 0).read_text(), "it is up")
    kept.stop()
    assert (await kept.ended).exit_code == 9


async def test_who_ignores_the_signal_is_killed_with_all_that_hid_from_it(
    app: Places, start: Starting
) -> None:
    hiding = "setsid sh -c 'setsid sleep 601 & echo $!; sleep 602' & sleep 603 & echo $!"
    line = f"trap '' TERM; {hiding}; while :; do sleep 1; done"
    kept = await start(shell(line), stop_timeout_s=0.3)
    await soon(lambda: len(app.log("web", 0).read_text().split()) == 2, "both are told")
    hidden = [int(word) for word in app.log("web", 0).read_text().split()]
    assert all(alive(pid) for pid in hidden)
    kept.stop()
    assert (await kept.ended).signal == signal.SIGKILL
    assert not any(alive(pid) for pid in hidden)


async def test_what_turns_into_a_daemon_ends_with_its_first_process(app: Places, start: Starting) -> None:
    hidden = "setsid sh -c 'echo $$ > pid; exec sleep 600'"
    kept = await start(shell(f"{hidden} & while [ ! -s pid ]; do sleep 0.01; done; exit 0"))
    assert (await kept.ended).exit_code == 0
    assert not alive(int((app.data / "pid").read_text()))


async def test_an_instance_is_never_started_twice_and_adopted_instead(start: Starting) -> None:
    kept = await start(shell("exec sleep 600"))
    with pytest.raises(Conflict):
        await start(shell("exec sleep 600"))
    again = await Processes("none").adopt(kept.record)
    assert again is not None
    assert (again.pid, again.started_ms) == (kept.pid, kept.started_ms)
    assert processes.read(kept.record)["port"] == 7
    again.kill()
    assert (await kept.ended, await again.ended) == (await kept.ended,) * 2


async def test_nothing_is_adopted_where_nothing_lives(app: Places, start: Starting) -> None:
    kept = await start(shell("exit 0"))
    await kept.ended
    assert await Processes("none").adopt(kept.record) is None
    assert await Processes("none").adopt(app.records / "never") is None


@linux
async def test_who_loses_its_keeper_is_killed_and_what_hid_is_swept(app: Places, start: Starting) -> None:
    kept = await start(shell("setsid sleep 600 & echo $!; exec sleep 600"))
    await soon(lambda: app.log("web", 0).read_text(), "it is told")
    os.kill(kept.keeper_pid, signal.SIGKILL)
    ended = await kept.ended
    assert (ended.exit_code, ended.signal) == (None, None)
    assert "killed" in ended.message
    await soon(lambda: not alive(kept.pid), "the main process is gone")
    hidden = int(app.log("web", 0).read_text())
    assert await asyncio.to_thread(processes.sweep, app.records, None, set()) == 1
    await soon(lambda: not alive(hidden), "what hid is gone")


@linux
async def test_a_sweep_spares_what_a_keeper_that_lives_has_started(app: Places, start: Starting) -> None:
    kept = await start(shell("exec sleep 600"))
    assert await asyncio.to_thread(processes.sweep, app.records, None, {kept.keeper_pid}) == 0
    assert alive(kept.pid)


async def test_a_sweep_leaves_an_app_of_the_same_name_in_another_hostler_alone(
    start: Starting, tmp_path: Path
) -> None:
    kept = await start(shell("exec sleep 600"))
    elsewhere = places.of(tmp_path, "app")
    assert await asyncio.to_thread(processes.sweep, elsewhere.records, None, set()) == 0
    assert alive(kept.pid)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"argv": ["no-such-program"]}, "no such program"),
        ({"argv": ["/etc/passwd"]}, "may not be executed"),
        ({"argv": ["true"], "directory": Path("/no/such")}, "directory"),
    ],
)
async def test_what_cannot_be_started_says_why(start: Starting, more: dict[str, Any], why: str) -> None:
    argv = more.pop("argv")
    ended = await (await start(argv, **more)).ended
    assert ended.exit_code == 127
    assert why in ended.message


@pytest.mark.parametrize("isolation", ["uid", "landlock"])
async def test_an_app_sees_nothing_of_others_nor_of_the_worker(
    app: Places, start: Starting, isolation: str
) -> None:
    if isolation == "uid" and os.getuid() != 0:
        pytest.skip("only root can start processes of other users")
    if isolation == "landlock":
        pytest.importorskip("workers.platforms.landlock")
        from workers.platforms import landlock

        if not landlock.version():
            pytest.skip("this kernel has no Landlock")
    other = places.of(app.root.parent, "other")
    other.make(UID - 1 if isolation == "uid" else None)
    other.write_config(b'{"password": "x"}', UID - 1 if isolation == "uid" else None)
    app.write_config(b"{}", UID if isolation == "uid" else None)
    tries = [
        f"cat {other.config}", f"ls {other.data}", f"touch {other.data}/x", f"ls {app.root.parent}", f"ls {app.logs}",
        f"touch {app.records}/x", f"rm {app.config}", f"touch {app.root}/state.json",
        f"cat /proc/{os.getpid()}/environ",
    ]  # fmt: skip
    line = "".join(f"({each}) >/dev/null 2>&1 && echo could: '{each}'\n" for each in tries)
    allowed = f"cat {app.config} && touch {app.data}/mine && echo done"
    kept = await start(shell(line + allowed), isolation=isolation)
    assert (await kept.ended).exit_code == 0
    assert app.log("web", 0).read_text() == "{}done\n"
    assert (app.data / "mine").exists()


async def test_all_apps_of_a_machine_end_when_no_worker_looks_after_them(
    app: Places, start: Starting
) -> None:
    first, second = await start(shell("exec sleep 600")), await start(shell("exec sleep 600"), name="web-1")
    state.Memory(lives={"web-0": {"state": "running"}}).write(app.state)
    lock = Lock(app.root.parent / ".node.lock")
    assert lock.taken()
    with pytest.raises(Conflict, match="'node'"):
        await ending.stop_all(app.root.parent)
    lock.close()
    assert await ending.stop_all(app.root.parent) == 2
    assert ((await first.ended).signal, (await second.ended).signal) == (15, 15)
    memory = state.read(app.state)
    assert memory is not None
    assert memory.lives == {}  # the next worker does not take it for a crash


def test_a_lock_is_free_once_it_was_let_go_of_whoever_is_being_started_then(tmp_path: Path) -> None:
    before, after = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert before.taken()
    copy = os.dup(before._fd)  # as a child has it between posix_spawn's return and the closing of descriptors
    assert not after.taken()
    before.close()
    assert after.taken()
    after.close()
    os.close(copy)


async def test_apps_that_are_ended_at_once_are_not_asked_first(app: Places, start: Starting) -> None:
    kept = await start(shell("trap '' TERM; while :; do sleep 1; done"), stop_timeout_s=600)
    assert await ending.stop_all(app.root.parent, at_once=True) == 1
    assert (await kept.ended).signal == 9
