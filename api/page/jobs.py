"""What the page shows of one job beyond its status: its attempts, its order to be edited, when its lines came."""

from typing import Any

from marshmallow import Schema, fields

from api.dialect import EXECUTOR
from api.endpoint import Context, Group, Role
from api.times import Time
from storage import jobs, tries
from storage.errors import NotFound, Unavailable

group = Group("Job details", "/api/jobs", EXECUTOR)


class AttemptEntry(Schema):
    """One attempt; `outcome` is `running`, a final state, its reason, or why the job was queued again."""

    number = fields.Integer(required=True, data_key="attempt")
    worker = fields.String(required=True, allow_none=True, data_key="workerId")
    started_ms = Time(required=True, allow_none=True, data_key="startedAt")
    ended_ms = Time(required=True, allow_none=True, data_key="endedAt")
    ran_ms = fields.Integer(required=True, allow_none=True, data_key="ranMs")
    exit_code = fields.Integer(required=True, allow_none=True, data_key="exitCode")
    outcome = fields.String(required=True)


class AttemptsAnswer(Schema):
    """The attempts of a job, the first one first."""

    job_id = fields.String(required=True, data_key="jobId")
    attempts = fields.List(fields.Nested(AttemptEntry), required=True)


class OrderAnswer(Schema):
    """What a job was submitted with, as a submit takes it; of its environment the names alone."""

    job_id = fields.String(required=True, data_key="jobId")
    order = fields.Dict(required=True)
    env_names = fields.List(fields.String(), required=True, data_key="envNames")


class TimesAnswer(Schema):
    """From which line on, by `seq`, lines came when: pairs of a line and milliseconds since the epoch."""

    job_id = fields.String(required=True, data_key="jobId")
    times = fields.List(fields.List(fields.Integer()), required=True)


_RAISES = (NotFound, Unavailable)


@group.endpoint("GET /{id}/attempts", role=Role.VIEWER, returns=AttemptsAnswer(), raises=_RAISES)
async def attempts(context: Context, id: str) -> dict[str, Any]:
    """Show the attempts of a job: who ran each, from when to when, and how it ended."""
    found = await tries.of_job(context.store, id)
    shown = [
        {
            **{name: getattr(each, name) for name in each.__slots__},
            "ran_ms": each.ended_ms - each.started_ms if each.ended_ms and each.started_ms else None,
        }
        for each in found
    ]
    return {"job_id": id, "attempts": shown}


#: How a submit calls what a job's record holds.
_SPELLED = {
    "command": "command",
    "argv": "argv",
    "name": "name",
    "working_directory": "workingDirectory",
    "timeout_s": "timeout",
    "priority": "priority",
    "tags": "tags",
    "artifacts": "artifacts",
    "retries": "retries",
    "concurrency_key": "concurrencyKey",
    "at_most_once": "atMostOnce",
    "metadata": "metadata",
    "file_url": "fileUrl",
}


@group.endpoint("GET /{id}/order", role=Role.OPERATOR, returns=OrderAnswer(), raises=_RAISES)
async def order(context: Context, id: str) -> dict[str, Any]:
    """Show what a job was submitted with, to submit something like it; values of its environment stay secret."""
    job = await jobs.get(context.store, id)
    meant = jobs.order_of(context.store, job)
    shown = {name: value for field, name in _SPELLED.items() if (value := getattr(meant, field))}
    if meant.file is not None:
        shown["fileUrl"] = f"/api/files/download/{meant.file}"
    return {"job_id": job.id, "order": shown, "env_names": sorted(meant.env)}


@group.endpoint("GET /{id}/log/times", role=Role.VIEWER, returns=TimesAnswer(), raises=_RAISES)
async def times(context: Context, id: str) -> dict[str, Any]:
    """Tell when the lines of a job's log came, as far as Redis still holds them."""
    return {"job_id": id, "times": await tries.line_times(context.store, jobs.known(id))}
