"""The WebSocket on which jobs are followed live."""

from typing import Any

from falcon.asgi import WebSocket
from marshmallow import Schema, fields

from api.endpoint import Context, Role
from api.executor.log import group
from api.realtime import messages, websocket
from storage.errors import Invalid, NotFound, Unavailable


class StreamQuery(Schema):
    """Whom to follow, and from where on."""

    job_id = fields.String(
        data_key="jobId", metadata={"description": "The job to follow; all jobs without it."}
    )
    after = fields.String(metadata={"description": "The `id` of the last message you have."})


@group.endpoint("WS /stream", role=Role.VIEWER, query=StreamQuery(), raises=(Invalid, NotFound, Unavailable))
async def stream(context: Context, ws: WebSocket, query: dict[str, Any]) -> None:
    """Follow one job, or all jobs, as they happen.

    Each message is a JSON object with `type`, `id` and `jobId`: `job.queued` (`reason`), `job.started` (`workerId`,
    `attempt`), `job.output` (`data`, `stream`, `seq` of its first line, `lines` that end in it, `attempt`),
    `job.progress` (`progress`), `job.completed` (`status`, `reason`, `exitCode`), and `stream.gap` where something is
    no longer kept. With `jobId`, the log so far comes first, each piece once, and the socket closes with 1000 after
    `job.completed`; an unknown job closes it with 4404. Come back with `after` and the `id` of the last message to go
    on from there. Without `jobId`, what happens from now on comes, or after `after`; output that passed meanwhile is
    not repeated, and a `stream.gap` (`what`, `jobIds`, `read`) says where to read it.
    """
    hub = context.request.context.hub
    job_id, after = query.get("job_id"), query.get("after")
    if job_id is not None:
        await websocket.tell(context, ws, messages.of_job(hub, job_id, after))
    else:
        live = websocket.takes_frames(context)
        await websocket.tell(context, ws, messages.of_all(hub, after, live=live))
