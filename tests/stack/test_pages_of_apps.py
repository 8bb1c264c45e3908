"""The examples of cbox-init's and Squareberg's pages, word for word, against real processes on ports of their own."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
from processes import Stack, new_stack, until
from servers import NO_TLS, free_port

from storage import api_keys, users
from storage.identity import Identity
from storage.store import Store

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the examples of the pages are calls of curl"),
]

TOKEN = "your-secure-token-here"
get, post = partial(httpx.get, verify=NO_TLS), partial(httpx.post, verify=NO_TLS)
SLEEPER = "[python3, -c, 'import time; print(\"up\", flush=True); time.sleep(600)']"
FILE = f"""
global:
  api_enabled: true
  api_port: 9180
  api_auth: "{TOKEN}" # Optional Bearer token
processes:
  php-fpm: {{enabled: true, command: {SLEEPER}, scale: 2}}
  queue-default: {{enabled: true, command: {SLEEPER}}}
"""
#: The page's examples under "Authentication" and "Examples", with what it shows as their answers.
EXAMPLES: list[tuple[str, Any]] = [
    (r"""curl http://localhost:9180/api/v1/health""", {"status": "healthy"}),
    (
        r"""curl -X POST \
-H "Authorization: Bearer your-token" \
http://localhost:9180/api/v1/processes/php-fpm/restart""",
        {"message": "restart initiated", "process": "php-fpm"},
    ),
    (
        r"""curl -X POST \
-H "Authorization: Bearer your-token" \
-H "Content-Type: application/json" \
-d '{"scale": 10}' \
http://localhost:9180/api/v1/processes/queue-default/scale""",
        {"message": "scale initiated", "process": "queue-default", "scale": 10},
    ),
]
LIST = r"""curl -H "Authorization: Bearer your-token" \
http://localhost:9180/api/v1/processes"""

#: What a Squareberg backend is to its hub: it serves its document on a socket. `stubborn` ignores SIGTERM.
BACKEND = """
import http.server, os, signal, socketserver, sys
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "broken" in sys.argv:
    sys.exit("there is no such module")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"openapi": "3.1.0", "info": {"title": "Hello World"}}' if self.path == "/openapi.json" else b"{}"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "hub"
path = os.environ["HOSTLER_SOCKET"]
if os.path.exists(path):
    os.unlink(path)
socketserver.ThreadingUnixStreamServer(path, Handler).serve_forever()
"""


class Site:
    """One Hostler with a web, a worker, and a port for each dialect."""

    def __init__(self) -> None:
        self.ports = {name: free_port() for name in ("main", "cbox", "squareberg")}
        listen = f"cbox+auth=127.0.0.1:{self.ports['cbox']},squareberg=127.0.0.1:{self.ports['squareberg']}"
        self.stack: Stack = new_stack(
            PORT=str(self.ports["main"]), HOSTLER_HOST="127.0.0.1", HOSTLER_LISTEN=listen, WEB_CONCURRENCY="1",
        )  # fmt: skip

    def url(self, dialect: str) -> str:
        return f"http://127.0.0.1:{self.ports[dialect]}"

    async def key(self) -> str:
        """Make an operator and return a key of it."""
        store = Store(self.stack.settings)
        user = await users.create(
            store, actor="t", username="ops", email="ops@example.org", password="pass word", role="w"
        )
        caller = Identity("user", user.id, "w", "ops", "jti", user_id=user.id)
        _, secret = await api_keys.create(store, caller, name="test", role="w")
        await store.close()
        return secret

    def curl(self, example: str) -> tuple[int, Any]:
        """Run an example of cbox-init's page as it stands there, but for port and token."""
        command = example.replace("localhost:9180", f"localhost:{self.ports['cbox']}").replace(
            "your-token", TOKEN
        )
        words = [
            "curl",
            "--silent",
            "--write-out",
            "\n%{http_code}",
            *shlex.split(command.replace("\\\n", " "))[1:],
        ]
        body, _, status = subprocess.run(
            words, capture_output=True, timeout=30, check=True
        ).stdout.rpartition(b"\n")
        return int(status), orjson.loads(body)

    def process(self, name: str, key: str) -> dict[str, Any]:
        listed = get(f"{self.url('cbox')}/api/v1/processes", headers={"X-API-Key": key}).json()
        return next(each for each in listed["processes"] if each["name"] == name)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    stack = site.stack
    try:
        stack.start("gunicorn", "-c", "api/gunicorn.py", "api.asgi:app")
        stack.worker("n1")
        until(lambda: _answers(site.url("cbox")), "the web answers")
        yield site
    finally:
        stack.end()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return get(f"{url}/api/v1/health").status_code == 200
    return False


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return asyncio.run(site.key())


def test_the_examples_of_cbox_inits_page(site: Site, key: str) -> None:
    headers = {"X-API-Key": key}
    answer = post(f"{site.url('main')}/api/apps/import/cbox", json={"content": FILE}, headers=headers)
    assert answer.status_code == 202, answer.text
    until(lambda: site.process("php-fpm", key)["scale"] == 2, "php-fpm runs twice")
    first = site.process("php-fpm", key)["instances"]
    assert [each["id"] for each in first] == ["php-fpm-0", "php-fpm-1"]
    status, listed = site.curl(LIST)
    assert (status, [each["name"] for each in listed["processes"]][-2:]) == (
        200,
        ["php-fpm", "queue-default"],
    )
    for example, expected in EXAMPLES:
        status, body = site.curl(example)
        assert (status, body) == (200 if "health" in example else 202, expected)
    until(lambda: site.process("queue-default", key)["scale"] == 10, "queue-default runs ten times")

    def restarted() -> bool:
        now = site.process("php-fpm", key)
        return now["state"] == "running" and not {each["pid"] for each in now["instances"]} & before

    before = {each["pid"] for each in first}
    until(restarted, "php-fpm has been restarted")
    status, body = site.curl(LIST.replace("your-token", "another"))
    assert (status, body) == (401, {"error": "unauthorized"})


def _install(site: Site, key: str, name: str, *arguments: str) -> None:
    backend = {"command": ["python3", "-c", BACKEND, *arguments], "socket": True, "stop_timeout_s": 1}
    manifest = {
        "id": name, "kind": "squareberg", "processes": {"backend": backend}, "restart": {"policy": "never"},
        "routes": {"process": "backend", "prefix": "/api"},
    }  # fmt: skip
    body = {"manifest": manifest, "start": False}
    answer = post(f"{site.url('main')}/api/apps", json=body, headers={"X-API-Key": key})
    assert answer.status_code == 202, answer.text
    hub = site.url("squareberg")

    def installed() -> bool:
        shown = get(f"{site.url('main')}/api/apps/{name}", headers={"X-API-Key": key}).json()
        return bool(shown.get("phase") in {"installed", "ready"})

    until(installed, f"{name} is installed")
    assert get(f"{hub}/registry/{name}").json()["status"] == "stopped"


def test_an_app_of_squareberg_is_started_asked_killed_and_stopped(site: Site, key: str) -> None:
    _install(site, key, "hello")
    hub = site.url("squareberg")
    assert get(f"{hub}/registry/hello/spec").status_code == 503
    started = post(f"{hub}/registry/hello/start", timeout=20)
    assert (started.status_code, started.json()["message"]) == (200, "App 'hello' started.")
    shown = get(f"{hub}/registry/hello").json()
    assert shown["status"] == "running"
    assert os.path.exists(shown["socket_path"])
    assert get(f"{hub}/registry/hello/spec").json()["info"]["title"] == "Hello World"
    assert get(f"{hub}/apps/hello/api/anything").json() == {}
    os.kill(site.process("hello", key)["instances"][0]["pid"], signal.SIGKILL)
    until(lambda: get(f"{hub}/registry/hello").json()["status"] == "error", "its end is noticed")
    assert get(f"{hub}/registry/hello/spec").status_code == 503
    assert post(f"{hub}/registry/hello/start", timeout=20).status_code == 200
    for _ in range(2):
        stopped = post(f"{hub}/registry/hello/stop", timeout=20)
        assert (stopped.status_code, stopped.json()["message"]) == (200, "App 'hello' stopped.")
    assert not os.path.exists(shown["socket_path"])
    assert get(f"{hub}/registry/hello").json()["status"] == "stopped"


def test_an_app_that_cannot_start_answers_500_and_one_that_ignores_sigterm_is_killed(
    site: Site, key: str
) -> None:
    hub = site.url("squareberg")
    _install(site, key, "broken", "broken")
    failed = post(f"{hub}/registry/broken/start", timeout=20)
    assert failed.status_code == 500, failed.text
    assert "failed to start; check app logs" in failed.json()["detail"]
    assert get(f"{hub}/registry/broken").json()["status"] == "error"
    _install(site, key, "stubborn", "stubborn")
    assert post(f"{hub}/registry/stubborn/start", timeout=20).status_code == 200
    assert post(f"{hub}/registry/stubborn/stop", timeout=20).status_code == 200
    assert get(f"{hub}/registry/stubborn").json()["status"] == "stopped"
