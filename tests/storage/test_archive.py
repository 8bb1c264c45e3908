"""The archive: finished jobs leave Redis for the object store and can still be read."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from engine import claim, output, register, settle, submit

from settings import Settings
from storage import archive, attempts, jobs, logs
from storage.calls import script
from storage.errors import NotFound, Unavailable
from storage.store import Store


@pytest.fixture
async def store(settings_with_s3: Settings) -> AsyncIterator[Store]:
    store = Store(settings_with_s3)
    yield store
    await store.close()


async def ended(store: Store, *lines: bytes, **order: Any) -> str:
    holder, job_id = await register(store, proof="r1"), await submit(store, "make", **order)
    (claimed,) = await claim(store, holder, *order.get("tags", ()))
    for line in lines:
        await output(store, holder, claimed, line)
    record = {"name": "report", "size": 3, "sha256": "0" * 64, "key": "artifacts/k", "attempt": 1}
    await store.call(attempts.attach(holder, job_id, 1, "artifacts", "report", record))
    await settle(store, holder, claimed, "failed")
    return job_id


async def test_an_archived_job_reads_as_it_did(store: Store, redis_client: "redis.Redis[bytes]") -> None:
    job_id = await ended(store, b"one\n", b"\xff\0two\n", name="n", tags=["gpu"], metadata={"a": [1]})
    before = await jobs.get(store, job_id)
    assert await archive.put(store, job_id)
    assert [
        key for key in redis_client.scan_iter() if job_id.encode() in key and b"rq:results" not in key
    ] == []
    assert await jobs.get(store, job_id) == before
    assert b"".join([piece async for piece in await logs.text(store, job_id)]) == b"one\n\xff\0two\n"
    stored: Any = await archive.read(store, job_id)
    assert list(stored["artifacts"]) == ["report"]


async def test_a_job_that_is_not_finished_stays(store: Store) -> None:
    job_id = await submit(store)
    assert not await archive.put(store, job_id)
    assert (await jobs.get(store, job_id)).state == "queued"


async def test_archiving_twice_changes_nothing(store: Store) -> None:
    job_id = await ended(store, b"one\n")
    assert await archive.put(store, job_id)
    assert not await archive.put(store, job_id)
    assert (await jobs.get(store, job_id)).state == "failed"


async def test_the_oldest_go_first_by_age_and_by_number(store: Store) -> None:
    ids = [await ended(store) for _ in range(4)]
    assert await archive.archive_due(store, ended_before_ms=0, keep_count=10, most=100) == 0
    assert await archive.archive_due(store, ended_before_ms=0, keep_count=3, most=100) == 1
    kept = {job.id for job in (await jobs.page(store, limit=10, offset=0))[0]}
    assert kept == set(ids[1:])
    assert await archive.archive_due(store, ended_before_ms=store.now_ms() + 1000, keep_count=10, most=2) == 2
    assert {job.id for job in (await jobs.page(store, limit=10, offset=0))[0]} == {ids[3]}


async def test_an_index_entry_without_a_job_does_not_hold_up_the_rest(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    redis_client.zadd("h:ended", {f"job-{number:020d}": number for number in range(5)})
    job_id = await ended(store)
    for _ in range(3):
        await archive.archive_due(store, ended_before_ms=store.now_ms() + 1000, keep_count=10, most=3)
    assert redis_client.zcard("h:ended") == 0
    assert (await jobs.get(store, job_id)).state == "failed"


async def test_a_record_of_another_type_does_not_hold_up_the_rest(
    store: Store, redis_client: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    ids = [await ended(store) for _ in range(3)]
    redis_client.set("h:job:job-1", "no hash")
    redis_client.zadd("h:ended", {"job-1": 1})
    assert (
        await archive.archive_due(store, ended_before_ms=store.now_ms() + 1000, keep_count=10, most=10) == 3
    )
    assert redis_client.zrange("h:ended", 0, -1) == [b"job-1"]
    assert [(await archive.get(store, job_id))["state"] for job_id in ids] == ["failed"] * 3
    assert redis_client.get("h:job:job-1") == b"no hash"
    assert "job-1" in [record.__dict__.get("job") for record in caplog.records]


async def test_nothing_is_forgotten_while_the_object_store_is_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await ended(store)

    async def away(*_: Any, **__: Any) -> None:
        raise Unavailable("The object store cannot be reached.")

    monkeypatch.setattr(store.objects, "put", away)
    with pytest.raises(Unavailable):
        await archive.archive_due(store, ended_before_ms=store.now_ms() + 1000, keep_count=10, most=10)
    assert (await store.call(jobs.fetch(job_id))).state == "failed"


async def test_what_never_was_is_not_found(store: Store) -> None:
    job_id = await ended(store)
    await archive.put(store, job_id)
    with pytest.raises(NotFound):
        await jobs.get(store, "job-" + "1" * 20)


async def test_a_job_stays_until_its_webhook_has_been_told(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    job_id = await submit(store, webhook={"url": "https://example.org/"})
    await jobs.cancel(store, "user:u", job_id)
    assert redis_client.zscore("h:webhooks", job_id) is not None
    assert await store.call(script("archive", job_id)) == 0
    redis_client.zrem("h:webhooks", job_id)
    assert await store.call(script("archive", job_id)) == 1
