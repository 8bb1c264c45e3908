"""A whole Hostler for the faults: real processes, stores of their own, and clients that note what they are told.

`World.check` puts three records through the checker: what clients sent and were answered, what commands appended to a
file that all of them share, and what the API, the events and the audit log say in the end.
"""

import asyncio
import importlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import orjson
import pytest
import redis
from checker import TERMINAL, Call, Effect, Findings, violations
from processes import ROOT, Stack, new_stack, until
from servers import NO_TLS, S3, SECRET_KEY, free_port, pauses, start_valkey

from settings import process_environment
from storage import bootstrap, watch
from storage.store import Store

#: I1: an acknowledged job has ended this long after recovery.
RECOVERY_S = 30
#: I5: nothing of a job is left this long after its end.
CLEAN_S = 10
TOOLS = ROOT.parent / "shared" / "tools"


def tool(name: str) -> ModuleType:
    """Return a module of the folder of tools beside the repository; skip where it is not there."""
    if not (TOOLS / f"{name}.py").exists():
        pytest.skip(f"../shared/tools/{name}.py is not beside the repository")
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


@contextmanager
def proxied(port: int) -> Iterator[Any]:
    """Put the fault proxy in front of a port of loopback; it listens on `listen[1]`."""
    proxy = tool("fault_proxy").FaultProxy(("127.0.0.1", free_port()), ("127.0.0.1", port)).start()
    try:
        yield proxy
    finally:
        proxy.stalled, proxy.latency_s, proxy.refusing = False, 0.0, True

        async def emptied() -> None:
            proxy._server.close()
            while len(asyncio.all_tasks()) > 1:
                proxy.cut()
                await asyncio.sleep(0.02)

        asyncio.run_coroutine_threadsafe(emptied(), proxy._loop).result(20)
        proxy.stop()
        proxy._loop.close()


class Client:
    """A client of the API that keeps a record of its calls; it may be used from several threads."""

    def __init__(self, url: str, key: str, calls: list[Call], words: Callable[[str], str]) -> None:
        self.calls, self._words = calls, words
        self.http = httpx.Client(
            base_url=url, headers={"X-API-Key": key}, timeout=20, trust_env=False, verify=NO_TLS,
            limits=httpx.Limits(max_connections=64),
        )  # fmt: skip

    def call(self, action: str, method: str, path: str, *, job_id: str | None = None, key: str | None = None,
             order: dict[str, Any] | None = None, **how: Any) -> Call:  # fmt: skip
        """Make one request, and write down what became of it."""
        began_s, answer, text, status, retry_after = time.monotonic(), {}, "", 0, None
        try:
            response = self.http.request(method, path, **how)
            status, text = response.status_code, response.text
            retry_after = response.headers.get("retry-after")
            with suppress(orjson.JSONDecodeError):
                read = orjson.loads(response.content)
                answer = read if isinstance(read, dict) else {}
            outcome = "ok" if response.is_success else "fail" if status < 500 else "unknown"
        except httpx.ConnectError as error:
            outcome, text = "fail", str(error)
        except httpx.TransportError as error:
            outcome, text = "unknown", str(error)
        if action == "status":
            answer = answer.get("job", answer)
        made = Call(
            action, began_s, time.monotonic(), outcome, status, job_id=job_id or answer.get("jobId"), key=key,
            order=order or {}, answer=answer, retry_after=retry_after, text=text,
        )  # fmt: skip
        self.calls.append(made)
        return made

    def submit(
        self, command: str = "true", key: str | None = None, *, effects: bool = True, **order: Any
    ) -> Call:
        """Submit once, whatever comes of it, under an Idempotency-Key."""
        key = key or uuid.uuid4().hex
        body = {"command": self._words(command) if effects else command, **order}
        noted = {**order, "_effects": effects}
        return self.call(
            "submit",
            "POST",
            "/api/jobs/submit",
            key=key,
            order=noted,
            json=body,
            headers={"Idempotency-Key": key},
        )

    def insist(self, command: str = "true", *, patience_s: float = 30, **order: Any) -> str:
        """Submit again and again under one key until it is accepted, and return the job's id."""
        key, deadline = uuid.uuid4().hex, time.monotonic() + patience_s
        while (made := self.submit(command, key, **order)).outcome != "ok":
            assert made.status not in {400, 401, 403, 404, 422}, made.text
            assert time.monotonic() < deadline, f"The submit was not accepted: {made.status} {made.text}"
            time.sleep(0.1)
        return str(made.job_id)

    def cancel(self, job_id: str) -> Call:
        """Ask for a job's end."""
        return self.call("cancel", "POST", "/api/jobs/cancel", job_id=job_id, json={"jobId": job_id})

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as the API shows it; {} while it cannot."""
        made = self.call("status", "GET", "/api/jobs/status", job_id=job_id, params={"jobId": job_id})
        return made.answer if made.outcome == "ok" else {}

    def reaches(self, job_id: str, *states: str, patience_s: float = RECOVERY_S) -> dict[str, Any]:
        """Wait until a job is in one of `states`, and return it."""
        deadline, pause = time.monotonic() + patience_s, pauses()
        while (job := self.job(job_id)).get("status") not in states:
            assert job.get("status") not in TERMINAL, f"{job_id} ended as {job}"
            assert time.monotonic() < deadline, f"{job_id} is not {states} after {patience_s} s, but {job}"
            time.sleep(next(pause))
        return job

    def ended(self, job_id: str, *, patience_s: float = RECOVERY_S) -> dict[str, Any]:
        """Wait for a job's end, whichever it is."""
        return self.reaches(job_id, *TERMINAL, patience_s=patience_s)


@dataclass
class World:
    """One Hostler: its stack, its web process, and the file that its commands append to."""

    stack: Stack
    s3: S3 | None
    key: str
    side: Path
    web_port: int = 0
    calls: list[Call] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    overlapping: set[str] = field(default_factory=set)
    growth: list[tuple[str, float, float]] = field(default_factory=list)
    since: str = "-"
    _effects_from: int = 0

    # Starting and ending

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start any command with the stack's environment."""
        stack = self.stack
        path = stack.directory / f"{len(stack.processes):02d}-{Path(command[0]).name}.log"
        ours = ("HOSTLER_", "S3_", "AWS_")
        bare = {name: value for name, value in process_environment().items() if not name.startswith(ours)}
        with path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**bare, **stack.env, **env}, stdout=log, stderr=subprocess.STDOUT
            )
        stack.processes.append(process)
        return process

    def web(self, *, wait: bool = True, **env: str) -> subprocess.Popen[bytes]:
        """Start a web process on the world's port, or on the one in `env`."""
        port = env.setdefault("PORT", str(self.web_port or free_port()))
        self.web_port = self.web_port or int(port)
        arguments = ("-c", str(self.stack.root / "api" / "gunicorn.py"), "api.asgi:app")
        process = self.stack.start("gunicorn", *arguments, HOSTLER_HOST="127.0.0.1", **env)
        if wait:
            self.await_web(process, int(port))
        return process

    def await_web(self, process: subprocess.Popen[bytes], port: int = 0, patience_s: float = 90) -> None:
        """Wait until a web process answers."""

        def answers() -> bool:
            assert process.poll() is None, self.stack.logged(process)
            with suppress(httpx.TransportError):
                url = f"http://127.0.0.1:{port or self.web_port}/api/health/live"
                return httpx.get(url, trust_env=False, verify=NO_TLS, timeout=2).status_code == 200
            return False

        until(answers, "the web process answers", patience_s)

    def worker(self, name: str, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is online."""
        return self.stack.worker(name, *arguments, **how)

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start a scheduler."""
        return self.stack.start("scheduler")

    def client(self, port: int = 0) -> Client:
        """Return a client that is an admin."""
        client = Client(f"http://127.0.0.1:{port or self.web_port}", self.key, self.calls, self.words)
        self.clients.append(client)
        return client

    def redis(self) -> "redis.Redis[bytes]":
        """Return a plain client on its database."""
        return self.stack.redis()

    @property
    def redis_port(self) -> int:
        """Return where its Valkey listens."""
        return int(self.stack.valkey.url.rpartition(":")[2].partition("/")[0])

    def kill_redis(self) -> None:
        """Kill its Valkey as a crash would."""
        self.stack.valkey.crash()

    def start_redis(self) -> None:
        """Start its Valkey again, on what it has written."""
        self.stack.valkey = start_valkey(self.stack.directory / "valkey", self.redis_port)

    def in_store(self, step: Callable[[Store], Any]) -> Any:
        """Carry out a coroutine function on a store of its own."""

        async def within() -> Any:
            store = Store(self.stack.settings)
            try:
                return await step(store)
            finally:
                await store.close()

        return asyncio.run(within())

    def tell(self) -> None:
        """Print what the processes have logged last, which pytest shows where a test fails."""
        for process in self.stack.processes:
            lines = self.stack.logged(process).splitlines()[-15:]
            print(f"--- {process.args}", *lines, sep="\n")

    def end(self) -> None:
        """End everything."""
        for client in self.clients:
            client.http.close()
        orphans = [
            pid for process in self.stack.processes if process.poll() is None for pid in children(process.pid)
        ]
        self.stack.end()
        for pid in orphans:  # web workers outlive a master that is killed
            strike(pid)

    # The story of one test

    @contextmanager
    def story(self) -> Iterator[None]:
        """Tell one test's story, with nothing of earlier ones left; processes that it starts end with it."""
        before = list(self.stack.processes)
        self.begin()
        yield
        self.tell()
        if started := [process for process in self.stack.processes if process not in before]:
            self.stack.end(*started)
        for client in self.clients:
            client.http.close()
        self.clients.clear()

    def begin(self) -> None:
        """Forget what earlier tests did."""
        self.calls.clear()
        self.growth.clear()
        self.overlapping.clear()
        self._effects_from = self.side.stat().st_size
        with self.redis() as client:
            last = client.xrevrange("h:events", count=1)
        self.since = f"({last[0][0].decode()}" if last else "-"

    def words(self, body: str) -> str:
        """Return a command that writes down its start and its end around `body`."""
        note = f'echo "$HOSTLER_JOB_ID $HOSTLER_ATTEMPT $$ {{}}" >> {self.side}'
        return f"{note.format('start')}\n({body})\ncode=$?\n{note.format('end')}\nexit $code"

    def effects(self) -> list[Effect]:
        """Return what commands have appended since the test began."""
        with self.side.open() as file:
            file.seek(self._effects_from)
            rows = [line.split() for line in file]
        return [Effect(job, int(attempt), int(pid), word) for job, attempt, pid, word in rows]

    def started(self, job_id: str, attempt: int = 0) -> bool:
        """Tell whether a job's command has started, in whichever attempt or in this one."""
        return any(
            effect.job_id == job_id and effect.word == "start" and attempt in {0, effect.attempt}
            for effect in self.effects()
        )

    def await_start(self, job_id: str, attempt: int = 0) -> None:
        """Wait until a job's command has started."""
        until(lambda: self.started(job_id, attempt), f"{job_id} has started")

    def check(self, *, patience_s: float = RECOVERY_S, jobs: bool = True) -> str:
        """Wait until all acknowledged jobs have ended, hold everything against the invariants, and say how it went."""
        accepted = [call.job_id for call in self.calls if call.action == "submit" and call.outcome == "ok"]
        ids = list(dict.fromkeys(str(each) for each in accepted))
        began = time.monotonic()
        if jobs:
            self._await_ends(ids, patience_s)
        found = self.findings(ids)
        deadline = time.monotonic() + CLEAN_S
        while (found.orphans or found.leftovers) and time.monotonic() < deadline:
            time.sleep(0.1)
            found.orphans, found.leftovers = self._orphans(ids), self._leftovers()
        broken = violations(found)
        assert not broken, "\n".join(broken[:20])
        unknown = sum(call.outcome == "unknown" for call in self.calls)
        waited_s = time.monotonic() - began
        return f"{len(ids)} jobs acknowledged and ended, {unknown} calls unknown, checked in {waited_s:.1f} s"

    def _await_ends(self, ids: Iterable[str], patience_s: float) -> None:
        left, deadline = set(ids), time.monotonic() + patience_s
        with self.redis() as client:
            while left and time.monotonic() < deadline:
                asked = list(left)
                pipeline = client.pipeline(transaction=False)
                for job_id in asked:
                    pipeline.hget(f"h:job:{job_id}", "state")
                with suppress(redis.RedisError):
                    states = pipeline.execute()
                    left = {
                        job
                        for job, state in zip(asked, states, strict=True)
                        if (state or b"").decode() not in TERMINAL
                    }
                time.sleep(0.05)

    def findings(self, ids: list[str]) -> Findings:
        """Return all that is known of jobs."""
        client = self.client()
        jobs = self._listed(client, set(ids))
        sample = random.Random(0).sample(ids, min(5, len(ids)))  # noqa: S311  which logs are read whole
        with self.redis() as database:
            entries = database.xrange("h:events", min=self.since)
            told = watch.events_of(
                (name, [word for pair in row.items() for word in pair]) for name, row in entries
            )
            events = [{"e": event.name, **event.fields} for event in told]
            audit = [orjson.loads(row[b"line"]) for _, row in database.xrange("h:audit")]
        return Findings(
            calls=list(self.calls), effects=self.effects(), jobs=jobs, events=events,
            audit=[(str(actor), str(action), str(subject)) for _, actor, action, subject in audit],
            orphans=self._orphans(ids), leftovers=self._leftovers(),
            logs={job_id: list(self.log(client, job_id)) for job_id in sample}, objects=self._objects(client),
            leaks=self._leaks(events), growth=list(self.growth), overlapping=set(self.overlapping),
        )  # fmt: skip

    def _listed(self, client: Client, ids: set[str]) -> dict[str, dict[str, Any] | None]:
        jobs: dict[str, dict[str, Any] | None] = dict.fromkeys(ids)
        for offset in range(0, 1_000_000, 100):
            answer = client.http.get("/api/jobs/list", params={"limit": 100, "offset": offset}).json()
            jobs |= {job["jobId"]: job for job in answer["jobs"] if job["jobId"] in ids}
            if len(answer["jobs"]) < 100 or all(jobs.values()):
                break
        return jobs

    @staticmethod
    def log(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the pages of a job's log."""
        after = 0
        while True:
            page = client.http.get(f"/api/jobs/{job_id}/log", params={"after": after, "limit": 10_000}).json()
            yield page
            if not page["more"] or page["next"] == after:
                return
            after = page["next"]

    def _objects(self, client: Client) -> list[tuple[str, str, str]]:
        found = []
        listed = client.http.get("/api/files/list", params={"limit": 100})
        if listed.is_success and self.s3 is not None and self.s3.process is not None:
            for file in listed.json()["files"]:
                got = client.http.get(f"/api/files/download/{file['fileId']}")
                found.append((file["filename"], f"{file['size']} bytes", f"{len(got.content)} bytes"))
        return found

    @staticmethod
    def _orphans(ids: Iterable[str]) -> set[str]:
        wanted, found = set(ids), set()
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with suppress(OSError, ValueError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
                jobs = {each[15:].decode() for each in environment if each.startswith(b"HOSTLER_JOB_ID=")}
                found |= jobs & wanted if state not in b"ZX" else set()
        return found

    def _leftovers(self) -> list[str]:
        """Return what lies in the directories of workers that live, but what waits there for the next jobs."""
        work, left = Path(self.stack.env["HOSTLER_WORK_DIR"]), []
        for process in self.stack.processes:
            words = [str(word) for word in process.args] if process.poll() is None else []  # type: ignore[union-attr]
            if "--name" not in words or not (root := work / words[words.index("--name") + 1]).is_dir():
                continue
            slots = (
                words[words.index("--slots") + 1]
                if "--slots" in words
                else self.stack.env.get("HOSTLER_SLOTS", 2)
            )
            found = [path for path in root.iterdir() if path.name.startswith(("job-", "fetch-"))]
            idle = [path for path in found if not path.name.startswith("fetch-") and not any(path.glob("*"))]
            # a slot may have one that is kept for one owner and one for anybody, its follower one that is kept
            left += [path for path in found if path not in idle] + idle[3 * int(slots) :]
        return [str(path.relative_to(work)) for path in left]

    def _leaks(self, events: list[dict[str, str]]) -> list[str]:
        secrets = [SECRET_KEY.encode(), b"test-password", self.key.encode()]
        secrets += [self.s3.secret_access_key.encode()] if self.s3 else []
        places = {path.name: path.read_bytes() for path in self.stack.directory.glob("*.log")}
        places["h:events"] = repr(events).encode()
        for process in self.stack.processes:
            with suppress(OSError):
                places[f"argv of {process.pid}"] = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        return [name for name, content in places.items() if any(secret in content for secret in secrets)]


def new_world(s3: S3 | None = None, *, web: bool = True, scheduler: bool = True, **env: str) -> World:
    """Start Valkey, web and scheduler, and make an admin; workers are started by who needs them."""
    stack = new_stack(s3, **env)
    try:
        side = stack.directory / "side"
        side.touch()
        side.chmod(0o666)
        settings = stack.settings
        made = asyncio.run(bootstrap.prepare(settings) if s3 else _admin_without_bucket(stack))
        assert made is not None
        world = World(stack, s3, made.api_key, side)
        started = world.web(wait=False) if web else None
        if scheduler:
            stack.start("scheduler")
        if started is not None:
            world.await_web(started)
        return world
    except BaseException:
        stack.end()
        raise


async def _admin_without_bucket(stack: Stack) -> bootstrap.Admin | None:
    store = Store(stack.settings)
    try:
        return await bootstrap.first_admin(store)
    finally:
        await store.close()


def children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def strike(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def together(size: int) -> Iterator[ThreadPoolExecutor]:
    """Lend threads for calls at once."""
    with ThreadPoolExecutor(size) as pool:
        yield pool
