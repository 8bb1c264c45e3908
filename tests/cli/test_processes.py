"""Processes: a family of children that is prefixed, restarted, and ended without a trace."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from cli import processes as module
from cli.processes import Process, Processes


class Output(io.StringIO):
    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def output() -> Output:
    return Output()


@pytest_asyncio.fixture
async def family(output: Output) -> AsyncIterator[Processes]:
    processes = Processes(output)
    yield processes
    processes.hurry()
    await processes.stop()


def python(name: str, code: str, *, stage: int = 1, grace_s: float = 10.0) -> Process:
    command = (sys.executable, "-u", "-S", "-c", code)
    return Process(name=name, command=command, environ={}, stage=stage, grace_s=grace_s)


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


SLEEP = "import time; print('up'); time.sleep(60)"
OBSTINATE = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"


async def test_each_line_of_both_streams_bears_the_name(family: Processes, output: Output) -> None:
    family.start(
        python("web", "import sys, time; print('one\\ntwo'); print('three', file=sys.stderr); time.sleep(60)")
    )
    await until(lambda: len(output.lines) == 3)
    assert output.lines == ["web       | one", "web       | two", "web       | three"]


async def test_only_a_terminal_gets_colours(output: Output) -> None:
    family = Processes(output, colour=True)
    family.start(python("web", SLEEP))
    await until(lambda: output.lines)
    await family.stop()
    assert output.lines[0] == "\x1b[36mweb       |\x1b[0m up"


async def test_an_endless_line_is_shown_in_pieces(family: Processes, output: Output) -> None:
    family.start(python("web", "import time; print('x' * 300_000); time.sleep(60)"))
    await until(lambda: output.getvalue().count("x") == 300_000)
    assert max(map(len, output.lines)) <= 3 * module.LINE_LIMIT_BYTES


async def test_a_crashed_process_starts_again_and_waits_longer_each_time(
    family: Processes, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(module, "LONGEST_BACKOFF_S", 0.04)
    family.start(python("web", "raise SystemExit(3)"))
    await until(lambda: family.ends("web") >= 3)
    ends = [line.partition("| ")[2] for line in output.lines]
    assert ends[:3] == [f"Exited with code 3; starting again in {s} s." for s in ("0.02", "0.04", "0.04")]
    assert family.most_ends()[0] == "web"


async def test_a_killed_process_starts_again_under_a_new_id(
    family: Processes, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.01)
    family.start(python("web", SLEEP))
    await until(lambda: output.lines)
    first = family.pid("web")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: family.pid("web") not in (None, first))
    assert any("Ended by SIGKILL" in line for line in output.lines)


async def test_a_program_that_does_not_exist_is_reported(family: Processes, output: Output) -> None:
    family.start(Process(name="web", command=("/nonexistent/program",), environ={}))
    await until(lambda: family.ends("web") == 1)
    assert "Could not be started" in output.lines[0]


async def test_the_highest_stage_ends_before_the_next_is_asked_to(output: Output) -> None:
    family = Processes(output)
    say = (
        "import signal, time, sys; signal.signal(15, lambda *_: (time.sleep(0.3), print('bye'), sys.exit()));"
    )
    family.start(python("redis", say + "print('up'); time.sleep(60)", stage=0))
    family.start(python("web", say + "print('up'); time.sleep(60)"))
    await until(lambda: len(output.lines) == 2)
    started = time.monotonic()
    await family.stop()
    assert [line.split()[0] for line in output.lines[2:]] == ["web", "redis"]
    assert time.monotonic() - started >= 0.6


async def test_who_ignores_the_signal_is_killed_after_its_grace(output: Output) -> None:
    family = Processes(output)
    family.start(python("web", OBSTINATE, grace_s=0.2))
    await until(lambda: output.lines)
    pid = family.pid("web")
    assert pid is not None
    await family.stop()
    assert not alive(pid)
    assert "killed" in output.lines[-1]


async def test_hurry_cuts_the_grace_short(output: Output) -> None:
    family = Processes(output)
    family.start(python("web", OBSTINATE, grace_s=60))
    await until(lambda: output.lines)
    stopping = asyncio.create_task(family.stop())
    await asyncio.sleep(0)
    family.hurry()
    await asyncio.wait_for(stopping, 5)  # noqa: TID251


async def test_what_a_process_started_ends_with_it(output: Output) -> None:
    family = Processes(output)
    start = f"subprocess.Popen([sys.executable, '-uSc', {OBSTINATE!r}])"
    family.start(python("web", f"import subprocess, sys, time; print({start}.pid); time.sleep(60)"))
    await until(lambda: len(output.lines) == 2)
    grandchild = int(next(line.split()[-1] for line in output.lines if line.split()[-1].isdigit()))
    assert alive(grandchild)
    await family.stop()
    await until(lambda: not alive(grandchild))


async def test_stopping_ends_a_process_that_is_being_started(output: Output) -> None:
    family = Processes(output)
    family.start(python("web", OBSTINATE.replace("15", "10")))
    await asyncio.sleep(0)
    await asyncio.wait_for(family.stop(), 5)  # noqa: TID251
    assert family.pid("web") is None


async def test_stopping_does_not_wait_for_a_backoff(output: Output) -> None:
    family = Processes(output)
    family.start(python("web", "raise SystemExit(1)"))
    await until(lambda: family.ends("web"))
    await asyncio.wait_for(family.stop(), 0.5)  # noqa: TID251


async def test_output_that_nobody_reads_any_more_harms_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        family = Processes(gone)
        family.start(python("web", SLEEP))
        await until(lambda: family.pid("web"))
        await asyncio.sleep(0.1)
        assert family.ends("web") == 0
        await family.stop()
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, writing)  # what is still buffered has to go somewhere when the file is closed
        os.close(devnull)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
def test_children_end_when_their_parent_is_killed() -> None:
    code = (
        "import asyncio, os, sys\n"
        "from cli.processes import Process, Processes\n"
        "async def main():\n"
        "    family = Processes(sys.stdout)\n"
        f"    command = (sys.executable, '-uSc', {SLEEP!r})\n"
        "    family.start(Process(name='a', command=command, environ={}))\n"
        "    while not family.pid('a'): await asyncio.sleep(0.01)\n"
        "    print(family.pid('a'), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(next(line for line in parent.stdout if line.strip().isdigit()))
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)
