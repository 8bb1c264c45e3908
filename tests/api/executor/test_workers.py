from typing import Any

import httpx
import pytest
import redis
from whole import Hostler

from storage import fleet, jobs

BODY = {
    "workerId": "worker-001", "hostname": "desktop-pc", "cpuCount": 8, "totalMemoryMb": 16384,
    "metadata": {"osType": "Windows", "nodeVersion": "18.17.0", "tags": ["test", "build"]},
}  # fmt: skip


async def register(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/api/workers/register", json={**BODY, **body})


async def test_a_registration_answers_as_the_page_says(hostler: Hostler) -> None:
    answer = await register(await hostler.user(), unknownField=1)
    assert answer.status_code == 201
    told = answer.json()
    assert list(told) == ["success", "workerId", "token", "registeredAt"]
    assert (told["success"], told["workerId"], told["registeredAt"][-1]) == (True, "worker-001", "Z")
    shown = await (await hostler.user("r")).get("/api/workers/worker-001")
    worker = shown.json()["worker"]
    assert {name: worker[name] for name in BODY} == BODY
    assert (worker["status"], worker["currentJobId"], worker["jobsCompleted"]) == ("online", None, 0)
    assert worker["tags"] == ["build", "test"]
    assert hostler.client(X_Worker_Token=told["token"])


async def test_registering_needs_a_right_to(hostler: Hostler, redis_client: redis.Redis) -> None:
    anybody = hostler.client()
    refused = await register(anybody)
    assert (refused.status_code, refused.json()["error"]) == (401, "Unauthorized")
    assert (await register(await hostler.user("r"))).status_code == 403
    assert (await register(anybody, enrollSecret="guess")).status_code == 401
    stranger = await hostler.agent("other")
    assert (await register(stranger)).status_code == 403
    assert redis_client.exists("h:worker:worker-001") == 0


async def test_the_enrolment_secret_lets_a_worker_register(
    settings_for: Any, redis_client: redis.Redis
) -> None:
    async with settings_for(enroll_secret="let me in, please") as hostler:
        assert (await register(hostler.client())).status_code == 401
        assert (await register(hostler.client(X_Enroll_Secret="let me in"))).status_code == 401
        assert (await register(hostler.client(X_Enroll_Secret="let me in, please"))).status_code == 201
        assert (
            await register(hostler.client(), workerId="w2", enrollSecret="let me in, please")
        ).status_code == 201
    assert redis_client.zcard("h:workers") == 2


async def test_open_registration_lets_anybody_register(settings_for: Any) -> None:
    async with settings_for(open_registration=True) as hostler:
        assert (await register(hostler.client())).status_code == 201


async def test_a_name_is_taken_while_its_worker_is_online(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    operator = await hostler.user()
    first = await register(operator)
    taken = await register(operator)
    assert (taken.status_code, taken.json()["error"], taken.json()["message"]) == (
        409, "Conflict", "Worker already registered"
    )  # fmt: skip
    own = hostler.client(X_Worker_Token=first.json()["token"])
    again = await register(own)
    assert (again.status_code, again.json()["registeredAt"]) == (201, first.json()["registeredAt"])
    redis_client.hset("h:worker:worker-001", "seen", 1)
    assert (await register(operator)).status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"workerId": None}, "workerId"),
        ({"workerId": ""}, "workerId"),
        ({"workerId": "a b"}, "workerId"),
        ({"workerId": "a" * 65}, "workerId"),
        ({"workerId": "a\n"}, "workerId"),
        ({"workerId": "../x"}, "workerId"),
        ({"hostname": "h" * 256}, "hostname"),
        ({"cpuCount": "many"}, "cpuCount"),
        ({"tags": ["a+b"]}, "tags.0"),
        ({"metadata": {"tags": ["a+b"]}}, "metadata.tags"),
        ({"metadata": {"tags": "test"}}, "metadata.tags"),
        ({"metadata": {"x": "y" * 17000}}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"slots": 0}, "slots"),
    ],
    ids=str,
)
async def test_a_registration_that_makes_no_sense_is_refused(
    hostler: Hostler, redis_client: redis.Redis, body: dict[str, Any], field: str
) -> None:
    answer = await register(await hostler.user(), **body)
    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid request")
    assert field in answer.json()["details"]
    assert redis_client.exists("h:workers") == 0


async def test_a_missing_id_is_told_in_the_words_of_the_page(hostler: Hostler) -> None:
    told = (await (await hostler.user()).post("/api/workers/register", json={})).json()
    assert (told["error"], told["message"]) == ("Invalid request", "workerId is required")


async def test_the_list_is_filtered_sorted_and_paged(hostler: Hostler, redis_client: redis.Redis) -> None:
    operator = await hostler.user()
    for name, cpus, tags in (("a", 4, ["x"]), ("b", 2, ["x", "y"]), ("c", 8, [])):
        answer = await register(operator, workerId=name, cpuCount=cpus, tags=tags, metadata={"tags": ["m"]})
        assert answer.status_code == 201
    await hostler.store.call(fleet.depart("c", reason="stopped"))

    async def listed(**params: Any) -> Any:
        answer = await (await hostler.user("r")).get("/api/workers/list", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(told: Any) -> str:
        return "".join(each["workerId"] for each in told["workers"])

    told = await listed(limit=2)
    assert (names(told), told["total"], told["hasMore"], told["data"]) == ("ab", 3, True, told["workers"])
    assert names(await listed(status="online")) == "ab"
    assert names(await listed(status="offline")) == "c"
    assert names(await listed(tags="x,y")) == "b"
    assert names(await listed(tags="m", sort="cpuCount")) == "bac"
    assert names(await listed(sort="-cpuCount", offset=1)) == "ab"
    gone = (await listed(status="offline"))["workers"][0]
    assert (gone["offlineReason"], gone["freeSlots"]) == ("stopped", 0)


@pytest.mark.parametrize("params", ["status=busy", "sort=token", "limit=1001", "typo=1"])
async def test_the_list_refuses_what_it_does_not_understand(hostler: Hostler, params: str) -> None:
    assert (await (await hostler.user("r")).get(f"/api/workers/list?{params}")).status_code == 400


async def test_a_heartbeat_says_how_a_worker_is(hostler: Hostler) -> None:
    agent, viewer = await hostler.agent(), await hostler.user("r")
    for said, shown in (("error", "error"), ("UNHEALTHY", "error"), ("idle", "online"), ("BUSY", "online")):
        answer = await agent.post("/api/workers/heartbeat", json={"workerId": "worker-001", "status": said})
        assert answer.status_code == 200
        assert (await viewer.get("/api/workers/worker-001")).json()["worker"]["status"] == shown
    assert (await viewer.get("/api/workers/list?status=error")).json()["total"] == 0


async def test_a_worker_shows_what_it_holds_and_has_done(hostler: Hostler) -> None:
    agent, operator = await hostler.agent(), await hostler.user()
    job_id = (await operator.post("/api/jobs/submit", json={"command": "x"})).json()["jobId"]
    await agent.get("/api/jobs/get-job")
    worker = (await operator.get("/api/workers/worker-001")).json()["worker"]
    assert (worker["currentJobId"], worker["running"], worker["freeSlots"]) == (job_id, 1, 0)
    await agent.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 0})
    worker = (await operator.get("/api/workers/worker-001")).json()["worker"]
    assert (worker["currentJobId"], worker["jobsCompleted"], worker["freeSlots"]) == (None, 1, 1)


async def test_an_unregistered_worker_is_gone_and_its_job_goes_back(hostler: Hostler) -> None:
    agent, operator = await hostler.agent(), await hostler.user()
    job_id = (await operator.post("/api/jobs/submit", json={"command": "x"})).json()["jobId"]
    await agent.get("/api/jobs/get-job")
    assert (await (await hostler.user("r")).delete("/api/workers/worker-001")).status_code == 403
    gone = await operator.delete("/api/workers/worker-001")
    assert gone.json() == {"success": True, "message": "Worker unregistered"}
    assert (await jobs.get(hostler.store, job_id)).state == "queued"
    assert (await agent.get("/api/jobs/get-job")).status_code == 401
    for call in (operator.get, operator.delete):
        missing = await call("/api/workers/worker-001")
        assert (missing.status_code, missing.json()["message"]) == (404, "Worker not found")


async def test_a_worker_may_unregister_itself_and_no_other(hostler: Hostler) -> None:
    one, other = await hostler.agent("one"), await hostler.agent("other")
    assert (await one.delete("/api/workers/other")).status_code == 403
    assert (await one.delete("/api/workers/one")).status_code == 200
    assert (await other.get("/api/jobs/get-job")).status_code == 204
    assert (await one.get("/api/jobs/get-job")).status_code == 401
