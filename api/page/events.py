"""The one WebSocket of the page: what happens to jobs, apps, workers, schedules and files, numbered, to be resumed."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import orjson
from falcon.asgi import WebSocket
from marshmallow import Schema, fields

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.realtime import events, websocket
from api.realtime.hub import Hub
from api.realtime.messages import Message
from storage.errors import Invalid, Unavailable
from storage.watch import Event

group = Group("Events", "/api/events", CONTEXTBAY)

Fields = Mapping[str, str]


def _job(fields_: Fields) -> dict[str, Any]:
    told: dict[str, Any] = {"jobId": fields_.get("id", "")}
    spelled = {"a": "attempt", "p": "progress", "x": "exitCode"}
    told |= {name: int(fields_[key]) for key, name in spelled.items() if fields_.get(key, "").isdecimal()}
    named = {"w": "workerId", "state": "status", "reason": "reason", "why": "reason"}
    return told | {name: fields_[key] for key, name in named.items() if fields_.get(key)}


def _app(fields_: Fields) -> dict[str, Any]:
    named = {"app": "instanceId", "product": "product", "node": "node", "status": "status", "phase": "phase"}
    return {name: fields_[key] for key, name in named.items() if key in fields_}


def _worker(fields_: Fields) -> dict[str, Any]:
    return {"workerId": fields_.get("w", ""), "reason": fields_.get("why") or None}


def _id_alone(fields_: Fields) -> dict[str, Any]:
    return {name: fields_[name] for name in ("id", "product", "version") if name in fields_}


#: What a kind of event tells, by what stands before the dot; what is not here is nothing for the page.
_KINDS: Mapping[str, Callable[[Fields], dict[str, Any]]] = {
    "job": _job,
    "app": _app,
    "worker": _worker,
    "schedule": _id_alone,
    "product": _id_alone,
    "file": _id_alone,
    "backup": _id_alone,
}


class EventsQuery(Schema):
    """From where on."""

    after = fields.String(metadata={"description": "The `id` of the last message you have."})


@group.endpoint("WS ", role=Role.VIEWER, query=EventsQuery(), raises=(Invalid, Unavailable))
async def stream(context: Context, ws: WebSocket, query: dict[str, Any]) -> None:
    """Follow what happens to jobs, apps, workers, schedules, products and files, but not what they print.

    Each message is a JSON object with `type`, such as `job.completed` or `app.status`, `id`, and the ids it is about.
    The first is `stream.begin`. Come back with `after` and the `id` of the last message to go on from there; where
    that is no longer possible, `stream.gap` says so, and what is shown has to be read anew.
    """
    await websocket.tell(context, ws, happenings(context.request.context.hub, query.get("after")))


def happenings(hub: Hub, after: str | None) -> AsyncGenerator[Message, None]:
    """Yield what happens from now on; first, what has happened since `after`. Raises Invalid, Unavailable."""
    return events.happenings(
        hub, after, _told,
        begins=lambda position: _message("stream.begin", position, {}),
        missed=lambda position: _message("stream.gap", position, {}),
    )  # fmt: skip


def _told(event: Event) -> Message | None:
    told = _KINDS.get(event.name.partition(".")[0])
    return None if told is None else _message(event.name, event.id, told(event.fields))


def _message(kind: str, event_id: str, body: Mapping[str, Any]) -> Message:
    return Message(kind, event_id, orjson.dumps({**body, "type": kind, "id": event_id}).decode())
