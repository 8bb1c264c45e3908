"""Why a job is not running: each reason as a code, a sentence and what it is about."""

from typing import Any

from storage import fleet, queues
from storage.calls import command, text
from storage.errors import NotFound
from storage.jobs import Job, State
from storage.store import Store

Reason = dict[str, Any]


async def waiting(store: Store, job: Job) -> list[Reason]:
    """Return why `job` waits, most telling reason first; empty when it does not wait."""
    if job.state is not State.QUEUED:
        return []
    if job.wait == "dependency":
        return await _dependencies(store, job)
    if job.wait == "key":
        return [await _key(store, job)]
    if job.wait is not None:
        return [_time(job)]
    node = queues.node_of(job.queue)
    reasons = await _workers(store, job) if node is None else await _node(store, node)
    return [*reasons, await _position(store, job)]


async def _node(store: Store, node: str) -> list[Reason]:
    """Return why a node does not take what only it can do; being drained, or busy, does not keep it from that."""
    try:
        worker = await store.call(fleet.fetch(node))
    except NotFound:
        return [{"code": "node_gone", "message": f"Node {node!r} is not registered any more."}]
    if worker.status == "online":
        return []
    return [{"code": "node_offline", "message": f"Node {node!r} is offline; it is done when it is back."}]


def _time(job: Job) -> Reason:
    words = {
        "delay": "It was asked not to start before its time.",
        "backoff": "Its last attempt failed; it is tried again after a pause.",
        "schedule": "It is the next occurrence of a schedule.",
    }
    return {"code": "not_before", "message": words[str(job.wait)], "notBeforeMs": job.not_before_ms}


async def _dependencies(store: Store, job: Job) -> list[Reason]:
    unmet = [text(each) for each in await store.call(command("SMEMBERS", f"h:needs:{job.id}"))]
    states = await store.calls(
        *(command("HGET", f"h:job:{each}", "state", read=text) for each in sorted(unmet))
    )
    return [
        {"code": "dependency", "message": f"It waits for job {parent}, which is {state}.", "jobId": parent}
        for parent, state in zip(sorted(unmet), states, strict=True)
    ]


async def _key(store: Store, job: Job) -> Reason:
    key = job.spec.get("concurrency_key", "")
    holder = await store.call(command("GET", f"h:key:{key}", read=text))
    message = f"Only one job with concurrencyKey {key!r} runs at a time; {holder or 'another one'} has it."
    return {"code": "concurrency_key", "message": message, "jobId": holder or None, "key": key}


async def _workers(store: Store, job: Job) -> list[Reason]:
    wanted = queues.tags_of(job.queue)
    online = [worker for worker in await fleet.workers(store) if worker.status == "online"]
    serving = [worker for worker in online if wanted <= set(worker.tags)]
    if not online:
        return [{"code": "no_workers", "message": "No worker is online."}]
    if not serving:
        unmet = sorted(wanted - {tag for worker in online for tag in worker.tags}) or sorted(wanted)
        message = f"No online worker has all of the tags {', '.join(sorted(wanted))}."
        return [{"code": "unmet_tags", "message": message, "tags": unmet}]
    if all(worker.draining for worker in serving):
        return [{"code": "draining", "message": "Every worker that serves it is being drained."}]
    if not any(worker.free_slots for worker in serving):
        busy = sum(worker.slots for worker in serving)
        return [{"code": "busy", "message": f"All {busy} slots that serve it are busy."}]
    return []


async def _position(store: Store, job: Job) -> Reason:
    levels = list(queues.Priority) if queues.node_of(job.queue) is None else []
    better = levels[: levels.index(queues.Priority(job.spec.get("priority", "normal")))] if levels else []
    tags = queues.tags_of(job.queue)
    rank, *lengths = await store.calls(
        command("LPOS", queues.key(job.queue), job.id),
        *(command("LLEN", queues.key(queues.of_job(level, tags))) for level in better),
    )
    if rank is None:
        return {
            "code": "starting",
            "message": "It has just left its queue, or is about to be put back into it.",
        }
    position = rank + sum(lengths) + 1
    return {"code": "position", "message": f"It is number {position} in line.", "position": position}
