"""F53-F58: agents over HTTP that die, repeat themselves, are cut off, or send pieces in any order."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import Call
from processes import processes_of, until
from world import Client, World, proxied


class Agent:
    """An agent that says what a test wants it to say."""

    def __init__(self, world: World, client: Client, name: str) -> None:
        self.client, self.name = client, name
        body = {"workerId": name, "hostname": "h", "tags": [name]}
        headers = {"X-Enroll-Secret": world.stack.env["HOSTLER_ENROLL_SECRET"]}
        made = client.call("register", "POST", "/api/workers/register", json=body, headers=headers)
        assert made.outcome == "ok", made.text
        self.headers = {"X-Worker-Token": made.answer["token"], "X-API-Key": ""}
        self.beat()

    def call(self, action: str, method: str, path: str, **how: Any) -> Call:
        """Make a call with the agent's token alone."""
        return self.client.call(action, method, path, headers=self.headers, **how)

    def beat(self) -> Call:
        """Send a heartbeat."""
        return self.call("beat", "POST", "/api/workers/heartbeat", json={"workerId": self.name})

    def take(self) -> dict[str, Any]:
        """Take a job, which must be there soon."""
        made = until(
            lambda: (one := self.call("take", "GET", "/api/jobs/get-job")).status == 200 and one, "a job"
        )
        return dict(made.answer["job"])

    def end(self, job: dict[str, Any], exit_code: int = 0, **more: Any) -> Call:
        """Post a result."""
        body = {"jobId": job["jobId"], "attempt": job["attempt"], "exitCode": exit_code, **more}
        return self.call("result", "POST", "/api/jobs/submit-result", json=body)

    def say(self, job: dict[str, Any], data: str, first_line: int | None = None) -> Call:
        """Send output."""
        body = {"jobId": job["jobId"], "attempt": job["attempt"], "type": "stdout", "data": data}
        return self.call("output", "POST", "/api/jobs/stream-output", json=body | {"firstLine": first_line})


@pytest.fixture
def agent(world: World, client: Client) -> Iterator[Agent]:
    """An agent that takes the jobs with its name as their tag."""
    agent = Agent(world, client, f"agent-{os.urandom(4).hex()}")
    agent.client = Client(str(client.http.base_url), "", world.calls, world.words)
    del agent.client.http.headers["X-API-Key"]
    del agent.headers["X-API-Key"]
    yield agent
    agent.client.http.close()


def start_agent(world: World, name: str, *, port: int = 0, **env: str) -> subprocess.Popen[bytes]:
    """Start the reference agent, and wait until it is online."""
    url = f"http://127.0.0.1:{port or world.web_port}"
    process = world.start(
        sys.executable, "-m", "workers.agent", "--url", url, "--name", name, "--tags", name, **env
    )
    world.stack.await_workers([name])
    return process


@pytest.mark.proves("F53")
def test_the_job_of_a_killed_agent_is_offered_again_and_its_late_result_is_refused(
    world: World, client: Client, agent: Agent, chance: random.Random, evidence: list[str]
) -> None:
    job_id = client.insist("true", tags=[agent.name], effects=False)
    job = agent.take()  # and now it falls silent
    real = start_agent(world, "f53-real")
    running = client.insist("[ $HOSTLER_ATTEMPT = 2 ] || sleep 600", tags=["f53-real"])
    world.await_start(running)
    time.sleep(chance.uniform(0, 1))
    real.kill()
    real.wait()
    died_at = time.monotonic()
    until(lambda: not processes_of(running), "the agent's commands are dead", 3)
    client.reaches(job_id, "queued")
    client.reaches(running, "queued")
    noticed_s = time.monotonic() - died_at
    assert agent.end(job).status == 409
    second = agent.take()
    assert (second["jobId"], second["attempt"]) == (job_id, 2)
    assert agent.end(job).status == 409
    assert agent.end(second).status == 200
    start_agent(world, "f53-real")
    assert client.ended(running)["attempt"] == 2
    evidence += [f"offered again {noticed_s:.1f} s after the kill; late result 409", world.check()]


@pytest.mark.proves("F54")
def test_a_result_that_is_posted_again_and_again_counts_once(
    world: World, client: Client, agent: Agent, evidence: list[str]
) -> None:
    first = client.insist("true", tags=[agent.name], effects=False)
    job = agent.take()
    once, twice, other = agent.end(job), agent.end(job), agent.end(job, 1)
    assert [each.status for each in (once, twice, other)] == [200, 200, 200]
    assert other.answer["status"] == "completed"
    cancelled = client.insist("true", tags=[agent.name], effects=False)
    job = agent.take()
    client.cancel(cancelled)
    assert agent.end(job, 1).status == 200
    assert client.ended(cancelled)["status"] == "cancelled"
    assert agent.end(job, 0).answer["status"] == "cancelled"
    retried = client.insist("false", tags=[agent.name], retries=1, backoff={"delay": 0}, effects=False)
    job = agent.take()
    assert [agent.end(job, 1).status for _ in range(2)] == [200, 200]
    again = agent.take()
    assert again["attempt"] == 2
    assert agent.end(job, 0).answer["status"] == "running"  # the first attempt changes nothing any more
    third = client.insist("true", tags=[agent.name], effects=False)
    assert agent.end(again, 1).status == 200
    assert client.ended(retried)["exitCode"] == 1
    job = agent.take()
    world.kill_redis()
    assert agent.end(job).status == 503
    world.start_redis()
    until(lambda: agent.end(job).status == 200, "the result is taken", 10)
    assert (client.ended(first)["status"], client.ended(third)["status"]) == ("completed", "completed")
    evidence += ["twice: 200 and unchanged; stale: 409; after a 503: taken", world.check()]


@pytest.mark.proves("F55")
def test_an_agent_that_was_cut_off_ends_what_is_no_longer_its_own(
    world: World, client: Client, evidence: list[str]
) -> None:
    with proxied(world.web_port) as proxy:
        cut_off = start_agent(world, "f55", port=proxy.listen[1])
        job_id = client.insist("[ $HOSTLER_ATTEMPT = 2 ] || sleep 600", tags=["f55"])
        world.overlapping.add(job_id)
        world.await_start(job_id)
        before = processes_of(job_id)
        proxy.stalled = True  # a host that is cut off says no goodbye; its long poll stays open
        cut_at = time.monotonic()
        client.reaches(job_id, "queued")
        noticed_s = time.monotonic() - cut_at
        assert noticed_s < 3 * (3 + 1)  # three times lease and heartbeat; its long poll would last for 25 s
        assert processes_of(job_id) == before  # it cannot know yet
        proxy.stalled = False
        until(lambda: not before & processes_of(job_id), "it ended what it had lost", 20)
        job = client.ended(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 2)
        assert cut_off.poll() is None
        evidence += [
            f"noticed after {noticed_s:.1f} s; healed: old attempt killed, the new one ran once",
            world.check(),
        ]
        world.stack.end(cut_off)


@pytest.mark.proves("F57")
def test_agents_with_wrong_clocks_keep_their_leases(
    world: World, client: Client, tmp_path: Path, evidence: list[str]
) -> None:
    from test_faults_of_schedulers import SHIFTED

    ids = []
    for name, minutes in (("f57-ahead", 10), ("f57-behind", -10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(SHIFTED.format(seconds=minutes * 60))
        start_agent(world, name, PYTHONPATH=str(tmp_path / name))
        ids.append(client.insist("sleep 4", tags=[name]))
    for job_id in ids:
        assert client.ended(job_id)["attempt"] == 1
    evidence += ["clocks 10 min ahead and behind: jobs longer than their leases ran once", world.check()]


@pytest.mark.proves("F58")
def test_output_in_any_order_twice_and_too_big_is_ordered_once_and_capped(
    world: World, client: Client, agent: Agent, evidence: list[str]
) -> None:
    job_id = client.insist("true", tags=[agent.name], effects=False)
    job = agent.take()
    assert agent.say(job, "one\n", 0).status == 200
    assert agent.say(job, "two\nthree\n", 1).status == 200
    assert agent.say(job, "one\n", 0).status == 200  # twice
    assert agent.say(job, "six\n", 5).status == 200  # before what it should follow
    assert agent.say(job, "four\nfive\n", 3).status == 200  # too late: that place is past
    assert agent.say(job, "x" * (10 << 20), 6).status == 413
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(agent.say(job, "seven\n", 6))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.status for each in answers} == {200}
    assert agent.end(job).status == 200
    assert agent.say(job, "late\n", 7).status == 409
    pages = list(world.log(client, job_id))
    seen = [(line["seq"], line["text"]) for page in pages for line in page["lines"]]
    assert seen == [(1, "one"), (2, "two"), (3, "three"), (6, "six"), (7, "seven")]
    assert {"from": 4, "to": 5} in [page["gap"] for page in pages]
    whole = client.http.get(f"/api/jobs/{job_id}/log", headers={"Accept": "text/plain"}).text
    assert whole.count("seven") == whole.count("one") == 1
    evidence += [
        "duplicates dropped, a stated gap for what came too late, 10 MB: 413, late output: 409",
        world.check(),
    ]
