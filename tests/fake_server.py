"""A server that answers as a test says, and what Hostler would answer."""

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Asked:
    """One request, as the server received it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False  # hang up instead of answering


def error(status: int, message: str, **more: Any) -> Answer:
    return Answer(status, {"error": "No", "message": message, **more})


class FakeServer:
    """Answers each route with what was put there: the answers in turn, the last one again and again."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.routes: dict[str, list[Answer | Callable[[Asked], Answer]]] = defaultdict(list)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def handle_any(self) -> None:
                parts = urlsplit(self.path)
                body = self._body()
                asked = Asked(
                    self.command,
                    parts.path,
                    dict(parse_qsl(parts.query)),
                    {k.lower(): v for k, v in self.headers.items()},
                    body,
                )
                fake.asked.append(asked)
                answers = fake.routes.get(f"{self.command} {parts.path}")
                if not answers:
                    self._send(error(404, f"Nothing at {parts.path}"))
                    return
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                self._send(answer(asked) if callable(answer) else answer)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _send(self, answer: Answer) -> None:
                if answer.drop:
                    self.close_connection = True
                    return
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PUT = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def on(self, route: str, *answers: Answer | Callable[[Asked], Answer]) -> None:
        self.routes[route].extend(answers)

    def last(self, path: str) -> Asked:
        return next(asked for asked in reversed(self.asked) if asked.path == path)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def job(**more: Any) -> dict[str, Any]:
    """Return a job as the API shows it: one that has completed, unless told otherwise."""
    return {
        "jobId": "job-00000000000000000001", "command": "make test", "argv": None, "name": None, "status": "completed",
        "reason": None, "workerId": "worker-1", "createdAt": "2026-01-25T10:30:00Z",
        "startedAt": "2026-01-25T10:30:02Z", "completedAt": "2026-01-25T10:30:12Z",
        "waitedMs": 2000, "ranMs": 10000,
        "progress": None, "exitCode": 0, "tags": [], "priority": "normal",
        "attempt": 1, **more,
    }  # fmt: skip


def events(*many: tuple[str, dict[str, Any]], start: int = 1) -> Answer:
    """Return a stream of server-sent events that ends after `many`."""
    text = ": hello\n\n" + "".join(
        f"event: {name}\nid: {number}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        for number, (name, data) in enumerate(many, start)
    )
    return Answer(200, text.encode(), {"Content-Type": "text/event-stream"})


def output(text: str, stream: str = "stdout") -> tuple[str, dict[str, Any]]:
    return "output", {"data": text, "stream": stream, "seq": 1}


def completed(status: str = "completed", exit_code: int | None = 0) -> tuple[str, dict[str, Any]]:
    return "completed", {"status": status, "reason": None, "exitCode": exit_code}
