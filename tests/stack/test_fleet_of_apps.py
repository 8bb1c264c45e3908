"""Two workers of one machine, an app on each: changed through one dialect, read in all three, killed and recovered."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from processes import PATIENCE_S, ROOT, Stack, new_stack, processes_with, until
from servers import NO_TLS, S3, free_port

from storage import bootstrap
from storage.store import Store

DIALECTS = ("cuby", "cbox", "squareberg")
FIRST, SECOND = "hello-web", "hello-web__staging"
NODES = ("n1", "n2")


class Fleet:
    """A web with a port for each dialect, without credentials, and two workers."""

    def __init__(self, s3: S3) -> None:
        self.ports = {name: free_port() for name in ("main", *DIALECTS)}
        listen = ",".join(f"{name}=127.0.0.1:{self.ports[name]}" for name in DIALECTS)
        self.stack: Stack = new_stack(
            s3, PORT=str(self.ports["main"]), HOSTLER_HOST="127.0.0.1", HOSTLER_LISTEN=listen, WEB_CONCURRENCY="1",
        )  # fmt: skip
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.http = httpx.Client(timeout=PATIENCE_S, trust_env=False, verify=NO_TLS)

    def ask(self, dialect: str, method: str, path: str, body: Any = None) -> Any:
        url = f"http://127.0.0.1:{self.ports[dialect]}{path}"
        answer = self.http.request(method, url, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def cbox(self, app: str) -> dict[str, Any]:
        listed = self.ask("cbox", "GET", "/api/v1/processes")["processes"]
        return next((each for each in listed if each["name"] == app), {})

    def words(self, app: str) -> tuple[str | None, ...]:
        """Return what Cuby, cbox-init and Squareberg say that an app does."""
        cuby = self.ask("cuby", "GET", "/api/products/status").get(app, {})
        registry = {each["name"]: each["status"] for each in self.ask("squareberg", "GET", "/registry")}
        return cuby.get("status"), self.cbox(app).get("state"), registry.get(app)

    def says(self, app: str, *words: str | None) -> None:
        """Wait until the three say these words of an app, in the order of `words`."""
        seen: list[tuple[str | None, ...]] = []

        def now() -> bool:
            seen.append(self.words(app))
            return seen[-1] == words

        with suppress(AssertionError):
            until(now, f"{app} is {words}", PATIENCE_S)
        assert seen[-1] == words, f"{app} has not become {words}, but was {set(seen)}"

    def pids(self, app: str) -> dict[str, int]:
        return {each["id"]: each["pid"] for each in self.cbox(app)["instances"]}

    def alive(self, app: str) -> set[int]:
        """Return the processes of an app that there are."""
        return processes_with(f"HOSTLER_INSTANCE={app}/".encode(), below=str(self.stack.directory))

    def node_of(self, app: str) -> str:
        listed = self.ask("cuby", "GET", "/api/config")["products"]
        return str(next(each["node"] for each in listed if each["instanceId"] == app))

    def end_worker(self, name: str, number: int) -> None:
        self.workers[name].send_signal(number)
        self.workers[name].wait(20)

    def is_silent(self, name: str) -> bool:
        with self.stack.redis() as client:
            return bool(client.hget(f"h:worker:{name}", "status") != b"online")


RUNNING = ("running", "running", "running")
STOPPED = ("stopped", "stopped", "stopped")
GONE = (None, None, None)


@pytest.fixture(scope="module")
def fleet(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(s3)
    try:
        for name in NODES:
            fleet.workers[name] = fleet.stack.worker(name, wait=False)
        fleet.stack.start("scheduler")
        fleet.stack.start("gunicorn", "-c", str(ROOT / "api" / "gunicorn.py"), "api.asgi:app")
        fleet.stack.await_workers(NODES)
        until(lambda: _answers(fleet), "the web answers")
        _publish(fleet, tmp_path_factory.mktemp("product"))
        yield fleet
    finally:
        fleet.http.close()
        fleet.stack.end()


def _answers(fleet: Fleet) -> bool:
    with suppress(httpx.TransportError):
        return bool(fleet.ask("cuby", "GET", "/api/health")["status"] == "ok")
    return False


def _publish(fleet: Fleet, folder: Path) -> None:
    """Publish an example as a newcomer does, but for patience: it is looked at and started again sooner."""
    release = folder / "release"
    shutil.copytree(ROOT / "examples" / "hello-web", release)
    manifest = release / "hostler.toml"
    text = manifest.read_text()
    for before, after in (
        ("period_s = 2", "period_s = 0.2\nfailures = 100"),
        ("attempts = 3", "attempts = 3\nbackoff_s = 2"),
    ):
        assert before in text
        text = text.replace(before, after)
    manifest.write_text(text)

    async def key() -> str:
        store = Store(fleet.stack.settings)
        admin = await bootstrap.first_admin(store)
        await store.close()
        assert admin is not None
        return admin.api_key

    given = {"HOSTLER_URL": f"http://127.0.0.1:{fleet.ports['main']}", "HOSTLER_API_KEY": asyncio.run(key())}
    hostler = Path(sys.executable).with_name("hostler")
    subprocess.run([hostler, "products", "publish", release], env=given, capture_output=True, check=True)


def test_an_app_on_each_of_two_nodes_is_one_to_all_three_dialects(fleet: Fleet) -> None:
    offered = [{"productId": "hello-web"}, {"productId": "hello-web", "alias": "staging"}]
    answer = fleet.ask("cuby", "POST", "/api/install", {"products": offered})
    assert [each["instanceId"] for each in answer["products"]] == [FIRST, SECOND]
    for app in (FIRST, SECOND):
        fleet.says(app, *RUNNING)
    assert {fleet.node_of(FIRST), fleet.node_of(SECOND)} == set(NODES)

    fleet.ask("cbox", "POST", f"/api/v1/processes/{FIRST}/scale", {"scale": 3})
    until(lambda: fleet.cbox(FIRST)["scale"] == 3, "there are three")
    fleet.says(FIRST, *RUNNING)
    assert set(fleet.pids(FIRST).values()) == fleet.alive(FIRST)
    assert fleet.ask("cuby", "GET", f"/api/products/{FIRST}/status")["pid"] in fleet.alive(FIRST)

    stopped = fleet.ask("squareberg", "POST", f"/registry/{SECOND}/stop")
    assert stopped["message"] == f"App '{SECOND}' stopped."
    fleet.says(SECOND, *STOPPED)
    assert not fleet.alive(SECOND)
    fleet.says(FIRST, *RUNNING)
    fleet.ask("cuby", "POST", f"/api/products/{SECOND}/start")
    fleet.says(SECOND, *RUNNING)

    _the_app_is_killed(fleet)
    _its_worker_is_killed_or_ended(fleet)
    _its_node_dies(fleet)

    for app in (FIRST, SECOND):
        fleet.ask("cuby", "DELETE", f"/api/products/{app}/uninstall")
        fleet.says(app, *GONE)
        assert not fleet.alive(app)
        assert not (fleet.stack.settings.apps_dir / app).exists()


def _the_app_is_killed(fleet: Fleet) -> None:
    (pid,) = fleet.pids(SECOND).values()
    os.kill(pid, signal.SIGKILL)
    fleet.says(SECOND, "crashed", "starting", "error")  # it comes back after its backoff
    fleet.says(SECOND, *RUNNING)
    assert fleet.alive(SECOND) == set(fleet.pids(SECOND).values()) != {pid}
    assert fleet.cbox(SECOND)["instances"][0]["restart_count"] == 1


def _its_worker_is_killed_or_ended(fleet: Fleet) -> None:
    node, before = fleet.node_of(FIRST), fleet.pids(FIRST)
    for number in (signal.SIGKILL, signal.SIGTERM):
        fleet.end_worker(node, number)
        assert fleet.alive(FIRST) == set(before.values())
        if number == signal.SIGKILL:
            until(lambda: fleet.is_silent(node), "its silence is noticed")
            fleet.says(FIRST, "crashed", "failed", "error")
            assert fleet.words(SECOND) == RUNNING
        fleet.workers[node] = fleet.stack.worker(node)
        fleet.says(FIRST, *RUNNING)
        assert fleet.pids(FIRST) == before
        assert {each["restart_count"] for each in fleet.cbox(FIRST)["instances"]} == {0}


def _its_node_dies(fleet: Fleet) -> None:
    node, before = fleet.node_of(FIRST), set(fleet.pids(FIRST).values())
    keepers = {psutil.Process(pid).ppid() for pid in before}
    fleet.workers[node].kill()
    for pid in keepers | before:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    fleet.workers[node].wait(10)
    until(lambda: not fleet.alive(FIRST), "nothing of it is left")
    fleet.workers[node] = fleet.stack.worker(node)
    fleet.says(FIRST, *RUNNING)
    until(lambda: fleet.alive(FIRST) == set(fleet.pids(FIRST).values()), "what is shown is what there is")
    assert len(fleet.alive(FIRST)) == 3
    assert not fleet.alive(FIRST) & before
