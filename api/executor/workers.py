"""CMD Executor's workers: how agents register, beat and leave, and what people see of all that run jobs."""

import hmac
import secrets
from collections.abc import Callable
from typing import Any

import orjson
from marshmallow import Schema, fields, validate

from api.dialect import EXECUTOR
from api.endpoint import ROLES_OF, Context, Group, HTTPStatus, Role
from api.executor import agent_schemas
from api.executor.agents import holder_of
from api.paging import PageAnswer, PageQuery, Words, cut, envelope, sort_field
from api.times import Time, in_step
from storage import attempts, fleet, sessions
from storage.attempts import Holder
from storage.errors import Conflict, Denied, Invalid, NotFound, Unauthenticated, Unavailable
from storage.fleet import SILENT_LEASES, Worker

group = Group("Workers", "/api/workers", EXECUTOR)

STATUSES = ("online", "offline", "error")

#: Words with which agents say that they cannot work.
_TROUBLED = {"error", "unhealthy"}

_SORTS: dict[str, Callable[[Worker], Any]] = {
    "workerId": lambda worker: worker.id,
    "hostname": lambda worker: worker.hostname,
    "status": lambda worker: worker.status,
    "registeredAt": lambda worker: worker.registered_ms,
    "lastHeartbeat": lambda worker: worker.seen_ms,
    "jobsCompleted": lambda worker: worker.jobs_completed,
    "cpuCount": lambda worker: worker.cpu_count or 0,
    "slots": lambda worker: worker.slots,
    "running": lambda worker: worker.running,
    "freeSlots": lambda worker: worker.free_slots,
}


class RegisteredAnswer(Schema):
    """The worker, with the token that it calls with from now on."""

    worker_id = fields.String(required=True, data_key="workerId")
    token = fields.String(required=True)
    registered_ms = Time(required=True, data_key="registeredAt")


class BeatAnswer(Schema):
    """The server's time, when to beat again, and which jobs to end."""

    server_ms = Time(required=True, data_key="serverTime")
    next_check_in = fields.Integer(
        required=True,
        data_key="nextCheckIn",
        metadata={"description": "Milliseconds, which differ a little."},
    )
    cancel = fields.List(
        fields.String(), required=True, metadata={"description": "Jobs that the worker shall end."}
    )
    held = fields.List(
        fields.Nested(agent_schemas.HeldEntry),
        required=True,
        metadata={"description": "What the worker holds: what it runs beyond that is lost."},
    )


class WorkerEntry(Schema):
    """A worker as lists show it."""

    id = fields.String(required=True, data_key="workerId")
    hostname = fields.String(required=True)
    cpu_count = fields.Integer(required=True, allow_none=True, data_key="cpuCount")
    memory_mb = fields.Integer(required=True, allow_none=True, data_key="totalMemoryMb")
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    seen_ms = Time(required=True, data_key="lastHeartbeat")
    registered_ms = Time(required=True, data_key="registeredAt")
    current_job = fields.String(required=True, allow_none=True, data_key="currentJobId")
    jobs_completed = fields.Integer(required=True, data_key="jobsCompleted")
    tags = fields.List(fields.String(), required=True)
    kind = fields.String(required=True)
    slots = fields.Integer(required=True)
    running = fields.Integer(required=True)
    free_slots = fields.Integer(required=True, data_key="freeSlots")
    draining = fields.Boolean(required=True)
    version = fields.String(required=True, allow_none=True)
    isolation = fields.String(required=True, allow_none=True)
    offline_ms = Time(required=True, allow_none=True, data_key="offlineSince")
    offline_reason = fields.String(required=True, allow_none=True, data_key="offlineReason")


class WorkerDetail(WorkerEntry):
    """Everything about one worker."""

    metadata = fields.Dict(required=True)


class WorkersAnswer(PageAnswer):
    """A page of workers, under the row's own key and under the Pagination section's."""

    workers = fields.List(fields.Nested(WorkerEntry), required=True)
    data = fields.List(fields.Nested(WorkerEntry), required=True)


class WorkerAnswer(Schema):
    """One worker."""

    worker = fields.Nested(WorkerDetail, required=True)


class DrainBody(Schema):
    """Whether a worker shall take no more jobs."""

    draining = fields.Boolean(required=True, truthy={True}, falsy={False})


class GoneAnswer(Schema):
    """The worker is gone."""

    message = fields.String(required=True)


class WorkersQuery(PageQuery):
    """Which workers, in which order."""

    status = fields.String(validate=validate.OneOf(STATUSES))
    tags = Words(metadata={"description": "All of them; repeated, or between commas."})
    sort = sort_field(*_SORTS, default="registeredAt")


@group.endpoint(
    "POST /register",
    role=Role.ENROLL,
    body=agent_schemas.RegisterBody(),
    returns=RegisteredAnswer(),
    status=HTTPStatus.CREATED,
    raises=(Invalid, Unauthenticated, Denied, Conflict, Unavailable),
)
async def register(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Register a worker that pulls over HTTP; the answer holds its token, for the header `x-worker-token`.

    Needs an operator's credentials, the enrolment secret (header `x-enroll-secret`), or the worker's own token of
    before. A name is taken while its worker is online, and that of a node also while it is not. Fields that are not
    known here are ignored.
    """
    worker_id = body["worker_id"]
    proof = _right_to_enroll(context, worker_id, body["enroll_secret"])
    holder = Holder(worker_id, secrets.token_urlsafe(16))
    token = await sessions.issue_worker_token(context.store, worker_id, holder.registration)
    silent_s = SILENT_LEASES * context.store.settings.lease_s
    await context.store.call(fleet.register(holder, _facts(body), proof=proof, silent_s=silent_s))
    worker = await context.store.call(fleet.fetch(worker_id))
    return {"worker_id": worker_id, "token": token, "registered_ms": worker.registered_ms}


def _right_to_enroll(context: Context, worker_id: str, secret: str | None) -> str:
    """Return the registration that the caller proves to hold, or "". Raises Unauthenticated, Denied."""
    settings, identity = context.store.settings, context.identity
    if identity is not None and identity.kind == "worker" and identity.id == worker_id:
        return identity.token_id
    if identity is not None and Role.OPERATOR in ROLES_OF[identity.role]:
        return ""
    offered = context.request.get_header("X-Enroll-Secret") or secret or ""
    expected = settings.enroll_secret
    if expected and hmac.compare_digest(offered.encode("utf-8", "replace"), expected.encode()):
        return ""
    if settings.open_registration:
        return ""
    if identity is not None:
        raise Denied("Registering a worker needs the operator role or the enrolment secret.")
    raise Unauthenticated("Registering a worker needs an operator's credentials or the enrolment secret.")


def _facts(body: dict[str, Any]) -> dict[str, str | int]:
    metadata = body["metadata"]
    tags = body["tags"] if "tags" in body else metadata.get("tags", [])
    facts = {
        "kind": "agent",
        "hostname": body["hostname"] or "",
        "tags": orjson.dumps(sorted(set(tags))).decode(),
        "slots": body["slots"],
        "cpu_count": body["cpu_count"],
        "memory_mb": body["memory_mb"],
        "metadata": orjson.dumps(metadata).decode(),
        "version": body["version"],
        "isolation": body["isolation"],
    }
    return {name: value for name, value in facts.items() if value is not None}


@group.endpoint(
    "POST /heartbeat",
    role=Role.WORKER,
    body=agent_schemas.HeartbeatBody(),
    returns=BeatAnswer(),
    raises=(Invalid, Denied, NotFound, Conflict, Unavailable),
    carries=True,
)
async def heartbeat(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Say that a worker lives; this renews the leases of all jobs it holds.

    From the first heartbeat on they end after three times `nextCheckIn` without a call, or a little later. `status:
    offline` says goodbye: what the worker still holds is then given to others.
    """
    holder, settings = holder_of(context, body["worker_id"]), context.store.settings
    if (body["status"] or "").lower() == "offline":
        await context.store.call(fleet.depart(holder.worker, holder.registration, reason="stopped"))
        return _beaten(context, [], [])
    status = "error" if (body["status"] or "").lower() in _TROUBLED else "online"
    held = await context.store.call(
        attempts.hold(holder, lease_s=settings.lease_s, heartbeat={"status": status})
    )
    return _beaten(context, held.cancel, held.held)


def _beaten(context: Context, cancel: list[str], held: list[tuple[str, int]]) -> dict[str, Any]:
    return {
        "server_ms": context.store.now_ms(),
        "next_check_in": int(in_step(context.store.settings.heartbeat_s) * 1000),
        "cancel": cancel,
        "held": [{"job_id": job_id, "attempt": attempt} for job_id, attempt in held],
    }


@group.endpoint(
    "GET /list", role=Role.VIEWER, query=WorkersQuery(), returns=WorkersAnswer(), raises=(Invalid,)
)
async def list_workers(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the workers that are registered, the oldest first."""
    wanted = set(query.get("tags", ()))
    found = [
        worker
        for worker in await fleet.workers(context.store)
        if query.get("status") in {None, worker.status} and wanted <= set(_tags_of(worker))
    ]
    key = _SORTS[query["sort"].lstrip("-")]
    found.sort(key=lambda worker: (key(worker), worker.id), reverse=query["sort"].startswith("-"))
    return envelope("workers", [_entry(each) for each in cut(found, query)], len(found), query)


@group.endpoint("GET /{workerId}", role=Role.VIEWER, returns=WorkerAnswer(), raises=(NotFound,))
async def show(context: Context, workerId: str) -> dict[str, Any]:  # noqa: N803  as the path spells it
    """Show one worker."""
    worker = await context.store.call(fleet.fetch(workerId))
    return {"worker": {**_entry(worker), "metadata": worker.metadata}}


@group.endpoint(
    "PUT /{workerId}/draining",
    role=Role.OPERATOR,
    body=DrainBody(),
    returns=WorkerAnswer(),
    raises=(Invalid, NotFound, Unavailable),
)
async def drain(context: Context, workerId: str, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N803  as the path spells it
    """Keep a worker from taking more jobs, or let it take them again; what it runs, and its apps, go on."""
    await context.store.call(fleet.drain(workerId, on=body["draining"], actor=context.caller.actor))
    return await show(context, workerId)


@group.endpoint(
    "DELETE /{workerId}",
    role=Role.OPERATOR | Role.WORKER,
    returns=GoneAnswer(),
    raises=(NotFound, Denied, Unavailable),
)
async def unregister(context: Context, workerId: str) -> dict[str, Any]:  # noqa: N803  as the path spells it
    """Forget a worker: its token ends, and what it holds goes back into its queue. A worker may forget itself."""
    caller = context.caller
    own = caller.kind == "worker"
    if own and caller.id != workerId:
        raise Denied("A worker may unregister itself, and no other.")
    registration = caller.token_id if own else ""
    await context.store.call(
        fleet.depart(workerId, registration, reason="unregistered", forget=True, actor=caller.actor)
    )
    return {"message": "Worker unregistered"}


def _tags_of(worker: Worker) -> list[str]:
    """Return the tags of a worker, those in its metadata too."""
    more = worker.metadata.get("tags", [])
    return sorted({*worker.tags, *(str(tag) for tag in more if isinstance(more, list))})


def _entry(worker: Worker) -> dict[str, Any]:
    names = (name for name in WorkerEntry._declared_fields if name != "tags")
    return {**{name: getattr(worker, name) for name in names}, "tags": _tags_of(worker)}
