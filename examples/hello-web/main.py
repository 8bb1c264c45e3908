"""Greets whoever asks: GET /, GET /api/greetings, POST /api/greetings, and GET /health for the supervisor."""

import hmac
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COUNT = Path(os.environ.get("HOSTLER_DATA_DIR", ".")) / "count"
LONGEST_BODY = 64 * 1024
counting = threading.Lock()


def configuration() -> dict[str, str]:
    """Return the configuration; Hostler starts the app anew when it changes."""
    path = os.environ.get("HOSTLER_CONFIG_FILE")
    try:
        return dict(json.loads(Path(path).read_text())) if path else {}
    except FileNotFoundError:
        return {}


CONFIG = configuration()


def count_up() -> int:
    """Count one more greeting, over restarts and updates: what lies in $HOSTLER_DATA_DIR stays."""
    with counting:
        number = int(COUNT.read_text()) + 1 if COUNT.exists() else 1
        COUNT.write_text(str(number))
        return number


class Handler(BaseHTTPRequestHandler):
    """Answers requests in JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what can be looked at."""
        path = urlsplit(self.path).path
        if path == "/health":
            self.reply(200, {"status": "ok"})
        elif path in {"/", "/api/greetings"}:
            self.reply(200, {"greeting": CONFIG.get("greeting", "Hello"), "number": count_up()})
        else:
            self.reply(404, {"error": f"There is nothing at {path}."})

    def do_POST(self) -> None:
        """Greet somebody by name."""
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(size, LONGEST_BODY))
        if urlsplit(self.path).path != "/api/greetings" or size > LONGEST_BODY:
            self.close_connection = True
            return self.reply(404, {"error": "There is nothing here."})
        try:
            asked = dict(json.loads(body))
        except (ValueError, TypeError):
            return self.reply(400, {"error": "That is no JSON object."})
        password = CONFIG.get("password", "")
        if password and not hmac.compare_digest(str(asked.get("password", "")).encode(), password.encode()):
            return self.reply(403, {"error": "That is not the password."})
        greeting = f"{CONFIG.get('greeting', 'Hello')}, {asked.get('name', 'whoever you are')}!"
        return self.reply(201, {"greeting": greeting, "number": count_up()})

    def reply(self, status: int, what: dict[str, object]) -> None:
        """Send a JSON object."""
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    print(f"greeting on http://127.0.0.1:{port}")
    ThreadingHTTPServer.request_queue_size = 128  # not 5: who comes beyond that tries again after a second
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
