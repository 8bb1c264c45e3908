"""Webhooks: who wants to be told of a job's end, and whether they have been."""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

import orjson

from storage import jobs
from storage.calls import command, text
from storage.errors import NotFound
from storage.jobs import Job
from storage.seal import Forged
from storage.store import Store

#: While one process delivers, no other does; a delivery that dies is tried again after this.
CLAIMED_MS = 60_000
FIRST_RETRY_S, MOST_RETRY_S, MOST_TRIES = 10, 3600, 12


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message that is due: where to, what, and the headers that prove who sent it."""

    job_id: str
    url: str
    body: bytes
    headers: dict[str, str]
    tries: int


async def due(store: Store, *, most: int) -> list[Delivery]:
    """Take the deliveries whose time has come; each is ours for a minute."""
    now_ms = store.now_ms()
    ids = await store.call(command("ZRANGEBYSCORE", "h:webhooks", "-inf", now_ms, "LIMIT", 0, most))
    deliveries = []
    for each in ids:
        await store.call(command("ZADD", "h:webhooks", "XX", now_ms + CLAIMED_MS, each))
        try:
            deliveries.append(await _delivery(store, text(each)))
        except (NotFound, Forged):
            await store.call(command("ZREM", "h:webhooks", each))
    return deliveries


async def _delivery(store: Store, job_id: str) -> Delivery:
    sealed, tries = await store.call(command("HMGET", f"h:job:{job_id}", "webhook", "webhook_tries"))
    if not sealed:
        raise NotFound("The job has left Redis before its webhook was delivered.")
    target: dict[str, str] = store.seal.decrypt_json("webhook", text(sealed), bound_to=job_id)
    job = await store.call(jobs.fetch(job_id))
    body = orjson.dumps(message(job))
    headers = {
        "Content-Type": "application/json",
        "X-Hostler-Event": "job.completed",
        "X-Hostler-Delivery": job_id,
    }
    if secret := target.get("secret"):
        digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers["X-Hostler-Signature-256"] = f"sha256={digest}"
    return Delivery(job_id, target["url"], body, headers, int(tries or 0))


def message(job: Job) -> dict[str, Any]:
    """Return what a webhook is told: identifiers and outcome, no output and no environment."""
    return {
        "type": "job.completed", "jobId": job.id, "status": job.state, "reason": job.reason,
        "exitCode": job.exit_code, "name": job.spec.get("name"), "attempt": job.attempt, "workerId": job.worker,
        "createdAtMs": job.created_ms, "startedAtMs": job.started_ms, "completedAtMs": job.ended_ms,
    }  # fmt: skip


async def delivered(store: Store, delivery: Delivery) -> None:
    """Note that a delivery has arrived."""
    await store.call(command("ZREM", "h:webhooks", delivery.job_id))


async def put_off(store: Store, delivery: Delivery, pause_s: float) -> None:
    """Let a delivery that was not tried come up again after `pause_s` seconds."""
    due_ms = store.now_ms() + int(pause_s * 1000)
    await store.call(command("ZADD", "h:webhooks", "XX", due_ms, delivery.job_id))


async def postpone(store: Store, delivery: Delivery) -> bool:
    """Try again later, ever more rarely; False when it has been given up."""
    tries = delivery.tries + 1
    if tries >= MOST_TRIES:
        await store.calls(
            command("ZREM", "h:webhooks", delivery.job_id),
            command("HSET", f"h:job:{delivery.job_id}", "webhook_tries", tries),
        )
        return False
    pause_s = min(MOST_RETRY_S, FIRST_RETRY_S * 2**delivery.tries)
    await store.calls(
        command("HSET", f"h:job:{delivery.job_id}", "webhook_tries", tries),
        command("ZADD", "h:webhooks", "XX", store.now_ms() + pause_s * 1000, delivery.job_id),
    )
    return True
