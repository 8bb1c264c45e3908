"""ContextBay's nodes: the machines that run jobs and apps, by their workers and agents."""

from collections import Counter
from typing import Any

from marshmallow import Schema, fields, validate

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.times import Time
from storage import apps, fleet
from storage.errors import Denied, NotFound, Unauthenticated
from storage.fleet import Worker
from storage.store import Store

group = Group("Nodes", "/api/nodes", CONTEXTBAY)

STATUSES = ("online", "degraded", "offline")
_GUARDED = (Unauthenticated, Denied)


class NodeCapacity(Schema):
    """What a node has."""

    slots = fields.Integer(required=True)
    cpu_count = fields.Integer(required=True, allow_none=True)
    memory_mb = fields.Integer(required=True, allow_none=True)


class NodeLoad(Schema):
    """What a node does: `busy` is the share of its slots that run a job."""

    running = fields.Integer(required=True)
    free_slots = fields.Integer(required=True)
    busy = fields.Float(required=True)
    current_job_id = fields.String(required=True, allow_none=True)
    jobs_completed = fields.Integer(required=True)


class NodeApps(Schema):
    """How many apps a node has, in all and by their status."""

    total = fields.Integer(required=True)
    by_status = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)


class NodeAnswer(Schema):
    """One node. It is degraded when a heartbeat of it is late, or when it says itself that something is wrong."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    hostname = fields.String(required=True)
    kind = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    status_reason = fields.String(required=True, allow_none=True)
    last_seen = Time(required=True)
    registered_at = Time(required=True)
    draining = fields.Boolean(required=True)
    tags = fields.List(fields.String(), required=True)
    labels = fields.Dict(keys=fields.String(), values=fields.Raw(), required=True)
    version = fields.String(required=True, allow_none=True)
    isolation = fields.String(required=True, allow_none=True)
    capacity = fields.Nested(NodeCapacity, required=True)
    node_load = fields.Nested(NodeLoad, required=True, data_key="load")
    apps = fields.Nested(NodeApps, required=True)


class AppOfNode(Schema):
    """One app of a node."""

    id = fields.String(required=True)
    product = fields.String(required=True)
    version = fields.String(required=True)
    status = fields.String(required=True)


class NodeDetail(NodeAnswer):
    """One node with the apps that it has."""

    installed = fields.List(fields.Nested(AppOfNode), required=True)


class NodeList(Schema):
    """All nodes, the oldest first."""

    nodes = fields.List(fields.Nested(NodeAnswer), required=True)
    total = fields.Integer(required=True)


@group.endpoint("GET ", role=Role.VIEWER, returns=NodeList(), raises=_GUARDED)
async def list_nodes(context: Context) -> dict[str, Any]:
    """List all nodes, the oldest first: each worker and each agent is one."""
    store = context.store
    found = await fleet.workers(store)
    by_node: dict[str, list[apps.App]] = {}
    for app in await apps.every(store):
        by_node.setdefault(app.node, []).append(app)
    nodes = [_shown(store, worker, by_node.get(worker.id, [])) for worker in found]
    return {"nodes": nodes, "total": len(nodes)}


@group.endpoint("GET /{node_id}", role=Role.VIEWER, returns=NodeDetail(), raises=(*_GUARDED, NotFound))
async def get_node(context: Context, node_id: str) -> dict[str, Any]:
    """Show one node, and which apps it has."""
    store = context.store
    try:
        worker = await store.call(fleet.fetch(node_id))
    except NotFound:
        raise NotFound(f"There is no node {node_id!r}.") from None
    own = await apps.of_node(store, node_id)
    installed = [
        {"id": app.instance_id, "product": app.product, "version": app.version, "status": app.status}
        for app in own
    ]
    return {**_shown(store, worker, own), "installed": installed}


def status_of(worker: Worker, *, now_ms: int, lease_s: float) -> tuple[str, str | None]:
    """Return how a node is and, unless it is well, why: online, degraded or offline."""
    if worker.status == "offline":
        return "offline", worker.offline_reason
    if worker.status == "error":
        return "degraded", "it reports an error"
    silent_s = (now_ms - worker.seen_ms) / 1000
    if silent_s > lease_s:
        return "degraded", f"not heard of for {silent_s:.0f} s"
    return "online", None


def _shown(store: Store, worker: Worker, own: list[apps.App]) -> dict[str, Any]:
    status, reason = status_of(worker, now_ms=store.now_ms(), lease_s=store.settings.lease_s)
    labels = worker.metadata.get("labels", {})
    return {
        "id": worker.id,
        "name": worker.id,
        "hostname": worker.hostname,
        "kind": worker.kind,
        "status": status,
        "status_reason": reason,
        "last_seen": worker.seen_ms,
        "registered_at": worker.registered_ms,
        "draining": worker.draining,
        "tags": list(worker.tags),
        "labels": labels if isinstance(labels, dict) else {},
        "version": worker.version,
        "isolation": worker.isolation,
        "capacity": {
            "slots": worker.slots,
            "cpu_count": worker.cpu_count,
            "memory_mb": worker.memory_mb,
        },
        "node_load": {
            "running": worker.running,
            "free_slots": worker.free_slots,
            "busy": round(min(1.0, worker.running / max(1, worker.slots)), 3),
            "current_job_id": worker.current_job,
            "jobs_completed": worker.jobs_completed,
        },
        "apps": {"total": len(own), "by_status": dict(Counter(app.status for app in own))},
    }
