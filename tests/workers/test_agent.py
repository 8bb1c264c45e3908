"""The agent, as a process of its own, keeps a worker's promises with nothing but HTTP to the API."""

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import pytest
from fake_server import Answer, FakeServer
from faulty_api import (
    EXCHANGE,
    GET_JOB,
    HEARTBEAT,
    OUTPUT,
    PATIENCE_S,
    REGISTER,
    RESULT,
    SECRET,
    FaultyApi,
    eventually,
    serve,
    text_of,
)

from settings import Settings, process_environment
from storage import files, fleet, jobs
from storage.calls import pairs
from storage.jobs import Job, State
from storage.read_into import Pieces
from storage.store import Store
from workers import agent

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these commands need a POSIX shell")
REPOSITORY = Path(__file__).parents[2]

#: Runs the agent as on a machine that is not Linux.
PORTABLE = """
import sys
from workers import agent, platforms
from workers.platforms.portable import PortablePlatform
platforms.choose = lambda *_, **__: PortablePlatform()
sys.exit(agent.main())
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start agents; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, *arguments: str, portable: bool = False, **environment: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": process_environment()["PATH"], "HOSTLER_ENROLL_SECRET": SECRET, "HOSTLER_HEARTBEAT_S": "0.2",
            "HOSTLER_KILL_GRACE_S": "1", **environment,
        }  # fmt: skip
        program = ["-c", PORTABLE] if portable else ["-m", "workers.agent"]
        options = ["--url", url, "--name", "agent-1", "--work-dir", str(tmp_path / "agents"), *arguments]
        process = subprocess.Popen(
            [sys.executable, *program, *options], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def ended(store: Store, job_id: str) -> Job:
    """Return a job once it has ended."""

    async def over() -> Job | None:
        job = await jobs.get(store, job_id)
        return job if job.finished else None

    found: Job = await eventually(over)
    return found


async def told(store: Store, job_id: str, words: str) -> bool:
    """Wait until a job has printed `words`."""

    async def said() -> bool:
        return words in await text_of(store, job_id)

    return bool(await eventually(said))


async def left(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status of a process, and what it complained about."""
    _, complaints = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    return process.returncode, complaints


def runs(mark: str) -> bool:
    """Tell whether a process bears `mark` among its arguments."""
    shown = subprocess.run(["/bin/ps", "axww", "-o", "command="], capture_output=True, text=True, check=True)
    return any(line.startswith(f"sleep {mark}") for line in shown.stdout.splitlines())


@pytest.mark.parametrize("portable", [False, True])
async def test_a_job_runs_with_its_output_its_exit_code_and_no_secrets(
    api: FaultyApi, store: Store, start: Start, portable: bool
) -> None:
    script = "echo out; echo err >&2; echo $A; env; cat ../registration.json; echo; printf end; exit 3"
    job_id = await engine.submit(store, script, env={"A": "b c"})
    start(api.url, "--tags", "gpu, linux", "--slots", "3", portable=portable)
    done = await ended(store, job_id)
    assert (done.state, done.exit_code, done.worker) == (State.FAILED, 3, "agent-1")
    log = await text_of(store, job_id)
    assert {"out", "err", "b c", "end"} <= set(log.splitlines())
    assert SECRET not in log
    assert "HOSTLER_ENROLL_SECRET" not in log
    worker = await store.call(fleet.fetch("agent-1"))
    assert (worker.kind, worker.tags, worker.slots, worker.status) == ("agent", ("gpu", "linux"), 3, "online")
    if worker.isolation in {"uid", "landlock"}:
        assert "token" not in log


async def test_an_upload_is_unpacked_and_artifacts_come_back(
    settings_with_s3: Settings, start: Start
) -> None:
    settings = replace(settings_with_s3, enroll_secret=SECRET)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("project/numbers.txt", "1\n2\n3\n")

    async def chunks() -> AsyncIterator[bytes]:
        yield archive.getvalue()

    store = Store(settings)
    file = await files.accept(
        store,
        Pieces(chunks()).read_into,
        filename="project.zip",
        content_type="application/zip",
        actor="user:u",
    )
    job_id = await engine.submit(
        store,
        "mkdir 'out dir' && cp numbers.txt 'out dir/copy #1.txt'",
        file=file.id,
        working_directory="project",
        artifacts=["**/*.txt"],
    )
    async with serve(settings) as api:
        start(api.url)
        done = await ended(store, job_id)
    assert (done.state, done.exit_code) == (State.COMPLETED, 0), await text_of(store, job_id)
    kept = await store.call(jobs.command("HGETALL", f"h:artifacts:{job_id}", read=pairs))
    assert set(kept) == {"numbers.txt", "out dir/copy #1.txt"}
    assert hashlib.sha256(b"1\n2\n3\n").hexdigest() in kept["out dir/copy #1.txt"]
    await store.close()


async def test_a_cancel_ends_the_command_and_all_it_started(
    api: FaultyApi, store: Store, start: Start
) -> None:
    job_id = await engine.submit(store, "echo started; sleep 4321.1 & sleep 4321.1")
    start(api.url)
    await told(store, job_id, "started")
    await jobs.cancel(store, "user:u", job_id)
    done = await ended(store, job_id)
    assert (done.state, done.reason) == (State.CANCELLED, "cancelled")
    await eventually(lambda: not runs("4321.1"))


async def test_a_job_outlasts_an_api_that_goes_away(
    settings: Settings, store: Store, start: Start, tmp_path: Path
) -> None:
    settings = replace(settings, enroll_secret=SECRET)
    go_on = tmp_path / "go on"
    command = f"echo before; until [ -e '{go_on}' ]; do sleep 0.05; done; echo after; exit 7"
    job_id = await engine.submit(store, command)
    async with serve(settings) as api:
        port = int(api.url.rpartition(":")[2])
        start(api.url, HOSTLER_ISOLATION="none")
        await told(store, job_id, "before")
    go_on.touch()
    await asyncio.sleep(0.3)  # it has ended by now, and nobody listens
    async with serve(settings, port) as api:
        done = await ended(store, job_id)
        assert api.count(REGISTER) == 0
    assert (done.exit_code, done.attempt) == (7, 1)
    assert await text_of(store, job_id) == "before\nafter\n"


async def test_the_answers_that_get_lost_change_nothing(api: FaultyApi, store: Store, start: Start) -> None:
    api.plan(OUTPUT, "lost", "lost")
    api.plan(EXCHANGE, "lost", "lost")
    api.plan(REGISTER, "lost")
    job_id = await engine.submit(store, "echo one; echo two >&2; exit 5")
    start(api.url)

    async def forgotten() -> bool:
        """Remove the registration that nobody knows, which stands in the way until it was silent for two leases."""
        if not await fleet.workers(store):
            return False
        await store.call(fleet.depart("agent-1", reason="test", forget=True))
        return True

    await eventually(forgotten)
    done = await ended(store, job_id)
    assert (done.exit_code, done.attempt) == (5, 1)
    assert sorted((await text_of(store, job_id)).splitlines()) == ["one", "two"]
    assert (await store.call(fleet.fetch("agent-1"))).jobs_completed == 1


async def test_a_registration_that_is_gone_ends_what_was_running(
    api: FaultyApi, store: Store, start: Start
) -> None:
    job_id = await engine.submit(
        store, "echo attempt $HOSTLER_ATTEMPT; [ $HOSTLER_ATTEMPT = 2 ] || sleep 4321.2"
    )
    start(api.url, "--slots", "2")
    await told(store, job_id, "attempt 1")
    await store.call(fleet.depart("agent-1", reason="removed", forget=True))
    done = await ended(store, job_id)
    assert (done.state, done.attempt, done.worker) == (State.COMPLETED, 2, "agent-1")
    await eventually(lambda: not runs("4321.2"))


async def test_an_agent_that_was_killed_comes_back_at_once(
    api: FaultyApi, store: Store, start: Start
) -> None:
    job_id = await engine.submit(
        store, "echo attempt $HOSTLER_ATTEMPT; [ $HOSTLER_ATTEMPT = 2 ] || sleep 4321.3"
    )
    first = start(api.url)
    await told(store, job_id, "attempt 1")
    first.kill()
    first.wait(PATIENCE_S)
    began = asyncio.get_running_loop().time()
    start(api.url)
    done = await ended(store, job_id)
    assert (done.state, done.attempt) == (State.COMPLETED, 2)
    assert asyncio.get_running_loop().time() - began < 10  # no waiting for 15 s of lease, or 30 s of silence
    if sys.platform == "linux":
        await eventually(lambda: not runs("4321.3"))


async def test_a_late_result_of_an_agent_that_was_cut_off_counts_for_nothing(
    api: FaultyApi, store: Store, start: Start, tmp_path: Path
) -> None:
    go_on = tmp_path / "go on"
    wait = f"until [ -e '{go_on}' ]; do sleep 0.05; done"
    command = f"if [ $HOSTLER_ATTEMPT = 1 ]; then echo first; {wait}; exit 1; fi; echo second"
    job_id = await engine.submit(store, command)
    cut_off = start(api.url, "--slots", "1", HOSTLER_ISOLATION="none")
    await told(store, job_id, "first")
    os.kill(cut_off.pid, signal.SIGSTOP)

    async def lost() -> bool:
        await store.call(jobs.command("SET", "h:reaper:last", store.now_ms()))
        await store.call(jobs.command("ZADD", "h:leases", 1, job_id))
        await engine.reap(store)
        return (await jobs.get(store, job_id)).state is State.QUEUED

    await eventually(lost)
    start(api.url, "--name", "agent-2")
    done = await ended(store, job_id)
    go_on.touch()
    beats = api.count(HEARTBEAT)
    os.kill(cut_off.pid, signal.SIGCONT)
    await eventually(lambda: api.count(HEARTBEAT) >= beats + 4)  # two of each: it has heard what it lost
    again = await jobs.get(store, job_id)
    assert (done.worker, done.attempt, done.exit_code) == ("agent-2", 2, 0)
    assert (again.worker, again.attempt, again.exit_code, again.state) == ("agent-2", 2, 0, State.COMPLETED)


# Beginning and end


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.on(f"POST {REGISTER}", Answer(201, {"token": "token-1"}))
    server.on(f"POST {HEARTBEAT}", Answer(200, {"nextCheckIn": 200, "cancel": []}))
    server.on(f"GET {GET_JOB}", Answer(204, b""))
    server.on(f"POST {OUTPUT}", Answer(200, {"received": True}))
    server.on(f"POST {EXCHANGE}", Answer(404, {"message": "No."}, {"X-Error-Code": "NOT_FOUND"}))  # of before
    server.on(f"POST {RESULT}", Answer(200, {"status": "queued"}))
    yield server
    server.close()


def asked(fake: FakeServer, path: str) -> list[Any]:
    return [each.json for each in list(fake.asked) if each.path == path]


async def test_what_runs_when_the_time_to_drain_is_over_is_handed_back(
    fake: FakeServer, start: Start
) -> None:
    job = {
        "jobId": "job-1",
        "attempt": 1,
        "command": "echo started; sleep 4321.4",
        "timeout": 600,
        "lines": 0,
    }
    fake.routes[f"GET {GET_JOB}"].insert(0, Answer(200, {"job": job}))
    process = start(fake.url, HOSTLER_DRAIN_S="0.1")
    await eventually(lambda: asked(fake, OUTPUT))
    process.terminate()
    assert (await left(process))[0] == 0
    (result,) = asked(fake, RESULT)
    assert (result["jobId"], result["attempt"], result["status"]) == ("job-1", 1, "released")
    assert asked(fake, HEARTBEAT)[-1]["status"] == "offline"
    assert not any(each.method == "DELETE" for each in fake.asked)
    assert not runs("4321.4")


async def test_what_ends_while_it_drains_is_reported(fake: FakeServer, start: Start) -> None:
    job = {
        "jobId": "job-1",
        "attempt": 1,
        "command": "echo started; sleep 0.5; exit 4",
        "timeout": 600,
        "lines": 0,
    }
    fake.routes[f"GET {GET_JOB}"].insert(0, Answer(200, {"job": job}))
    process = start(fake.url)
    await eventually(lambda: asked(fake, OUTPUT))
    process.send_signal(signal.SIGINT)
    assert (await left(process))[0] == 0
    (result,) = asked(fake, RESULT)
    assert (result["status"], result["exitCode"]) == ("failed", 4)


async def test_an_ephemeral_agent_leaves_the_list(
    api: FaultyApi, store: Store, start: Start, tmp_path: Path
) -> None:
    process = start(api.url, "--ephemeral")
    await eventually(lambda: api.count(GET_JOB))
    assert [each.id for each in await fleet.workers(store)] == ["agent-1"]
    process.terminate()
    assert (await left(process))[0] == 0
    assert await fleet.workers(store) == []
    assert not (tmp_path / "agents/agent-1/registration.json").exists()


async def test_an_agent_waits_for_an_api_that_is_not_there_yet(fake: FakeServer, start: Start) -> None:
    ready = fake.routes.pop(f"POST {REGISTER}")
    process = start(fake.url)
    await eventually(lambda: len(asked(fake, REGISTER)) >= 2)
    assert process.poll() is None
    fake.routes[f"POST {REGISTER}"] = ready
    await eventually(lambda: any(each.path == GET_JOB for each in list(fake.asked)))


async def test_an_agent_without_a_right_says_so_and_ends(api: FaultyApi, start: Start) -> None:
    status, complaints = await left(start(api.url, HOSTLER_ENROLL_SECRET="guessed"))
    assert status == 1
    assert "hostler agent: " in complaints
    assert "enrolment secret" in complaints
    assert "Set HOSTLER" not in complaints
    assert "Traceback" not in complaints
    _, complaints = await left(start(api.url, HOSTLER_ENROLL_SECRET=""))
    assert complaints.endswith("Set HOSTLER_ENROLL_SECRET or HOSTLER_API_KEY.\n")


async def test_two_agents_do_not_share_a_name_in_one_directory(fake: FakeServer, start: Start) -> None:
    first = start(fake.url)
    await eventually(lambda: asked(fake, REGISTER))
    status, complaints = await left(start(fake.url))
    assert status == 1
    assert "Another agent named 'agent-1'" in complaints
    assert first.poll() is None
    assert len(asked(fake, REGISTER)) == 1


@pytest.mark.parametrize(
    "arguments",
    [("--url", "ftp://x"), ("--name", ".."), ("--name", "a/b"), ("--slots", "0"), ("--ca-file", "/nowhere")],
)
def test_options_that_make_no_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["agent", "--url", "http://127.0.0.1:9", *arguments])
    with pytest.raises(SystemExit) as ended:
        agent.main()
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
