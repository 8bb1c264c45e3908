"""Redis goes away for a while, in each of the ways it can: commands run on, and what they did arrives afterwards."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from engine import submit
from processes import Stack, finished, log_of, new_stack, reaches, soon
from relay import Relay
from servers import S3, start_valkey

from storage import jobs
from storage.errors import Unavailable
from storage.store import Store


@pytest.fixture(scope="module")
def stack(s3: S3) -> Iterator[Stack]:
    """A stack of one worker and a scheduler."""
    stack = new_stack(s3, HOSTLER_SLOTS="8")
    try:
        stack.start("scheduler")
        stack.worker("w")
        yield stack
    finally:
        stack.end()


@pytest.fixture
async def store(stack: Stack) -> AsyncIterator[Store]:
    store = Store(stack.settings)
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def nobody_dies(stack: Stack) -> Iterator[None]:
    yield
    assert [process.poll() for process in stack.processes] == [None, None]


COUNTING = "echo $$ >> {path}; for i in $(seq {count}); do echo line $i; sleep 0.1; done; exit 7"


async def counted(stack: Stack, store: Store, name: str, count: int) -> tuple[str, Path]:
    """Submit a job that prints for `count` tenths of a second, and return it with the file that counts its runs."""
    path = stack.directory / name
    path.touch()
    path.chmod(0o666)
    return await submit(store, COUNTING.format(path=path, count=count)), path


async def ended_well(store: Store, job_id: str, path: Path, count: int) -> None:
    """Hold that a job was carried out once and that its result and its whole log have arrived."""
    job = await finished(store, job_id)
    assert (job.state, job.reason, job.exit_code, job.attempt) == ("failed", "exit_code", 7, 1)
    assert path.read_text().count("\n") == 1
    assert await log_of(store, job_id) == b"".join(b"line %d\n" % number for number in range(1, count + 1))


async def test_jobs_that_run_and_end_while_redis_is_frozen_lose_nothing(stack: Stack, store: Store) -> None:
    running, run_path = await counted(stack, store, "frozen-run", 60)
    ending, end_path = await counted(stack, store, "frozen-end", 15)
    for job_id in (running, ending):
        await reaches(store, job_id, "running")
    await soon(lambda: run_path.read_text() and end_path.read_text(), "both run")
    stack.valkey.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(3.5)  # longer than a lease
    finally:
        stack.valkey.process.send_signal(signal.SIGCONT)
    await ended_well(store, ending, end_path, 15)
    await ended_well(store, running, run_path, 60)


@pytest.mark.proves("F33")
async def test_jobs_that_run_and_end_while_redis_is_gone_for_long_lose_nothing(
    stack: Stack, store: Store
) -> None:
    running, run_path = await counted(stack, store, "gone-run", 110)
    ending, end_path = await counted(stack, store, "gone-end", 15)
    noisy = await submit(store, "sleep 1; seq 300000")
    for job_id in (running, ending, noisy):
        await reaches(store, job_id, "running")
    waiting = await submit(store, "echo waited", delay_s=2)
    await soon(lambda: run_path.read_text() and end_path.read_text(), "both run")
    stack.valkey.crash()
    with pytest.raises(Unavailable):
        await submit(store, "echo refused")
    await asyncio.sleep(9)  # three leases
    port = int(stack.valkey.url.rpartition(":")[2].partition("/")[0])
    stack.valkey = start_valkey(stack.directory / "valkey", port)
    began = time.monotonic()
    await ended_well(store, ending, end_path, 15)
    assert (await finished(store, noisy)).attempt == 1
    assert (await log_of(store, noisy)).splitlines()[-1] == b"300000"
    await ended_well(store, running, run_path, 110)
    assert (await finished(store, waiting)).state == "completed"
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_what_lies_ready_as_redis_goes_away_is_started_by_the_launcher_alone_and_but_once(
    stack: Stack, store: Store, how: str
) -> None:
    path = stack.directory / f"ready-{os.urandom(4).hex()}"
    path.touch()
    path.chmod(0o666)

    def started() -> int:
        return path.read_text().count("\n")

    ids = [await submit(store, f"echo $HOSTLER_JOB_ID >> {path}; sleep 0.015") for _ in range(300)]
    worker = stack.processes[1]
    by_itself = 0
    for number in range(3):  # the first time, at least, many are held
        await soon(lambda number=number: started() > 80 + 60 * number, "they run")  # type: ignore[misc]
        try:
            worker.send_signal(signal.SIGSTOP)  # so that nobody but the launcher can start anything
            await asyncio.sleep(0.005)  # what the worker has started says so
            before = started()
            if how == "frozen":
                stack.valkey.process.send_signal(signal.SIGSTOP)
            else:
                stack.valkey.crash()
            await asyncio.sleep(0.15)
            by_itself += started() - before
        finally:
            worker.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.2)
        if how == "frozen":
            stack.valkey.process.send_signal(signal.SIGCONT)
        else:
            port = int(stack.valkey.url.rpartition(":")[2].partition("/")[0])
            stack.valkey = start_valkey(stack.directory / "valkey", port)
    assert by_itself
    for each in ids:
        assert (await finished(store, each)).state == "completed"
    assert sorted(path.read_text().split()) == sorted(ids)


async def test_output_arrives_once_over_a_connection_that_breaks_again_and_again(
    stack: Stack, store: Store
) -> None:
    upstream = int(stack.valkey.url.rpartition(":")[2].partition("/")[0])
    async with Relay(upstream) as relay:
        url = stack.valkey.url.replace(f":{upstream}/", f":{relay.port}/")
        shaky = stack.worker("shaky", "--tags", "shaky", wait=False, REDIS_URL=url)
        try:
            words = "for i in $(seq 60); do echo line $i; echo oops $i >&2; sleep 0.05; done; head -c 300000 /dev/zero"
            job_id = await submit(store, words, tags=["shaky"])
            await reaches(store, job_id, "running")
            while not (await jobs.get(store, job_id)).finished:
                await asyncio.sleep(0.3)
                await relay.cut()
            job = await finished(store, job_id)
            assert (job.state, job.attempt) == ("completed", 1)
            text = await log_of(store, job_id)
            assert text.count(b"\0") == 300000
            lines = text.partition(b"\0")[0].splitlines()
            for word in (b"line", b"oops"):
                expected = [b"%b %d" % (word, number) for number in range(1, 61)]
                assert [each for each in lines if each.startswith(word)] == expected
            stalling = await submit(store, "sleep 1; echo after", tags=["shaky"])
            await reaches(store, stalling, "running")
            relay.stalled = True  # a silent partition: nothing comes, nothing breaks
            await asyncio.sleep(2)
            relay.stalled = False
            job = await finished(store, stalling)
            assert (job.state, job.attempt) == ("completed", 1)
            relay.latency_s = 0.05
            assert (
                await finished(store, await submit(store, "echo slow", tags=["shaky"]))
            ).state == "completed"
        finally:
            stack.end(shaky)
            stack.processes.remove(shaky)
