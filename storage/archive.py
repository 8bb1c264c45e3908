"""Finished jobs that have left Redis: their record, log and list of artifacts as one object each."""

import base64
import logging

import hiredis
import orjson

from storage import logs
from storage.calls import command, pairs, script, text
from storage.errors import NotFound
from storage.store import Store

log = logging.getLogger("hostler.storage")

#: A record with its log; more than the live log's cap is in the log parts, which stay where they are.
_LIMIT_BYTES = 64 * 1024 * 1024


def _key(job_id: str) -> str:
    return f"archive/jobs/{job_id}.json"


async def put(store: Store, job_id: str) -> bool:
    """Move one finished job from Redis to the object store: written first, forgotten after. Safe to run twice."""
    record, artifacts, parts = await store.calls(
        *(command("HGETALL", f"h:{kind}:{job_id}", read=pairs) for kind in ("job", "artifacts", "logparts"))
    )
    if not record:
        await store.call(command("ZREM", "h:ended", job_id))
        return False
    record.pop("log", None)  # what was packed into the record is `live` here
    live = base64.b64encode(await logs.live_frames(store, job_id)).decode()
    body = orjson.dumps({"record": record, "artifacts": artifacts, "logparts": parts, "live": live})
    await store.objects.put(_key(job_id), body, content_type="application/json")
    return bool(await store.call(script("archive", job_id)))


async def read(store: Store, job_id: str) -> dict[str, object]:
    """Return all that was archived of a job. Raises NotFound."""
    try:
        stored: dict[str, object] = orjson.loads(
            await store.objects.get(_key(job_id), limit_bytes=_LIMIT_BYTES)
        )
    except NotFound:
        raise NotFound("Job not found") from None
    return stored


async def get(store: Store, job_id: str) -> dict[str, str]:
    """Return the record of an archived job, as the hash it was, with its id. Raises NotFound."""
    record = (await read(store, job_id))["record"]
    if not isinstance(record, dict):
        raise NotFound("Job not found")
    return {**record, "id": job_id}


async def archive_due(store: Store, *, ended_before_ms: int, keep_count: int, most: int) -> int:
    """Move up to `most` jobs that ended before a time, or exceed the number to keep; answers how many."""
    excess = max(0, await store.call(command("ZCARD", "h:ended")) - keep_count)
    old = await store.call(command("ZRANGEBYSCORE", "h:ended", "-inf", ended_before_ms, "LIMIT", 0, most))
    surplus = await store.call(command("ZRANGE", "h:ended", 0, min(excess, most) - 1)) if excess else []
    moved = 0
    for job_id in {text(each) for each in [*old, *surplus]}:
        try:
            moved += await put(store, job_id)
        except hiredis.ReplyError as error:  # what lies under its keys was not put there by Hostler
            log.error("a finished job cannot be archived", extra={"job": job_id, "why": str(error)})
    return moved
