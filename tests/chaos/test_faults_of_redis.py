"""F32-F42: a Redis that dies, hides, fills up, forgets, or answers late; what was acknowledged ends, and ends once."""

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from processes import ROOT, until
from servers import SECRET_KEY, free_port, start_valkey
from world import Client, World, new_world, proxied, together

from settings import process_environment


@pytest.fixture(scope="module")
def other_world() -> Iterator[World]:
    """A Hostler apart from the shared one."""
    world = new_world(HOSTLER_SLOTS="4")
    yield world
    world.end()


@pytest.fixture
def own_world(other_world: World) -> Iterator[World]:
    """A Hostler whose Redis may lose what earlier tests wrote, but not who its admin is."""
    with other_world.story():
        yield other_world


@pytest.mark.proves("F32")
def test_a_redis_that_is_killed_under_load_loses_nothing_acknowledged(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    world.worker("f32", "--slots", "20")
    running = [client.insist(f"sleep {chance.uniform(2, 6):.1f}") for _ in range(20)]
    for job_id in running:
        world.await_start(job_id)
    with together(8) as pool:
        submits = [pool.submit(client.insist, "true") for _ in range(500)]
        time.sleep(chance.uniform(0.1, 0.8))
        world.kill_redis()
        down_s = 2.2  # shorter than a lease, longer than what is left of some of them
        time.sleep(down_s)
        world.start_redis()
        for each in submits:
            each.result()
    said = world.check(patience_s=60)
    assert all(client.job(job_id)["attempt"] == 1 for job_id in running)
    evidence += [f"down for {down_s} s: 20 running jobs ran once", said]


@pytest.mark.proves("F33")
def test_without_redis_the_api_refuses_promptly_and_comes_back_by_itself(
    world: World, client: Client, evidence: list[str]
) -> None:
    worker = world.worker("f33")
    running = client.insist("sleep 2")
    world.await_start(running)
    world.kill_redis()
    answers = [client.submit("true") for _ in range(5)]
    answers += [client.call("list", "GET", "/api/jobs/list"), client.cancel(running)]
    assert {each.status for each in answers} == {503}
    live = client.http.get("/api/health/live").status_code
    ready = client.http.get("/api/health/ready").status_code
    assert (live, ready) == (200, 503)
    until(lambda: any(effect.word == "end" for effect in world.effects()), "the job has ended")
    time.sleep(1)  # its result waits
    world.start_redis()
    back_at = time.monotonic()
    until(lambda: client.submit("true").outcome == "ok", "submits are accepted", 10)
    back_s = time.monotonic() - back_at
    assert client.ended(running)["attempt"] == 1
    assert worker.poll() is None
    slowest_s = max(each.ended_s - each.began_s for each in answers)
    evidence += [f"503 within {slowest_s:.2f} s, accepting {back_s:.1f} s after its return", world.check()]


@pytest.mark.proves("F33")
def test_a_redis_that_is_silent_is_given_up_in_time(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f33-silent")
    running = client.insist("sleep 4")
    world.await_start(running)
    world.stack.valkey.process.send_signal(signal.SIGSTOP)
    try:
        with together(5) as pool:
            ready = pool.submit(client.http.get, "/api/health/ready", timeout=5)
            login = pool.submit(
                client.http.post, "/api/auth/login", json={"username": "ada", "password": "x" * 12}, timeout=5
            )
            answers = list(pool.map(lambda _: client.submit("true"), range(5)))
        assert {each.status for each in answers} == {503}
        assert {ready.result().status_code, login.result().status_code} == {503}
    finally:
        world.stack.valkey.process.send_signal(signal.SIGCONT)
    until(lambda: client.submit("true").outcome == "ok", "submits are accepted", 10)
    assert client.ended(running)["attempt"] == 1
    evidence += [f"frozen: 503 after {max(a.ended_s - a.began_s for a in answers):.1f} s", world.check()]


@pytest.mark.proves("F34")
@pytest.mark.parametrize("cut_bytes", [3, 2000])
def test_a_redis_that_lost_its_last_moments_starts_and_claims_no_phantom_success(
    own_world: World, cut_bytes: int, evidence: list[str]
) -> None:
    world, client = own_world, own_world.client()
    worker = world.worker("f34")
    before = [client.insist("true") for _ in range(5)]
    for job_id in before:
        client.ended(job_id)
    late = [client.insist("sleep 1") for _ in range(4)]
    for job_id in late:
        world.await_start(job_id)
    world.kill_redis()
    (log,) = (world.stack.directory / "valkey" / "appendonlydir").glob("*.incr.aof")
    size = log.stat().st_size
    with log.open("r+b") as file:  # the power failed before these bytes were on the disk
        file.truncate(size - cut_bytes)
    time.sleep(1.5)
    world.start_redis()
    again = client.insist("true")
    client.ended(again)
    for job_id in before:
        assert client.ended(job_id)["status"] == "completed"
    lost = [job_id for job_id in late if not client.job(job_id)]
    ends = {(effect.job_id, effect.attempt) for effect in world.effects() if effect.word == "end"}
    for job_id in set(late) - set(lost):
        job = client.ended(job_id)
        assert job["status"] == "completed"
        assert (job_id, job["attempt"]) in ends
    assert worker.poll() is None
    evidence += [
        f"{cut_bytes} bytes lost: {len(lost)} of the 4 newest jobs unknown, none completed without its end"
    ]


@pytest.mark.proves("F35")
def test_a_redis_that_was_emptied_is_not_served_as_if_nothing_had_happened(
    own_world: World, evidence: list[str]
) -> None:
    world, client = own_world, own_world.client()
    worker = world.worker("f35")
    job_id = client.insist("sleep 600")
    world.await_start(job_id)
    world.kill_redis()
    snapshot = {path.name: path.read_bytes() for path in _aof(world)}
    world.start_redis()
    until(lambda: client.job(job_id), "it is back")
    with world.redis() as database:
        database.flushall()
    until(lambda: client.submit("true").status == 401, "nobody is known any more", 10)
    until(lambda: not _commands_of(world, job_id), "the worker gave up what it lost", 10)
    assert worker.poll() is None
    world.kill_redis()  # the snapshot is restored
    for path in _aof(world):
        path.unlink()
    for name, content in snapshot.items():
        (world.stack.directory / "valkey" / "appendonlydir" / name).write_bytes(content)
    world.start_redis()
    until(lambda: client.submit("true").outcome == "ok", "submits are accepted", 20)
    client.cancel(job_id)
    assert client.ended(job_id)["status"] == "cancelled"
    evidence += ["emptied: 401 for everybody, commands ended; restored: everything as in the snapshot"]
    assert world.effects()


def _aof(world: World) -> list[Path]:
    return list((world.stack.directory / "valkey" / "appendonlydir").iterdir())


def _commands_of(world: World, job_id: str) -> set[int]:
    from processes import processes_of

    return processes_of(job_id)


@pytest.mark.proves("F36")
def test_a_full_redis_refuses_and_recovers(own_world: World, evidence: list[str]) -> None:
    world, client = own_world, own_world.client()
    worker = world.worker("f36")
    running = client.insist("sleep 2")
    world.await_start(running)
    with world.redis() as database:
        used = int(database.info("memory")["used_memory"])
        database.config_set("maxmemory", used // 2)  # well below: what is held goes up and down
        made = [client.submit("true") for _ in range(3)]
        assert {each.status for each in made} <= {503, 507}
        time.sleep(4)  # the job ends and leases run out meanwhile
        database.config_set("maxmemory", 0)
    assert client.ended(running)["attempt"] == 1
    assert client.ended(client.insist("true"))["status"] == "completed"
    assert worker.poll() is None
    evidence += ["full: 503; freed: the result that had waited was recorded", world.check()]


#: What is set, and the word by which a start that refuses it names it.
UNSAFE = (
    ({"appendonly": "no", "maxmemory-policy": "noeviction"}, "append-only"),
    ({"appendonly": "yes", "maxmemory-policy": "allkeys-lru"}, "evicts"),
)


@pytest.mark.proves("F37")
def test_a_redis_that_may_lose_data_is_refused_at_the_start(tmp_path: Path, evidence: list[str]) -> None:
    server = start_valkey(tmp_path)
    env = {**process_environment(), "REDIS_URL": server.url, "HOSTLER_SECRET_KEY": SECRET_KEY}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "api" / "gunicorn.py"), "api.asgi:app"]
    web_port = free_port()
    env |= {"PORT": str(web_port), "HOSTLER_HOST": "127.0.0.1", "WEB_CONCURRENCY": "1"}
    try:
        for options, word in UNSAFE:
            with redis.Redis.from_url(server.url) as client:
                for name, value in options.items():
                    client.config_set(name, value)
            refused = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
            )
            assert refused.returncode != 0
            (sentence, *_) = [line for line in refused.stderr.splitlines() if word in line] or [""]
            assert sentence, refused.stderr
            evidence += [sentence]
        allowed = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**env, "HOSTLER_ALLOW_VOLATILE": "1"},
        )  # fmt: skip
        try:
            until(lambda: _listens(web_port), "with the override it starts")
        finally:
            allowed.terminate()
            allowed.wait(20)
    finally:
        server.process.kill()
        server.process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.proves("F38")
def test_a_failover_is_followed_without_a_restart(evidence: list[str], tmp_path: Path) -> None:
    world = new_world(web=False, scheduler=False, HOSTLER_SLOTS="4")
    replica = start_valkey(tmp_path)
    replica_port = int(replica.url.rpartition(":")[2].partition("/")[0])
    try:
        with proxied(world.redis_port) as proxy, redis.Redis.from_url(replica.url) as second:
            second.config_set("masterauth", "test-password")
            second.replicaof("127.0.0.1", world.redis_port)
            until(lambda: second.info("replication")["master_link_status"] == "up", "it follows")
            behind(world, proxy)
            world.stack.start("scheduler")
            world.web()
            client, worker = world.client(), world.worker("f38")
            running = client.insist("sleep 5")
            world.await_start(running)
            proxy.upstream = ("127.0.0.1", replica_port)
            proxy.cut()  # clients come to the replica before it is promoted
            until(lambda: client.submit("true").status == 503, "it is read-only", 10)
            world.kill_redis()
            second.replicaof("NO", "ONE")
            promoted_at = time.monotonic()
            until(lambda: client.submit("true").outcome == "ok", "submits are accepted", 10)
            back_s = time.monotonic() - promoted_at
            assert client.ended(running)["attempt"] == 1
            assert worker.poll() is None
            evidence += [f"accepting {back_s:.1f} s after the promotion", world.check()]
            world.tell()
            world.stack.end(*world.stack.processes)
    finally:
        world.end()
        replica.process.kill()
        replica.process.wait()


def behind(world: World, proxy: Any) -> None:
    """Let everything that is started from now on reach Redis through a proxy."""
    url = world.stack.env["REDIS_URL"]
    world.stack.env["REDIS_URL"] = url.replace(f":{world.redis_port}/", f":{proxy.listen[1]}/")


@pytest.mark.slow
@pytest.mark.proves("F40")
def test_a_slow_way_to_redis_that_breaks_again_and_again_loses_nothing(
    chance: random.Random, evidence: list[str]
) -> None:
    world, seconds = new_world(web=False, scheduler=False, HOSTLER_SLOTS="4"), 60
    direct = world.stack.env["REDIS_URL"]
    try:
        with proxied(world.redis_port) as proxy:
            proxy.latency_s = 0.1  # each way: 200 ms
            behind(world, proxy)
            world.stack.start("scheduler")
            world.web()
            client = world.client()
            world.worker("f40")
            cuts, deadline = 0, time.monotonic() + seconds
            with together(4) as pool:
                submits = []
                while time.monotonic() < deadline:
                    submits.append(pool.submit(client.insist, "sleep 0.2; echo done", retries=1))
                    time.sleep(0.3)
                    if chance.random() < 0.1:
                        proxy.cut()
                        cuts += 1
                for each in submits:
                    each.result()
            world.stack.env["REDIS_URL"] = direct
            evidence += [f"200 ms, {cuts} resets in {seconds} s", world.check(patience_s=60)]
            world.tell()
            world.stack.end(*world.stack.processes)
    finally:
        world.end()


@pytest.mark.slow
@pytest.mark.proves("F42")
def test_a_million_keys_and_a_hundred_thousand_jobs_slow_nothing_down(
    own_world: World, evidence: list[str]
) -> None:
    from engine import submit as submit_one

    from storage.store import Store

    world, client = own_world, own_world.client()
    with world.redis() as database:
        for start in range(0, 1_000_000, 50_000):
            words = "for i = ARGV[1], ARGV[1] + 49999 do redis.call('SET', 'leftover:' .. i, 'x') end"
            database.eval(words, 0, start)

        async def fill(store: Store) -> None:
            import asyncio

            for _ in range(200):
                await asyncio.gather(*(submit_one(store, "true", tags=["nowhere"]) for _ in range(500)))

        world.in_store(fill)
        assert database.llen("rq:queue:jobs.normal.nowhere") + database.zcard("h:jobs") >= 100_000
        took = []
        for offset in range(0, 100_000, 2000):
            began = time.monotonic()
            assert (
                client.http.get("/api/jobs/list", params={"limit": 100, "offset": offset}).status_code == 200
            )
            took.append(time.monotonic() - began)
        slowest_s = sorted(took)[int(len(took) * 0.99)]
        assert slowest_s < 0.5
        database.config_set("slowlog-log-slower-than", 100_000)
        database.slowlog_reset()
        time.sleep(6)  # reaper, promotion, restoration
        slow = database.slowlog_get()
        assert not [entry for entry in slow if entry["duration"] > 1_000_000], slow
        assert "cmdstat_keys" not in database.info("commandstats")
    world.worker("f42")
    assert client.ended(client.insist("true"))["status"] == "completed"
    evidence += [f"list p99 {slowest_s * 1000:.0f} ms, no tick over 1 s, no KEYS"]
