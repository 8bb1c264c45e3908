import asyncio
from typing import Any

import pytest
import redis
from whole import Hostler

from storage import jobs
from storage.calls import script

UNKNOWN = "job-" + "0" * 20


async def submit(hostler: Hostler, **body: Any) -> str:
    answer = await (await hostler.user()).post("/api/jobs/submit", json={"command": "true", **body})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["jobId"])


async def test_a_submit_answers_as_the_page_says_and_queues_the_job(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    body = {"command": "npm test", "workingDirectory": "project", "timeout": 600, "priority": "normal"}
    answer = await (await hostler.user()).post("/api/jobs/submit", json=body)
    assert answer.status_code == 201
    told = answer.json()
    assert list(told) == ["success", "jobId", "status", "createdAt", "estimatedWaitTime"]
    assert (told["success"], told["status"], told["estimatedWaitTime"]) == (True, "queued", None)
    assert told["createdAt"].endswith("Z")
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1) == [told["jobId"].encode()]
    job = await jobs.get(hostler.store, told["jobId"])
    assert job.actor.startswith("user:")
    assert job.spec == {
        "task": "command", "command": "npm test", "working_directory": "project", "timeout_s": 600,
        "priority": "normal", "cause": answer.headers["x-request-id"],
    }  # fmt: skip


async def test_every_field_of_a_submit_reaches_the_record(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    parent = await submit(hostler)
    job_id = await submit(
        hostler, command="x", timeout=5, priority="high", env={"A_1": "b=c\n"}, tags=["gpu", "a.b-c_d"], retries=3,
        backoff={"delay": 2, "factor": 3, "max": 60}, artifacts=["out/**/*.xml"], dependsOn=[parent], delay=1.5,
        concurrencyKey="k", name="Name", metadata={"a": {"b": [1]}},
        webhook={"url": "https://example.org/hook", "secret": "s3cret"},
    )  # fmt: skip
    job = await jobs.get(hostler.store, job_id)
    assert hostler.store.seal.decrypt_json("environment", job.spec["env"], bound_to=job_id) == {
        "A_1": "b=c\n"
    }
    assert {name: job.spec[name] for name in job.spec if name not in {"task", "env", "cause"}} == {
        "command": "x", "timeout_s": 5, "priority": "high", "tags": ["gpu", "a.b-c_d"],
        "artifacts": ["out/**/*.xml"], "name": "Name", "metadata": {"a": {"b": [1]}}, "retries": 3,
        "concurrency_key": "k", "depends_on": [parent],
        "backoff": {"delay_s": 2.0, "factor": 3.0, "max_s": 60.0},
    }  # fmt: skip
    row = redis_client.hgetall(f"h:job:{job_id}")
    assert (row[b"backoff"], row[b"hook"], row[b"wait"]) == (
        b"2000 3.0 60000",
        b"1",
        b"dependency",
    )
    assert b"s3cret" not in row[b"webhook"]
    assert 0 < int(row[b"not_before"]) - int(row[b"created"]) <= 1500


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": "  "}, "command"),
        ({"command": 5}, "command"),
        ({"command": "a\0b"}, "command"),
        ({"command": "x" * 65537}, "command"),
        ({"command": "x", "argv": ["x"]}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["x"] * 1001}, "argv"),
        ({"argv": "x"}, "argv"),
        ({"command": "x", "typo": 1}, "typo"),
        ({"command": "x", "state": "completed"}, "state"),
        ({"command": "x", "timeout": 0}, "timeout"),
        ({"command": "x", "timeout": 604801}, "timeout"),
        ({"command": "x", "timeout": "5"}, "timeout"),
        ({"command": "x", "priority": "urgent"}, "priority"),
        ({"command": "x", "env": {"1A": "x"}}, "env"),
        ({"command": "x", "env": {"HOSTLER_JOB_ID": "x"}}, "env"),
        ({"command": "x", "env": {"A": 5}}, "env.A.value"),
        ({"command": "x", "env": {"A": "a\0"}}, "env"),
        ({"command": "x", "env": {"A": "a" * 32769}}, "env"),
        ({"command": "x", "env": {f"A{n}": "" for n in range(201)}}, "env"),
        ({"command": "x", "tags": ["a+b"]}, "tags.0"),
        ({"command": "x", "tags": [""]}, "tags.0"),
        ({"command": "x", "tags": ["a"] * 17}, "tags"),
        ({"command": "x", "retries": 101}, "retries"),
        ({"command": "x", "retries": -1}, "retries"),
        ({"command": "x", "backoff": {"factor": 0.5}}, "backoff.factor"),
        ({"command": "x", "backoff": {"jitter": 1}}, "backoff.jitter"),
        ({"command": "x", "artifacts": ["../x"]}, "artifacts.0"),
        ({"command": "x", "artifacts": ["/etc/passwd"]}, "artifacts.0"),
        ({"command": "x", "artifacts": ["x"] * 65}, "artifacts"),
        ({"command": "x", "workingDirectory": "/etc"}, "workingDirectory"),
        ({"command": "x", "workingDirectory": "a/../../b"}, "workingDirectory"),
        ({"command": "x", "workingDirectory": "C:\\x"}, "workingDirectory"),
        ({"command": "x", "dependsOn": [UNKNOWN]}, "dependsOn"),
        ({"command": "x", "dependsOn": ["x"] * 101}, "dependsOn"),
        ({"command": "x", "delay": -1}, "delay"),
        ({"command": "x", "runAt": "2026-01-25T10:30:00"}, "runAt"),
        ({"command": "x", "runAt": "tomorrow"}, "runAt"),
        ({"command": "x", "runAt": "2026-01-25T10:30:00Z", "delay": 5}, "delay"),
        ({"command": "x", "schedule": "* * * *"}, "schedule"),
        ({"command": "x", "schedule": {"cron": "0 3 * * 1", "timezone": "Mars/Base"}}, "schedule"),
        ({"command": "x", "schedule": {"cron": "0 3 * * 1", "misfire": "never"}}, "schedule.misfire"),
        ({"command": "x", "schedule": {"timezone": "UTC"}}, "schedule.cron"),
        ({"command": "x", "concurrencyKey": ""}, "concurrencyKey"),
        ({"command": "x", "concurrencyKey": "k" * 201}, "concurrencyKey"),
        ({"command": "x", "atMostOnce": "yes"}, "atMostOnce"),
        ({"command": "x", "webhook": "ftp://example.org"}, "webhook"),
        ({"command": "x", "webhook": "https://127.0.0.1/"}, "webhook"),
        ({"command": "x", "webhook": {"secret": "x"}}, "webhook.url"),
        ({"command": "x", "name": ""}, "name"),
        ({"command": "x", "name": "n" * 201}, "name"),
        ({"command": "x", "metadata": {"a": "b" * 17000}}, "metadata"),
        ({"command": "x", "metadata": []}, "metadata"),
        ({"command": "x", "fileUrl": "/etc/passwd"}, "fileUrl"),
        ({"command": "x", "fileUrl": "/uploads/../../etc/passwd"}, "fileUrl"),
        ({"command": "x", "fileUrl": "/uploads/file-abc123/project.zip"}, "fileUrl"),
        ({"command": "x", "fileUrl": "http://169.254.169.254/latest"}, "fileUrl"),
        ({"command": "x", "fileUrl": "https://[::1]/x"}, "fileUrl"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_submit_that_makes_no_sense_is_refused_by_field_and_changes_nothing(
    hostler: Hostler, redis_client: redis.Redis, body: dict[str, Any], field: str
) -> None:
    answer = await (await hostler.user()).post("/api/jobs/submit", json=body)
    told = answer.json()
    assert (answer.status_code, told["error"], told["code"]) == (400, "Invalid request", "INVALID_REQUEST"), (
        told
    )
    assert field in told["details"], told
    assert field.partition(".")[0] in told["message"]
    assert redis_client.exists("h:jobs", "h:schedules", "rq:queues") == 0


async def test_a_missing_command_is_told_in_the_words_of_the_page(hostler: Hostler) -> None:
    told = (await (await hostler.user()).post("/api/jobs/submit", json={})).json()
    assert (told["error"], told["message"]) == ("Invalid request", "command is required")


async def test_the_same_idempotency_key_gives_the_same_job(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    client = await hostler.user()
    client.headers["Idempotency-Key"] = "k-1"
    answers = await asyncio.gather(
        *(client.post("/api/jobs/submit", json={"command": "x"}) for _ in range(20))
    )
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    other = await client.post("/api/jobs/submit", json={"command": "y"})
    assert (other.status_code, other.json()["code"]) == (422, "UNPROCESSABLE")
    assert redis_client.zcard("h:jobs") == 1
    for bad in ("k" * 201, ""):
        client.headers["Idempotency-Key"] = bad
        assert (await client.post("/api/jobs/submit", json={"command": "x"})).status_code == 400


async def test_an_upload_that_is_there_is_bound_to_its_job(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    redis_client.hset("h:file:file-abc123", mapping={"state": "ready", "filename": "project.zip"})
    for url in ("/uploads/file-abc123/project.zip", "http://hostler.test/api/files/download/file-abc123"):
        job = await jobs.get(hostler.store, await submit(hostler, fileUrl=url))
        assert job.spec["file"] == "file-abc123"
    assert redis_client.scard("h:file:file-abc123:jobs") == 2
    job = await jobs.get(hostler.store, await submit(hostler, fileUrl="https://example.org/a.zip"))
    assert job.spec["file_url"] == "https://example.org/a.zip"


async def test_a_time_to_run_at_is_understood_with_its_offset(hostler: Hostler) -> None:
    job = await jobs.get(hostler.store, await submit(hostler, runAt="2099-01-25T12:30:00+02:00"))
    assert job.not_before_ms == 4_073_020_200_000
    assert job.wait == "delay"


@pytest.mark.parametrize(
    "schedule", ["0 3 * * 1", {"cron": "0 3 * * 1", "timezone": "Europe/Berlin", "misfire": "skip"}]
)
async def test_a_schedule_answers_its_first_occurrence(
    hostler: Hostler, redis_client: redis.Redis, schedule: Any
) -> None:
    job_id = await submit(hostler, schedule=schedule)
    job = (await (await hostler.user("r")).get("/api/jobs/status", params={"jobId": job_id})).json()["job"]
    assert (job["wait"], job["status"]) == ("schedule", "queued")
    assert job["notBefore"]
    assert redis_client.exists(f"h:schedule:{job['scheduleId']}")


async def test_a_status_shows_all_fields_of_the_page(hostler: Hostler) -> None:
    job_id = await submit(hostler, name="n", tags=["t"])
    viewer = await hostler.user("r")
    told = (await viewer.get("/api/jobs/status", params={"jobId": job_id})).json()
    assert told["success"] is True
    job = told["job"]
    page = {
        "jobId",
        "status",
        "workerId",
        "createdAt",
        "startedAt",
        "stdout",
        "stderr",
        "progress",
        "exitCode",
    }
    assert page <= set(job)
    assert (job["jobId"], job["status"], job["workerId"], job["exitCode"]) == (job_id, "queued", None, None)
    assert (job["stdout"], job["stderr"], job["tags"]) == ("", "", ["t"])


async def test_a_status_without_or_with_an_unknown_id_is_refused(hostler: Hostler) -> None:
    viewer = await hostler.user("r")
    missing = await viewer.get("/api/jobs/status")
    assert (missing.status_code, missing.json()["message"]) == (400, "jobId is required")
    for job_id in (UNKNOWN, "x", "../users"):
        unknown = await viewer.get("/api/jobs/status", params={"jobId": job_id})
        assert (unknown.status_code, unknown.json()["error"]) == (404, "Not found")


async def test_a_list_is_paged_filtered_and_sorted(hostler: Hostler) -> None:
    ids = []
    for number in range(5):
        ids.append(await submit(hostler, tags=["a"] if number % 2 else ["a", "b"]))
        await asyncio.sleep(0.002)  # creation times are counted in milliseconds
    viewer = await hostler.user("r")

    async def listed(**params: Any) -> Any:
        answer = await viewer.get("/api/jobs/list", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    told = await listed(limit=2, offset=1)
    assert [job["jobId"] for job in told["jobs"]] == [ids[3], ids[2]]
    assert told["data"] == told["jobs"]
    assert (told["total"], told["limit"], told["offset"], told["hasMore"]) == (5, 2, 1, True)
    assert [job["jobId"] for job in (await listed(sort="createdAt"))["jobs"]] == ids
    assert [job["jobId"] for job in (await listed(tags="a,b"))["jobs"]] == [ids[4], ids[2], ids[0]]
    assert (await listed(tags=["a", "b"]))["total"] == 3
    assert (await listed(status="running"))["jobs"] == []
    assert (await listed(status="queued", limit=5))["hasMore"] is False
    assert (await listed(workerId="w"))["total"] == 0
    assert (await listed(sort="-completedAt"))["total"] == 0


@pytest.mark.parametrize(
    "params",
    [
        "status=lost",
        "limit=0",
        "limit=1001",
        "limit=x",
        "offset=-1",
        "sort=name",
        "typo=1",
        "limit=1&limit=2",
    ],
)
async def test_a_list_refuses_what_it_does_not_understand(hostler: Hostler, params: str) -> None:
    answer = await (await hostler.user("r")).get(f"/api/jobs/list?{params}")
    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid request")
    if params == "sort=name":
        assert "createdAt, -createdAt, completedAt, -completedAt" in answer.json()["message"]


async def test_a_cancel_ends_a_queued_job(hostler: Hostler, redis_client: redis.Redis) -> None:
    job_id, operator = await submit(hostler), await hostler.user()
    for _ in range(2):
        told = (await operator.post("/api/jobs/cancel", json={"jobId": job_id})).json()
        assert (told["success"], told["jobId"], told["status"]) == (True, job_id, "cancelled")
    assert redis_client.llen("rq:queue:jobs.normal") == 0
    assert (await operator.post("/api/jobs/cancel", json={"jobId": UNKNOWN})).status_code == 404


async def test_a_retry_makes_a_new_job_of_a_finished_one(hostler: Hostler) -> None:
    job_id, operator = await submit(hostler, command="flaky"), await hostler.user()
    early = await operator.post(f"/api/jobs/{job_id}/retry")
    assert (early.status_code, early.json()["error"]) == (409, "Conflict")
    await operator.post("/api/jobs/cancel", json={"jobId": job_id})
    late = await operator.post("/api/jobs/cancel", json={"jobId": job_id})
    assert late.status_code == 200
    again = await operator.post(f"/api/jobs/{job_id}/retry")
    assert again.status_code == 201
    job = await jobs.get(hostler.store, again.json()["jobId"])
    assert (job.spec["command"], job.retry_of, job.state) == ("flaky", job_id, "queued")


async def test_why_tells_what_a_job_waits_for(hostler: Hostler) -> None:
    parent = await submit(hostler)
    child, late = await submit(hostler, dependsOn=[parent]), await submit(hostler, delay=60)
    viewer = await hostler.user("r")

    async def reasons(job_id: str) -> Any:
        told = (await viewer.get(f"/api/jobs/{job_id}/why")).json()
        assert (told["jobId"], told["status"], told["waiting"]) == (job_id, "queued", True)
        return told["reasons"]

    assert [each["code"] for each in await reasons(parent)] == ["no_workers", "position"]
    assert (await reasons(child))[0]["jobId"] == parent
    (reason,) = await reasons(late)
    assert reason["notBefore"].endswith("Z")
    assert "notBeforeMs" not in reason


async def test_the_older_spelling_of_a_submit_is_understood(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    redis_client.hset("h:file:file-abc123", mapping={"state": "ready", "filename": "project.zip"})
    body = {
        "command": "npm test", "fileUrl": "/uploads/file-abc123/project.zip", "filename": "project.zip",
        "timeoutMs": 1500, "requiredCpu": 1, "requiredRamMb": 256, "maxRetries": 3,
    }  # fmt: skip
    for path in ("/jobs/create", "/api/jobs/create"):
        answer = await (await hostler.user()).post(path, json=body)
        assert answer.status_code == 201, answer.text
        job = await jobs.get(hostler.store, answer.json()["jobId"])
        assert (job.spec["timeout_s"], job.spec["retries"], job.spec["file"]) == (2, 3, "file-abc123")
    bare = (await (await hostler.user()).post("/jobs/create", json={"command": "x"})).json()
    assert (await jobs.get(hostler.store, bare["jobId"])).spec["timeout_s"] == 300
    viewer = await hostler.user("r")
    assert (await viewer.get("/jobs/status", params={"jobId": bare["jobId"]})).status_code == 200
    assert (await viewer.get("/jobs/list")).json()["total"] == 3


async def test_an_archived_job_is_found_where_it_went(hostler_with_s3: Hostler) -> None:
    from storage import archive

    hostler = hostler_with_s3
    job_id, operator = await submit(hostler, command="gone"), await hostler.user()
    agent = await hostler.agent()
    await agent.get("/api/jobs/get-job")
    result = {"jobId": job_id, "stdout": "said before\n", "status": "cancelled"}
    await agent.post("/api/jobs/submit-result", json=result)
    assert await archive.put(hostler.store, job_id)
    job = (await operator.get("/api/jobs/status", params={"jobId": job_id})).json()["job"]
    assert (job["command"], job["status"]) == ("gone", "cancelled")
    assert job["stdout"] == "said before\n"
    assert (await operator.get("/api/jobs/status", params={"jobId": UNKNOWN})).status_code == 404
    assert (await operator.get(f"/api/jobs/{job_id}/artifacts")).json()["artifacts"] == []
    assert await hostler.store.call(script("archive", job_id)) == 0


async def test_what_runs_at_most_once_is_not_retried(hostler: Hostler, redis_client: redis.Redis) -> None:
    operator = await hostler.user()
    order = {"command": "true", "atMostOnce": True}
    answer = await operator.post("/api/jobs/submit", json={**order, "retries": 1})
    assert (answer.status_code, list(answer.json()["details"])) == (400, ["retries"])
    job_id = (await operator.post("/api/jobs/submit", json=order)).json()["jobId"]
    assert redis_client.hget(f"h:job:{job_id}", "once") == b"1"
    assert redis_client.zcard("h:jobs") == 1
