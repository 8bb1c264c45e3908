"""ContextBay's WebSocket: what happens to nodes, and what people should hear of, each a `type` with its `payload`."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import orjson
from falcon.asgi import WebSocket

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.realtime import events, websocket
from api.realtime.hub import Hub
from api.realtime.messages import Message
from storage.errors import Unavailable
from storage.watch import Event

group = Group("WebSocket Events", "/api/ws", CONTEXTBAY)

Fields = Mapping[str, str]


def _node(status: str) -> Callable[[Fields], dict[str, Any]]:
    return lambda f: {"node_id": f.get("w", ""), "status": status, "reason": f.get("why") or None}


def _notification(f: Fields) -> dict[str, Any]:
    return {"title": f.get("title", ""), "body": f.get("body", ""), "level": f.get("level", "info")}


#: Events as ContextBay's page spells them; others are nothing to its clients.
FRAMES: Mapping[str, tuple[str, Callable[[Fields], dict[str, Any]]]] = {
    "worker.online": ("node.status", _node("healthy")),
    "worker.offline": ("node.status", _node("offline")),
    "notification": ("notification", _notification),
}


def _told(event: Event) -> Message | None:
    if event.name not in FRAMES:
        return None
    if (frame := event.frames.get("contextbay")) is None:  # encoded once for all who listen
        kind, payload = FRAMES[event.name]
        body = {"type": kind, "payload": payload(event.fields)}
        frame = event.frames["contextbay"] = orjson.dumps(body).decode()
    return Message(event.name, event.id, frame)


def _happenings(hub: Hub) -> AsyncGenerator[Message, None]:
    """Yield what happens from now on. Raises Unavailable."""
    return events.happenings(hub, None, _told)


@group.endpoint("WS ", role=Role.VIEWER, raises=(Unavailable,))
async def happenings(context: Context, ws: WebSocket) -> None:
    """Hear of what happens, from now on, each message a JSON object of `type` and `payload`.

    `node.status` (`node_id`, `status` healthy or offline, `reason`) and `notification` (`title`, `body`, `level` info,
    warning or error), such as `Backup complete`.
    """
    await websocket.tell(context, ws, _happenings(context.request.context.hub))
