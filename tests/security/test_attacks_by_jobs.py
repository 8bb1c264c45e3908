"""Attacks by people and jobs who may work here: taking too much, and reading what is not theirs."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ears import Outside
from probe import PROBE, argv_of_all, value_of
from target import ENROLL_SECRET, PASSWORD, REDIS_PASSWORD, ROOT, Target, until


@pytest.mark.proves("A52")
def test_one_who_takes_too_much_is_refused_and_others_are_not(target: Target, evidence: list[str]) -> None:
    _, key = target.add_user(f"greedy-{secrets.token_hex(4)}", "w")
    greedy, operator = target.client(X_API_Key=key), target.client("operator")
    made = [greedy.post("/api/keys", json={"name": f"k{number}"}).status_code for number in range(101)]
    assert made.count(201) == 99  # one was there before
    assert set(made[-2:]) == {403}
    kept = operator.post("/api/keys", json={"name": "mine"})
    assert kept.status_code == 201
    assert operator.delete(f"/api/keys/{kept.json()['id']}").status_code == 204
    big = greedy.post("/api/files/upload", files={"file": ("big", b"x" * (9 << 20))})
    assert big.status_code == 400
    assert greedy.post("/api/files/presign", json={"filename": "big", "size": 9 << 20}).status_code == 400
    flood = target.submit("head -c 6000000 /dev/zero | tr '\\0' a | fold -w 1000; echo done", timeout=60)
    quiet = target.submit("echo quiet")
    assert target.finished(quiet)["stdout"] == "quiet\n"
    job = target.finished(flood)
    assert job["truncated"]
    assert len(job["stdout"]) <= 1 << 17
    with target.redis() as client:
        assert int(client.memory_usage(f"h:log:{flood}") or 0) < 3 << 20
    many = target.submit("i=0; while [ $i -lt 1100 ]; do : > $i; i=$((i+1)); done", artifacts=["*"])
    assert target.finished(many)["reason"] == "invalid"
    evidence.append("100 keys, 8 MiB an upload, 1000 artifacts, a log of 1 MiB: refused beyond; others go on")


# Secrets


@pytest.mark.proves("A53")
def test_no_secret_turns_up_where_others_look(target: Target, outside: Outside, evidence: list[str]) -> None:
    canary = {name: f"CANARY{name}{secrets.token_hex(8)}" for name in (
        "environment", "hook", "hookquery", "password", "login", "filequery", "schedule", "schedulehook", "key",
        "bearer", "cookie", "enrol",
    )}  # fmt: skip
    operator, viewer, admin = target.client("operator"), target.client("viewer"), target.client("admin")
    hook = {"url": f"{outside.url}/hook?token={canary['hookquery']}", "secret": canary["hook"]}
    job_id = target.submit(
        'sleep 0.5; test -n "$S"',
        env={"S": canary["environment"]},
        webhook=hook,
        fileUrl=f"{outside.url}/f?t={canary['filequery']}",
    )
    argv = argv_of_all()
    target.finished(job_id)
    failing = target.submit(
        "true", fileUrl=f"{outside.url}/redirect?t={canary['filequery']}", env={"S": canary["environment"]}
    )
    target.finished(failing)
    recurring = {
        "command": "true",
        "env": {"S": canary["schedule"]},
        "schedule": "0 0 1 1 *",
        "webhook": {**hook, "secret": canary["schedulehook"]},
    }
    schedule = operator.post("/api/jobs/submit", json=recurring).json()["jobId"]
    name = f"c-{secrets.token_hex(4)}"
    user = admin.post(
        "/api/users", json={"username": name, "email": f"{name}@example.org", "password": canary["password"]}
    ).json()
    target.client().post("/api/auth/login", json={"username": "admin", "password": canary["login"]})
    target.client().post("/api/auth/login", json={"username": canary["login"], "password": "x"})
    target.client(X_API_Key=f"cb_{canary['key']}", Authorization=f"Bearer {canary['bearer']}").get(
        "/api/auth/me"
    )
    target.client(Cookie=f"auth_token={canary['cookie']}").get("/api/auth/me")
    target.client(X_Enroll_Secret=canary["enrol"]).post(
        "/api/workers/register", json={"workerId": "c", "enrollSecret": canary["enrol"]}
    )
    until(lambda: any(path.startswith("/hook") for path, _, _ in outside.asked), "the webhook is told")
    places: dict[str, str] = {"argv": argv + argv_of_all(), "logs": target.all_logs()}
    for path in (
        *(f"/api/jobs/status?jobId={each}" for each in (job_id, failing, schedule)), f"/api/jobs/{job_id}/why",
        "/api/jobs/list?limit=1000", f"/api/jobs/{job_id}/artifacts", f"/api/jobs/{job_id}/log", "/api/schedules",
        "/api/workers/list", "/api/keys", "/api/auth/me", "/api/openapi.json", "/api/health/ready",
    ):  # fmt: skip
        places[path] = viewer.get(path).text
    places["users"] = admin.get("/api/users").text + admin.get(f"/api/users/{user['id']}").text
    hooked = [each for each in outside.asked if each[0].startswith("/hook")]
    places["webhook"] = repr([each[1:] for each in hooked])
    places["mistakes"] = repr([body for asked, _, body in target.mistakes if canary["login"] not in asked])
    with target.redis() as client:
        for name in (b"h:events", b"h:audit"):
            places[name.decode()] = repr(client.xrange(name))
        places["RQ"] = repr([client.hgetall(name) for name in client.keys("rq:job:*")])
        kept = {name: repr(value_of(client, name)) for name in client.scan_iter(count=1000)}
    ours = {
        "secret key": target.env["HOSTLER_SECRET_KEY"], "enrolment secret": ENROLL_SECRET, "a password": PASSWORD,
        "Redis's password": REDIS_PASSWORD, "S3's secret": target.env["S3_SECRET_ACCESS_KEY"],
        "the admin's key": target.keys["admin"], "a worker's token": target.workers["agent"],
    }  # fmt: skip
    for what, secret in {**canary, **ours}.items():
        found = [place for place, text in places.items() if secret in text]
        assert not found, f"{what} is in {found}"
        everywhere = [name for name, value in kept.items() if secret in value or secret.encode() in name]
        assert not everywhere or what == "filequery", f"{what} is in {everywhere}"
    assert (
        operator.delete(
            f"/api/schedules/{viewer.get('/api/schedules').json()['schedules'][0]['scheduleId']}"
        ).status_code
        == 200
    )
    assert admin.delete(f"/api/users/{user['id']}").status_code == 204
    evidence.append(
        f"{len(canary) + len(ours)} secrets absent from {len(places)} places and {len(kept)} keys of Redis"
    )


# Jobs


@pytest.fixture
def walled(target: Target) -> Iterator[str]:
    """A worker that keeps its jobs in by Landlock, where the kernel has it."""
    target.worker("walled", tags="walled", slots=2, HOSTLER_ISOLATION="landlock")
    process = target.processes["walled"]

    def ready_or_ended() -> bool:
        answer = target.client("viewer").get("/api/workers/walled")
        return process.poll() is not None or answer.status_code == 200

    until(ready_or_ended, "the worker has started")
    if process.poll() is not None:
        pytest.skip(f"no Landlock here: {target.logged('walled')[-200:].strip()}")
    yield "walled"
    process.terminate()
    process.wait(20)


def _probe(target: Target, worker: str, tags: list[str]) -> tuple[str, list[str]]:
    secret = target.directory / "service-secret"
    secret.write_text("TOP-SECRET")
    secret.chmod(0o600)
    root = Path(target.env["HOSTLER_WORK_DIR"]) / worker
    other = target.submit(
        "echo TOP-SECRET > secret; echo on; while [ ! -e stop ]; do sleep 0.1; done", tags=tags, timeout=60
    )
    until(lambda: list(root.glob("*/secret")), "the other job runs")
    (directory,) = [path.parent for path in root.glob("*/secret")]
    pids = [str(pid) for name in ("web", "scheduler", worker, "redis") for pid in target.pids(name)[:3]]
    env = {
        "PIDS": " ".join(pids), "OTHER": str(directory), "SECRET": str(secret), "CODE": str(ROOT),
    }  # fmt: skip
    job = target.run(PROBE + '\nenv | cut -d= -f1 | tr "\\n" " "; umask', env=env, tags=tags, timeout=60)
    target.client("operator").post("/api/jobs/cancel", json={"jobId": other})
    target.finished(other)
    assert job["status"] == "completed", job
    assert "TOP-SECRET" not in job["stdout"]
    lines = job["stdout"].splitlines()
    return lines[-1], [line for line in lines if line.startswith("OPEN")]


@pytest.mark.proves("A61")
@pytest.mark.parametrize("mode", ["auto", "landlock"])
def test_a_job_reaches_neither_the_service_nor_other_jobs(
    target: Target, mode: str, request: pytest.FixtureRequest, evidence: list[str]
) -> None:
    worker = request.getfixturevalue("walled") if mode == "landlock" else "worker"
    tags = [worker] if mode == "landlock" else []
    described = target.await_worker(worker)
    if described["isolation"] == "none":
        pytest.skip(f"this machine can isolate by neither users nor Landlock: {described}")
    seen, open_doors = _probe(target, worker, tags)
    warned = " ".join(
        target.client("viewer").get(f"/api/workers/{worker}").json()["worker"]["metadata"]["warnings"]
    )
    if "can signal" in warned:  # said aloud by the worker: this kernel's Landlock is too old for it
        open_doors = [door for door in open_doors if "signal" not in door]
    if "as root behind Landlock" in warned:  # likewise: root may read what the system keeps for root
        open_doors.remove("OPEN shadow")
    assert open_doors == []
    *names, umask = seen.split()
    assert umask == "0077", seen
    assert not [name for name in names if name.startswith(("REDIS", "S3_", "AWS_", "HOSTLER_"))
                and name not in {"HOSTLER_JOB_ID", "HOSTLER_ATTEMPT"}]  # fmt: skip
    evidence.append(
        f"{described['isolation']}: service, other jobs and code shut; {len(names)} names of environment"
    )


@pytest.mark.proves("A61")
def test_a_job_finds_redis_closed(target: Target, evidence: list[str]) -> None:
    ask = (
        f"exec 3<>/dev/tcp/127.0.0.1/{target.redis_port}; "
        "printf 'GET h:keyring\\r\\nAUTH x\\r\\nAUTH default \\r\\nKEYS *\\r\\n' >&3; "
        'for i in 1 2 3 4; do read -t 3 line <&3; echo "$line"; done'
    )
    job = target.run(argv=["bash", "-c", ask])
    answers = job["stdout"].splitlines()
    assert answers, job
    assert all(line.startswith(("-NOAUTH", "-WRONGPASS", "-ERR")) for line in answers if line.strip()), (
        answers
    )
    evidence.append("Redis answers NOAUTH (the network of the host itself is a job's to use: SECURITY.md)")


@pytest.mark.proves("A63")
def test_no_dependency_has_a_known_weakness() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        pytest.skip("pip-audit is not installed, so no advisory was asked")
    audit = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner=off", "--format=json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if not audit.stdout.strip():
        pytest.skip("the advisories could not be reached")
    weak = [each for each in json.loads(audit.stdout)["dependencies"] if each.get("vulns")]
    assert not weak, weak
