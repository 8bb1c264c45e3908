"""What happens to jobs between submit and claim, as workers, schedulers and RQ's own tools see it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import rq
from engine import submit
from processes import ROOT, Stack, finished, log_of, new_stack, processes_of, reaches, soon
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer

from storage import jobs, schedules, tasks
from storage.jobs import Backoff
from storage.schedules import Recurrence
from storage.store import Store


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack of one worker and two schedulers."""
    stack = new_stack(HOSTLER_SLOTS="3")
    try:
        for _ in range(2):
            stack.start("scheduler")
        stack.worker("w")
        yield stack
    finally:
        stack.end()


@pytest.fixture
def client(stack: Stack) -> Iterator["redis.Redis[bytes]"]:
    with stack.redis() as client:
        yield client


async def test_a_failing_job_is_tried_again_after_ever_longer_pauses(store: Store) -> None:
    backoff = Backoff(delay_s=0.5, factor=2, max_s=10)
    job_id = await submit(store, "date +%s.%N; exit $((3 - HOSTLER_ATTEMPT))", retries=5, backoff=backoff)
    job = await finished(store, job_id)
    assert (job.state, job.attempt, job.failures, job.deaths) == ("completed", 3, 2, 0)
    first, second, third = [float(line) for line in (await log_of(store, job_id)).split()]
    assert 0.4 <= second - first < 3
    assert 0.8 <= third - second < 4


async def test_a_job_that_goes_on_failing_ends_when_its_retries_are_used_up(store: Store) -> None:
    job_id = await submit(store, "exit 9", retries=2, backoff=Backoff(delay_s=0.1))
    job = await finished(store, job_id)
    assert (job.state, job.reason, job.exit_code, job.attempt) == ("failed", "exit_code", 9, 3)


async def test_a_delayed_job_starts_at_its_time_and_not_before(store: Store) -> None:
    by_delay = await submit(store, "true", delay_s=1.2)
    by_time = await submit(store, "true", not_before_ms=int(time.time() * 1000) + 1200)
    for job_id in (by_delay, by_time):
        job = await finished(store, job_id)
        assert job.started_ms is not None
        assert 1150 <= job.started_ms - job.created_ms < 4000


async def test_a_chain_runs_in_its_order_and_a_failure_cancels_what_follows(store: Store) -> None:
    first = await submit(store, "sleep 0.3")
    second = await submit(store, "exit 1", depends_on=[first])
    third = await submit(store, "true", depends_on=[second])
    beside = await submit(store, "true", depends_on=[first])
    last = await submit(store, "true", depends_on=[first, third])
    assert (await finished(store, third)).state == "cancelled"
    assert (await finished(store, last)).reason == "dependency"
    ended = [await finished(store, each) for each in (first, second, beside)]
    assert [each.state for each in ended] == ["completed", "failed", "completed"]
    assert (ended[1].started_ms or 0) >= (ended[0].ended_ms or 0)


async def test_a_waiting_job_is_cancelled_before_it_starts(store: Store) -> None:
    job_id = await submit(store, "echo never", delay_s=600)
    assert await jobs.cancel(store, "user:u", job_id) == "cancelled"
    assert (await finished(store, job_id)).attempt == 0


async def test_jobs_that_share_a_key_run_one_at_a_time(stack: Stack, store: Store) -> None:
    side = stack.directory / "shared"
    side.mkdir()
    side.chmod(0o777)
    words = f"mkdir {side}/lock || touch {side}/overlap; sleep 0.03; rmdir {side}/lock; touch {side}/$HOSTLER_JOB_ID"
    ids = [await submit(store, words, concurrency_key="shared") for _ in range(20)]
    for job_id in ids:
        assert (await finished(store, job_id)).state == "completed"
    assert {path.name for path in side.iterdir()} == set(ids)


async def test_an_occurrence_of_a_schedule_runs_once_though_two_schedulers_look(
    store: Store, client: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        store, "now_ms", lambda: int((time.time() - 3590) * 1000)
    )  # so that it is due, or overdue
    firsts = [
        await schedules.create(store, "user:u", jobs.Order(command="true"), Recurrence("0 * * * *"))
        for _ in range(5)
    ]
    ids = [text.decode() for text in client.zrange("h:schedules", 0, -1)]
    for first in firsts:
        assert (await finished(store, first.id)).state == "completed"
    for schedule_id in ids:
        schedule = await schedules.get(store, schedule_id)
        waiting = await jobs.get(store, schedule.job_id)
        assert (waiting.state, waiting.wait, waiting.not_before_ms) == (
            "queued",
            "schedule",
            schedule.next_ms,
        )
        await schedules.delete(store, "user:u", schedule_id)
        assert (await jobs.get(store, schedule.job_id)).state == "cancelled"
    fired = [entry[b"id"] for _, entry in client.xrange("h:events") if entry.get(b"e") == b"schedule.fired"]
    assert sorted(fired) == sorted(each.encode() for each in ids)


async def test_another_scheduler_takes_the_lead_of_a_dead_one(
    stack: Stack, store: Store, client: "redis.Redis[bytes]"
) -> None:
    def leader() -> subprocess.Popen[bytes] | None:
        held = (client.get("h:leader") or b"").decode()
        return next((each for each in stack.processes if f":{each.pid}:" in held), None)

    first = await soon(leader, "one leads")
    first.kill()
    first.wait()
    began = time.monotonic()
    waiting = await submit(store, "true", delay_s=0.1)
    assert (await finished(store, waiting)).state == "completed"
    assert time.monotonic() - began < 15
    assert leader() is not first
    stack.start("scheduler")


async def test_a_job_that_vanished_from_its_queue_is_put_back(
    stack: Stack, store: Store, client: "redis.Redis[bytes]"
) -> None:
    job_id = await submit(store, "true", tags=["nobody"])
    assert client.delete("rq:queue:jobs.nobody.normal") == 1
    await soon(lambda: client.lrange("rq:queue:jobs.nobody.normal", 0, -1) == [job_id.encode()], "it is back")
    await jobs.cancel(store, "user:u", job_id)


# RQ's own reader


async def test_rq_reads_a_job_truly_at_each_of_its_states(
    stack: Stack, store: Store, client: "redis.Redis[bytes]"
) -> None:
    def status(job_id: str) -> str:
        return Job.fetch(job_id, connection=client, serializer=JSONSerializer).get_status().value

    queue = rq.Queue("jobs.normal", connection=client, serializer=JSONSerializer)
    delayed = await submit(store, "true", delay_s=600)
    assert status(delayed) == "scheduled"
    assert delayed in queue.scheduled_job_registry.get_job_ids()
    blocker = await submit(store, "sleep 60")
    child = await submit(store, "true", depends_on=[blocker])
    assert status(child) == "deferred"
    assert child in queue.deferred_job_registry.get_job_ids(cleanup=False)
    unserved = await submit(store, "true", tags=[delayed])  # a tag that nothing else has
    nobody = rq.Queue(f"jobs.{delayed}.normal", connection=client, serializer=JSONSerializer)
    assert (status(unserved), nobody.count, nobody.job_ids) == ("queued", 1, [unserved])
    await reaches(store, blocker, "running")
    assert status(blocker) == "started"
    assert blocker in queue.started_job_registry.get_job_ids(cleanup=False)
    fetched = Job.fetch(blocker, connection=client, serializer=JSONSerializer)
    assert (fetched.func_name, fetched.args, fetched.origin) == (
        tasks.COMMAND.function,
        [blocker],
        "jobs.normal",
    )
    assert fetched.worker_name == "w"
    # it may have been busy with another one
    await soon(lambda: workers(client)["w"].get_current_job_id() == blocker, "its worker is busy with it")
    assert workers(client)["w"].get_state() == "busy"
    await jobs.cancel(store, "user:u", blocker)
    await finished(store, blocker)
    assert status(blocker) == "canceled"
    ended, failed = await submit(store, "true"), await submit(store, "exit 3")
    await finished(store, ended)
    await finished(store, failed)
    assert (status(ended), status(failed)) == ("finished", "failed")
    assert ended in queue.finished_job_registry.get_job_ids(cleanup=False)
    assert failed in queue.failed_job_registry.get_job_ids(cleanup=False)
    result = Job.fetch(failed, connection=client, serializer=JSONSerializer).latest_result()
    assert result is not None
    for job_id in (delayed, unserved):
        await jobs.cancel(store, "user:u", job_id)


def workers(client: "redis.Redis[bytes]") -> dict[str, rq.Worker]:
    return {each.name: each for each in rq.Worker.all(connection=client, serializer=JSONSerializer)}


async def test_rq_knows_a_worker_by_its_name_its_queues_and_its_heartbeat(
    client: "redis.Redis[bytes]",
) -> None:
    worker = workers(client)["w"]
    assert worker.queue_names() == ["jobs.high", "jobs.normal", "jobs.low"]
    assert worker.last_heartbeat is not None
    seen = worker.last_heartbeat
    await soon(lambda: workers(client)["w"].last_heartbeat > seen, "it beats")


def rq_info(stack: Stack) -> str:
    words = [Path(sys.executable).with_name("rq"), "info", "--url", stack.env["REDIS_URL"]]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


async def test_rq_info_shows_queues_jobs_and_workers(stack: Stack, store: Store) -> None:
    await finished(store, await submit(store, "true"))
    shown = await asyncio.to_thread(rq_info, stack)
    assert "jobs.normal" in shown
    assert "w (" in shown
    assert "jobs.high, jobs.normal, jobs.low" in shown
    job_id = await submit(store, "sleep 1")  # and what it cleans up is not ours
    await reaches(store, job_id, "running")
    await asyncio.to_thread(rq_info, stack)
    job = await finished(store, job_id)
    assert (job.state, job.attempt) == ("completed", 1)


@pytest.mark.parametrize("serializer", ["rq.serializers.JSONSerializer", "rq.serializers.DefaultSerializer"])
async def test_a_stock_rq_worker_neither_runs_nor_loses_a_job(
    stack: Stack, store: Store, client: "redis.Redis[bytes]", serializer: str
) -> None:
    side = stack.directory / f"stock-{serializer[-17:]}"
    side.touch()
    side.chmod(0o666)
    ids = [await submit(store, f"echo $HOSTLER_JOB_ID >> {side}", tags=["stock"]) for _ in range(5)]
    stock = await asyncio.to_thread(
        subprocess.run,
        [Path(sys.executable).with_name("rq"), "worker", "--url", stack.env["REDIS_URL"], "--serializer", serializer,
         "--path", str(ROOT), "--burst", "jobs.stock.normal"],
        capture_output=True, text=True, cwd=stack.directory,
    )  # fmt: skip
    assert side.read_text() == "", stock.stderr
    for job_id in ids:
        assert (await jobs.get(store, job_id)).state == "queued"
    ours = stack.worker("stock-reader", "--tags", "stock", wait=False)
    try:
        for job_id in ids:
            job = await finished(store, job_id)
            assert (job.state, job.attempt) == ("completed", 1)
    finally:
        stack.end(ours)
        stack.processes.remove(ours)
    assert sorted(side.read_text().split()) == sorted(ids)


# What others put into Redis


async def test_what_somebody_else_wrote_into_redis_is_refused_and_reported_and_never_run(
    stack: Stack, store: Store, client: "redis.Redis[bytes]"
) -> None:
    side = stack.directory / "owned"
    side.mkdir(exist_ok=True)
    side.chmod(0o777)
    rq.Queue("jobs.normal", connection=client, serializer=JSONSerializer).enqueue(
        "os.system", f"touch {side}/json"
    )
    rq.Queue("jobs.normal", connection=client, serializer=DefaultSerializer).enqueue(
        "os.system", f"touch {side}/pickle"
    )
    blocker = await submit(store, "true", tags=["nobody"])
    spec = json.loads(client.hget(f"h:job:{blocker}", "spec") or b"{}")
    forged = "job-" + "0" * 20
    record = client.hgetall(f"h:job:{blocker}")
    evil = json.dumps({**spec, "command": f"touch {side}/spec", "tags": []})
    client.hset(f"h:job:{forged}", mapping={**record, b"spec": evil, b"queue": "jobs.normal"})
    client.rpush("rq:queue:jobs.normal", forged, "nonsense", "../../etc")
    honest = await submit(store, "true")
    assert (await finished(store, honest)).state == "completed"
    job = await finished(store, forged)
    assert (job.state, job.reason) == ("failed", "invalid")
    assert list(side.iterdir()) == []
    assert processes_of(forged) == set()
    refused = [entry[b"id"] for _, entry in client.xrange("h:events") if entry.get(b"e") == b"queue.refused"]
    assert {b"nonsense", b"../../etc"} <= set(refused)
    assert len(refused) >= 4
    log = stack.logged(next(each for each in stack.processes if "w" in each.args))
    assert "refused a job" in log
    assert "no job of ours" in log
    assert client.llen("rq:queue:jobs.normal") == 0
    await jobs.cancel(store, "user:u", blocker)
