"""Quarantine: the jobs that lost three workers, looked at, released or discarded."""

from typing import Any

from marshmallow import Schema, fields

from api.dialect import EXECUTOR
from api.endpoint import Context, Group, HTTPStatus, Role
from api.executor.schemas import JobEntry, SubmittedAnswer, entry_of, promised
from api.paging import PageAnswer, PageQuery, envelope
from api.times import Time
from storage import logs, quarantine
from storage.errors import NotFound
from storage.quarantine import Quarantined
from storage.store import Store

group = Group("Quarantine", "/api/jobs/quarantine", EXECUTOR)

#: So much of what the job said last is shown.
LAST_WORDS_BYTES = 4096


class DeathEntry(Schema):
    """One worker that was lost while it ran the job, and how the job's process ended, as far as its machine told."""

    worker = fields.String(required=True, data_key="workerId")
    attempt = fields.Integer(required=True)
    at_ms = Time(required=True, data_key="at")
    how = fields.String(
        required=True, allow_none=True, metadata={"enum": ["by-itself", "with-its-worker", None]}
    )
    signal = fields.Integer(required=True, allow_none=True, data_key="exitSignal")
    max_rss_bytes = fields.Integer(required=True, allow_none=True, data_key="maxRssBytes")


class QuarantineEntry(JobEntry):
    """A job in quarantine: how it lost its workers, and the last that it said."""

    deaths = fields.List(fields.Nested(DeathEntry), required=True)
    last_lines = fields.String(required=True, data_key="lastLines")


class QuarantineAnswer(PageAnswer):
    """A page of the quarantine, the latest first."""

    jobs = fields.List(fields.Nested(QuarantineEntry), required=True)
    data = fields.List(fields.Nested(QuarantineEntry), required=True)


class DiscardedAnswer(Schema):
    """What was done."""

    job_id = fields.String(required=True, data_key="jobId")
    message = fields.String(required=True)


async def _shown(store: Store, found: Quarantined) -> dict[str, Any]:
    job = found.job
    tail = await logs.tail(store, job.id, limit_bytes=LAST_WORDS_BYTES, lines=job.lines)
    last_lines = f"{tail['stdout']}{tail['stderr']}"
    return {**entry_of(job), "deaths": found.deaths, "last_lines": last_lines}


@group.endpoint("GET ", role=Role.VIEWER, query=PageQuery(), returns=QuarantineAnswer())
async def list_quarantine(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the jobs that lost three workers and are kept from the queue, the latest first."""
    found, total = await quarantine.page(context.store, limit=query["limit"], offset=query["offset"])
    return envelope("jobs", [await _shown(context.store, each) for each in found], total, query)


@group.endpoint(
    "POST /{id}/release",
    role=Role.OPERATOR,
    returns=SubmittedAnswer(),
    status=HTTPStatus.CREATED,
    raises=(NotFound,),
)
async def release(context: Context, id: str) -> dict[str, Any]:
    """Let a job's command run again, as a new job; the old one leaves the quarantine and stays failed."""
    return promised(await quarantine.release(context.store, context.caller.actor, id))


@group.endpoint("DELETE /{id}", role=Role.OPERATOR, returns=DiscardedAnswer(), raises=(NotFound,))
async def discard(context: Context, id: str) -> dict[str, Any]:
    """Take a job out of the quarantine; it stays failed."""
    await quarantine.discard(context.store, context.caller.actor, id)
    return {"job_id": id, "message": "Job discarded"}
