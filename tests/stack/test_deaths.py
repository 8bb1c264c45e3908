"""Workers that die, freeze, leave, or meet another of their name: no job is lost, doubled or held."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from engine import submit
from processes import PATIENCE_S, Stack, finished, log_of, new_stack, processes_of, reaches, soon

from storage import fleet, jobs, quarantine
from storage.attempts import Holder, settle
from storage.errors import Stale
from storage.store import Store


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack with a scheduler; each test starts the workers that it hurts."""
    stack = new_stack()
    try:
        stack.start("scheduler")
        (stack.directory / "side").mkdir()
        (stack.directory / "side").chmod(0o777)
        yield stack
    finally:
        stack.end()


@pytest.fixture(autouse=True)
def no_worker_is_left(stack: Stack) -> Iterator[None]:
    yield
    stack.end(*stack.processes[1:])


@pytest.fixture
async def store(stack: Stack) -> AsyncIterator[Store]:
    store = Store(stack.settings)
    yield store
    await store.close()


def side_effect(stack: Stack, name: str) -> tuple[Path, str]:
    """Return a file, and a command that appends its job and attempt to it in one write."""
    path = stack.directory / "side" / name
    path.touch()
    path.chmod(0o666)
    return path, f'echo "$HOSTLER_JOB_ID $HOSTLER_ATTEMPT" >> {path}'


async def test_a_job_whose_worker_is_killed_runs_again_elsewhere_and_nothing_of_it_is_left(
    stack: Stack, store: Store
) -> None:
    path, note = side_effect(stack, "killed")
    first = stack.worker("killed-1")
    job_id = await submit(
        store, f"{note}; setsid sleep 600 & [ $HOSTLER_ATTEMPT = 2 ] || sleep 600; echo again"
    )
    await reaches(store, job_id, "running")
    await soon(lambda: path.read_text() and len(processes_of(job_id)) >= 2, "it runs")
    before = processes_of(job_id)
    began = time.monotonic()
    first.kill()
    await soon(lambda: not before & processes_of(job_id), "the processes of the first attempt are gone", 3)
    stack.worker("killed-2", wait=False)
    job = await finished(store, job_id)
    assert time.monotonic() - began < 30
    assert (job.state, job.attempt, job.worker, job.deaths) == ("completed", 2, "killed-2", 1)
    assert path.read_text() == f"{job_id} 1\n{job_id} 2\n"
    assert b"again\n" in await log_of(store, job_id)
    with pytest.raises(Stale):
        await store.call(settle(Holder("killed-1", "any"), job_id, 1, "failed", "exit_code", 1))


async def test_a_job_that_may_run_once_ends_as_lost_with_its_worker(stack: Stack, store: Store) -> None:
    path, note = side_effect(stack, "once")
    worker = stack.worker("once-1")
    job_id = await submit(store, f"{note}; sleep 600", at_most_once=True)
    await soon(path.read_text, "it runs")
    worker.kill()
    stack.worker("once-2", wait=False)
    job = await finished(store, job_id)
    assert (job.state, job.reason, job.attempt) == ("failed", "lost", 1)
    assert path.read_text() == f"{job_id} 1\n"


async def test_a_job_that_kills_its_worker_three_times_is_put_aside(stack: Stack, store: Store) -> None:
    path, note = side_effect(stack, "poison")
    job_id = await submit(store, f"{note}; sleep 600")
    for attempt in (1, 2, 3):
        worker = stack.worker("poison")
        await soon(lambda attempt=attempt: path.read_text().count("\n") == attempt, f"attempt {attempt} runs")
        worker.kill()
        worker.wait()
    job = await finished(store, job_id)
    assert (job.state, job.reason, job.deaths) == ("failed", "quarantined", 3)
    stack.worker("poison")  # it tells how the last one's job ended
    for death in await _told_deaths(store, job_id):
        assert (death.worker, death.how, death.signal) == ("poison", "with-its-worker", signal.SIGKILL)
        assert (death.max_rss_bytes or 0) > 1024 * 1024


async def _told_deaths(store: Store, job_id: str) -> list[quarantine.Death]:
    deadline = time.monotonic() + PATIENCE_S
    while None in [death.how for death in await quarantine.deaths(store, job_id)]:
        assert time.monotonic() < deadline, "Not all deaths have been told."
        await asyncio.sleep(0.02)
    return await quarantine.deaths(store, job_id)


@pytest.mark.proves("F07")
async def test_a_frozen_worker_that_wakes_up_lets_go_of_what_it_lost(stack: Stack, store: Store) -> None:
    path, note = side_effect(stack, "frozen")
    frozen = stack.worker("frozen-1")
    job_id = await submit(
        store, f"{note}; trap '' TERM; while [ ! -e {path}.go ]; do sleep 0.1; done; echo $HOSTLER_ATTEMPT"
    )
    await soon(path.read_text, "it runs")
    frozen.send_signal(signal.SIGSTOP)
    old = processes_of(job_id)
    stack.worker("frozen-2")
    await soon(lambda: path.read_text().count("\n") == 2, "it runs again")
    frozen.send_signal(signal.SIGCONT)
    await soon(lambda: not old & processes_of(job_id), "the attempt that was lost is dead")
    Path(f"{path}.go").touch()
    job = await finished(store, job_id)
    assert (job.state, job.attempt, job.worker) == ("completed", 2, "frozen-2")
    assert await log_of(store, job_id) == b"2\n"
    again = await submit(store, "true")  # it works on
    await finished(store, again)
    assert frozen.poll() is None


@pytest.mark.proves("F07")
async def test_a_frozen_worker_that_gets_its_own_job_back_runs_it_once_more_and_alone(
    stack: Stack, store: Store
) -> None:
    path, note = side_effect(stack, "thawed")
    frozen = stack.worker("thawed", "--slots", "2")
    job_id = await submit(store, f"{note}; [ $HOSTLER_ATTEMPT = 2 ] || sleep 600")
    await soon(path.read_text, "it runs")
    old = processes_of(job_id)
    frozen.send_signal(signal.SIGSTOP)
    await reaches(store, job_id, "queued")
    frozen.send_signal(signal.SIGCONT)
    job = await finished(store, job_id)
    assert (job.state, job.attempt) == ("completed", 2)
    assert path.read_text() == f"{job_id} 1\n{job_id} 2\n"
    assert not old & processes_of(job_id)
    both = [await submit(store, "sleep 0.5") for _ in range(2)]
    for job_id in both:  # both slots are free again
        await reaches(store, job_id, "running", patience_s=5)
    for job_id in both:
        await finished(store, job_id)


@pytest.mark.proves("F09")
async def test_a_worker_that_is_asked_to_stop_finishes_short_jobs_and_hands_long_ones_back(
    stack: Stack, store: Store
) -> None:
    leaving = stack.worker("drain-1", "--slots", "2")
    short = await submit(store, "sleep 1; echo short")
    long = await submit(store, "trap 'exit 0' TERM; [ $HOSTLER_ATTEMPT = 2 ] || { sleep 600 & wait; }")
    for job_id in (short, long):
        await reaches(store, job_id, "running")
    await soon(lambda: len(processes_of(long)) >= 2, "it waits")
    late = await submit(store, "echo late")
    leaving.send_signal(signal.SIGTERM)
    assert (await finished(store, short)).worker == "drain-1"
    assert await asyncio.to_thread(leaving.wait, 10) == 0
    assert (await jobs.get(store, long)).state == "queued"
    assert (await jobs.get(store, long)).deaths == 0
    (gone,) = [each for each in await fleet.workers(store) if each.id == "drain-1"]
    assert (gone.status, gone.offline_reason) == ("offline", "stopped")
    stack.worker("drain-2", wait=False)
    job = await finished(store, long)
    assert (job.state, job.attempt) == ("completed", 2)
    assert (await finished(store, late)).state == "completed"


async def test_a_second_worker_of_a_name_waits_for_the_first_to_leave(stack: Stack, store: Store) -> None:
    first = stack.worker("twin")
    second = stack.start("workers", "--name", "twin")
    await soon(lambda: "Another worker of the name" in stack.logged(second), "the second one waits")
    running = await submit(store, "echo first")
    await finished(store, running)
    with stack.redis() as client:
        pid = client.hget("h:worker:twin", "pid")
        assert pid == str(first.pid).encode()
        first.send_signal(signal.SIGTERM)
        await soon(
            lambda: client.hget("h:worker:twin", "pid") == str(second.pid).encode(),
            "the second one has the name",
        )
    assert (await finished(store, await submit(store, "true"))).state == "completed"


async def test_a_worker_takes_the_name_of_a_dead_one_over_at_once(stack: Stack, store: Store) -> None:
    first = stack.worker("heir")
    job_id = await submit(store, "[ $HOSTLER_ATTEMPT = 2 ] || sleep 600")
    await reaches(store, job_id, "running")
    first.kill()
    first.wait()
    began = time.monotonic()
    second = stack.start("workers", "--name", "heir")
    with stack.redis() as client:
        await soon(lambda: client.hget("h:worker:heir", "pid") == str(second.pid).encode(), "it has the name")
    job = await finished(store, job_id)
    assert (job.state, job.attempt, job.worker) == ("completed", 2, "heir")
    assert time.monotonic() - began < 10


async def test_a_key_is_passed_on_when_its_holder_dies_and_is_never_held_twice(
    stack: Stack, store: Store
) -> None:
    path, note = side_effect(stack, "key")
    worker = stack.worker("key-1", "--slots", "3")
    inside = f"mkdir {path}.d || echo overlap >> {path}; {note}; sleep 0.05; rmdir {path}.d"
    held = await submit(store, "[ $HOSTLER_ATTEMPT = 2 ] || sleep 600", concurrency_key="k")
    await reaches(store, held, "running")
    others = [await submit(store, inside, concurrency_key="k") for _ in range(15)]
    await soon_parked(store, others)
    worker.kill()
    stack.worker("key-2", "--slots", "3", wait=False)
    stack.worker("key-3", "--slots", "3", wait=False)
    for job_id in (held, *others):
        assert (await finished(store, job_id)).state == "completed"
    assert "overlap" not in path.read_text()
    assert sorted(line.split()[0] for line in path.read_text().splitlines()) == sorted(others)


async def soon_parked(store: Store, ids: list[str]) -> None:
    for _ in range(500):
        waits = [(await jobs.get(store, each)).wait for each in ids]
        if set(waits) == {"key"}:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("They do not wait for the key.")


async def test_a_worker_whose_registration_is_removed_registers_again(stack: Stack, store: Store) -> None:
    stack.worker("removed")
    job_id = await submit(store, "[ $HOSTLER_ATTEMPT = 2 ] || sleep 600")
    await reaches(store, job_id, "running")
    await store.call(fleet.depart("removed", reason="removed", forget=True, actor="user:u"))
    job = await finished(store, job_id)
    assert (job.state, job.attempt, job.worker) == ("completed", 2, "removed")
