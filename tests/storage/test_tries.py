import pytest
import redis
from engine import claim, register, settle, submit

from storage import searching, tries
from storage.errors import NotFound
from storage.jobs import Backoff
from storage.overview import MINUTES, overview
from storage.store import Store


async def test_attempts_are_remembered_with_their_worker_and_their_end(store: Store) -> None:
    holder = await register(store)
    job_id = await submit(store, retries=1, backoff=Backoff(delay_s=0))
    assert await tries.of_job(store, job_id) == []
    (first,) = await claim(store, holder)
    await settle(store, holder, first, outcome="failed", reason="exit_code", exit_code=3)
    (again,) = await claim(store, holder)
    past, present = await tries.of_job(store, job_id)
    assert (past.number, past.worker, past.exit_code, past.outcome) == (1, "w", 3, "exit_code")
    assert past.started_ms is not None
    assert past.ended_ms is not None
    assert (present.number, present.outcome, present.ended_ms) == (2, "running", None)
    await settle(store, holder, again)
    assert [each.outcome for each in await tries.of_job(store, job_id)] == ["exit_code", "completed"]
    with pytest.raises(NotFound):
        await tries.of_job(store, "job-00000000000000000000")


async def test_words_find_jobs_by_what_was_asked_and_nothing_by_how_a_record_is_written(store: Store) -> None:
    first = await submit(store, command="make test", name="Shop: tests")
    await submit(store, command="make docs", tags=["linux"])
    found = await searching.search(store, "MAKE shop", limit=10, offset=0)
    assert ([job.id for job in found.jobs], found.total) == ([first], 1)
    assert (await searching.search(store, "make", limit=1, offset=1)).total == 2
    assert (await searching.search(store, "linux", limit=10, offset=0)).total == 1
    assert (await searching.search(store, first, limit=10, offset=0)).total == 1
    for word in ("timeout_s", "command", "task", '"name"'):
        assert (await searching.search(store, word, limit=10, offset=0)).total == 0, word


async def test_a_whole_id_finds_its_job_however_old_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "LOOKED_AT", 0)
    job_id = await submit(store)
    found = await searching.search(store, f" {job_id} ", limit=10, offset=0)
    assert ([job.id for job in found.jobs], found.total) == ([job_id], 1)
    assert (await searching.search(store, job_id, limit=10, offset=10)).jobs == []
    assert (await searching.search(store, job_id, limit=10, offset=0, state="failed")).total == 0
    assert (await searching.search(store, "job-00000000000000000000", limit=10, offset=0)).total == 0


async def test_the_overview_counts_what_there_is(store: Store, redis_client: redis.Redis) -> None:
    holder = await register(store, slots=2)
    for _ in range(3):
        await submit(store)
    done, fails = await claim(store, holder, most=2)
    await settle(store, holder, done)
    await settle(store, holder, fails, outcome="failed", reason="exit_code", exit_code=1)
    found = await overview(store)
    assert {name: found.jobs[name] for name in ("queued", "running", "completed", "failed", "ended")} == {
        "queued": 1, "running": 0, "completed": 1, "failed": 1, "ended": 2,
    }  # fmt: skip
    assert {queue["name"]: queue["waiting"] for queue in found.queues}["jobs.normal"] == 1
    assert all(len(each) == MINUTES for each in found.minutes.values())
    assert (sum(found.minutes["submitted"]), sum(found.minutes["ended"]), sum(found.minutes["failed"])) == (
        3,
        2,
        1,
    )
    assert (found.workers["online"], found.workers["slots"], found.latency["sampled"]) == (1, 2, 2)
