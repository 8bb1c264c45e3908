"""F19-F22: schedulers that die, freeze, come late or have another time: each occurrence fires once, in its time."""

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes import until
from world import Client, World, new_world

MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def own_world() -> Iterator[World]:
    """A Hostler whose schedulers the tests start."""
    world = new_world(scheduler=False)
    yield world
    world.end()


@pytest.fixture
def world(own_world: World) -> Iterator[World]:
    before = list(own_world.stack.processes)
    own_world.begin()
    yield own_world
    own_world.tell()
    started = [process for process in own_world.stack.processes if process not in before]
    own_world.stack.end(*started)
    with (
        own_world.redis() as database
    ):  # the lease of a dead leader is 9 s, and none of the next test's business
        database.delete("h:leader", "h:schedules")


def recurring(world: World, client: Client, misfire: str, minutes_ago: int) -> str:
    """Keep a schedule for every minute whose next occurrence was due some minutes ago, and return its id."""
    order: dict[str, Any] = {"cron": "* * * * *", "misfire": misfire}
    body = {"command": world.words("true"), "schedule": order, "name": misfire}
    made = client.call("schedule", "POST", "/api/jobs/submit", json=body)
    assert made.outcome == "ok", made.text
    schedule = str(client.job(str(made.job_id))["scheduleId"])
    with world.redis() as database:  # time passes
        seconds, _ = database.time()
        due = str(int(seconds) // 60 * MINUTE_MS - minutes_ago * MINUTE_MS)
        database.hset(f"h:schedule:{schedule}", mapping={"next": due})
        database.zadd("h:schedules", {schedule: int(due)})
    return schedule


def fired(world: World, client: Client, schedule: str) -> Counter[str]:
    """Return the occurrences of a schedule that ran, and how often each."""
    mine = f"job-{schedule.removeprefix('schedule-')}-"
    return Counter(e.job_id for e in world.effects() if e.word == "start" and e.job_id.startswith(mine))


@pytest.mark.proves("F19")
def test_a_scheduler_killed_around_its_commits_fires_each_occurrence_once(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    world.worker("f19")
    schedules = [recurring(world, client, "all", 30) for _ in range(4)]
    kills = 0
    for _ in range(6):
        with world.redis() as database:
            database.delete("h:leader")  # the dead one's lease of 9 s is not what is tested here
            scheduler = world.stack.start("scheduler")
            before = database.xlen("h:events")
            until(
                lambda before=before: database.xlen("h:events") != before, "it fires or has nothing left", 10
            )
        time.sleep(chance.uniform(0, 0.05))
        scheduler.kill()
        scheduler.wait()
        kills += 1
        if all(_caught_up(world, each) for each in schedules):
            break
    with world.redis() as database:
        database.delete("h:leader")
    world.stack.start("scheduler")
    until(lambda: all(_caught_up(world, each) for each in schedules), "all have caught up")
    until(
        lambda: all(len(fired(world, client, each)) >= 31 for each in schedules), "all occurrences have run"
    )
    for each in schedules:
        counts = fired(world, client, each)
        assert set(counts.values()) == {1}, counts
        due = sorted(int(job_id.rpartition("-")[2]) for job_id in counts)[1:]
        assert all(later - earlier == 60 for earlier, later in pairwise(due)), due
    evidence += [
        f"{kills} kills, {sum(len(fired(world, client, each)) for each in schedules)} occurrences, each once"
    ]
    world.check()


def _caught_up(world: World, schedule: str) -> bool:
    with world.redis() as database:
        seconds, _ = database.time()
        return int(database.zscore("h:schedules", schedule) or 0) > int(seconds) * 1000


@pytest.mark.slow
@pytest.mark.proves("F20")
def test_a_frozen_leader_is_replaced_and_fires_nothing_again_when_it_wakes(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f20")
    first = world.stack.start("scheduler")
    until(lambda: _leader(world), "it leads")
    assert f":{first.pid}:" in _leader(world)
    world.stack.start("scheduler")
    first.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    until(lambda: _leader(world) and f":{first.pid}:" not in _leader(world), "the other one leads", 20)
    took_s = time.monotonic() - began
    assert took_s < 15
    schedule = recurring(world, client, "all", 20)
    until(lambda: fired(world, client, schedule), "it fires")
    first.send_signal(signal.SIGCONT)
    until(lambda: _caught_up(world, schedule), "it has caught up")
    until(lambda: len(fired(world, client, schedule)) >= 21, "all have run")
    time.sleep(2)
    assert set(fired(world, client, schedule).values()) == {1}
    assert "no longer leading" in world.stack.logged(first)
    evidence += [
        f"taken over after {took_s:.1f} s; {len(fired(world, client, schedule))} occurrences, each once"
    ]
    world.check()


def _leader(world: World) -> str:
    with world.redis() as database:
        return (database.get("h:leader") or b"").decode()


@pytest.mark.proves("F21")
def test_occurrences_that_were_missed_are_treated_as_the_schedule_says(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f21")
    policies = {misfire: recurring(world, client, misfire, 6) for misfire in ("skip", "one", "all")}
    with world.redis() as database:
        began_s, _ = database.time()
        # the first occurrence was made before time passed, and has a later one in its name
        first = {database.hget(f"h:schedule:{each}", "job").decode() for each in policies.values()}
    world.stack.start("scheduler")
    until(lambda: all(_caught_up(world, each) for each in policies.values()), "all have caught up")
    until(lambda: len(fired(world, client, policies["all"])) >= 7, "all have run")
    time.sleep(1)
    ran = {misfire: sum(_due_s(job_id) <= began_s or job_id in first for job_id in fired(world, client, schedule))
           for misfire, schedule in policies.items()}  # fmt: skip
    assert ran == {"skip": 0, "one": 1, "all": 7}
    evidence += [f"of 7 occurrences missed ran: {ran}"]
    world.check()


def _due_s(job_id: str) -> int:
    return int(job_id.rpartition("-")[2])


@pytest.mark.proves("F22")
@pytest.mark.parametrize("hours", [1, -1])
def test_a_process_with_a_wrong_clock_ends_no_lease_and_starts_nothing_early(
    world: World, client: Client, hours: int, tmp_path: Path, evidence: list[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFTED.format(seconds=hours * 3600))
    wrong = {"PYTHONPATH": str(tmp_path)}
    world.stack.start("scheduler", **wrong)
    worker: subprocess.Popen[bytes] = world.worker("f22", **wrong)
    soon = (time.gmtime().tm_min + 30) % 60  # long past, by a clock that is an hour ahead
    schedule = client.call(
        "schedule", "POST", "/api/jobs/submit",
        json={"command": world.words("true"), "schedule": {"cron": f"{soon} * * * *"}},
    )  # fmt: skip
    long, delayed = client.insist("sleep 4"), client.insist("true", delay=3)
    assert client.ended(long)["attempt"] == 1  # longer than a lease
    late = client.ended(delayed)
    waited = datetime.fromisoformat(late["startedAt"]) - datetime.fromisoformat(late["createdAt"])
    assert waited.total_seconds() >= 3
    assert late["attempt"] == 1
    assert client.job(str(schedule.job_id))["wait"] == "schedule"
    assert worker.poll() is None
    evidence += [f"clock {hours:+d} h: leases, delays and schedules go by Redis's time"]
    world.check()


#: What a process imports first: the wall clock, `seconds` off; the monotonic one is left alone.
SHIFTED = """
import datetime, time
real_time, real_time_ns, real_datetime = time.time, time.time_ns, datetime.datetime
time.time = lambda: real_time() + {seconds}
time.time_ns = lambda: real_time_ns() + {seconds} * 10**9
"""
