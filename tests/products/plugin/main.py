"""Answers below /api with what it was asked, on $PORT: method, path, headers, body, and its own greeting."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

environ = os.environ


def configuration() -> dict[str, object]:
    """Return the configuration as it is now; {} while there is none."""
    try:
        return dict(json.loads(Path(environ["HOSTLER_CONFIG_FILE"]).read_text()))
    except (KeyError, FileNotFoundError):
        return {}


class Handler(BaseHTTPRequestHandler):
    """Echoes."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        print(f"{self.command} {self.path}")
        if self.path == "/health":
            return self.reply(200, {"status": "ok"})
        if not self.path.startswith("/api"):
            return self.reply(404, {"error": "not here"})
        asked = {"method": self.command, "path": self.path, "headers": dict(self.headers.items())}
        own = {
            "greeting": configuration().get("greeting"),
            "app": environ.get("HOSTLER_APP"),
            "pid": os.getpid(),
        }
        return self.reply(200, {**asked, **own, "body": body.decode("utf-8", "replace")})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815  http.server wants them so

    def reply(self, status: int, what: dict[str, object]) -> None:
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing more."""


print(f"serving on {environ['PORT']}", file=sys.stderr)
ThreadingHTTPServer(("127.0.0.1", int(environ["PORT"])), Handler).serve_forever()
