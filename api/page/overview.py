"""What the first look at a Hostler shows: how much waits, runs and ends, and who is there to do it."""

from typing import Any

from marshmallow import Schema, fields

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.times import Time
from storage import overview as numbers
from storage.errors import Denied, Unauthenticated, Unavailable

group = Group("Overview", "/api/overview", CONTEXTBAY)


def _each_minute(description: str) -> fields.List[Any]:
    return fields.List(
        fields.Integer(allow_none=True),
        required=True,
        metadata={"description": f"{description}, a minute each."},
    )


class JobCounts(Schema):
    """How many jobs there are in each state; `waiting` are those of the queued that wait for something stated."""

    queued = fields.Integer(required=True)
    waiting = fields.Integer(required=True)
    running = fields.Integer(required=True)
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)
    quarantined = fields.Integer(required=True)
    ended = fields.Integer(required=True)


class QueueLength(Schema):
    """One queue, and how many jobs stand in it."""

    name = fields.String(required=True)
    waiting = fields.Integer(required=True)


class Minutes(Schema):
    """The last hour."""

    from_ms = Time(required=True, data_key="from")
    submitted = _each_minute("Jobs submitted")
    ended = _each_minute("Jobs ended")
    failed = _each_minute("Jobs failed; null where so many ended since that the records were not looked at")
    waited = _each_minute("Milliseconds that the middle one of those that ended had waited")
    ran = _each_minute("Milliseconds that the middle one of those that ended had run")


class Latency(Schema):
    """How long the jobs that ended last waited and ran, in milliseconds: the middle one, and 95 of 100."""

    sampled = fields.Integer(required=True)
    waited_p50 = fields.Integer(required=True, allow_none=True, data_key="waitedP50")
    waited_p95 = fields.Integer(required=True, allow_none=True, data_key="waitedP95")
    ran_p50 = fields.Integer(required=True, allow_none=True, data_key="ranP50")
    ran_p95 = fields.Integer(required=True, allow_none=True, data_key="ranP95")


class Capacity(Schema):
    """Who is there."""

    total = fields.Integer(required=True)
    online = fields.Integer(required=True)
    draining = fields.Integer(required=True)
    slots = fields.Integer(required=True)
    running = fields.Integer(required=True)


class OverviewAnswer(Schema):
    """The state of everything."""

    jobs = fields.Nested(JobCounts, required=True)
    queues = fields.List(fields.Nested(QueueLength), required=True)
    minutes = fields.Nested(Minutes, required=True)
    latency = fields.Nested(Latency, required=True)
    workers = fields.Nested(Capacity, required=True)
    apps = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        required=True,
        metadata={"description": "Apps by status."},
    )


@group.endpoint(
    "GET ", role=Role.VIEWER, returns=OverviewAnswer(), raises=(Unauthenticated, Denied, Unavailable)
)
async def overview(context: Context) -> dict[str, Any]:
    """Show the state of everything in numbers: jobs, queues, the last hour, workers and apps."""
    found = await numbers.overview(context.store)
    return {
        "jobs": found.jobs,
        "queues": found.queues,
        "minutes": {"from_ms": found.from_ms, **found.minutes},
        "latency": found.latency,
        "workers": found.workers,
        "apps": found.apps,
    }
