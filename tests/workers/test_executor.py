"""The executor on real commands and a control plane in memory: slots, leases, cancels, draining."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_line import FakeLine, until

from storage.errors import Conflict, Unavailable
from workers import executor as module
from workers import platforms
from workers.executor import Executor, Held
from workers.lines import Offer
from workers.run import Circumstances
from workers.workspace import Workspace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these commands need a POSIX shell")
laid_ready = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no job is laid ready")


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hostler-test-") as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


Start = Callable[..., Executor]


@pytest.fixture
async def start(line: FakeLine, root: Path) -> AsyncIterator[Start]:
    """Start executors; at the end of the test they are stopped."""
    with contextlib.ExitStack() as stack:
        running: list[tuple[Executor, asyncio.Task[None]]] = []

        def start(slots: int = 2, heartbeat_s: float = 0.05, drain_s: float = 0.2, **how: Any) -> Executor:
            platform = platforms.choose("none", slots=slots, followers=how.get("followers", slots))
            stack.callback(platform.close)
            around = Circumstances(
                line=line, platform=platform, workspace=Workspace(root, platform, fetch_limit_bytes=1 << 20, allow=()),
                environment={"PATH": os.defpath}, spool=str(root), kill_grace_s=how.get("kill_grace_s", 0.2),
                log_limit_bytes=1 << 20, live_bytes=1 << 18,
            )  # fmt: skip
            one = Executor(around, slots=slots, heartbeat_s=heartbeat_s, drain_s=drain_s)
            running.append((one, asyncio.create_task(one.work())))
            return one

        yield start
        line.away = False
        for one, task in running:
            one.stop()
            await asyncio.wait_for(task, 15)  # noqa: TID251


def ends(line: FakeLine, *ids: str) -> Callable[[], bool]:
    return lambda: all(line.of(job_id).ends for job_id in ids)


async def test_jobs_are_carried_out_and_their_ends_told(line: FakeLine, start: Start) -> None:
    start()
    line.put("good", "echo said")
    line.put("bad", "exit 3")
    await until(ends(line, "good", "bad"), "both end")
    assert line.of("good").text == b"said\n"
    (good,), (bad,) = line.of("good").ends, line.of("bad").ends
    assert (good[:3], bad[:3]) == (("completed", "", 0), ("failed", "exit_code", 3))
    assert {"cpu_ms", "max_rss_bytes"} <= set(good[3])


async def test_a_job_that_is_cancelled_while_it_is_held_is_let_go_of_at_once(
    line: FakeLine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 30)
    one = start(slots=1, heartbeat_s=30, followers=0)
    line.put("long", "sleep 3")
    await until(lambda: not one._free, "the slot is taken")
    one._hold([Offer("held", 1, {"task": "command", "command": "true", "timeout_s": 60}, 0, held_ahead=True)])
    line.cancel("held")
    await until(ends(line, "held"), "it is let go of")
    assert line.of("held").ends == [("released", "unstarted", None, {})]
    assert not line.of("long").ends


async def test_a_job_that_comes_where_no_slot_is_left_goes_back_to_those_who_have_one(
    line: FakeLine, start: Start
) -> None:
    one = start(slots=1)
    line.put("long", "sleep 3")
    await until(lambda: not one._free, "the slot is taken")
    line.came.append(Offer("late", 1, {"task": "command", "command": "true", "timeout_s": 60}, 0))
    line.wake("")  # as when a poll has ended
    await until(ends(line, "late"), "it is handed back")
    assert line.of("late").ends == [("released", "unstarted", None, {})]
    assert not line.of("long").ends


@pytest.mark.parametrize("run_s", [0.1, 0.01])
async def test_no_more_run_at_once_than_there_are_slots(
    line: FakeLine, start: Start, root: Path, run_s: float
) -> None:
    one = start(slots=2)
    one._mean_run_s = run_s
    ids = [f"j{number}" for number in range(round(1 / run_s) // 2)]
    for job_id in ids:
        line.put(job_id, f"echo + >> {root}/n; sleep {run_s}; echo - >> {root}/n")
    await until(ends(line, *ids), "all end")
    depth = deepest = 0
    for sign in (root / "n").read_text().split():
        depth += 1 if sign == "+" else -1
        deepest = max(deepest, depth)
    assert deepest == 2
    assert [line.of(job_id).ends[0][0] for job_id in ids] == ["completed"] * len(ids)


async def test_short_jobs_are_claimed_ahead_and_long_ones_left_to_others(
    line: FakeLine, start: Start
) -> None:
    one = start(slots=1)
    one._mean_run_s = 0.01
    for number in range(3):
        line.put(f"j{number}", "sleep 600")
    await until(lambda: line.of("j1").ends, "the one that was held is given back")
    assert line.of("j1").ends[0][:2] == ("released", "unstarted")
    assert line.of("j0").ends == []


@pytest.mark.parametrize("slots", [1, 3])
async def test_what_was_held_in_vain_is_not_claimed_again_and_again_while_no_slot_is_free(
    line: FakeLine, start: Start, slots: int
) -> None:
    one = start(slots=slots)
    one._mean_run_s = 0.001
    ids = [f"j{number}" for number in range(5 * slots)]
    for job_id in ids:
        line.put(job_id, "sleep 600")
    await until(ends(line, *ids[slots:]), "those that were held are given back")
    line.put("late")
    assert one._wanted() == 0


@pytest.mark.parametrize("followers", [0, 1])
async def test_what_was_held_while_this_process_stood_still_is_asked_for_before_it_starts(
    line: FakeLine, start: Start, root: Path, followers: int
) -> None:
    one = start(slots=1, followers=followers)
    one._mean_run_s = 0.01
    line.put("first", "sleep 0.4")
    line.put("second", f"touch {root}/started")
    await until(lambda: line.attempts.get("second"), "both are claimed")
    line.stale.add(("second", 1))
    time.sleep(0.7)
    await until(ends(line, "first"), "the slot is free")
    line.put("third")
    await until(ends(line, "third"), "the slot is free again")
    assert line.begun == []
    assert not (root / "started").exists()


@laid_ready
async def test_a_job_that_was_laid_ready_starts_while_this_process_is_busy_and_is_told_once(
    line: FakeLine, start: Start, root: Path
) -> None:
    one = start(slots=1)
    one._mean_run_s = 0.01
    line.put("first", "sleep 0.03")
    line.put("second", f"touch {root}/started; echo said")
    await until(lambda: one._followers, "the second is laid ready")
    assert not (root / "started").exists()
    deadline = time.monotonic() + 20
    while not (root / "started").exists():
        assert time.monotonic() < deadline, "it does not start by itself"
        time.sleep(0.01)
    assert line.begun == []
    await until(ends(line, "first", "second"), "both end")
    assert line.begun == [("second", 1)]
    assert line.of("second").text == b"said\n"
    assert [end[:3] for end in line.of("second").ends] == [("completed", "", 0)]
    assert one._free == [0]


async def test_a_job_that_is_laid_ready_behind_a_long_one_starts_as_soon_as_any_slot_is_free(
    line: FakeLine, start: Start
) -> None:
    one = start(slots=2)
    one._mean_run_s = 0.01
    line.put("long", "sleep 600")
    ids = [f"j{number}" for number in range(8)]
    for job_id in ids:
        line.put(job_id, "sleep 0.01")
    await until(ends(line, *ids), "all others end")
    assert [line.of(job_id).ends[0][0] for job_id in ids] == ["completed"] * len(ids)
    assert line.of("long").ends == []


@laid_ready
async def test_a_job_that_is_laid_ready_is_in_heartbeats(line: FakeLine, start: Start) -> None:
    one = start(slots=1, heartbeat_s=0.01)
    one._mean_run_s = 0.01
    line.put("first", "sleep 600")
    line.put("second", "sleep 600")
    await until(lambda: [("first", 1), ("second", 1)] in line.beats, "both are told of")
    assert one._followers


@pytest.mark.parametrize("spec", [{"at_most_once": True}, {"file": "f"}])
async def test_a_job_that_must_not_start_unheard_is_not_laid_ready(
    line: FakeLine, start: Start, root: Path, spec: dict[str, Any]
) -> None:
    line.files["f"] = b"one"
    one = start(slots=1)
    one._mean_run_s = 0.01
    line.put("first", "sleep 0.05")
    line.put("second", "sleep 0.05", **spec)
    await until(lambda: line.attempts.get("second"), "both are claimed")
    assert not one._followers
    await until(ends(line, "second"), "it ends")


@laid_ready
@pytest.mark.parametrize("how", ["cancelled", "lost", "drained"])
async def test_a_job_that_is_laid_ready_and_not_wanted_any_more_never_starts(
    line: FakeLine, start: Start, root: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 20.0)
    one = start(slots=1, heartbeat_s=60, drain_s=0.5)
    one._mean_run_s = 0.01
    line.put("first", "sleep 0.4")
    line.put("second", f"touch {root}/started")
    await until(lambda: one._followers, "it is laid ready")
    if how == "cancelled":
        line.cancel("second")
    elif how == "lost":
        line.stale.add(("second", 1))
        line.hint("second")
    else:
        one.stop()
    await until(lambda: not one._followers, "it is given back")
    await until(ends(line, "first"), "the first ends")
    await until(lambda: not one._tasks, "all is told")
    told = [] if how == "lost" else [("released", "unstarted")]
    assert [end[:2] for end in line.of("second").ends] == told
    assert line.begun == []
    assert not (root / "started").exists()
    assert not list(root.glob("job-*/*"))


@laid_ready
async def test_a_job_that_was_laid_ready_runs_when_the_launcher_is_killed(
    line: FakeLine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 20.0)
    one = start(slots=1, heartbeat_s=60)
    one._mean_run_s = 0.01
    # what is left of jobs of these names is killed wherever it runs, in other tests too
    first, second = (f"{word}-{uuid.uuid4().hex}" for word in ("first", "second"))
    line.put(first, "sleep 600")
    line.put(second, "echo ran")
    await until(lambda: one._followers, "it is laid ready")
    one._platform._launcher.terminate()  # type: ignore[attr-defined]  # Linux's has one
    await until(ends(line, first, second), "both end")
    assert line.of(first).ends[0][3]["signal"] == 9
    assert line.of(second).text == b"ran\n"
    assert line.of(second).ends[0][:3] == ("completed", "", 0)


async def test_a_job_that_cannot_be_asked_for_behind_another_such_one_fails_as_that_does(
    line: FakeLine, start: Start
) -> None:
    one = start(slots=1, heartbeat_s=60)
    one._mean_run_s = 0.01
    ids = [f"j{number}" for number in range(4)]
    for job_id in ids:
        line.put(job_id, env={"WORD": "\ud800"})
    await until(ends(line, *ids), "all end")
    assert [line.of(job_id).ends[0][:3] for job_id in ids] == [("failed", "invalid", 127)] * len(ids)
    assert (one._free, one._followers) == ([0], {})


@laid_ready
async def test_draining_lets_a_job_end_that_started_as_it_was_called_back(
    line: FakeLine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 20.0)
    one = start(slots=1, heartbeat_s=60, drain_s=20)
    one._mean_run_s = 0.01
    line.put("first", "echo ready; exec sleep 600")
    line.put("second", "sleep 0.3; echo done")
    await until(lambda: one._followers and line.of("first").text, "it is laid ready")
    guardian = one._platform._launcher.pid  # type: ignore[attr-defined]  # Linux's has one
    (launcher,) = psutil.Process(guardian).children()
    launcher.suspend()
    try:
        await until(lambda: launcher.status() == psutil.STATUS_STOPPED, "the launcher stands still")
        follower = one._followers[0][1].child
        assert follower is not None
        follower.terminate()  # of which nothing comes; so the launcher hears that the first has ended next
        (process,) = launcher.children()
        process.kill()
        await until(lambda: process.status() == psutil.STATUS_ZOMBIE, "the first has ended")
        one.stop()
        await asyncio.sleep(0.1)  # it calls the second back
    finally:
        launcher.resume()
    await until(ends(line, "first", "second"), "both end")
    assert line.of("second").ends[0][:3] == ("completed", "", 0)
    assert line.of("second").text == b"done\n"


def handed(job_id: str, command: str, **spec: Any) -> Offer:
    return Offer(
        job_id, 1, {"task": "command", "command": command, "timeout_s": 60, **spec}, 0, held_ahead=True
    )


async def test_a_job_that_is_handed_over_starts_at_once_and_but_once(
    line: FakeLine, start: Start, root: Path
) -> None:
    one = start(slots=1)
    await until(lambda: len(line.beats) > 1, "it works")
    offer = handed("given", f"echo + >> {root}/n; sleep 0.2")
    line.hand(offer)
    assert one._free == []  # before anything else is waited for
    line.hand(offer)
    await until(ends(line, "given"), "it ends")
    assert line.begun == [("given", 1)]
    assert (root / "n").read_text() == "+\n"


async def test_what_was_handed_over_while_this_process_stood_still_is_asked_for_before_it_starts(
    line: FakeLine, start: Start, root: Path
) -> None:
    one = start(slots=1)
    await until(lambda: len(line.beats) > 1, "it works")
    line.stale.add(("late", 1))
    one._looked -= 60
    line.hand(handed("late", f"touch {root}/started"))
    await until(lambda: one._free == [0] and not one._runs, "it is given up")
    assert not (root / "started").exists()


async def test_what_is_handed_over_while_draining_goes_back(line: FakeLine, start: Start) -> None:
    one = start(slots=2, drain_s=5)
    line.put("long", "sleep 1")
    await until(lambda: "long" in one._runs, "it runs")
    one.stop()
    line.hand(handed("given", "true"))
    await until(ends(line, "given"), "it is given back")
    assert line.of("given").ends[0][:2] == ("released", "unstarted")


async def test_what_is_held_and_runs_is_in_every_heartbeat_and_nothing_else(
    line: FakeLine, start: Start
) -> None:
    start()
    line.put("long", "sleep 600")
    await until(lambda: [("long", 1)] in line.beats, "it beats for it")
    line.cancel("long")
    await until(ends(line, "long"), "it ends")
    seen = len(line.beats)
    await until(lambda: len(line.beats) > seen + 1, "it beats on")
    assert line.beats[-1] == []


@pytest.mark.parametrize("how", ["message", "heartbeat", "output"])
async def test_a_wish_to_cancel_is_heard_in_three_ways(line: FakeLine, start: Start, how: str) -> None:
    start(heartbeat_s=0.05 if how == "heartbeat" else 60)
    line.put("job", "while :; do echo on; sleep 0.02; done" if how == "output" else "sleep 600")
    await until(lambda: line.attempts.get("job"), "it is claimed")
    if how == "message":
        await until(lambda: True, "")
        await asyncio.sleep(0.05)
        line.cancel("job")
        line.cancel("job")
        line.cancel("unknown")
    else:
        line.cancelled.add("job")
    await until(ends(line, "job"), "it ends")
    assert [end[:2] for end in line.of("job").ends] == [("cancelled", "cancelled")]


async def test_a_word_that_the_record_does_not_bear_out_ends_nothing(line: FakeLine, start: Start) -> None:
    start(heartbeat_s=60)
    line.put("job", "while :; do echo on; sleep 0.02; done")
    await until(lambda: line.of("job").text, "it runs")
    seen = len(line.beats)
    line.hint("job")
    await until(lambda: len(line.beats) > seen, "it is asked whether that is so")
    printed = len(line.of("job").text)
    await until(lambda: len(line.of("job").text) > printed, "it runs on")
    assert not line.of("job").ends


async def test_a_cancelled_job_that_ignores_term_is_killed_after_the_grace(
    line: FakeLine, start: Start
) -> None:
    start(kill_grace_s=0.3)
    line.put("job", "trap '' TERM; echo on; while :; do sleep 0.05; done")
    await until(lambda: line.of("job").text, "it runs")
    began = time.monotonic()
    line.cancel("job")
    await until(ends(line, "job"), "it ends")
    assert 0.25 < time.monotonic() - began < 3
    assert line.of("job").ends[0][3]["signal"] == 9


async def test_a_job_that_is_cancelled_before_its_command_starts_never_starts(
    line: FakeLine, start: Start, root: Path
) -> None:
    start()
    line.store_away = True
    line.put("job", f"touch {root}/started", file="f")
    await until(lambda: line.attempts.get("job"), "it is claimed")
    await asyncio.sleep(0.05)
    line.cancel("job")
    await until(ends(line, "job"), "it ends")
    assert line.of("job").ends[0][:2] == ("cancelled", "cancelled")
    assert not (root / "started").exists()


async def test_an_attempt_that_is_lost_is_killed_at_once_and_tells_nothing(
    line: FakeLine, start: Start
) -> None:
    start(slots=1, kill_grace_s=60)
    line.put("job", "trap '' TERM; sleep 600")
    await until(lambda: [("job", 1)] in line.beats, "it runs")
    line.stale.add(("job", 1))
    line.put("next")
    await until(ends(line, "next"), "its slot is free")
    assert line.of("job").ends == []


async def test_a_job_that_comes_back_to_the_worker_that_lost_it_runs_once_more_and_alone(
    line: FakeLine, start: Start, root: Path
) -> None:
    start(slots=2, heartbeat_s=60)
    words = f"mkdir {root}/alone && trap 'sleep 0.1; rmdir {root}/alone; exit' TERM EXIT; "
    line.put("job", f"{words} echo $HOSTLER_ATTEMPT; [ $HOSTLER_ATTEMPT = 2 ] || sleep 600 & wait")
    await until(lambda: line.of("job", 1).text, "it runs")
    line.stale.add(("job", 1))
    (root / "alone").rmdir()  # the first is killed without a chance to
    line.put("job", "echo again; echo $HOSTLER_ATTEMPT")
    await until(lambda: line.of("job", 2).ends, "the second attempt ends")
    assert line.of("job", 2).ends[0][0] == "completed"
    assert line.of("job", 2).text == b"again\n2\n"
    assert line.of("job", 1).ends == []
    for job_id in ("a", "b"):
        line.put(job_id, "sleep 0.1")
    await until(ends(line, "a", "b"), "both slots are free")


async def test_a_lost_attempt_that_ends_as_its_job_comes_back_frees_its_slot_all_the_same(
    line: FakeLine, start: Start
) -> None:
    one = start(slots=2, heartbeat_s=60)
    line.put("job", "echo up; sleep 600")
    await until(lambda: line.of("job").text, "it runs")
    # a process that stood still hears of all of it in one turn of its loop
    one._lose("job", 1)
    time.sleep(0.3)  # it is killed, and that lies in the launcher's pipe
    spec = {"task": "command", "command": "true", "timeout_s": 60}
    one._held.append(Held(time.monotonic(), Offer("job", 2, spec, 0)))
    one._fill()
    one._pump()
    await until(lambda: line.of("job", 2).ends, "the second attempt ends")
    assert line.of("job").ends == []
    assert sorted(one._free) == [0, 1]


async def test_work_goes_on_when_the_control_plane_comes_back(line: FakeLine, start: Start) -> None:
    start()
    line.put("running", "sleep 0.2; echo done; exit 5")
    await until(lambda: line.attempts.get("running"), "it is claimed")
    line.away = True
    await asyncio.sleep(0.6)
    line.away = False
    await until(ends(line, "running"), "its result arrives")
    assert line.of("running").text == b"done\n"
    assert [end[:3] for end in line.of("running").ends] == [("failed", "exit_code", 5)]
    line.put("next")
    await until(ends(line, "next"), "it claims again")


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Conflict("unregistered"), RuntimeError("a mistake of ours")]
)
async def test_no_error_keeps_a_worker_from_claiming(
    line: FakeLine, start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.1)
    line.error = error
    start(heartbeat_s=60)
    await until(lambda: line.error is None, "it has met the error")
    line.error = error
    await until(lambda: line.error is None, "it has met it again")
    line.put("job")
    await until(ends(line, "job"), "it claims")


async def test_draining_lets_short_jobs_end_and_hands_long_ones_back(line: FakeLine, start: Start) -> None:
    one = start(slots=2, drain_s=0.5)
    line.put("short", "sleep 0.2; echo done")
    line.put("long", "sleep 600")
    await until(lambda: len(line.attempts) == 2, "both are claimed")
    await asyncio.sleep(0.05)
    one.stop()
    one.stop()
    line.put("late")
    await until(ends(line, "short", "long"), "both are told of")
    assert line.of("short").ends[0][:3] == ("completed", "", 0)
    assert line.of("long").ends[0][0] == "released"
    assert "late" not in line.attempts


async def test_what_a_claim_brings_while_draining_begins_is_not_dropped(line: FakeLine, start: Start) -> None:
    one = start(slots=2, drain_s=5)
    await asyncio.sleep(0.05)
    line.claim_gate.clear()
    line.put("job", "echo ran")
    await until(lambda: not line.waiting, "the claim is on its way")
    one.stop()
    await asyncio.sleep(0.05)
    line.claim_gate.set()
    await until(ends(line, "job"), "it is told of")
    assert line.of("job").ends[0][0] in {"completed", "released"}


async def test_a_job_that_is_handed_back_while_its_files_come_has_not_failed(
    line: FakeLine, start: Start
) -> None:
    one = start(slots=1, drain_s=0.1)
    line.store_away = True
    line.put("job", "true", file="f")
    await until(lambda: line.attempts.get("job"), "it is claimed")
    await asyncio.sleep(0.05)
    one.stop()
    await until(ends(line, "job"), "it is handed back")
    assert line.of("job").ends[0][0] == "released"


async def test_a_job_leaves_no_directory_behind(line: FakeLine, start: Start, root: Path) -> None:
    start()
    line.put("job", "pwd; mkdir -p a/b; touch a/b/c; chmod 000 a")
    await until(ends(line, "job"), "it ends")
    directory = Path(line.of("job").text.decode().strip())
    assert directory.parent == root.resolve()
    await until(lambda: not directory.exists(), "its directory is gone")


async def test_a_slot_that_idles_has_a_directory_ready_that_is_used_once_and_goes_with_the_worker(
    line: FakeLine, start: Start, root: Path
) -> None:
    one = start(slots=1)
    await until(lambda: list(root.glob("job-*")), "it is ready")
    (ready,) = (str(spare.stat().st_ino) for spare in root.glob("job-*"))
    seen = []
    for number in range(2):
        line.put(f"j{number}", "stat -c %i .; pwd")
        await until(ends(line, f"j{number}"), "it ends")
        seen.append(line.of(f"j{number}").text.decode().split())
    assert seen[0][0] == ready
    assert seen[0][1] != seen[1][1]
    one.stop()
    await until(lambda: not list(root.glob("*-*")), "nothing is left")
