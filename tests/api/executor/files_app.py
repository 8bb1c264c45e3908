"""The file endpoints alone, with an identity that each request chooses; `create` is for a process of its own."""

from typing import Any

import falcon.asgi
from falcon.asgi import Request, Response

from api import errors
from api.endpoint import mount
from api.executor.files import group
from settings import Settings
from storage.identity import Identity
from storage.store import Store

IDENTITIES = {
    "viewer": Identity("user", "u-viewer", "r", "viewer", "t"),
    "operator": Identity("user", "u-operator", "w", "operator", "t"),
    "worker": Identity("worker", "worker-1", "worker", "worker-1", "t"),
}


class _Around:
    def __init__(self, store: Store) -> None:
        self.store = store

    async def process_request(self, req: Request, resp: Response) -> None:
        async def admit(req: Request, resp: Response, *, optional: bool) -> Identity:
            return IDENTITIES[req.get_header("X-Role") or "operator"]

        req.context.request_id = "test"
        req.context.store = self.store
        req.context.admit = admit
        resp.set_header("X-Content-Type-Options", "nosniff")


def around(store: Store) -> falcon.asgi.App[Any, Any]:
    app = falcon.asgi.App(middleware=[_Around(store)])
    app.add_error_handler(Exception, errors.handle)
    app.add_error_handler(falcon.HTTPError, errors.handle)
    mount(app, [group])
    return app


def create() -> falcon.asgi.App[Any, Any]:
    return around(Store(Settings.from_env()))
