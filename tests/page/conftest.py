"""One Hostler and one browser for all tests of the page; each test gets a window of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from servers import pauses

PATIENCE_S = 40
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and "window" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition and return what it answered."""
    deadline, pause = time.monotonic() + patience_s, pauses(0.03)
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"This did not come true within {patience_s} s: {what}."
        time.sleep(next(pause))
    return answer


@dataclass
class Hostler:
    """A `hostler up` of the tests' own, and a client of its admin."""

    process: subprocess.Popen[bytes]
    data: Path
    url: str = ""
    admin: dict[str, str] = field(default_factory=dict)
    api: httpx.Client = field(default_factory=httpx.Client)

    def submit(self, command: str, **order: Any) -> str:
        answer = self.api.post("/api/jobs/submit", json={"command": command, **order})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobId"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get("/api/jobs/status", params={"jobId": job_id}).json()["job"]
        return found

    def finished(self, job_id: str) -> dict[str, Any]:
        ends = {"completed", "failed", "cancelled"}
        return until(lambda: (job := self.job(job_id))["status"] in ends and job, f"{job_id} has ended")

    def app(self) -> str:
        """Return the example app, installed and running; the first who asks has it installed."""
        if not self.api.get("/api/releases").json()["products"]:
            archive = Path(__file__).parents[2] / "api" / "page" / "app" / "hello-web.zip"
            file = self.api.post("/api/files/upload", files={"file": ("hello-web.zip", archive.read_bytes())})
            assert self.api.post("/api/releases", json={"fileId": file.json()["fileId"]}).status_code == 201
        shown = "/api/apps/hello-web"
        if self.api.get(shown).status_code == 404:
            assert self.api.post("/api/apps", json={"product": "hello-web"}).status_code == 202
        until(lambda: self.api.get(shown).json()["status"] == "running", "the app runs")
        return "hello-web"

    def session(self, role: str = "a") -> dict[str, Any]:
        """Return the cookie of somebody who has signed in."""
        credentials = {"email": self.admin["email"], "password": self.admin["password"]}
        if role != "a":
            name = f"u{uuid.uuid4().hex[:10]}"
            user = {
                "username": name,
                "email": f"{name}@example.org",
                "password": "correct horse",
                "role": role,
            }
            assert self.api.post("/api/users", json=user).status_code == 201
            credentials = {"email": user["email"], "password": user["password"]}
        with httpx.Client(base_url=self.url) as client:
            token = client.post("/api/auth/login", json=credentials).json()["token"]
        return {"name": "auth_token", "value": token, "url": self.url, "httpOnly": True, "sameSite": "Strict"}

    def master(self) -> psutil.Process:
        """Return the web's gunicorn."""
        for process in psutil.Process(self.process.pid).children():
            if "gunicorn" in " ".join(process.cmdline()):
                return process
        raise AssertionError("No web runs.")


@pytest.fixture(scope="module")
def hostler() -> Iterator[Hostler]:
    """A whole Hostler; its first link for signing in is spent by no fixture."""
    directory = Path(tempfile.mkdtemp(prefix="hostler-page-"))
    directory.chmod(0o711)
    ours = ("HOSTLER_", "S3_", "AWS_", "REDIS_URL", "PORT")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}  # noqa: TID251  a clean one
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", "--port", "0", "--data", str(directory / "data")],
            cwd=Path(__file__).parents[2],
            env={**environ, "HOSTLER_RATE_LIMIT": "100000", "HOSTLER_SLOTS": "4"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    hostler = Hostler(process, directory / "data")
    try:
        until((hostler.data / "sign-in-url").exists, "it is ready", 120)
        hostler.admin = json.loads((hostler.data / "admin.json").read_text())
        hostler.url = hostler.admin["url"]
        hostler.api = httpx.Client(
            base_url=hostler.url, headers={"X-API-Key": hostler.admin["apiKey"]}, timeout=30,
            transport=httpx.HTTPTransport(retries=3),
        )  # fmt: skip
        yield hostler
    finally:
        hostler.api.close()
        process.send_signal(signal.SIGINT)
        process.wait(90)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Window:
    """One window of somebody who is signed in, and what went wrong in it."""

    def __init__(self, browser: Any, hostler: Hostler, role: str, **how: Any) -> None:
        self.hostler = hostler
        options = {
            "viewport": {"width": 1280, "height": 800},
            "locale": "en-GB",
            "reduced_motion": "reduce",
            **how,
        }
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_S * 1000)
        if role:
            self.context.add_cookies([hostler.session(role)])
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.foreign: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(message.text)

    def _asked(self, request: Any) -> None:
        if not re.match(rf"{self.hostler.url}/|blob:|data:", request.url):
            self.foreign.append(request.url)

    def open(self, place: str = "/") -> Any:
        """Go to a place of the page, and wait for its heading."""
        self.page.goto(f"{self.hostler.url}/#{place}")
        self.page.locator("h1").first.wait_for()
        return self.page

    def until(self, condition: str) -> Any:
        """Wait for a condition in the page's own language; Playwright's way needs eval, which the policy forbids."""
        return until(lambda: self.page.evaluate(condition), condition)

    def settled(self) -> None:
        """Wait until nothing is being read any more."""
        self.until("!document.querySelector('.loading')")


@pytest.fixture
def window(browser: Any, hostler: Hostler) -> Iterator[Callable[..., Window]]:
    """Open windows: `window()` is an admin's, `window("r")` a viewer's, `window("")` nobody's."""
    opened: list[Window] = []

    def make(role: str = "a", **how: Any) -> Window:
        opened.append(Window(browser, hostler, role, **how))
        return opened[-1]

    yield make
    for each in opened:
        each.context.close()
        assert each.foreign == [], "the page asks nobody but its own server"
