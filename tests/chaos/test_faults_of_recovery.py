"""F49, F52, F66: Hostler's own recovery points and rebuilds, killed at every point, spoilt, and in an emergency."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from dying import MAKING, REBUILDING
from processes import ROOT, processes_with, until
from world import World

from storage import jobs, recovery, schedules, users
from storage.jobs import Order
from storage.recovery import Place, RecoveryError
from storage.schedules import Recurrence
from storage.store import Store


@pytest.fixture
def world(bare_world: World) -> World:
    return bare_world


async def filled(store: Store, count: int = 25) -> None:
    """Give a store some of everything."""
    for number in range(count):
        await jobs.submit(store, "user:u", Order(command=f"echo {number}", metadata={"pad": "x" * 400}))
    await users.create(store, actor="t", username="ada", email="a@b.org", password="pass word", role="w")
    await schedules.create(store, "user:u", Order(command="true"), Recurrence("0 3 * * *"))


def deaths(world: World, what: str) -> list[dict[str, Any]]:
    """Have something die at each of its points, and return what was found after each death."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "dying.py"), what],
        cwd=ROOT, env={**world.stack.env, "PATH": ""}, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return [orjson.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.proves("F49")
def test_a_recovery_point_killed_at_ten_points_is_whole_or_not_there(
    world: World, evidence: list[str]
) -> None:
    world.in_store(filled)
    first = world.in_store(recovery.make)
    told = deaths(world, "make")
    died = [each for each in told if "at" in each]
    listed = [each["points"] for each in told if "points" in each]
    assert [each["at"] for each in died] == list(MAKING)
    assert {each["ended"] for each in died} == {-signal.SIGKILL}
    assert len(listed) == len(died) + 1  # each death was followed by reading every listed point back
    assert all(first.id in found for found in listed)
    assert [len(found) for found in listed] == [1] * 9 + [2, 3]  # only what died after its record counts
    evidence += [f"{len(died)} kills of a self-backup: every point that was listed is whole"]


@pytest.mark.proves("F49")
def test_a_rebuild_killed_at_every_point_leaves_nothing_or_everything(
    world: World, evidence: list[str]
) -> None:
    world.in_store(filled)
    point = world.in_store(recovery.make)
    with world.redis() as database:
        database.flushall()
    died = deaths(world, "rebuild")
    assert [each["at"] for each in died] == list(REBUILDING)
    assert {each["ended"] for each in died} == {-signal.SIGKILL}
    for each in died[:-1]:
        assert each["left"] == 0, each
        assert (each["again"], each["beside"]) == (0, []), each
        assert each["keys"] >= point.keys, each
    assert died[-1]["left"] >= point.keys  # the exchange is the last step, and one
    evidence += [f"{len(died)} kills of a rebuild: Redis empty until the last step, the next rebuild whole"]


@pytest.mark.proves("F52")
def test_a_spoilt_recovery_point_is_reported_and_not_restored(world: World, evidence: list[str]) -> None:
    world.in_store(filled)
    good = world.in_store(recovery.make)
    point = world.in_store(recovery.make)

    async def spoil(store: Store) -> None:
        place = Place.of(store)
        key = place.key(point.id, "part-000000")
        whole = bytearray(await place.objects.get(key, limit_bytes=1 << 24))
        whole[len(whole) // 2] ^= 1
        await place.objects.put(key, bytes(whole))
        with pytest.raises(RecoveryError, match=r"part-000000 .* was altered"):
            await recovery.verify(place, point)

    world.in_store(spoil)
    with world.redis() as database:
        database.flushall()

        async def rebuild(store: Store, chosen: recovery.Point) -> None:
            await recovery.rebuild(store.settings, Place.of(store), chosen)

        with pytest.raises(RecoveryError, match=r"part-000000 .* was altered"):
            world.in_store(lambda store: rebuild(store, point))
        assert database.info("keyspace") == {}
        world.in_store(lambda store: rebuild(store, good))
        assert database.zcard("h:jobs") == 26
    evidence += [
        "one byte of the newest: verify names the part, rebuild refuses; the one before it is restored"
    ]


def hostler(world: World, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the command line on the world's own environment."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *words], cwd=ROOT, env={**world.stack.env, "PATH": "/usr/bin:/bin"},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip


PAGES = ("/api/users", "/api/keys", "/api/jobs/list?limit=1000", "/api/schedules", "/api/releases", "/api/files/list",
         "/api/backup-jobs")  # fmt: skip
#: What a rebuild changes, as documented: attempts of what had not ended, and when something was last seen.
CHANGES = {"attempt", "lastUsedAt", "wait", "estimatedWait", "estimatedWaitSeconds"}


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Return where two answers differ, but for what a rebuild changes."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted((before.keys() | after.keys()) - CHANGES)
        return [
            each
            for name in names
            for each in differences(before.get(name), after.get(name), f"{where}.{name}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [each for number, (a, b) in pairs for each in differences(a, b, f"{where}[{number}]")]
    return [] if before == after else [f"{where}: {before!r} became {after!r}"]


@pytest.mark.proves("F66")
def test_a_control_plane_that_lost_redis_is_rebuilt_while_its_apps_go_on(
    world: World, evidence: list[str], tmp_path: Path
) -> None:
    world.start_scheduler()
    world.web()
    world.worker("drill")
    client = world.client()

    def get(path: str) -> Any:
        answer = client.http.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def post(path: str, body: dict[str, Any]) -> Any:
        answer = client.http.post(path, json=body)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    post(
        "/api/users",
        {"username": "grace", "email": "grace@example.org", "password": "pass word 1", "role": "w"},
    )
    post("/api/keys", {"name": "ci"})
    sleeper = {
        "id": "drill",
        "processes": {"web": {"command": ["sleep", "600"]}},
        "restart": {"policy": "always"},
    }
    post("/api/apps", {"manifest": sleeper})
    ended = [client.insist(f"echo {number}; exit {number % 2}") for number in range(6)]
    for each in ended:
        client.ended(each)
    post("/api/jobs/submit", {"command": "true", "schedule": {"cron": "0 3 * * *"}})
    later = client.insist("true", delay=3600)
    unclaimed = client.insist("true", tags=["nobody-has-this"])
    post(
        "/api/backup-jobs",
        {"name": "etc", "node_id": "drill", "volumes": [str(tmp_path)], "schedule": "0 4 * * *"},
    )

    def status_of_app() -> str:
        return str(get("/api/apps/drill")["status"])

    until(lambda: status_of_app() == "running", "the app runs")
    until(
        lambda: not get("/api/jobs/list?status=running")["jobs"], "no job is at work, its install among them"
    )
    (pid,) = processes_with(b"HOSTLER_INSTANCE=drill/", below=str(world.stack.directory)) or (0,)
    assert pid
    before = {path: get(path) for path in PAGES}
    logs = {each: get(f"/api/jobs/{each}/log") for each in ended}
    made = hostler(world, "backup", "self")
    assert made.returncode == 0, made.stderr.decode()

    began = time.monotonic()
    world.kill_redis()
    shutil.rmtree(world.stack.directory / "valkey")
    (world.stack.directory / "valkey").mkdir()
    world.start_redis()
    until(lambda: registered(world), "the worker has found the empty Redis")
    rebuilt = hostler(world, "rebuild", "--json")
    assert rebuilt.returncode == 0, rebuilt.stderr.decode()
    told = orjson.loads(rebuilt.stdout)
    until(lambda: client.http.get("/api/auth/me").status_code == 200, "the web knows its users")
    rto_s = time.monotonic() - began

    for path, shown in before.items():
        assert differences(shown, get(path), path) == []
    assert {each: get(f"/api/jobs/{each}/log") for each in ended} == logs
    until(lambda: status_of_app() == "running", "the app is known to run")
    assert processes_with(b"HOSTLER_INSTANCE=drill/", below=str(world.stack.directory)) == {
        pid
    }  # not doubled
    assert {client.job(each)["status"] for each in (later, unclaimed)} == {"queued"}
    fresh = client.insist("true")
    assert client.ended(fresh)["status"] == "completed"
    assert told["audit_broken_at"] is None
    evidence += [
        f"RTO {rto_s:.1f} s, of which the rebuild {told['took_s']:.1f} s; {told['loaded']} keys, "
        f"{told['counts']['job']} jobs, {told['counts']['user']} users, equal by API; the app kept its process"
    ]


def registered(world: World) -> bool:
    with world.redis() as database:
        return bool(database.exists("h:worker:drill"))
