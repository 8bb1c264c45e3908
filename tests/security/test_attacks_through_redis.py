"""Attacks by somebody who may write to Redis: nothing foreign is run, nobody is let in, and it is said."""

import base64
import hashlib
import hmac
import json
import pickle
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from target import PASSWORD, Target, until

pytestmark = pytest.mark.proves("A60")

Client = "redis.Redis[bytes]"


@pytest.fixture
def writer(target: Target) -> Iterator[Any]:
    """Somebody who may write to Redis, but holds no key."""
    with target.redis() as client:
        yield client


@pytest.fixture
def canary() -> Iterator[Path]:
    """A path where a file appears only if somebody was made to put it there; anybody could."""
    path = Path(f"/tmp/canary-{secrets.token_hex(6)}")  # noqa: S108  every user of the machine must be able to write it
    yield path
    path.unlink(missing_ok=True)


def _job_id() -> str:
    return "job-" + "".join(secrets.choice("0123456789abcdef") for _ in range(20))


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


def _queue(writer: Any, job_id: str) -> None:
    writer.rpush("rq:queue:jobs.normal", job_id)
    writer.publish("h:wake", "jobs.normal")


def _claimed(writer: Any, job_id: str) -> None:
    until(lambda: job_id.encode() not in writer.lrange("rq:queue:jobs.normal", 0, -1), f"{job_id} is claimed")


def _record(spec: object, signature: str = "") -> dict[str, str]:
    text = spec if isinstance(spec, str) else json.dumps(spec)
    return {
        "state": "queued", "actor": "user:mallory", "queue": "jobs.normal", "attempt": "0", "spec": text, "wait": "",
        "sig": signature, "created": str(int(time.time() * 1000)), "timeout": "60", "retries": "0", "failures": "0",
        "deaths": "0", "key": "", "backoff": "", "once": "", "hook": "",
    }  # fmt: skip


def test_what_rq_would_run_is_refused(target: Target, writer: Any, canary: Path, evidence: list[str]) -> None:
    command = f"touch {canary}"
    payloads = {
        "pickle": pickle.dumps(("os.system", None, (command,), {})),
        "packed pickle": zlib.compress(pickle.dumps(("os.system", None, (command,), {}))),
        "reduce": zlib.compress(pickle.dumps(_Evil(command))),
        "json": zlib.compress(json.dumps(["os.system", None, [command], {}]).encode()),
        "subprocess": json.dumps(["subprocess.check_output", None, [["touch", str(canary)]], {}]).encode(),
    }
    for name, data in payloads.items():
        job_id = f"evil-{secrets.token_hex(4)}"
        fields = {
            "data": data, "origin": "jobs.normal", "status": "queued", "description": "x",
            "created_at": "2026-01-01T00:00:00.000000Z", "success_callback_name": "os.system",
            "failure_callback_name": "os.system",
        }  # fmt: skip
        writer.hset(f"rq:job:{job_id}", mapping=fields)
        _queue(writer, job_id)
        _claimed(writer, job_id)
        until(lambda job_id=job_id: job_id in target.logged("worker"), f"the worker reports {name}")
        said = repr(writer.xrevrange("h:events", count=50))
        assert job_id in said
        assert "queue.refused" in said
    assert not canary.exists()
    evidence.append(f"{len(payloads)} payloads of RQ's: refused, in the log and among the events")


def test_a_record_that_is_not_signed_for_its_job_is_not_run(
    target: Target, writer: Any, canary: Path, evidence: list[str]
) -> None:
    command = f"touch {canary}"
    genuine = target.submit(command, delay=3600)
    spec, signature = (value.decode() for value in writer.hmget(f"h:job:{genuine}", "spec", "sig"))
    altered = json.dumps({**json.loads(spec), "command": f"{command}; id"})
    forged = {
        "unsigned": _record({"task": "command", "command": command}),
        "wrongly signed": _record({"task": "command", "command": command}, "A" * 43),
        "signature not ASCII": _record({"task": "command", "command": command}, "é" * 43),
        "replayed": _record(spec, signature),
        "altered": _record(altered, signature),
        "another task": _record({"task": "os.system", "command": command}, signature),
        "no JSON": _record("{", signature),
        "empty": _record("", ""),
        "null": _record("null", signature),
    }
    for name, record in forged.items():
        job_id = _job_id()
        writer.hset(f"h:job:{job_id}", mapping=record)
        writer.zadd("h:jobs", {job_id: int(record["created"])})
        _queue(writer, job_id)
        _claimed(writer, job_id)
        until(lambda job_id=job_id: writer.hget(f"h:job:{job_id}", "state") == b"failed", f"{name} is ended")
        assert writer.hget(f"h:job:{job_id}", "reason") == b"invalid", name
        assert job_id in target.logged("worker"), f"the worker reports {name}"
    # what is queued by the book, but changed meanwhile
    writer.hset(f"h:job:{genuine}", mapping={"spec": altered, "wait": "", "not_before": ""})
    writer.zrem("h:delayed", genuine)
    _queue(writer, genuine)
    assert target.finished(genuine)["reason"] == "invalid"
    assert not canary.exists()
    assert target.run("echo still here")["stdout"] == "still here\n"
    evidence.append(
        f"{len(forged) + 1} forged, replayed or altered records: failed as invalid, reported, not run"
    )


def test_records_out_of_shape_stop_neither_worker_nor_lists(target: Target, writer: Any) -> None:
    shapes: list[dict[str, str]] = [
        {"attempt": "NaN"}, {"timeout": "x"}, {"created": "x"}, {"state": "odd"}, {"lines": "x"}, {"tags": "["},
        {"retries": "x", "deaths": "x"}, {"bytes": "x"}, {"spec": "null"},
    ]  # fmt: skip
    odd = []
    try:
        for shape in shapes:
            odd.append(_job_id())
            writer.hset(
                f"h:job:{odd[-1]}", mapping={**_record({"task": "command", "command": "true"}, "x"), **shape}
            )
            writer.zadd("h:jobs", {odd[-1]: int(time.time() * 1000)})
            _queue(writer, odd[-1])
        writer.rpush("rq:queue:jobs.normal", b"\xff\xfe", "", "x" * 10_000, "job-../../x", "*")
        assert target.run("echo on")["stdout"] == "on\n"
        answer = target.client("viewer").get("/api/jobs/list")
        assert answer.status_code == 200, answer.text
        until(lambda: not writer.llen("rq:queue:jobs.normal"), "all of it has been looked at")
        time.sleep(0.5)  # what the worker makes of the last of it
    finally:
        for job_id in odd:
            writer.delete(f"h:job:{job_id}")
            for index in (b"h:jobs", *writer.keys("h:jobs:*"), b"h:leases", b"h:ended"):
                if writer.type(index) == b"zset":
                    writer.zrem(index, job_id)
            writer.lrem("h:proc:worker", 0, job_id)
    assert target.client("viewer").get("/api/jobs/list").status_code == 200


def _signed_by_nobody(fields: dict[str, Any]) -> str:
    return "A" * 43 + "\n" + json.dumps(fields)


def test_nobody_becomes_an_admin_by_writing(target: Target, writer: Any, evidence: list[str]) -> None:
    viewer_id, admin_id = target.users["viewer"], target.users["admin"]
    digest = hashlib.sha256(target.keys["viewer"].encode()).hexdigest()
    admins_digest = hashlib.sha256(target.keys["admin"].encode()).hexdigest()
    raw: bytes = writer.get(f"h:user:{viewer_id}")
    raw_key: bytes = writer.get(f"h:apikey:{digest}")
    viewer = target.client("viewer")
    signature, _, content = raw.decode().partition("\n")
    promoted = {**json.loads(content), "role": "a"}
    try:
        for name, forged in {
            "promoted": f"{signature}\n{json.dumps(promoted)}",
            "unsigned": _signed_by_nobody(promoted),
            "the admin's record": writer.get(f"h:user:{admin_id}"),
            "no record": "x",
            "binary": b"\xff\n\xff",
        }.items():
            writer.set(f"h:user:{viewer_id}", forged)
            answer = viewer.get("/api/users")
            assert answer.status_code == 401, f"{name}: {answer.text}"
        writer.set(f"h:user:{viewer_id}", raw)
        key = json.loads(raw_key.decode().partition("\n")[2])
        for name, forged in {
            "promoted key": raw_key.decode().partition("\n")[0]
            + "\n"
            + json.dumps({**key, "role": "a", "owner": admin_id}),
            "the admin's key": writer.get(f"h:apikey:{admins_digest}"),
            "key of nobody's": _signed_by_nobody({**key, "owner": admin_id, "role": "a"}),
        }.items():
            writer.set(f"h:apikey:{digest}", forged)
            answer = viewer.get("/api/users")
            assert answer.status_code == 401, f"{name}: {answer.text}"
    finally:
        writer.set(f"h:user:{viewer_id}", raw)
        writer.set(f"h:apikey:{digest}", raw_key)
    assert viewer.get("/api/auth/me").status_code == 200
    mine = "cb_" + secrets.token_urlsafe(32)
    record = {"id": "key-x", "owner": admin_id, "name": "x", "role": "a", "prefix": mine[:7], "created_ms": 1}
    writer.set(f"h:apikey:{hashlib.sha256(mine.encode()).hexdigest()}", _signed_by_nobody(record))
    assert target.client(X_API_Key=mine).get("/api/users").status_code == 401
    writer.set(
        "h:user:user-mallory", _signed_by_nobody({**promoted, "id": "user-mallory", "names": ["mallory"]})
    )
    writer.set("h:user:by:mallory", "user-mallory")
    writer.set("h:user:by:steve", admin_id)  # another name for the admin
    for name in ("mallory", "steve"):
        answer = target.client().post("/api/auth/login", json={"username": name, "password": PASSWORD})
        assert answer.status_code == 401, name
    writer.delete("h:user:user-mallory", "h:user:by:mallory", "h:user:by:steve")
    until(lambda: "not believed" in target.logged("web"), "the web process reports it")
    evidence.append("forged users, keys and names: 401, reported")


def test_a_key_that_is_put_into_the_keyring_signs_nothing(target: Target, writer: Any) -> None:
    token = target.login("admin")["token"]
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    kid, own = "0" * 16 + "A" * 11, b"k" * 32
    current = writer.hget("h:keyring", "current").decode()
    kept = writer.hget("h:keyring", f"key:{current}")
    try:
        for name in (kid, current):
            for sealed in (
                own,
                base64.urlsafe_b64encode(own),
                base64.urlsafe_b64encode(b"n" * 12 + own + b"t" * 16),
            ):
                if name == kid:
                    writer.hset("h:keyring", f"key:{name}", sealed)

                def part(value: Any) -> str:
                    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

                signed = f"{part({'alg': 'HS256', 'kid': name})}.{part({**claims, 'jti': 'x', 'fam': 'x'})}"
                mac = (
                    base64.urlsafe_b64encode(hmac.new(own, signed.encode(), hashlib.sha256).digest())
                    .decode()
                    .rstrip("=")
                )
                answer = target.client(Authorization=f"Bearer {signed}.{mac}").get("/api/auth/me")
                assert answer.status_code == 401
    finally:
        writer.hdel("h:keyring", f"key:{kid}")
    assert writer.hget("h:keyring", f"key:{current}") == kept
    assert target.client(Authorization=f"Bearer {token}").get("/api/auth/me").status_code == 200
    registration = {
        "registration": "forged",
        "status": "online",
        "kind": "agent",
        "seen": str(int(time.time() * 1000)),
    }
    writer.hset("h:worker:forged", mapping=registration)
    assert target.client(X_Worker_Token="forged").get("/api/jobs/get-job").status_code == 401
    writer.delete("h:worker:forged")


def test_a_forged_schedule_does_not_fire(target: Target, writer: Any, canary: Path) -> None:
    command = f"touch {canary}"
    answer = target.client("operator").post(
        "/api/jobs/submit", json={"command": command, "schedule": "0 0 1 1 *"}
    )
    assert answer.status_code == 201
    genuine = target.client("viewer").get("/api/schedules").json()["schedules"][0]["scheduleId"]
    fields = writer.hgetall(f"h:schedule:{genuine}")
    forged, past = "schedule-" + _job_id()[4:], int(time.time() * 1000) - 1000
    order = {"command": command, "backoff": {}, "webhook": None}
    record = json.dumps(
        {"order": order, "cron": "* * * * *", "timezone": "UTC", "misfire": "one", "actor": "user:x"}
    )
    for content in (fields[b"record"], record, "x", b"\xff"):
        writer.hset(
            f"h:schedule:{forged}", mapping={**fields, b"record": content, b"next": str(past), b"job": b""}
        )
        writer.zadd("h:schedules", {forged: past})
        until(lambda: writer.zscore("h:schedules", forged) is None, "the forged schedule is taken out")
    assert target.client("viewer").get("/api/schedules").status_code == 200
    writer.delete(f"h:schedule:{forged}")
    assert target.client("operator").delete(f"/api/schedules/{genuine}").status_code == 200
    assert not canary.exists()


def test_orders_by_message_are_not_obeyed(target: Target, writer: Any, evidence: list[str]) -> None:
    job_id = target.submit("while :; do echo on; sleep 0.1; done", timeout=60)
    until(lambda: writer.hget(f"h:job:{job_id}", "state") == b"running", "it runs")
    workers = [name.decode().removeprefix("rq:worker:") for name in writer.keys("rq:worker:*")]
    assert "worker" in workers
    told = 0
    orders: list[bytes] = [
        json.dumps({"command": command, "job_id": job_id}).encode()
        for command in ("shutdown", "stop-job", "kill-horse", "suspend", "os.system")
    ]
    orders += [pickle.dumps(_Evil("true")), b"\xff", b"", b"cancel", b"cancel ", b"cancel \xff",
               f"cancel {job_id} 1".encode(), b"cancel * 1", b"tagsets", b"x" * 100_000]  # fmt: skip
    for order in orders:
        for channel in ("rq:pubsub:worker", "h:control:worker", "h:wake", f"h:out:{job_id}", "rq:pubsub:*"):
            writer.publish(channel, order)
            told += 1
    writer.set("rq:suspended", 1)
    try:
        lines = int(writer.hget(f"h:job:{job_id}", "lines") or 0)
        until(lambda: int(writer.hget(f"h:job:{job_id}", "lines") or 0) > lines + 10, "it goes on")
        assert writer.hget(f"h:job:{job_id}", "state") == b"running"
        assert target.run("echo obeying nobody")["stdout"] == "obeying nobody\n"
    finally:
        writer.delete("rq:suspended")
    assert all(
        process.poll() is None
        for name, process in target.processes.items()
        if name in {"web", "worker", "scheduler"}
    )
    assert target.client("operator").post("/api/jobs/cancel", json={"jobId": job_id}).status_code == 200
    assert target.finished(job_id)["status"] == "cancelled"
    evidence.append(f"{told} forged messages: job and processes go on; the real cancel ends it")


def test_a_webhook_that_is_swapped_tells_nobody(target: Target, writer: Any) -> None:
    from ears import listening

    with listening("127.0.0.9") as ear:
        job_id = target.submit("true", delay=1, webhook="https://hook.invalid/")
        other = target.submit("true", delay=3600, webhook=f"http://127.0.0.9:{ear.port}/hook")
        writer.hset(f"h:job:{job_id}", "webhook", writer.hget(f"h:job:{other}", "webhook"))
        target.finished(job_id)
        until(lambda: writer.zscore("h:webhooks", job_id) is None, "it is taken out")
        assert not ear.heard()
    assert target.client("operator").post("/api/jobs/cancel", json={"jobId": other}).status_code == 200


def test_redis_itself_needs_a_password_and_its_rq_shows_nothing_to_run(target: Target, writer: Any) -> None:
    with redis.Redis(port=target.redis_port) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
    job_id = target.submit("true", delay=3600)
    data = json.loads(writer.hget(f"rq:job:{job_id}", "data"))
    assert data[0].startswith("workers.tasks.")
    assert target.client("operator").post("/api/jobs/cancel", json={"jobId": job_id}).status_code == 200
