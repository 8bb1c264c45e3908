"""What the page alone asks for: numbers, events that go on where they broke off, attempts and orders of jobs."""

import json
from contextlib import aclosing

import pytest
import redis
from engine import claim, register, settle, submit
from whole import Hostler

from api.page.events import happenings
from api.realtime.hub import Hub
from storage.store import Store


@pytest.fixture
def store(hostler: Hostler) -> Store:
    return hostler.store


@pytest.fixture
async def hub(store: Store):
    hub = Hub(store)
    await hub.start()
    yield hub
    await hub.stop()


async def told(hub: Hub, after: str | None, number: int) -> list[dict]:
    """Return the first messages of a stream, but for the one that only says that it listens."""
    found = []
    async with aclosing(happenings(hub, after)) as messages:
        async for message in messages:
            if message.text:
                found.append(json.loads(message.text))
            if len(found) == number:
                return found
    raise AssertionError("The stream ended.")


async def test_events_go_on_after_the_last_one_that_is_known(hub: Hub, store: Store) -> None:
    holder = await register(store)
    begun = (await told(hub, None, 1))[0]
    assert begun["type"] == "stream.begin"
    job_id = await submit(store)
    (claimed,) = await claim(store, holder)
    await settle(store, holder, claimed, outcome="failed")
    _, queued, started, ended = await told(hub, begun["id"], 4)
    assert [each["type"] for each in (queued, started, ended)] == [
        "job.queued",
        "job.started",
        "job.completed",
    ]
    assert {each["jobId"] for each in (queued, started, ended)} == {job_id}
    assert (started["workerId"], started["attempt"]) == ("w", 1)
    assert (ended["status"], ended["reason"], ended["exitCode"]) == ("failed", "exit_code", 1)
    again = await told(hub, started["id"], 2)
    assert again[1] == ended


async def test_what_is_no_longer_kept_is_a_gap(hub: Hub, store: Store, redis_client: redis.Redis) -> None:
    await submit(store)
    begun = (await told(hub, None, 1))[0]
    for _ in range(3):
        await submit(store)
    redis_client.xtrim("h:events", maxlen=1, approximate=False)
    begin, gap = await told(hub, begun["id"], 2)
    assert (begin["type"], gap["type"]) == ("stream.begin", "stream.gap")
    assert gap["id"] != begun["id"]


async def test_an_order_is_told_without_the_values_of_its_environment(hostler: Hostler) -> None:
    operator, viewer = await hostler.user("w"), await hostler.user("r")
    order = {"command": "make", "name": "n", "env": {"TOKEN": "very secret"}, "tags": ["linux"], "retries": 2}
    job_id = (await operator.post("/api/jobs/submit", json=order)).json()["jobId"]
    answer = await operator.get(f"/api/jobs/{job_id}/order")
    assert "very secret" not in answer.text
    told = answer.json()
    assert told["envNames"] == ["TOKEN"]
    assert {name: told["order"][name] for name in ("command", "name", "tags", "retries")} == {
        name: order[name] for name in ("command", "name", "tags", "retries")
    }
    again = await operator.post("/api/jobs/submit", json=told["order"])
    assert again.status_code == 201, again.text
    assert (await viewer.get(f"/api/jobs/{job_id}/order")).status_code == 403
    assert (await viewer.get(f"/api/jobs/{job_id}/attempts")).json()["attempts"] == []
    assert (await viewer.get(f"/api/jobs/{job_id}/log/times")).json()["times"] == []
    found = await viewer.get("/api/jobs/list", params={"search": "mak", "tags": "linux"})
    assert found.json()["total"] == 2


async def test_the_set_up_is_needed_until_there_is_somebody(hostler: Hostler) -> None:
    nobody = hostler.client()
    assert (await nobody.get("/api/auth/setup")).json() == {"needed": True, "signedIn": False}
    viewer = await hostler.user("r")
    assert (await nobody.get("/api/auth/setup")).json() == {"needed": False, "signedIn": False}
    assert (await viewer.get("/api/auth/setup")).json() == {"needed": False, "signedIn": True}


async def test_coming_runs_of_schedules_are_reckoned_when_asked_for(hostler: Hostler) -> None:
    operator = await hostler.user("w")
    schedule = {"cron": "*/30 * * * *", "timezone": "UTC"}
    await operator.post("/api/jobs/submit", json={"command": "true", "schedule": schedule})
    (found,) = (await operator.get("/api/schedules", params={"runs": 4})).json()["schedules"]
    assert found["nextRuns"][0] == found["nextAt"]
    assert len(set(found["nextRuns"])) == 4
    (plain,) = (await operator.get("/api/schedules")).json()["schedules"]
    assert "nextRuns" not in plain


async def test_a_drained_worker_says_so(hostler: Hostler) -> None:
    await hostler.agent("drained")
    operator, viewer = await hostler.user("w"), await hostler.user("r")
    answer = await operator.put("/api/workers/drained/draining", json={"draining": True})
    assert answer.json()["worker"]["draining"] is True
    assert (await viewer.put("/api/workers/drained/draining", json={"draining": False})).status_code == 403
    assert (await operator.put("/api/workers/nobody/draining", json={"draining": True})).status_code == 404
