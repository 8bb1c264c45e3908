"""What processes have used, and what one-shot processes have done, as cbox-init's clients ask for it."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, fields

from api.cbox import words
from api.cbox.schedule import cause, exit_code, failure
from api.cbox.words import BadParameter, Named
from api.dialect import CBOX
from api.endpoint import Context, Group, Role
from storage import apps
from storage.apps import KEPT_RUNS, KEPT_SAMPLES, Run
from storage.errors import Invalid, NotFound, Unavailable

group = Group("Process history", "/api/v1", CBOX)

_HOUR_MS = 3_600_000
_MOST = 10_000


class MetricsQuery(Schema):
    """Which samples."""

    class Meta:
        """cbox-init passes over what it does not know."""

        unknown = EXCLUDE

    process = fields.String(metadata={"description": "The name of the process."})
    instance = fields.String(metadata={"description": "The id of the instance, e.g. php-fpm-0."})
    since = fields.String(
        metadata={"description": "RFC 3339, or seconds since the epoch; an hour ago unless said."}
    )
    limit = fields.String(metadata={"description": "1 to 10000."})


class MetricsSample(Schema):
    """What an instance used at a time."""

    timestamp = fields.String(required=True)
    cpu_percent = fields.Float(required=True)
    memory_rss_bytes = fields.Integer(required=True)
    memory_percent = fields.Float(required=True)


class MetricsAnswer(Schema):
    """Samples of one instance, oldest first."""

    process = fields.String(required=True)
    instance = fields.String(required=True)
    since = fields.String(required=True)
    limit = fields.Integer(required=True)
    samples = fields.Integer(required=True)
    data = fields.List(fields.Nested(MetricsSample), required=True)


@group.endpoint(
    "GET /metrics/history",
    role=Role.VIEWER,
    query=MetricsQuery(),
    returns=MetricsAnswer(),
    raises=(NotFound, Invalid, Unavailable),
)
async def metrics_history(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """Read what an instance has used, a sample every few seconds for the last hour."""
    name, instance = query.get("process"), query.get("instance")
    if not name or not instance:
        raise BadParameter("Missing required parameters: process and instance")
    limit = words.whole_number(query.get("limit"), name="limit", default=KEPT_SAMPLES, low=1, high=_MOST)
    since_ms = _since(query.get("since"), context.store.now_ms())
    each = await words.find(context.store, name)
    index = _index(each, instance)
    found = await apps.samples(
        context.store,
        each.app.instance_id,
        since_ms=since_ms,
        limit=limit,
        process=each.process.name,
        index=index,
    )
    data = [
        {
            "timestamp": words.rfc3339(one.at_ms),
            "cpu_percent": one.cpu_percent,
            "memory_rss_bytes": one.memory_rss_bytes,
            "memory_percent": one.memory_percent,
        }
        for one in found
    ]
    return {
        "process": each.name, "instance": instance, "since": words.rfc3339(since_ms), "limit": limit,
        "samples": len(data), "data": data,
    }  # fmt: skip


def _index(each: Named, instance: str) -> int:
    name, _, number = instance.rpartition("-")
    if name != each.name or not number.isdecimal() or len(number) > 6:
        raise NotFound(f"instance not found: {instance}")
    return int(number)


def _since(word: str | None, now_ms: int) -> int:
    if not word:
        return now_ms - _HOUR_MS
    try:
        if word.isascii() and word.isdigit() and len(word) < 12:
            return int(word) * 1000
        moment = datetime.fromisoformat(word.replace(" ", "+"))
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise BadParameter("Invalid since parameter format (use RFC3339 or Unix timestamp)") from None


class OneshotQuery(Schema):
    """How many runs."""

    class Meta:
        """cbox-init passes over what it does not know."""

        unknown = EXCLUDE

    process = fields.String(metadata={"description": "One process; all without it."})
    limit = fields.String(metadata={"description": "1 to 10000."})


class Execution(Schema):
    """One run of a one-shot process."""

    id = fields.String(required=True)
    process_name = fields.String(required=True)
    instance_id = fields.String(required=True)
    started_at = fields.String(required=True)
    finished_at = fields.String(required=True)
    exit_code = fields.Integer(required=True)
    success = fields.Boolean(required=True)
    error = fields.String()
    duration = fields.String(required=True)
    duration_ms = fields.Integer(required=True)
    trigger_type = fields.String(required=True)


class OneshotAnswer(Schema):
    """Runs of one-shot processes, newest first."""

    executions = fields.List(fields.Nested(Execution), required=True)
    count = fields.Integer(required=True)
    limit = fields.Integer(required=True)


@group.endpoint(
    "GET /oneshot/history",
    role=Role.VIEWER,
    query=OneshotQuery(),
    returns=OneshotAnswer(),
    raises=(NotFound, Invalid, Unavailable),
)
async def oneshot_history(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the latest runs of one-shot processes."""
    limit = words.whole_number(query.get("limit"), name="limit", default=KEPT_RUNS, low=1, high=_MOST)
    if query.get("process"):
        chosen = [await words.find(context.store, query["process"])]
    else:
        chosen = [each for app in await apps.every(context.store) for each in words.named(app)]
    newest: list[tuple[Named, Run]] = []
    for some in words.batches([each for each in chosen if each.process.type == "oneshot"]):
        read = await asyncio.gather(
            *(apps.runs(context.store, each.app.instance_id, process=each.process.name) for each in some)
        )
        newest += [(each, run) for each, runs in zip(some, read, strict=True) for run in runs]
        newest = sorted(newest, key=lambda pair: -pair[1].ended_ms)[:limit]
    executions = [_execution(each, run) for each, run in newest]
    return {"executions": executions, "count": len(executions), "limit": limit}


def _execution(each: Named, run: Run) -> dict[str, Any]:
    lasted_ms = max(0, run.ended_ms - run.started_ms)
    return {
        "id": run.id,
        "process_name": each.name,
        "instance_id": f"{each.name}-{run.index}",
        "started_at": words.rfc3339(run.started_ms),
        "finished_at": words.rfc3339(run.ended_ms),
        "exit_code": exit_code(run),
        "success": run.exit_code == 0,
        "duration": f"{lasted_ms / 1000:g}s",
        "duration_ms": lasted_ms,
        "trigger_type": cause(run),
        **({"error": failure(run)} if failure(run) else {}),
    }
