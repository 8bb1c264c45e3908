"""Queues: what waits and runs, since when, until when, and how many workers would meet a target."""

from typing import Any

from marshmallow import Schema, fields, validate

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.paging import Words
from api.times import Time
from storage import capacity, census
from storage.census import Outlook, Pool, Queue
from storage.errors import Denied, Invalid, Unauthenticated, Unavailable

group = Group("Queues", "/api/queues", CONTEXTBAY)


class QueuesQuery(Schema):
    """What to aim at, and whose queues to show."""

    target_s = fields.Float(
        data_key="targetSeconds",
        load_default=capacity.TARGET_S,
        validate=validate.Range(0.1, 86_400),
        metadata={"description": "Within how many seconds what waits shall have started."},
    )
    tags = Words(
        metadata={"description": "Only jobs that ask for exactly these; empty for those that ask for none."}
    )


class NodesEntry(Schema):
    """What waits for nodes themselves: changes of apps."""

    depth = fields.Integer(required=True)
    running = fields.Integer(required=True)
    oldest_s = fields.Float(required=True, data_key="oldestAgeSeconds")


class QueueEntry(NodesEntry):
    """One queue of commands."""

    tags = fields.List(fields.String(), required=True)
    priority = fields.String(required=True)


class PoolEntry(Schema):
    """Jobs that ask for one set of tags, and the workers that serve them."""

    tags = fields.List(fields.String(), required=True)
    depth = fields.Integer(required=True)
    running = fields.Integer(required=True)
    oldest_s = fields.Float(required=True, data_key="oldestAgeSeconds")
    mean_run_s = fields.Float(required=True, allow_none=True, data_key="meanRunSeconds")
    workers = fields.Integer(required=True, metadata={"description": "Online, with all of these tags."})
    slots = fields.Integer(required=True)
    slots_per_worker = fields.Float(required=True, data_key="slotsPerWorker")
    drain_s = fields.Float(
        required=True,
        allow_none=True,
        data_key="estimatedDrainSeconds",
        metadata={"description": "Until nothing waits, if nothing is added; null while nobody serves these."},
    )
    slots_needed = fields.Integer(required=True, data_key="slotsNeeded")
    workers_needed = fields.Integer(required=True, data_key="workersNeeded")


class QueuesAnswer(Schema):
    """All queues that something waits or runs in, and what would serve them."""

    at_ms = Time(required=True, data_key="timestamp")
    target_s = fields.Float(required=True, data_key="targetSeconds")
    queues = fields.List(fields.Nested(QueueEntry), required=True)
    nodes = fields.Nested(NodesEntry, required=True)
    pools = fields.List(fields.Nested(PoolEntry), required=True)
    depth = fields.Integer(required=True, metadata={"description": "Of all pools shown."})
    workers_needed = fields.Integer(
        required=True, data_key="workersNeeded", metadata={"description": "For all pools shown."}
    )


@group.endpoint(
    "GET ",
    role=Role.VIEWER,
    query=QueuesQuery(),
    returns=QueuesAnswer(),
    raises=(Unauthenticated, Denied, Invalid, Unavailable),
)
async def show_queues(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """Show what waits and runs, at most a second old, and how many workers would start it within a target.

    Each pool holds the jobs that ask for one set of tags. Its `workersNeeded` is for these alone, so all of them add
    up; zero where nothing waits or runs. docs/autoscaling.md has the rule.
    """
    wanted = frozenset(query["tags"]) if "tags" in query else None
    also = [] if wanted is None else [wanted]
    found = await census.outlook(context.store, target_s=query["target_s"], also=also)
    return _shown(found, wanted, query["target_s"])


def _shown(found: Outlook, wanted: frozenset[str] | None, target_s: float) -> dict[str, Any]:
    pools = [_pool(each) for each in found.pools if wanted is None or each.tags == wanted]
    return {
        "at_ms": found.census.at_ms,
        "target_s": target_s,
        "queues": [
            _queue(each) for each in sorted(found.census.queues, key=_order)
            if wanted is None or each.tags == wanted
        ],
        "nodes": _queue(found.census.nodes),
        "pools": pools,
        "depth": sum(each["depth"] for each in pools),
        "workers_needed": sum(each["workers_needed"] for each in pools),
    }  # fmt: skip


def _order(queue: Queue) -> tuple[list[str], str]:
    return sorted(queue.tags), queue.priority


def _queue(queue: Queue) -> dict[str, Any]:
    return {
        "tags": sorted(queue.tags), "priority": queue.priority, "depth": queue.depth, "running": queue.running,
        "oldest_s": queue.oldest_s,
    }  # fmt: skip


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "tags": sorted(pool.tags), "depth": pool.depth, "running": pool.running, "oldest_s": pool.oldest_s,
        "mean_run_s": pool.mean_run_s, "workers": pool.workers, "slots": pool.slots,
        "slots_per_worker": pool.slots_per_worker, "drain_s": pool.drain_s,
        "slots_needed": pool.advice.slots, "workers_needed": pool.advice.workers,
    }  # fmt: skip
