"""What processes print, as cbox-init's clients read and follow it."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import orjson
from falcon.asgi import Request, Response
from marshmallow import EXCLUDE, Schema, fields

from api.cbox import words
from api.cbox.words import Named
from api.dialect import CBOX
from api.endpoint import Context, Group, Role
from api.realtime import sse
from api.realtime.hub import Hub
from api.realtime.messages import Message
from storage import apps, watch
from storage.apps import LogLine
from storage.errors import Invalid, NotFound, Unavailable

group = Group("Process logs", "/api/v1", CBOX)

DEFAULT_LIMIT = 100


class LogQuery(Schema):
    """How many lines."""

    class Meta:
        """cbox-init passes over what it does not know."""

        unknown = EXCLUDE

    limit = fields.String(metadata={"description": "The newest so many lines; 100 unless said."})


class StreamQuery(Schema):
    """What to follow."""

    class Meta:
        """cbox-init passes over what it does not know."""

        unknown = EXCLUDE

    process = fields.String(metadata={"description": "One process; all without it."})


class LogEntry(Schema):
    """One line."""

    timestamp = fields.String(required=True)
    process = fields.String(required=True)
    instance = fields.String(required=True)
    stream = fields.String(required=True)
    level = fields.String(required=True)
    message = fields.String(required=True)


class LogPage(Schema):
    """Lines, oldest first."""

    limit = fields.Integer(required=True)
    count = fields.Integer(required=True)
    logs = fields.List(fields.Nested(LogEntry), required=True)


class ProcessLogs(LogPage):
    """Lines of one process."""

    process = fields.String(required=True)


class AllLogs(LogPage):
    """Lines of all processes."""

    scope = fields.String(required=True)


def _limit(query: dict[str, Any]) -> int:
    return words.whole_number(
        query.get("limit"), name="limit", default=DEFAULT_LIMIT, low=1, high=apps.KEPT_LINES
    )


def _entry(each: Named, line: LogLine) -> dict[str, Any]:
    return {
        "timestamp": words.rfc3339(line.at_ms),
        "process": each.name,
        "instance": f"{each.name}-{line.index}",
        "stream": line.stream,
        "level": line.level,
        "message": line.text,
    }


@group.endpoint(
    "GET /processes/{name}/logs",
    role=Role.VIEWER,
    query=LogQuery(),
    returns=ProcessLogs(),
    raises=(NotFound, Invalid, Unavailable),
)
async def process_logs(context: Context, name: str, query: dict[str, Any]) -> dict[str, Any]:
    """Read the newest lines of a process."""
    each, limit = await words.find(context.store, name), _limit(query)
    lines = await apps.lines(context.store, each.app.instance_id, limit=limit, process=each.process.name)
    return {
        "process": each.name,
        "limit": limit,
        "count": len(lines),
        "logs": [_entry(each, line) for line in lines],
    }


@group.endpoint(
    "GET /logs", role=Role.VIEWER, query=LogQuery(), returns=AllLogs(), raises=(Invalid, Unavailable)
)
async def all_logs(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """Read the newest lines of all processes, in the order of their times."""
    limit = _limit(query)
    newest: list[tuple[Named, LogLine]] = []
    for some in words.batches(await apps.every(context.store)):
        read = await asyncio.gather(
            *(apps.lines(context.store, app.instance_id, limit=limit) for app in some)
        )
        for app, lines in zip(some, read, strict=True):
            by_process = {each.process.name: each for each in words.named(app)}
            newest += [(by_process[line.process], line) for line in lines if line.process in by_process]
        newest = sorted(newest, key=lambda pair: pair[1].at_ms)[-limit:]
    logs = [_entry(each, line) for each, line in newest]
    return {"scope": "stack", "limit": limit, "count": len(logs), "logs": logs}


@group.endpoint(
    "GET /logs/stream",
    role=Role.VIEWER,
    query=StreamQuery(),
    media_type="text/event-stream",
    raises=(NotFound, Invalid, Unavailable),
    raw=True,
)
async def follow_logs(context: Context, req: Request, resp: Response, query: dict[str, Any]) -> None:
    """Follow what one process prints, or all do, as server-sent events of the name `log`.

    A comment comes every 15 s where nothing else does. Of one process, what came after Last-Event-ID comes first; `gap`
    tells that the line of that id is not kept any more.
    """
    name = query.get("process") or None
    each = await words.find(context.store, name) if name is not None else None
    after = req.get_header("Last-Event-ID") if each is not None else None
    await sse.tell(context, req, resp, _followed(context, req.context.hub, each, after))


async def _followed(
    context: Context, hub: Hub, each: Named | None, after: str | None
) -> AsyncGenerator[Message, None]:
    async with hub.follow_app_logs(each.app.instance_id if each is not None else None) as feed:
        kept: list[Message] = []
        lost = False
        if each is not None and after is not None:
            instance_id, limit, process = each.app.instance_id, apps.KEPT_LINES, each.process.name
            try:
                lost = not await apps.keeps(context.store, instance_id, after)
            except Invalid:
                raise words.BadParameter("invalid Last-Event-ID header (must be the id of a line)") from None
            lines = await apps.lines(context.store, instance_id, limit=limit, after=after, process=process)
            kept = _messages(each, lines)
        yield Message("", "", "")
        if lost:  # it is too old, or from before Redis was lost: then what comes has lesser ids
            after = None
            yield _gap("")
        for message in kept:
            after = message.id
            yield message
        names: dict[str, dict[str, Named]] = {}
        while True:
            items = await feed.take()
            if items is None:  # the client was too slow, or the connection to Redis was lost
                feed.start_anew()
                yield _gap(after or "")
                continue
            for item in items:
                if not all(line.get("process") in names.get(item.instance_id, {}) for line in item.lines):
                    names[item.instance_id] = await _processes(context, item.instance_id)
                for message in _told(names[item.instance_id], item.lines, each, after):
                    yield message


def _gap(after: str) -> Message:
    return Message("app.gap", after, '{"message":"some lines were not delivered"}')


async def _processes(context: Context, instance_id: str) -> dict[str, Named]:
    try:
        app = await apps.get(context.store, instance_id)
    except NotFound:  # it is gone, and these were its last words
        return {}
    return {each.process.name: each for each in words.named(app)}


def _told(
    processes: dict[str, Named], lines: list[dict[str, Any]], only: Named | None, after: str | None
) -> list[Message]:
    """Return the messages for lines as they were published; what is no line of ours is passed over."""
    found = []
    for fields_of in lines:
        try:
            line = LogLine(**fields_of)
            new = after is None or watch.moment(line.id) > watch.moment(after)
        except (TypeError, ValueError):
            continue
        each = processes.get(line.process)
        if each is not None and new and (only is None or each.name == only.name):
            found += _messages(each, [line])
    return found


def _messages(each: Named, lines: Iterable[LogLine]) -> list[Message]:
    return [Message("app.log", line.id, orjson.dumps(_entry(each, line)).decode()) for line in lines]
