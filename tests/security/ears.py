"""Ears that hear what should not be said: a port that notes who connects, and a web server that operators allow."""

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

from target import ALLOWED_HOST


class Ear:
    """A port that notes who connects."""

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0))
        self._socket.settimeout(0.2)
        self.port = int(self._socket.getsockname()[1])

    def heard(self) -> bool:
        """Tell whether anybody has connected since it was asked last."""
        try:
            connection, _ = self._socket.accept()
        except TimeoutError:
            return False
        connection.close()
        return True

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[Ear]:
    ear = Ear(host)
    try:
        yield ear
    finally:
        ear.close()


class Outside:
    """A web server on the host that the operator allows, as if it were outside."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        outside = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outside._serve(self)

            def do_POST(self) -> None:
                outside._serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((ALLOWED_HOST, 0), Handler)
        self.url = f"http://{ALLOWED_HOST}:{self.server.server_port}"
        self.redirect_to = ""
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.asked.append((handler.path, body, dict(handler.headers)))
        with contextlib.suppress(OSError):
            if handler.path.startswith("/redirect"):
                handler.send_response(302)
                handler.send_header("Location", self.redirect_to)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
            elif handler.path.startswith("/endless"):
                handler.send_response(200)
                handler.end_headers()
                for _ in range(64):
                    handler.wfile.write(b"a" * (1 << 20))
            else:
                handler.send_response(200)
                handler.send_header("Content-Length", "2")
                handler.end_headers()
                handler.wfile.write(b"ok")

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
