"""F01-F18: whatever becomes of workers and commands, no acknowledged job is lost, doubled or left behind."""

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import processes_of, until
from world import Client, World, children, proxied, strike, together


@pytest.mark.proves("F01")
def test_jobs_of_a_killed_worker_run_again_elsewhere(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    worker = world.worker("f01-a")
    long = "[ $HOSTLER_ATTEMPT = 2 ] || sleep 600"
    ids = [client.insist(long), client.insist(f"setsid sleep 600 & {long}")]
    once = client.insist("sleep 600", atMostOnce=True)
    for job_id in (*ids, once):
        world.await_start(job_id)
    time.sleep(chance.uniform(0, 1.2))
    before = set().union(*(processes_of(job_id) for job_id in (*ids, once)))
    worker.kill()
    killed_at = time.monotonic()
    until(lambda: not any(Path(f"/proc/{pid}").exists() and _alive(pid) for pid in before), "all are dead", 2)
    dead_s = time.monotonic() - killed_at
    world.worker("f01-b", wait=False)
    for job_id in ids:
        assert client.ended(job_id)["attempt"] == 2
    assert (client.ended(once)["status"], client.job(once)["reason"]) == ("failed", "lost")
    took_s = time.monotonic() - killed_at
    left = Path(world.stack.env["HOSTLER_WORK_DIR"], "f01-a")
    assert not [path for path in left.iterdir() if path.name.startswith("job-")]
    evidence += [f"commands dead after {dead_s:.2f} s, rerun or lost after {took_s:.1f} s", world.check()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


@pytest.mark.proves("F02")
def test_a_killed_command_fails_by_its_signal_and_a_killed_launcher_takes_no_worker_with_it(
    world: World, client: Client, evidence: list[str]
) -> None:
    worker = world.worker("f02")
    struck = client.insist("exec sleep 600", retries=1, backoff={"delay": 0}, effects=False)
    until(lambda: processes_of(struck), "it runs")
    for attempt in (1, 2):
        until(lambda attempt=attempt: client.job(struck)["attempt"] == attempt, "the next attempt")
        until(lambda: processes_of(struck), "it runs")
        for pid in processes_of(struck):
            strike(pid)
    job = client.ended(struck)
    assert (job["status"], job["reason"], job["exitCode"], job["attempt"]) == ("failed", "exit_code", 137, 2)
    orphaned = client.insist("[ $HOSTLER_ATTEMPT = 2 ] || sleep 600", retries=1, backoff={"delay": 0})
    world.await_start(orphaned)
    for pid in children(worker.pid):
        strike(pid)
    assert client.ended(orphaned)["attempt"] == 2
    assert worker.poll() is None
    evidence += ["killed(9) is exit 137, retried by policy", world.check()]


@pytest.mark.slow
@pytest.mark.proves("F01", "F02")
def test_a_flood_of_short_jobs_outlives_workers_and_launchers_that_are_killed_in_turns(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    with together(8) as pool:
        ids = list(
            pool.map(lambda number: client.insist("sleep 0.03", atMostOnce=number % 10 == 3), range(400))
        )
    worker = world.worker("f01-flood")
    kills = 0
    for turn in range(8):
        before = len(world.effects())
        until(lambda before=before: len(world.effects()) > before + 20, "they run again")
        time.sleep(chance.uniform(0, 0.1))
        if turn % 2:
            worker.kill()
            worker.wait()
            worker = world.worker("f01-flood", wait=False)
        else:  # its guardian or, below that, the launcher itself
            (guardian,) = [pid for pid in children(worker.pid) if _is_launcher(pid)]
            strike(chance.choice([guardian, *children(guardian)]))
        kills += 1
    for job_id in ids:
        client.ended(job_id)
    with world.redis() as database:
        assert database.zcard("h:jobs:running") == 0
    evidence += [f"{kills} kills of workers and launchers", world.check()]


def _is_launcher(pid: int) -> bool:
    return b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.proves("F03", "F04")
def test_a_job_claimed_by_a_worker_that_never_hears_of_it_runs_elsewhere_and_stays_completed(
    world: World, client: Client, evidence: list[str]
) -> None:
    with proxied(world.redis_port) as proxy:
        url = world.stack.valkey.url.replace(f":{world.redis_port}/", f":{proxy.listen[1]}/")
        worker = world.worker("f03-a", REDIS_URL=url)
        proxy.latency_s = 0.5  # the claim is carried out half a second before its answer arrives
        job_id = client.insist("echo done")
        until(lambda: client.job(job_id).get("status") == "running", "it is claimed")
        worker.kill()
        worker.wait()
        assert not world.started(job_id)
    world.worker("f03-b")
    assert client.ended(job_id)["status"] == "completed"
    _run_the_maintenance_of_rq(world)
    time.sleep(2)  # four ticks of the reaper, and one of what looks for vanished jobs
    job = client.job(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 2)
    evidence += [
        "killed between claim and reply; RQ's own cleanup and 4 reaper ticks changed nothing",
        world.check(),
    ]


def _run_the_maintenance_of_rq(world: World) -> None:
    from rq import Queue
    from rq.registry import clean_registries

    with world.redis() as connection:
        for queue in Queue.all(connection):
            clean_registries(queue)
            queue.intermediate_queue.cleanup(None, queue)


@pytest.mark.proves("F05")
def test_a_host_that_dies_whole_is_noticed(world: World, client: Client, evidence: list[str]) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a process namespace of its own needs root and unshare")
    host = world.start(
        "unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL",
        sys.executable, "-m", "workers", "--name", "f05-host", "--slots", "3",
    )  # fmt: skip
    world.stack.await_workers(["f05-host"])
    ids = [client.insist("[ $HOSTLER_ATTEMPT = 2 ] || sleep 600") for _ in range(3)]
    for job_id in ids:
        world.await_start(job_id)
    (inside,) = children(host.pid)
    strike(inside)  # process 1 of the namespace: the kernel takes all others with it
    host.wait(10)
    died_at = time.monotonic()
    until(lambda: not any(processes_of(job_id) for job_id in ids), "all are dead", 2)
    world.worker("f05-other", wait=False)

    def offline() -> bool:
        answer = client.call("worker", "GET", "/api/workers/f05-host").answer
        return bool(answer.get("worker", {}).get("status") == "offline")

    until(offline, "the host is offline", 30)
    noticed_s = time.monotonic() - died_at
    evidence += [f"offline after {noticed_s:.1f} s", world.check()]


@pytest.mark.proves("F08")
def test_a_frozen_command_is_killed_at_its_timeout(world: World, client: Client, evidence: list[str]) -> None:
    world.worker("f08")
    job_id = client.insist("sleep 600", timeout=1)
    world.await_start(job_id)
    for pid in processes_of(job_id):
        strike(pid, signal.SIGSTOP)
    began = time.monotonic()
    job = client.ended(job_id)
    took_s = time.monotonic() - began
    assert (job["status"], job["reason"]) == ("failed", "timeout")
    assert took_s < 1 + 5
    evidence += [f"dead {took_s:.1f} s after SIGSTOP with a timeout of 1 s", world.check()]


@pytest.mark.proves("F09")
def test_ten_rolling_restarts_under_load_lose_nothing(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    stopping = threading.Event()

    def load() -> None:
        while not stopping.is_set():
            client.insist(f"sleep {chance.choice((0, 0.05, 0.3))}")
            time.sleep(0.05)

    with together(2) as pool:
        loads = [pool.submit(load) for _ in range(2)]
        worker = world.worker("f09-0")
        try:
            for number in range(1, 11):
                following = world.worker(f"f09-{number}")
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(10) == 0
                worker = following
        finally:
            stopping.set()
        for each in loads:
            each.result()
    said = world.check()
    starts = [effect.job_id for effect in world.effects() if effect.word == "start"]
    assert len(starts) == len(set(starts))  # what was handed back had not started
    evidence += ["10 restarts, every job ran once", said]


@pytest.mark.proves("F10")
def test_a_command_that_ignores_every_signal_it_can_is_dead_in_time(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f10")
    program = (
        "import signal\n"
        "for number in range(1, 32):\n"
        "    if number not in (9, 19): signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 32)))\n"
        "while True:\n"
        "    try: print(end='', flush=True); import time; time.sleep(1)\n"
        "    except BaseException: pass\n"
    )
    job_id = client.insist(f'exec python3 -c "{program}"', timeout=2, effects=False)
    until(lambda: processes_of(job_id), "it runs")
    began = time.monotonic()
    job = client.ended(job_id)
    took_s = time.monotonic() - began
    assert job["reason"] == "timeout"
    assert took_s < 2 + 5
    evidence += [f"dead after {took_s:.1f} s with a timeout of 2 s", world.check()]


SPREADING = (
    "setsid sleep 600 & (setsid sh -c '(sleep 600 &) ; sleep 600' &) ; "
    "for i in $(seq 200); do sleep 600 & done; sleep 600"
)


@pytest.mark.proves("F11")
def test_cancel_and_timeout_kill_a_tree_of_hundreds_with_its_daemons(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f11")
    cancelled, overdue = client.insist(SPREADING), client.insist(SPREADING, timeout=3)
    for job_id in (cancelled, overdue):
        until(lambda job_id=job_id: len(processes_of(job_id)) > 200, "the tree has grown")
    client.cancel(cancelled)
    began = time.monotonic()
    assert client.ended(cancelled)["status"] == "cancelled"
    until(
        lambda: not processes_of(cancelled), "all are dead", 5
    )  # killed by then; two hundred take a moment to go
    took_s = time.monotonic() - began
    assert took_s < 1 + 5  # its grace, and five seconds
    assert client.ended(overdue)["reason"] == "timeout"
    until(lambda: not processes_of(overdue), "all are dead", 5)
    evidence += [f"203 processes dead {took_s:.1f} s after the cancel", world.check()]


@pytest.mark.proves("F12")
def test_a_command_out_of_memory_fails_alone_and_poison_is_put_aside(
    world: World, client: Client, evidence: list[str]
) -> None:
    worker = world.worker("f12-0")
    greedy = client.insist('ulimit -v 200000; python3 -c "bytearray(10**9)"')
    beside = client.insist("echo unharmed")
    assert client.ended(greedy)["reason"] == "exit_code"
    assert client.ended(beside)["status"] == "completed"
    assert worker.poll() is None
    poison = client.insist("sleep 600")
    for attempt in (1, 2, 3):
        world.await_start(poison, attempt)
        time.sleep(0.3)  # until its worker has said so, too: else this death does not count
        worker.kill()
        worker.wait()
        if attempt < 3:
            worker = world.worker("f12-0")
    job = client.ended(poison)
    assert (job["status"], job["reason"], job["attempt"]) == ("failed", "quarantined", 3)
    world.worker("f12-1")
    assert client.ended(client.insist("true"))["status"] == "completed"
    evidence += ["quarantined after 3 deaths", world.check()]


@pytest.mark.proves("F14")
def test_a_cancel_at_any_moment_ends_a_job_once(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    world.worker("f14")
    count = 100

    def one(delay_s: float) -> str:
        job_id = client.insist("sleep 0.1")
        time.sleep(delay_s)
        client.cancel(job_id)
        return job_id

    with together(6) as pool:
        ids = list(pool.map(one, [chance.uniform(0, 0.4) for _ in range(count)]))
    said = world.check()
    states = [client.job(job_id)["status"] for job_id in ids]
    assert set(states) <= {"completed", "cancelled"}
    told = {
        call.job_id
        for call in world.calls
        if call.action == "cancel" and call.answer.get("status") == "cancelled"
    }
    assert all(state == "cancelled" for job_id, state in zip(ids, states, strict=True) if job_id in told)
    evidence += [f"{count} cancels: {states.count('cancelled')} cancelled, the others had completed", said]


@pytest.mark.proves("F15")
def test_a_cancel_that_nobody_hears_is_honoured_by_the_next_heartbeat(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f15")
    job_id = client.insist("sleep 600")
    world.await_start(job_id)
    deaf = threading.Event()

    def cut() -> None:
        with world.redis() as database:
            while not deaf.wait(0.01):
                database.client_kill_filter(_type="pubsub")

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        time.sleep(0.3)
        client.cancel(job_id)
        began = time.monotonic()
        assert client.ended(job_id)["status"] == "cancelled"
        took_s = time.monotonic() - began
    finally:
        deaf.set()
        cutter.join()
    assert took_s < 10
    evidence += [f"cancelled after {took_s:.1f} s without messages", world.check()]


@pytest.mark.proves("F17")
def test_a_chain_completes_or_fails_explicitly_whenever_its_worker_dies(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    chains = []
    for number in range(4):
        first = client.insist("sleep 0.2")
        second = client.insist("sleep 0.2" if number else "exit 3", dependsOn=[first])
        chains.append((first, second, client.insist("true", dependsOn=[second])))
    for _ in range(3):
        worker = world.worker("f17", "--slots", "2")
        time.sleep(chance.uniform(0.05, 0.7))
        worker.kill()
        worker.wait()
    world.worker("f17-last")
    said = world.check()
    broken = [client.job(job_id) for job_id in chains[0]]
    if broken[0]["status"] == "completed":
        assert (broken[1]["status"], broken[2]["status"]) == ("failed", "cancelled")
        assert broken[2]["reason"] == "dependency"
    assert not any(client.job(job_id)["wait"] for chain in chains for job_id in chain)
    evidence += ["4 chains, 3 deaths at random moments", said]


@pytest.mark.proves("F18")
def test_a_job_that_this_version_cannot_run_fails_and_says_so(
    world: World, client: Client, evidence: list[str]
) -> None:
    import orjson

    worker = world.worker("f18")
    job_id = client.insist("true", delay=1, effects=False)
    with world.redis() as database:  # as a newer Hostler would have written it, signature and all
        spec = orjson.loads(database.hget(f"h:job:{job_id}", "spec"))
        newer = orjson.dumps({**spec, "task": "hologram"})

        async def sign(store: object) -> str:
            return str(store.seal.signature("job", job_id, newer.decode()))  # type: ignore[attr-defined]

        database.hset(f"h:job:{job_id}", mapping={"spec": newer, "sig": world.in_store(sign)})
        database.rpush("rq:queue:jobs.normal", "no-job-of-ours")
    job = client.ended(job_id)
    assert (job["status"], job["reason"]) == ("failed", "invalid")
    assert "hologram" in job["message"]
    assert client.ended(client.insist("true"))["status"] == "completed"
    assert worker.poll() is None
    evidence += [f"failed, invalid: {job['message']}", world.check()]
