"""One attempt: how each way to go wrong is told, and what is waited for and what is not."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_line import FakeLine, until

from storage.errors import NotFound
from workers import platforms
from workers import run as module
from workers.lines import IntegrityError, Offer
from workers.platforms import outputs
from workers.run import Circumstances, Run
from workers.workspace import Workspace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these commands need a POSIX shell")


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hostler-test-") as path:
        yield Path(path)


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


@pytest.fixture
async def begin(line: FakeLine, root: Path) -> AsyncIterator[Callable[..., Run]]:
    """Begin an attempt on a platform of its own."""
    with contextlib.ExitStack() as stack:
        tasks: list[asyncio.Task[None]] = []
        runs: list[Run] = []

        def begin(command: str = "true", *, ahead: bool = False, attempt: int = 1, **spec: Any) -> Run:
            platform = platforms.choose("none", slots=1)
            stack.callback(platform.close)
            around = Circumstances(
                line=line, platform=platform, workspace=Workspace(root, platform, fetch_limit_bytes=1 << 20, allow=()),
                environment={"PATH": os.defpath}, spool=str(root), kill_grace_s=0.2, log_limit_bytes=1 << 20,
                live_bytes=1 << 18,
            )  # fmt: skip
            given = {"task": "command", "command": command, "timeout_s": 60, **spec}
            run = Run(Offer("job", attempt, given, 0, ahead), 0, around)
            loop = asyncio.get_running_loop()

            def pump() -> None:
                for child in platform.pump():
                    if child is run.child:
                        run.has_exited()

            loop.add_reader(platform.fileno(), pump)
            stack.callback(loop.remove_reader, platform.fileno())
            runs.append(run)
            tasks.append(asyncio.create_task(run.carry_out()))
            run.task = tasks[-1]  # type: ignore[attr-defined]
            return run

        yield begin
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in runs:
            await run.around.workspace.tidied()


async def end(line: FakeLine) -> tuple[str, str, int | None, dict[str, Any]]:
    await until(lambda: line.of("job").ends, "its end is told")
    (ending,) = line.of("job").ends
    return ending


async def test_a_timeout_is_told_in_the_log_and_as_the_reason(line: FakeLine, begin: Any) -> None:
    begin("echo on; sleep 600", timeout_s=1.5)
    assert (await end(line))[:3] == ("failed", "timeout", 143)
    assert line.of("job").text == b"on\n[hostler] timed out after 1.5 s\n"


async def test_a_file_that_is_gone_fails_the_job(
    line: FakeLine, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any, **__: Any) -> str:
        raise NotFound("File not found")

    monkeypatch.setattr(line, "fetch_file", gone)
    begin(file="f")
    ending = await end(line)
    assert ending[:3] == ("failed", "invalid", None)
    assert ending[3]["message"] == "File not found"
    assert line.of("job").text == b"[hostler] File not found\n"


async def test_a_file_that_was_altered_fails_the_job_for_that(
    line: FakeLine, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def altered(*_: Any, **__: Any) -> str:
        raise IntegrityError("Its sha256 differs.")

    monkeypatch.setattr(line, "fetch_file", altered)
    begin(file="f")
    assert (await end(line))[:2] == ("failed", "integrity")


async def test_a_file_that_cannot_be_fetched_for_now_is_waited_for(
    line: FakeLine, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.store_away, line.files["f"] = True, b"content"
    begin("cat f", file="f")
    await asyncio.sleep(0.1)
    line.store_away = False
    assert (await end(line))[0] == "completed"
    assert line.of("job").text == b"content"


async def test_a_file_that_cannot_be_fetched_for_long_hands_the_job_back(
    line: FakeLine, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_PATIENCE_S", 0.1)
    line.store_away = True
    begin("echo started", file="f")
    assert (await end(line))[0] == "released"
    assert line.of("job").text == b"[hostler] handed back: The object store is away.\n"


async def test_a_held_job_that_may_run_once_does_not_start_if_it_is_no_longer_ours(
    line: FakeLine, begin: Any, root: Path
) -> None:
    line.stale.add(("job", 1))
    run = begin(f"touch {root}/started", ahead=True, at_most_once=True)
    await asyncio.wait_for(run.task, 5)  # noqa: TID251
    assert line.of("job").ends == []
    assert not (root / "started").exists()
    assert run.slot_free.done()


async def test_a_held_job_that_may_run_once_waits_for_the_control_plane_before_it_starts(
    line: FakeLine, begin: Any
) -> None:
    line.away = True
    run = begin("echo on", ahead=True, at_most_once=True)
    await asyncio.sleep(0.1)
    assert run.child is None
    line.away = False
    assert (await end(line))[0] == "completed"


async def test_any_other_held_job_starts_at_once_and_is_killed_if_it_is_no_longer_ours(
    line: FakeLine, begin: Any
) -> None:
    line.stale.add(("job", 1))
    run = begin("sleep 600", ahead=True)
    await asyncio.wait_for(run.task, 5)  # noqa: TID251
    assert line.begun == [("job", 1)]
    assert run.child is not None
    assert run.child.outcome().signal == signal.SIGKILL
    assert line.of("job").ends == []


async def test_artifacts_wait_for_the_object_store_and_hold_no_slot(line: FakeLine, begin: Any) -> None:
    line.store_away = True
    run = begin("echo 1 > a", artifacts=["a"])
    await asyncio.wait_for(run.slot_free, 5)  # noqa: TID251
    await asyncio.sleep(0.05)
    assert line.of("job").ends == []
    line.store_away = False
    assert (await end(line))[0] == "completed"
    assert line.of("job").artifacts == {"a": b"1\n"}


async def test_a_cancelled_job_leaves_no_artifacts(line: FakeLine, begin: Any) -> None:
    run = begin("echo 1 > a; echo on; sleep 600", artifacts=["a"])
    await until(lambda: line.of("job").text, "it runs")
    run.stop("cancelled")
    assert (await end(line))[0] == "cancelled"
    assert line.of("job").artifacts == {}


async def test_a_result_that_is_refused_is_not_told_again(line: FakeLine, begin: Any) -> None:
    run = begin("sleep 0.1")
    line.stale.add(("job", 1))
    await asyncio.wait_for(run.task, 5)  # noqa: TID251
    assert line.of("job").ends == []


async def test_a_cancel_after_the_end_changes_nothing(line: FakeLine, begin: Any) -> None:
    line.store_away = True
    run = begin("echo 1 > a", artifacts=["a"])
    await asyncio.wait_for(run.slot_free, 5)  # noqa: TID251
    run.stop("cancelled")
    line.store_away = False
    assert (await end(line))[:3] == ("completed", "", 0)


async def test_a_command_may_not_say_whose_job_it_is(line: FakeLine, begin: Any) -> None:
    begin("echo $HOSTLER_JOB_ID $HOSTLER_ATTEMPT $MINE", env={"HOSTLER_JOB_ID": "x", "MINE": "1"})
    await end(line)
    assert line.of("job").text == b"job 1 1\n"


@pytest.mark.parametrize("number", range(12))
async def test_a_job_that_is_cancelled_at_any_moment_ends_once(
    line: FakeLine, begin: Any, root: Path, number: int
) -> None:
    line.files["f"] = b"content"
    run = begin("cat f; sleep 0.02; echo 1 > a", file="f", artifacts=["a"])
    await asyncio.sleep(number * 0.005)
    run.stop("cancelled")
    await asyncio.wait_for(run.task, 5)  # noqa: TID251
    outcome, reason, exit_code, _ = await end(line)
    assert (outcome, reason) in {("completed", ""), ("cancelled", "cancelled")}
    assert outcome == "cancelled" or exit_code == 0
    await until(lambda: not list(root.iterdir()), "its directory is gone")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount a small disk")
async def test_a_full_disk_fails_the_job_and_not_the_worker(line: FakeLine, begin: Any, root: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine allows no mounts")
    try:
        line.files["f"] = b"x" * (1 << 20)
        begin("cat f f f f > big || exit 9", file="f")
        assert (await end(line))[:3] == ("failed", "exit_code", 9)
        assert b"No space left" in line.of("job").text
        await until(lambda: not list(root.iterdir()), "its directory is gone")
    finally:
        # lazily, for the launcher still stands in the directory of the last job
        subprocess.run(["umount", "--lazy", str(root)], check=True)


async def test_a_directory_that_cannot_be_made_fails_the_job(
    line: FakeLine, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/work")

    monkeypatch.setattr(Workspace, "make", full)
    begin()
    ending = await end(line)
    assert ending[:2] == ("failed", "invalid")
    assert "No space left on device" in ending[3]["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes pipes wider")
@pytest.mark.parametrize("refused", [False, True])
async def test_a_command_that_fills_its_pipe_gets_a_wider_one_where_the_system_has_one_left(
    line: FakeLine, begin: Any, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    if refused:
        monkeypatch.setattr(outputs, "WIDE_BYTES", (1 << 31) + 1)  # more than any pipe may hold
    run = begin("echo beside >&2; dd if=/dev/zero bs=65536 count=8 status=none")  # each write fills a pipe
    assert (await end(line))[:3] == ("completed", "", 0)
    assert line.of("job").text.replace(b"beside\n", b"") == bytes(8 * 65536)
    rooms = (run.child.stdout.room_bytes, run.child.stderr.room_bytes)
    assert rooms == (outputs.ROOM_BYTES if refused else outputs.WIDE_BYTES, outputs.ROOM_BYTES)
