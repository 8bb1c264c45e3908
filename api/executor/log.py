"""What a job printed: whole as text, in pages as JSON, or followed as it is printed."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson
from falcon.asgi import Request, Response
from marshmallow import Schema, fields, validate

from api.dialect import EXECUTOR
from api.endpoint import Context, Group, Role
from api.realtime import messages, sse
from api.realtime.messages import Cursor
from storage import logs
from storage.errors import Invalid, NotFound, Unavailable

group = Group("Job output", "/api/jobs", EXECUTOR)


class LogQuery(Schema):
    """What part of a log is asked for."""

    after = fields.String(
        metadata={"description": "The `seq` of the last line you have, or a message's `id`."}
    )
    limit = fields.Integer(
        load_default=1000,
        validate=validate.Range(1, 10_000),
        metadata={"description": "The most lines to return."},
    )


class LogLine(Schema):
    """One line."""

    seq = fields.Integer(required=True)
    attempt = fields.Integer(required=True)
    stream = fields.String(required=True, validate=validate.OneOf(["stdout", "stderr"]))
    text = fields.String(required=True)


class LogGap(Schema):
    """Lines that are kept nowhere, by their `seq`."""

    first = fields.Integer(required=True, data_key="from")
    last = fields.Integer(required=True, data_key="to")


class LogPage(Schema):
    """Some lines of a log."""

    job_id = fields.String(required=True, data_key="jobId")
    lines = fields.List(fields.Nested(LogLine), required=True)
    next = fields.Integer(required=True)
    gap = fields.Nested(LogGap, required=True, allow_none=True)
    state = fields.String(required=True, data_key="status")
    more = fields.Boolean(required=True)


_PAGE = LogPage()


@group.endpoint(
    "GET /{id}/log",
    role=Role.VIEWER,
    query=LogQuery(),
    returns=_PAGE,
    media_type="text/plain",
    raises=(Invalid, NotFound, Unavailable),
    raw=True,
)
async def read(context: Context, req: Request, resp: Response, id: str, query: dict[str, Any]) -> None:
    """Read what a job has printed, both channels in the order in which they were written.

    Without anything else: the whole log so far as plain text. With `after`, or when you accept JSON: the lines after
    that one, `next` to ask with again, and in `gap` the lines before them that are no longer kept, if any. When you
    accept `text/event-stream`: everything after `after` (or Last-Event-ID), then what follows as it is printed, until
    the job has ended: events `started`, `output`, `progress`, `queued`, `gap`, and at the end `completed`.
    """
    accepts = req.get_header("Accept") or ""
    if "text/event-stream" in accepts:
        after = req.get_header("Last-Event-ID") or query.get("after")
        await sse.tell(context, req, resp, messages.of_job(req.context.hub, id, after))
    elif "after" in query or "application/json" in accepts:
        cursor = Cursor.parse(query.get("after")) or Cursor()
        page = await logs.read(context.store, id, after=cursor.place.line, limit_lines=query["limit"])
        dumped = _PAGE.dump({"job_id": id, **{name: getattr(page, name) for name in page.__slots__}})
        resp.content_type = "application/json"
        resp.data = orjson.dumps(EXECUTOR.success(dumped))
    else:
        resp.content_type = "text/plain; charset=utf-8"
        resp.stream = _Text(await logs.text(context.store, id))


class _Text:
    """A log on its way out, which Falcon closes whatever becomes of the client."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)

    async def close(self) -> None:
        """Let go of what is being read."""
        await self._chunks.aclose()
