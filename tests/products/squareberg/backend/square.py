"""An ASGI app with the three paths that a hub asks for: health, description, and an echo."""

import json
import os

SPEC = {
    "openapi": "3.1.0",
    "info": {"title": "Square", "version": "1.0.0"},
    "paths": {"/api/health": {"get": {}}},
}


async def app(scope, receive, send):
    """Answer one request."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    message = await receive()
    if path == "/api/exit":
        os._exit(3)
    known = {
        "/api/health": {"status": "ok"},
        "/openapi.json": SPEC,
        "/api/echo": {"method": scope["method"], "body": message.get("body", b"").decode()},
    }
    body = json.dumps(known.get(path, {"detail": "Not Found"})).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    status = 200 if path in known else 404
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
