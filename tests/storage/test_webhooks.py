"""Webhooks: who is told of a job's end, in what words, how often, and how they can believe it."""

import hashlib
import hmac
import json

import redis
from engine import claim, register, settle, submit

from storage import jobs, webhooks
from storage.store import Store

TARGET = {"url": "https://example.org/hook", "secret": "shh"}


async def ended(store: Store, **order: object) -> str:
    """Return a job that has failed."""
    holder, job_id = await register(store, proof="r1"), await submit(store, "false", **order)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, "failed")
    return job_id


async def test_a_message_names_the_job_and_its_end_and_is_signed(store: Store) -> None:
    job_id = await ended(store, webhook=TARGET, name="n", env={"TOKEN": "secret-value"})
    (delivery,) = await webhooks.due(store, most=10)
    assert (delivery.job_id, delivery.url, delivery.tries) == (job_id, TARGET["url"], 0)
    told = json.loads(delivery.body)
    assert (told["type"], told["jobId"], told["status"]) == ("job.completed", job_id, "failed")
    assert (told["reason"], told["exitCode"], told["name"]) == ("exit_code", 1, "n")
    assert b"secret-value" not in delivery.body
    expected = hmac.new(b"shh", delivery.body, hashlib.sha256).hexdigest()
    assert delivery.headers["X-Hostler-Signature-256"] == f"sha256={expected}"


async def test_without_a_secret_nothing_is_signed(store: Store) -> None:
    await ended(store, webhook={"url": TARGET["url"]})
    (delivery,) = await webhooks.due(store, most=10)
    assert "X-Hostler-Signature-256" not in delivery.headers


async def test_neither_target_nor_secret_lie_open_in_redis(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    job_id = await submit(store, webhook=TARGET)
    everything = b"".join(key + value for key, value in redis_client.hgetall(f"h:job:{job_id}").items())
    assert b"shh" not in everything
    assert b"example.org" not in everything


async def test_a_job_that_is_cancelled_is_told_of_and_one_without_a_webhook_is_not(store: Store) -> None:
    job_id = await submit(store, webhook=TARGET)
    await jobs.cancel(store, "user:u", job_id)
    await jobs.cancel(store, "user:u", await submit(store))
    assert [each.job_id for each in await webhooks.due(store, most=10)] == [job_id]


async def test_a_delivery_belongs_to_one_process_until_its_time_is_over(store: Store) -> None:
    await ended(store, webhook=TARGET)
    (delivery,) = await webhooks.due(store, most=10)
    assert await webhooks.due(store, most=10) == []
    now_ms = store.now_ms()
    store.now_ms = lambda: now_ms + webhooks.CLAIMED_MS + 1000  # type: ignore[method-assign]
    assert [each.job_id for each in await webhooks.due(store, most=10)] == [delivery.job_id]


async def test_what_was_delivered_is_done(store: Store, redis_client: "redis.Redis[bytes]") -> None:
    await ended(store, webhook=TARGET)
    (delivery,) = await webhooks.due(store, most=10)
    await webhooks.delivered(store, delivery)
    assert redis_client.zcard("h:webhooks") == 0


async def test_a_failed_delivery_is_tried_ever_more_rarely_and_then_given_up(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    job_id = await ended(store, webhook=TARGET)
    now_ms, pauses = store.now_ms(), []
    for _ in range(webhooks.MOST_TRIES):
        store.now_ms = lambda at=now_ms: at  # type: ignore[method-assign,misc]
        (delivery,) = await webhooks.due(store, most=10)
        if not await webhooks.postpone(store, delivery):
            break
        due_ms = int(redis_client.zscore("h:webhooks", job_id) or 0)
        pauses.append((due_ms - now_ms) // 1000)
        now_ms = due_ms
    assert pauses == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
    assert redis_client.zcard("h:webhooks") == 0


async def test_one_that_was_put_off_was_not_tried(store: Store, redis_client: "redis.Redis[bytes]") -> None:
    job_id = await ended(store, webhook=TARGET)
    (delivery,) = await webhooks.due(store, most=10)
    await webhooks.put_off(store, delivery, 5)
    assert 3_000 < int(redis_client.zscore("h:webhooks", job_id) or 0) - store.now_ms() <= 5_000
    now_ms = store.now_ms()
    store.now_ms = lambda: now_ms + 6000  # type: ignore[method-assign]
    assert [each.tries for each in await webhooks.due(store, most=10)] == [0]


async def test_a_forged_target_is_told_nothing(store: Store, redis_client: "redis.Redis[bytes]") -> None:
    mine, other = (
        await ended(store, webhook=TARGET),
        await ended(store, webhook={"url": "https://evil.example"}),
    )
    redis_client.hset(f"h:job:{mine}", "webhook", redis_client.hget(f"h:job:{other}", "webhook") or b"")
    assert [each.job_id for each in await webhooks.due(store, most=10)] == [other]
    assert redis_client.zscore("h:webhooks", mine) is None
