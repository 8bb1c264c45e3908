"""The container image: small, nobody's root, with nothing to write to but its folders, and a Hostler that works."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from deploy.engine_of_docker import Engine, engine, import_base
from servers import S3, SECRET_KEY, Valkey, free_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
#: What the image may hold, unpacked, with its base.
LIMIT_BYTES = 250e6
PATIENCE_S = 90
LOCKED_DOWN = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
    "--network=host",
)
ADMIN = {"HOSTLER_ADMIN_EMAIL": "admin@example.org", "HOSTLER_ADMIN_PASSWORD": "a-password-of-tests"}

built = pytest.mark.slow


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine() as found:
        yield found


@pytest.fixture(scope="module")
def image(docker: Engine) -> Iterator[str]:
    name, base = f"hostler-test:{uuid.uuid4().hex[:8]}", f"hostler-base:{uuid.uuid4().hex[:8]}"
    words = ["build", "--network=host", "--tag", name]
    if docker.own:
        import_base(docker, base)
        words += ["--build-arg", f"BASE={base}"]
    docker(*words, str(ROOT), within_s=1500)
    yield name
    docker("image", "rm", "--force", name, check=False)


@pytest.fixture
def environ(valkey: Valkey, redis_client: object, s3: S3) -> Iterator[dict[str, str]]:
    bucket = f"image-{uuid.uuid4().hex[:8]}"
    yield {
        "REDIS_URL": valkey.url, "HOSTLER_SECRET_KEY": SECRET_KEY, "HOSTLER_HOST": "127.0.0.1",
        "HOSTLER_PORT": str(free_port()), "WEB_CONCURRENCY": "1", "HOSTLER_DRAIN_S": "5", **ADMIN,
        **s3.environment(bucket),
    }  # fmt: skip
    with suppress(s3.client.exceptions.NoSuchBucket):
        s3.drop(bucket)


def test_base_and_packages_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"${BASE}"}
    (base,) = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert re.search(r":3\.\d+\.\d+-slim-[a-z]+$|@sha256:[0-9a-f]{64}$", base), base
    assert "--require-hashes" in DOCKERFILE


def test_only_what_runs_goes_into_the_build() -> None:
    first, *rest = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    sent = {line.removeprefix("!") for line in rest if line.startswith("!")}
    assert sent <= {path.name for path in ROOT.iterdir()}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == sent
    assert sent.isdisjoint({"tests", ".git", "examples"})


@built
def test_the_image_is_small_and_runs_as_nobody(docker: Engine, image: str) -> None:
    (told,) = json.loads(docker("image", "inspect", image))
    print(f"The image has {told['Size'] / 1e6:.0f} MB.")
    assert told["Size"] < LIMIT_BYTES
    assert told["Config"]["User"] == "10001:10001"
    assert told["Config"]["Healthcheck"]["Test"][0] == "CMD"
    assert told["Config"].get("Volumes") is None


@built
def test_the_embedded_servers_and_compilers_are_not_in_it(docker: Engine, image: str) -> None:
    found = docker(
        "run", "--rm", *LOCKED_DOWN, image, "sh", "-c", "command -v weed valkey-server strip gcc; true"
    )
    assert found == ""
    assert docker("run", "--rm", *LOCKED_DOWN, image, "id", "-u") == "10001"
    assert "Read-only file system" in docker(
        "run", "--rm", *LOCKED_DOWN, image, "touch", "/opt/hostler/x", check=False
    )


@built
@pytest.mark.stack
def test_web_worker_and_scheduler_run_from_it_and_end_in_time(
    docker: Engine, image: str, environ: dict[str, str]
) -> None:
    given = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
    run = (*LOCKED_DOWN, "--volume", "/var/lib/hostler", *given)
    prepared = docker("run", "--rm", *run, image, "hostler", "doctor", "--prepare")
    assert "The bucket and the first admin are there." in prepared
    started = {
        "web": docker("run", "--detach", *run, image),
        "worker": docker("run", "--detach", *run, image, "hostler", "worker", "--name", "boxed"),
        "scheduler": docker("run", "--detach", *run, image, "hostler", "scheduler"),
    }
    try:
        until(
            lambda: (
                "healthy" in docker("inspect", "--format", "{{.State.Health.Status}}", started["web"]).split()
            )
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{environ['HOSTLER_PORT']}", timeout=30) as client:
            body = {"email": ADMIN["HOSTLER_ADMIN_EMAIL"], "password": ADMIN["HOSTLER_ADMIN_PASSWORD"]}
            client.headers["Authorization"] = (
                f"Bearer {client.post('/api/auth/login', json=body).json()['token']}"
            )
            job = client.post("/api/jobs/submit", json={"command": "echo in a box; id -u"}).json()["jobId"]
            until(lambda: told_of(client, job)["status"] == "completed")
            assert told_of(client, job)["stdout"] == "in a box\n10001\n"
            long = client.post("/api/jobs/submit", json={"command": "sleep 600"}).json()["jobId"]
            until(lambda: told_of(client, long)["status"] == "running")
        began = time.monotonic()
        docker("stop", "--time", "30", *reversed(started.values()), within_s=100)
        print(f"All have ended after {time.monotonic() - began:.1f} s.")
        codes = {
            name: docker("inspect", "--format", "{{.State.ExitCode}}", each) for name, each in started.items()
        }
        assert codes == dict.fromkeys(started, "0")  # 137 would say that it had to be killed
    except BaseException:
        for name, each in started.items():
            print(name, docker("logs", each, check=False)[-3000:])
        raise
    finally:
        docker("rm", "--force", "--volumes", *started.values(), check=False)


def told_of(client: httpx.Client, job: str) -> dict[str, str]:
    found: dict[str, str] = client.get("/api/jobs/status", params={"jobId": job}).json()["job"]
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "It did not come true in time."
        time.sleep(0.2)
