"""Attacks by a plugin that means ill, and through its routes: a real app on a real worker."""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from target import Target, statuses, until

APP = "evil-plugin"
MANIFEST = """
id = "evil-plugin"
version = "1.0.0"

[processes.web]
command = ["python3", "-u", "main.py"]
port = 0
stop_timeout_s = 2

[processes.web.health]
kind = "tcp"
delay_s = 0
period_s = 0.2

[routes]
prefix = "/api"
process = "web"

[components]
config = "config.js"
"""
#: It says all that it was sent, and answers all that it should not.
MAIN = """
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Evil(BaseHTTPRequestHandler):
    def do_GET(self):
        secrets = {name: os.environ.get(name) for name in ("REDIS_URL", "HOSTLER_SECRET_KEY", "S3_SECRET_ACCESS_KEY")}
        said = {"path": self.path, "headers": self.headers.items(), "secrets": secrets,
                "key": os.environ.get("HOSTLER_IDENTITY_KEY")}
        data = json.dumps(said).encode()
        self.send_response(200)
        for name, value in (
            ("Set-Cookie", "auth_token=planted; Path=/"), ("Content-Type", "text/html"), ("Clear-Site-Data", '"*"'),
            ("Content-Security-Policy", "default-src * 'unsafe-inline'"), ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Credentials", "true"), ("Service-Worker-Allowed", "/"),
            ("Location", "//evil.example"), ("Refresh", "0; url=https://evil.example"), ("X-Hostler-Identity", "me"),
            ("Content-Length", str(len(data))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
    do_POST = do_PUT = do_DELETE = do_GET
    def log_message(self, *_): pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Evil).serve_forever()
"""


def _archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("hostler.toml", MANIFEST), ("main.py", MAIN), ("config.js", "export default 1;")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def _status(target: Target) -> str:
    told = target.client("viewer").get("/api/products/status").json()
    return str(told.get(APP, {}).get("status", "gone"))


@pytest.fixture(scope="module")
def plugin(target: Target) -> Iterator[str]:
    """The plugin, installed and running; the path of its routes."""
    operator = target.client("operator")
    file_id = target.upload("evil.tar.gz", _archive())["fileId"]
    release = operator.post("/api/releases", json={"fileId": file_id})
    assert release.status_code in {200, 201}, release.text
    begun = operator.post("/api/install", json={"products": [{"productId": APP}]})
    assert begun.status_code == 202, begun.text
    until(lambda: _status(target) == "running", "the plugin runs")
    path = f"/api/plugins/{APP}"
    until(lambda: operator.get(f"{path}/up").status_code == 200, "the plugin answers")
    yield path
    assert operator.delete(f"/api/products/{APP}/uninstall").status_code == 202
    until(lambda: _status(target) == "gone", "the plugin is gone")


def _seen(answer: Any) -> dict[str, str]:
    """Return the headers that the plugin was sent."""
    return {name.lower(): value for name, value in answer.json()["headers"]}


@pytest.mark.proves("A36")
def test_a_plugin_gets_no_credential_and_sets_no_cookie(
    target: Target, plugin: str, evidence: list[str]
) -> None:
    token = target.login("operator")["token"]
    ways: list[dict[str, str]] = [
        {"Authorization": f"Bearer {token}"},
        {"X-API-Key": target.keys["operator"]},
        {"Cookie": f"auth_token={token}; theme=dark"},
        {
            "Authorization": f"Bearer {token}",
            "X-Worker-Token": target.workers["agent"],
            "X-Enroll-Secret": "x",
        },
    ]
    for given in ways:
        answer = target.client().get(f"{plugin}/items", headers=given)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        for secret in (token, target.keys["operator"], target.workers["agent"]):
            assert secret not in json.dumps(said["headers"])
        assert not {"authorization", "cookie", "x-api-key", "x-worker-token", "x-enroll-secret"} & set(
            _seen(answer)
        )
        assert said["secrets"] == {
            "REDIS_URL": None,
            "HOSTLER_SECRET_KEY": None,
            "S3_SECRET_ACCESS_KEY": None,
        }
        for name in (
            "Set-Cookie", "Clear-Site-Data", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials",
            "Service-Worker-Allowed", "Location", "Refresh", "X-Hostler-Identity",
        ):  # fmt: skip
            assert name not in answer.headers, name
    evidence.append(f"{len(ways)} kinds of credentials, none seen by the app")


@pytest.mark.proves("A37")
def test_nobody_speaks_to_a_plugin_in_the_name_of_another(target: Target, plugin: str) -> None:
    forged = {"X-Hostler-Identity": "forged", "X-Hostler-Role": "a", "X-Forwarded-User": "admin"}
    answer = target.client("viewer").get(f"{plugin}/items", headers=forged)
    seen = _seen(answer)
    assert not {"x-hostler-role", "x-forwarded-user"} & set(seen)
    claims = jwt.decode(
        seen["x-hostler-identity"], answer.json()["key"], algorithms=["HS256"], audience=APP, issuer="hostler"
    )
    assert (claims["name"], claims["role"]) == ("viewer", "r")
    # and what it was sent opens no door of ours
    stolen = target.client(Authorization=f"Bearer {seen['x-hostler-identity']}")
    assert stolen.get("/api/auth/me").status_code == 401
    for method in ("POST", "PUT", "DELETE"):
        assert target.client("viewer").request(method, f"{plugin}/items").status_code == 403
    assert target.client().get(f"{plugin}/items").status_code == 401


@pytest.mark.proves("A37")
def test_a_page_of_a_plugin_is_in_an_origin_of_its_own(target: Target, plugin: str) -> None:
    answer = target.client("viewer").get(f"{plugin}/items")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox ")
    assert "allow-same-origin" not in policy
    assert "unsafe-eval" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    component = target.client("viewer").get(f"/api/products/{APP}/config-component.js")
    assert (component.text, component.headers["Content-Type"]) == (
        "export default 1;",
        "text/javascript; charset=utf-8",
    )


@pytest.mark.proves("A37")
def test_no_path_leads_from_a_plugin_to_another_or_to_us(
    target: Target, plugin: str, evidence: list[str]
) -> None:
    key = target.keys["viewer"]
    paths = (
        "/../../auth/me", "/%2e%2e/%2e%2e/auth/me", "/..%2f..%2fauth%2fme", "/%252e%252e/x", "/..;/x", "/a%5c..%5cx",
        "/%00", "/.%2e/x", "/items%2f7", "%2f..%2fother/items", "/.",
    )  # fmt: skip
    for path in paths:
        head = f"GET {plugin}{path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n"
        answer = target.ask_raw(head.encode())
        assert set(statuses(answer)) <= {400, 404}, (path, answer[:300])
        assert b'"secrets"' not in answer, path
    for other in ("health", "other", f"{APP}__two", f"x__{APP}", "..", "%2e%2e"):
        answer = target.client("viewer").get(f"/api/plugins/{other}/items")
        assert answer.status_code in {400, 404}, other
    assert target.client().get("/api/health").json()["status"] == "ok"
    evidence.append(f"{len(paths)} paths")


@pytest.mark.proves("A37")
def test_a_stopped_plugin_is_unavailable_and_says_nothing_of_where_it_ran(
    target: Target, plugin: str
) -> None:
    operator = target.client("operator")
    assert operator.post(f"/api/products/{APP}/stop").status_code == 202
    until(lambda: _status(target) == "stopped", "the plugin has stopped")
    answer = operator.get(f"{plugin}/items")
    assert (answer.status_code, answer.json()["code"]) == (503, "APP_NOT_RUNNING")
    assert "127.0.0.1" not in answer.text
    assert operator.post(f"/api/products/{APP}/start").status_code == 202
    until(lambda: operator.get(f"{plugin}/items").status_code == 200, "the plugin answers again")
