"""The API and Socket.IO as one application."""

import logging
from pathlib import Path
from typing import Any

from api.app import Api
from api.dialect import CUBY
from api.realtime.socketio.server import Limits
from api.realtime.socketio.sticky import Receive, Send, Sticky
from api.realtime.socketio.telling import Telling

log = logging.getLogger("hostler.api")

PATH = "/socket.io"


class Application:
    """`api`, with Socket.IO at /socket.io; processes that share `directory` share its sessions."""

    def __init__(self, api: Api, *, directory: Path | None = None, limits: Limits | None = None) -> None:
        self.api = api
        self.at_once = api.at_once
        self.telling = Telling(api.hub.store, api.hub, limits=limits or Limits())
        self.sticky = Sticky(self.telling.server, directory)
        plain = self.telling.server.eio.generate_id
        self.telling.server.eio.generate_id = lambda: self.sticky.named(plain())
        # ports of one dialect alone serve Socket.IO where that dialect has it
        self._without = {
            listener.port for listener in api.hub.store.settings.listen if listener.dialect != CUBY.name
        }

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection, or the life of the process."""
        if scope["type"] == "lifespan":
            await self.api(scope, self._alive(receive), send)
        elif (
            f"{scope['path']}/".startswith(f"{PATH}/")
            and (scope.get("server") or (0, 0))[1] not in self._without
        ):
            await self.sticky(scope, receive, send)
        else:
            await self.api(scope, receive, send)

    def _alive(self, receive: Receive) -> Receive:
        async def alive() -> Any:
            event = await receive()
            if event["type"] == "lifespan.startup":
                await self._start()
            else:
                await self.telling.close()
                await self.sticky.stop()
            return event

        return alive

    async def _start(self) -> None:
        try:
            await self.sticky.start()
        except OSError as error:  # everything else works without
            log.error("Socket.IO cannot be shared between processes", extra={"why": str(error)})

    async def leave(self) -> None:
        """End what is parked or streams, so that its clients go on elsewhere. Safe to repeat."""
        await self.telling.leave()
        await self.api.leave()
