"""Scheduled processes as cbox-init's clients look at, pause, resume and trigger them."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson
from falcon.asgi import Request, Response
from marshmallow import EXCLUDE, Schema, fields

from api.cbox import words
from api.cbox.processes import act
from api.cbox.words import Named, Refused
from api.dialect import CBOX
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import apps
from storage.apps import KEPT_RUNS, Run
from storage.errors import Conflict, GatewayTimeout, Invalid, NotFound, Unavailable
from storage.jobs import Job

group = Group("Process schedules", "/api/v1/processes/{name}/schedule", CBOX)

#: How long a trigger that waits for its run waits at most, as in cbox-init.
SYNC_S = 300.0
#: So much of it in silence: then the answer begins, and a space goes out as often, since routers hang up after 30 s.
SILENT_S = 20.0
_RAISES = (NotFound, Invalid, Conflict, Unavailable)
#: How runs come about: our words and cbox-init's.
_CAUSES = {"schedule": "schedule", "trigger": "manual", "start": "startup"}


class ScheduleStats(Schema):
    """How the latest runs went."""

    total_executions = fields.Integer(required=True)
    success_count = fields.Integer(required=True)
    failure_count = fields.Integer(required=True)
    running_count = fields.Integer(required=True)
    success_rate = fields.Float(required=True, metadata={"description": "0 to 100."})


class ScheduleState(Schema):
    """A schedule and what it does."""

    name = fields.String(required=True)
    schedule = fields.String(required=True)
    timezone = fields.String(required=True)
    state = fields.String(required=True, metadata={"description": "idle, executing or paused."})
    last_run = fields.String(required=True)
    next_run = fields.String(required=True)
    stats = fields.Nested(ScheduleStats, required=True)


class ScheduleAnswer(Schema):
    """The schedule of a process."""

    process = fields.String(required=True)
    schedule = fields.Nested(ScheduleState, required=True)


class HistoryQuery(Schema):
    """How many runs."""

    class Meta:
        """cbox-init passes over what it does not know."""

        unknown = EXCLUDE

    limit = fields.String(metadata={"description": f"The latest so many runs; {KEPT_RUNS} are kept."})


class RunAnswer(Schema):
    """One run."""

    id = fields.String(required=True)
    start_time = fields.String(required=True)
    end_time = fields.String(required=True)
    exit_code = fields.Integer(required=True, metadata={"description": "-1 where a signal ended it."})
    success = fields.Boolean(required=True)
    error = fields.String(required=True)
    triggered = fields.String(required=True)


class HistoryAnswer(Schema):
    """The latest runs, newest first."""

    process = fields.String(required=True)
    limit = fields.Integer(required=True)
    count = fields.Integer(required=True)
    history = fields.List(fields.Nested(RunAnswer), required=True)


class ScheduleChanged(Schema):
    """What was done."""

    status = fields.String(required=True)
    process = fields.String(required=True)


class Triggered(ScheduleChanged):
    """A run was asked for; with `sync`, it has ended."""

    exit_code = fields.Integer()


class TriggerQuery(Schema):
    """Whether to wait."""

    class Meta:
        """cbox-init passes over what it does not know."""

        unknown = EXCLUDE

    sync = fields.String(metadata={"description": "`true`: answer once the run has ended, within 5 minutes."})


async def _scheduled(context: Context, name: str) -> Named:
    """Return a scheduled process. Raises NotFound, Refused."""
    each = await words.find(context.store, name)
    if each.process.type != "scheduled":
        raise Refused(f"process {name} is {each.process.type}, not scheduled")
    return each


@group.endpoint("GET ", role=Role.VIEWER, returns=ScheduleAnswer(), raises=_RAISES)
async def show_schedule(context: Context, name: str) -> dict[str, Any]:
    """Show when a process runs next, and how it has done so far."""
    each = await _scheduled(context, name)
    known = each.app.schedules.get(each.process.name, apps.ScheduleState())
    runs = await apps.runs(context.store, each.app.instance_id, process=each.process.name)
    successes = sum(run.exit_code == 0 for run in runs)
    return {
        "process": each.name,
        "schedule": {
            "name": each.name,
            "schedule": each.process.schedule,
            "timezone": each.process.timezone,
            "state": words.schedule_state(each),
            "last_run": words.rfc3339(known.last_ms),
            "next_run": words.rfc3339(known.next_ms),
            "stats": {
                "total_executions": known.run_count,
                "success_count": successes,
                "failure_count": len(runs) - successes,
                "running_count": known.executing,
                "success_rate": known.success_rate or 0.0,
            },
        },
    }


def exit_code(run: Run) -> int:
    """Return what a run ended with, -1 where that was a signal."""
    return -1 if run.exit_code is None else run.exit_code


def failure(run: Run) -> str:
    """Return what was wrong with a run, nothing where it succeeded."""
    if run.signal is not None:
        return f"ended by signal {run.signal}"
    return "" if run.exit_code == 0 else f"exit status {exit_code(run)}"


def cause(run: Run) -> str:
    """Return the word for how a run came about."""
    return _CAUSES.get(run.cause, run.cause)


@group.endpoint(
    "GET /history", role=Role.VIEWER, query=HistoryQuery(), returns=HistoryAnswer(), raises=_RAISES
)
async def schedule_history(context: Context, name: str, query: dict[str, Any]) -> dict[str, Any]:
    """List the latest runs of a scheduled process."""
    limit = words.whole_number(query.get("limit"), name="limit", default=KEPT_RUNS, low=1, high=10_000)
    each = await _scheduled(context, name)
    runs = await apps.runs(context.store, each.app.instance_id, process=each.process.name, limit=limit)
    history = [
        {
            "id": run.id,
            "start_time": words.rfc3339(run.started_ms),
            "end_time": words.rfc3339(run.ended_ms),
            "exit_code": exit_code(run),
            "success": run.exit_code == 0,
            "error": failure(run),
            "triggered": cause(run),
        }
        for run in runs
    ]
    return {"process": each.name, "limit": limit, "count": len(history), "history": history}


@group.endpoint("POST /pause", role=Role.OPERATOR, returns=ScheduleChanged(), raises=_RAISES)
async def pause_schedule(context: Context, name: str) -> dict[str, Any]:
    """Start no more runs until resumed; one that is under way goes on."""
    each = await _scheduled(context, name)
    await act(context, each.name, "pause")
    return {"status": "paused", "process": each.name}


@group.endpoint("POST /resume", role=Role.OPERATOR, returns=ScheduleChanged(), raises=_RAISES)
async def resume_schedule(context: Context, name: str) -> dict[str, Any]:
    """Let runs come due again; those that were missed are not made up for."""
    each = await _scheduled(context, name)
    await act(context, each.name, "resume")
    return {"status": "resumed", "process": each.name}


@group.endpoint(
    "POST /trigger",
    role=Role.OPERATOR,
    query=TriggerQuery(),
    returns=Triggered(),
    status=HTTPStatus.ACCEPTED,
    otherwise=HTTPStatus.OK,
    raises=(*_RAISES, GatewayTimeout),
    raw=True,
)
async def trigger_schedule(
    context: Context, req: Request, resp: Response, name: str, query: dict[str, Any]
) -> None:
    """Run a scheduled process now, whatever its schedule says.

    With `sync=true` the answer is 200 and waits for the end of the run, up to five minutes. When the run takes longer
    than 20 s the 200 comes first, then spaces, and in the end the JSON, which holds `error` if there is no exit code.
    """
    each = await _scheduled(context, name)
    try:
        submitted = await apps.change(
            context.store, context.caller.actor, each.app.instance_id, "trigger", process=each.process.name
        )
    except Invalid as error:
        raise Refused(f"trigger failed: {error}") from None
    answer: dict[str, Any] = {"status": "triggered", "process": each.name}
    if (query.get("sync") or "").lower() in {"true", "1"}:
        resp.status = HTTPStatus.OK.value
        job = await apps.finished(context.store, submitted.id, SILENT_S)
        if job is None:
            resp.content_type = "application/json"
            resp.stream = _slowly(context, each.name, submitted.id)
            return
        answer |= _ended(each.name, job)
    resp.content_type = "application/json"
    resp.data = orjson.dumps(Triggered().dump(answer))


def _ended(name: str, job: Job) -> dict[str, Any]:
    """Return what a run that is over adds to the answer. Raises Conflict for one that did not end by itself."""
    if job.exit_code is None:
        raise Conflict(f"the run of {name} was {job.state}: {job.facts.get('message') or job.reason}")
    return {"status": "completed", "exit_code": job.exit_code}


async def _slowly(context: Context, name: str, job_id: str) -> AsyncGenerator[bytes, None]:
    """Answer piece by piece, a space as often as a router wants to hear something, JSON when the run is over."""
    answer: dict[str, Any] = {"status": "triggered", "process": name}
    for _ in range(round(SYNC_S / SILENT_S) - 1):
        yield b" "
        job = await apps.finished(context.store, job_id, SILENT_S)
        if job is not None:
            break
    try:
        if job is None:
            raise GatewayTimeout(f"the run of {name} has not ended within {SYNC_S:.0f} s")
        answer |= _ended(name, job)
    except (Conflict, GatewayTimeout) as error:
        answer = {"error": str(error)}
    yield orjson.dumps(answer)
