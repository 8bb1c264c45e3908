"""What tests of the job engine share: orders, workers and steps with the tedious words filled in."""

from typing import Any

from storage import attempts, fleet, jobs
from storage.attempts import Claim, Holder
from storage.jobs import Order, Submitted
from storage.store import Store


async def submit(store: Store, command: str = "true", **order: Any) -> str:
    """Submit a job as somebody, and return its id."""
    return (await submitted(store, command, **order)).id


async def submitted(store: Store, command: str = "true", key: str | None = None, **order: Any) -> Submitted:
    return await jobs.submit(store, "user:u", Order(command=command, **order), idempotency_key=key)


async def register(
    store: Store,
    worker: str = "w",
    registration: str = "r1",
    *,
    proof: str = "",
    silent_s: float = 30,
    **facts: Any,
) -> Holder:
    """Register a worker and return it as the holder of what it claims."""
    holder = Holder(worker, registration)
    given = {"kind": "worker", "hostname": "host", "tags": "[]", "slots": 1, "metadata": "{}", **facts}
    await store.call(fleet.register(holder, given, proof=proof, silent_s=silent_s))
    return holder


async def claim(
    store: Store, holder: Holder, *tags: str, most: int = 1, startable: int = 100, lease_s: float = 15
) -> list[Claim]:
    """Claim jobs from the queues that `tags` cover."""
    sets = await fleet.tag_sets(store)
    step = attempts.claim(holder, sets, tags, most=most, startable=startable, lease_s=lease_s)
    return (await store.call(step))[0]


async def settle(store: Store, holder: Holder, claimed: Claim, outcome: str = "completed", **how: Any) -> str:
    """End an attempt; a failure is an exit code of 1 unless told otherwise."""
    default = {"completed": ("", 0), "failed": ("exit_code", 1)}.get(outcome, (outcome, None))
    reason, exit_code = how.pop("reason", default[0]), how.pop("exit_code", default[1])
    return await store.call(
        attempts.settle(holder, claimed.job_id, claimed.attempt, outcome, reason, exit_code, **how)
    )


async def output(
    store: Store, holder: Holder, claimed: Claim, data: bytes, *, channel: str = "o", **how: Any
) -> attempts.Received:
    """Append output of an attempt, with limits that do not matter."""
    given: dict[str, Any] = {"first_line": None, "line_count": data.count(b"\n"), "live_bytes": 1 << 20,
                             "limit_bytes": 1 << 28, **how}  # fmt: skip
    return await store.call(attempts.output(holder, claimed.job_id, claimed.attempt, channel, data, **given))


def reap(store: Store, *, lease_ms: int = 15_000, cancel_ms: int = 20_000, silent_ms: int = 30_000) -> Any:
    """Look once for what died, as the leading scheduler does."""
    from storage.calls import script

    return store.call(script("reap", lease_ms, cancel_ms, silent_ms, 100, attempts.rq_time(), lease_ms // 3))
