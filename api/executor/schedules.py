"""Schedules: the jobs that recur, seen and ended; they are made by a submit with `schedule`."""

import asyncio
from typing import Any

from marshmallow import Schema, fields, validate

from api.dialect import EXECUTOR
from api.endpoint import Context, Group, Role
from api.paging import PageAnswer, PageQuery, envelope
from api.times import Time
from storage import schedules
from storage.errors import Denied, Invalid, NotFound, Unauthenticated
from storage.schedules import Misfire, Schedule

group = Group("Schedules", "/api/schedules", EXECUTOR)


class ScheduleAnswer(Schema):
    """One schedule; `jobId` is the occurrence that waits for `nextAt`."""

    scheduleId = fields.String(required=True, attribute="id")
    cron = fields.String(required=True)
    timezone = fields.String(required=True)
    misfire = fields.String(required=True, validate=validate.OneOf([each.value for each in Misfire]))
    command = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    createdBy = fields.String(required=True, attribute="actor")
    createdAt = Time(required=True, attribute="created_ms")
    nextAt = Time(required=True, attribute="next_ms")
    nextRuns = fields.List(
        Time(), attribute="next_runs", metadata={"description": "As many as `runs` asked for."}
    )
    jobId = fields.String(required=True, attribute="job_id")


class OneSchedule(Schema):
    """A schedule."""

    schedule = fields.Nested(ScheduleAnswer, required=True)


class ScheduleList(PageAnswer):
    """A page of schedules, the next to come first."""

    schedules = fields.List(fields.Nested(ScheduleAnswer), required=True)
    data = fields.List(fields.Nested(ScheduleAnswer), required=True)


#: So many coming runs are reckoned for one answer.
_MOST_RUNS = 1000


class SchedulesQuery(PageQuery):
    """Which schedules, and how many of the coming runs of each."""

    runs = fields.Integer(load_default=0, validate=validate.Range(0, 100))


class Ended(Schema):
    """What was done."""

    message = fields.String(required=True)


_GUARDED = (Unauthenticated, Denied)


def _shown(schedule: Schedule) -> dict[str, Any]:
    order = schedule.order
    shown = {name: getattr(schedule, name) for name in Schedule.__slots__ if name != "order"}
    return {**shown, "command": order.command or " ".join(order.argv or []), "name": order.name}


@group.endpoint(
    "GET ", role=Role.VIEWER, query=SchedulesQuery(), returns=ScheduleList(), raises=(*_GUARDED, Invalid)
)
async def list_schedules(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the schedules, the next to come first; with `runs`, so many coming times of each as `nextRuns`."""
    found, total = await schedules.page(context.store, limit=query["limit"], offset=query["offset"])
    shown = [_shown(schedule) for schedule in found]
    if (runs := query["runs"]) * len(found) > _MOST_RUNS:
        problem = f"At most {_MOST_RUNS} times are reckoned at once: ask for fewer, or for fewer schedules."
        raise Invalid(f"runs: {problem}", details={"runs": problem})
    if runs:
        coming = await asyncio.to_thread(lambda: [schedules.coming(schedule, runs) for schedule in found])
        shown = [{**each, "next_runs": times} for each, times in zip(shown, coming, strict=True)]
    return envelope("schedules", shown, total, query)


@group.endpoint("GET /{id}", role=Role.VIEWER, returns=OneSchedule(), raises=(*_GUARDED, NotFound))
async def get_schedule(context: Context, id: str) -> dict[str, Any]:
    """Get one schedule."""
    return {"schedule": _shown(await schedules.get(context.store, id))}


@group.endpoint("DELETE /{id}", role=Role.OPERATOR, returns=Ended(), raises=(*_GUARDED, NotFound))
async def end_schedule(context: Context, id: str) -> dict[str, Any]:
    """End a schedule. The occurrence that waits is cancelled; one that runs goes on."""
    await schedules.delete(context.store, context.caller.actor, id)
    return {"message": "Schedule ended"}
