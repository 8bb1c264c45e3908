"""Attacks on apps by somebody who may write to Redis: what a node runs is what was wished, or nothing."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from target import Target, until

pytestmark = pytest.mark.proves("A60")


@pytest.fixture
def writer(target: Target) -> Iterator[Any]:
    """Somebody who may write to Redis, but holds no key."""
    with target.redis() as client:
        yield client


def running(seconds: int) -> bool:
    """Tell whether a process sleeps for so many seconds: each test has numbers of its own."""
    wanted = [b"sleep", str(seconds).encode()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().split(b"\0")[:2] == wanted:
                return True
        except OSError:
            continue
    return False


def unique() -> int:
    return 100_000_000 + secrets.randbelow(100_000_000)


@pytest.fixture
def honest(target: Target) -> Iterator[tuple[str, int]]:
    """An app that runs on the target's node: its instance id, and for how long it sleeps."""
    seconds, name = unique(), f"honest-{secrets.token_hex(3)}"
    body = {"manifest": {"id": name, "processes": {"web": {"command": ["sleep", str(seconds)]}}}}
    operator = target.client("operator")
    answer = operator.post("/api/apps", json=body)
    assert answer.status_code == 202, answer.text
    until(lambda: operator.get(f"/api/apps/{name}").json()["status"] == "running", "it runs")
    assert running(seconds)
    yield name, seconds
    assert operator.delete(f"/api/apps/{name}").status_code == 202
    until(lambda: operator.get(f"/api/apps/{name}").status_code == 404, "it is gone")
    assert not running(seconds)


def test_a_wish_that_is_altered_or_moved_starts_nothing(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, seconds = honest
    evil = unique()
    wish = writer.hget(f"h:app:{name}", "wish")
    altered = wish.replace(str(seconds).encode(), str(evil).encode())
    moved = f"moved-{secrets.token_hex(3)}"
    (node,) = {writer.hget(f"h:app:{name}", "node").decode()}
    try:
        for key, raw in (
            (name, altered),
            (name, b"\n" + altered.partition(b"\n")[2]),
            (name, b"\xff"),
            (moved, wish),
        ):
            writer.hset(
                f"h:app:{key}", mapping={"wish": raw, "node": node, "phase": "ready", "generation": 99}
            )
            writer.sadd(f"h:apps:node:{node}", key)
            writer.publish(f"h:control:{node}", "apps")
            time.sleep(0.5)
            assert not running(evil)
        until(lambda: "an app is not believed" in target.logged("worker"), "the node says so")
    finally:
        writer.delete(f"h:app:{moved}")
        writer.srem(f"h:apps:node:{node}", moved)
        writer.hset(f"h:app:{name}", "wish", wish)
        writer.publish(f"h:control:{node}", "apps")
    until(lambda: running(seconds), "what was wished runs")
    assert not running(evil)
    evidence.append("a wish altered, unsigned, unreadable, or moved to another app: nothing of it ran")


def test_a_wish_of_before_that_is_put_back_is_refused(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, seconds = honest
    operator = target.client("operator")
    earlier = writer.hget(f"h:app:{name}", "wish")
    node = writer.hget(f"h:app:{name}", "node").decode()
    assert operator.post(f"/api/apps/{name}/stop", json={}).status_code == 202
    until(lambda: operator.get(f"/api/apps/{name}").json()["status"] == "stopped", "it has stopped")
    current = writer.hget(f"h:app:{name}", "wish")
    writer.hset(f"h:app:{name}", "wish", earlier)
    writer.publish(f"h:control:{node}", "apps")
    until(lambda: "an older wish was refused" in target.logged("worker"), "the node says so")
    assert not running(seconds)
    writer.hset(f"h:app:{name}", "wish", current)
    evidence.append("the wish from before a stop, put back: the app stays stopped")


def test_a_job_of_an_app_that_hostler_did_not_sign_is_not_done(
    target: Target, writer: Any, honest: tuple[str, int], evidence: list[str]
) -> None:
    name, seconds = honest
    node = writer.hget(f"h:app:{name}", "node").decode()
    forged = "job-" + "".join(secrets.choice("0123456789abcdef") for _ in range(20))
    spec = f'{{"task":"app.uninstall","app":"{name}","action":"uninstall","generation":1}}'
    writer.hset(f"h:job:{forged}", mapping={
        "state": "queued", "attempt": "0", "queue": f"node.{node}", "spec": spec, "sig": "x", "created": "1",
        "timeout": "60", "wait": "", "retries": "0", "failures": "0", "deaths": "0", "actor": "user:u", "app": name,
    })  # fmt: skip
    writer.rpush(f"rq:queue:node.{node}", forged)
    writer.publish("h:wake", f"node.{node}")
    until(lambda: writer.hget(f"h:job:{forged}", "state") == b"failed", "it is refused")
    assert writer.hget(f"h:job:{forged}", "reason") == b"invalid"
    assert running(seconds)
    evidence.append("a forged uninstall in the node's queue: failed as invalid, the app runs on")
