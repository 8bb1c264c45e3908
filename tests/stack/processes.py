"""Hostler as real processes on a Valkey of its own: what the tests of the whole start, hurt and end."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from servers import S3, SECRET_KEY, Valkey, pauses, start_valkey

from settings import Settings, process_environment
from storage import jobs, logs
from storage.jobs import Job
from storage.store import Store
from workers.supervisor.ending import stop_all

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60


@dataclass
class Stack:
    """One Hostler: `env` is what every process of it gets, `processes` those that were started."""

    directory: Path
    valkey: Valkey
    env: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    url: str = ""  # of its API, and a key of its admin, where it has a web
    api_key: str = ""
    root: Path = ROOT  # where the code lies that processes are started from

    @property
    def settings(self) -> Settings:
        """Return the settings that its processes have."""
        return Settings.from_env(self.env)

    def redis(self) -> "redis.Redis[bytes]":
        """Return a plain client on its database."""
        return redis.Redis.from_url(self.env["REDIS_URL"])

    def start(self, module: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `python -m module`; what it logs goes to a file of its own."""
        number = len(self.processes)
        with (self.directory / f"{number:02d}-{module}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.root, env={**_bare_environment(), **self.env, **env}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def worker(self, name: str, *arguments: str, wait: bool = True, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is registered unless told otherwise."""
        process = self.start("workers", "--name", name, *arguments, **env)
        if wait:
            self.await_workers([name])
        return process

    def await_workers(self, names: Iterable[str]) -> None:
        """Wait until workers of these names are online and ready to claim."""
        with self.redis() as client:
            for name in names:
                until(
                    lambda name=name: client.hget(f"h:worker:{name}", "status") == b"online",
                    f"{name} is online",
                )

    def logged(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a process has logged."""
        (path,) = self.directory.glob(f"{self.processes.index(process):02d}-*.log")
        return path.read_text()

    def end(self, *processes: subprocess.Popen[bytes]) -> None:
        """Kill processes of it at once; default: all, with the Valkey, and remove its directory."""
        for process in processes or self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)
        if not processes:
            asyncio.run(stop_all(self.settings.apps_dir))  # apps outlive their workers
            self.valkey.process.send_signal(signal.SIGCONT)
            self.valkey.process.kill()
            self.valkey.process.wait(10)
            until(
                lambda: not processes_with(b"HOSTLER_JOB_ID=job-", below=self.env["HOSTLER_WORK_DIR"]),
                "no job is left",
            )
            shutil.rmtree(self.directory, ignore_errors=True)


def new_stack(s3: S3 | None = None, **env: str) -> Stack:
    """Start a Valkey and choose short times; whoever asks for it ends it."""
    # not pytest's tmp_path: it is closed to other users, and slots are other users
    directory = Path(tempfile.mkdtemp(prefix="hostler-stack-"))
    directory.chmod(0o711)
    (directory / "valkey").mkdir()
    valkey = start_valkey(directory / "valkey")
    given = {
        "REDIS_URL": valkey.url,
        "HOSTLER_SECRET_KEY": SECRET_KEY,
        "HOSTLER_WORK_DIR": str(directory / "work"),
        "HOSTLER_LEASE_S": "3",
        "HOSTLER_HEARTBEAT_S": "1",
        "HOSTLER_REAP_S": "0.5",
        "HOSTLER_KILL_GRACE_S": "1",
        "HOSTLER_DRAIN_S": "2",
        "HOSTLER_RATE_LIMIT": "100000",
        **env,
    }
    if s3 is not None:
        bucket = f"stack-{os.urandom(4).hex()}"
        s3.client.create_bucket(Bucket=bucket)
        given |= s3.environment(bucket)
    return Stack(directory, valkey, given)


def _bare_environment() -> dict[str, str]:
    ours = ("HOSTLER_", "S3_", "AWS_")
    return {name: value for name, value in process_environment().items() if not name.startswith(ours)}


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition and return what it answered."""
    deadline, pause = time.monotonic() + patience_s, pauses()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"This did not come true within {patience_s} s: {what}."
        time.sleep(next(pause))
    return answer


async def soon(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition and return what it answered, while the loop goes on."""
    deadline, pause = time.monotonic() + patience_s, pauses()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"This did not come true within {patience_s} s: {what}."
        await asyncio.sleep(next(pause))
    return answer


async def reaches(store: Store, job_id: str, *states: str, patience_s: float = PATIENCE_S) -> Job:
    """Wait until a job is in one of `states`; a final one that is not among them ends the wait."""
    deadline, pause = time.monotonic() + patience_s, pauses()
    while (job := await jobs.get(store, job_id)).state not in states:
        assert not job.finished, f"{job_id} ended as {job.state}, {job.reason}: {job.facts}"
        assert time.monotonic() < deadline, (
            f"{job_id} is still {job.state} ({job.wait}) after {patience_s} s."
        )
        await asyncio.sleep(next(pause))
    return job


async def finished(store: Store, job_id: str, *, patience_s: float = PATIENCE_S) -> Job:
    """Wait for a job's end, whichever it is."""
    return await reaches(store, job_id, "completed", "failed", "cancelled", patience_s=patience_s)


async def log_of(store: Store, job_id: str) -> bytes:
    """Return all that a job has printed."""
    return b"".join([piece async for piece in await logs.text(store, job_id)])


def processes_with(variable: bytes, *, below: str = "") -> set[int]:
    """Return the processes whose environment holds `variable`, of a command below the work directory `below`."""
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
            if b"\0" + variable in environment and below.encode() in environment and state not in b"ZX":
                found.add(pid)
    return found


def processes_of(job_id: str) -> set[int]:
    """Return the processes that live and were started by a job."""
    return processes_with(b"HOSTLER_JOB_ID=" + job_id.encode())


def peak_rss_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the most memory that a process has had."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{process.pid} has ended.")
