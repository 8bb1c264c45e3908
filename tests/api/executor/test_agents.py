import asyncio
import hashlib
import time
from typing import Any

import httpx
import pytest
import redis
from whole import Hostler, run_lifespan

from storage import fleet, jobs, logs
from storage.calls import script

UNKNOWN = "job-" + "0" * 20
EXCHANGE = "/api/jobs/exchange"


async def submit(hostler: Hostler, **body: Any) -> str:
    answer = await (await hostler.user()).post("/api/jobs/submit", json={"command": "npm test", **body})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["jobId"])


async def taken(agent: httpx.AsyncClient, **params: Any) -> Any:
    answer = await agent.get("/api/jobs/get-job", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["job"]


async def status(hostler: Hostler, job_id: str) -> Any:
    answer = await (await hostler.user("r")).get("/api/jobs/status", params={"jobId": job_id})
    return answer.json()["job"]


async def test_the_pages_flow_from_register_to_result(hostler: Hostler, redis_client: redis.Redis) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler, timeout=600)
    job = await taken(agent)
    assert (job["jobId"], job["command"], job["timeout"], job["attempt"]) == (job_id, "npm test", 600, 1)
    assert (job["fileUrl"], job["workingDirectory"], job["argv"], job["lines"]) == (None, None, None, 0)
    assert job["leaseSeconds"] == 630, "it has sent no heartbeat"
    streamed = await agent.post(
        "/api/jobs/stream-output", json={"jobId": job_id, "data": "test line\n", "type": "stdout"}
    )
    assert (streamed.json()["success"], streamed.json()["received"]) == (True, True)
    running = await status(hostler, job_id)
    assert (running["status"], running["workerId"], running["stdout"]) == (
        "running",
        "worker-001",
        "test line\n",
    )
    result = {
        "jobId": job_id,
        "workerId": "worker-001",
        "stdout": "tests passed",
        "stderr": "",
        "exitCode": 0,
    }
    for _ in range(2):
        saved = await agent.post("/api/jobs/submit-result", json=result)
        assert saved.status_code == 200
        told = saved.json()
        assert (told["success"], told["message"], told["jobId"]) == (True, "Result saved", job_id)
    ended = await status(hostler, job_id)
    assert (ended["status"], ended["exitCode"], ended["reason"]) == ("completed", 0, None)
    assert ended["stdout"] == "tests passed", "what the result says differs from what was streamed"
    assert redis_client.zcard("h:leases") == redis_client.llen("h:proc:worker-001") == 0
    assert (await agent.get("/api/jobs/get-job")).status_code == 204


async def test_no_job_is_no_content(hostler: Hostler) -> None:
    answer = await (await hostler.agent()).get("/api/jobs/get-job")
    assert (answer.status_code, answer.content) == (204, b"")


async def test_an_older_agent_is_told_202_and_null(hostler: Hostler) -> None:
    agent = await hostler.agent()
    none = await agent.get("/jobs/get-job", params={"workerId": "worker-001"})
    assert (none.status_code, none.json()) == (202, {"success": False, "job": None})
    job_id = await submit(hostler)
    some = await agent.get("/jobs/get-job")
    assert (some.status_code, some.json()["success"], some.json()["job"]["jobId"]) == (200, True, job_id)


async def test_a_result_without_streaming_becomes_the_log(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    big = "".join(f"line {number}\n" for number in range(60_000))
    result = {"jobId": job_id, "stdout": big, "stderr": "warning", "exitCode": 3}
    assert (await agent.post("/api/jobs/submit-result", json=result)).json()["status"] == "failed"
    job = await status(hostler, job_id)
    assert (job["status"], job["reason"], job["exitCode"], job["stderr"]) == (
        "failed",
        "exit_code",
        3,
        "warning",
    )
    assert job["stdout"].endswith("line 59999\n")
    text = b"".join([piece async for piece in await logs.text(hostler.store, job_id)])
    assert text == big.encode() + b"warning"


async def test_the_output_of_a_second_attempt_is_logged_as_well(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler, retries=1, backoff={"delay": 0})
    for attempt, exit_code in ((1, 1), (2, 0)):
        assert (await taken(agent))["attempt"] == attempt
        result = {"jobId": job_id, "stdout": f"attempt {attempt}\n", "exitCode": exit_code}
        await agent.post("/api/jobs/submit-result", json=result)
    text = b"".join([piece async for piece in await logs.text(hostler.store, job_id)])
    assert text == b"attempt 1\nattempt 2\n"
    assert (await status(hostler, job_id))["stdout"] == "attempt 2\n"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"exitCode": 0}, ("completed", None)),
        ({"exitCode": 1}, ("failed", "exit_code")),
        ({"exitCode": -9}, ("failed", "exit_code")),
        ({"exitCode": None, "reason": "timeout"}, ("failed", "timeout")),
        ({"error": "cannot unpack", "reason": "invalid"}, ("failed", "invalid")),
        ({"exitCode": 0, "error": "it broke"}, ("failed", "exit_code")),
        ({"status": "cancelled"}, ("cancelled", "cancelled")),
        ({"exitCode": 1, "status": "COMPLETED"}, ("failed", "exit_code")),
        ({"exitCode": 1, "reason": "quarantined"}, ("failed", "exit_code")),
    ],
)
async def test_a_result_ends_the_job_as_it_says(hostler: Hostler, result: Any, expected: Any) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    answer = await agent.post("/api/jobs/submit-result", json={"jobId": job_id, "unknownField": 1, **result})
    assert answer.status_code == 200, answer.text
    job = await status(hostler, job_id)
    assert (job["status"], job["reason"]) == expected
    assert job["message"] == result.get("error")


async def test_an_older_agent_reports_a_failure_by_put(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    answer = await agent.put("/api/jobs/submit-result", json={"jobId": job_id, "error": "no such file"})
    assert answer.status_code == 200, answer.text
    job = await status(hostler, job_id)
    assert (job["status"], job["reason"], job["message"]) == ("failed", "exit_code", "no such file")


async def test_progress_lines_set_the_progress(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    for data, type_, expected in (
        ("HOSTLER_PROGRESS=10\n", "stdout", 10),
        ("a\n::progress 45\nb\n", "stdout", 45),
        ("::progress 99\n", "stderr", 45),
    ):
        body = {"jobId": job_id, "data": data, "type": type_, "attempt": 1}
        assert (await agent.post("/api/jobs/stream-output", json=body)).status_code == 200
        assert (await status(hostler, job_id))["progress"] == expected


async def test_a_piece_that_is_sent_twice_counts_once(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    for _ in range(2):
        body = {"jobId": job_id, "data": "a\nb\n", "type": "stdout", "firstLine": 0}
        assert (await agent.post("/api/jobs/stream-output", json=body)).json()["nextLine"] == 2
    assert (await status(hostler, job_id))["stdout"] == "a\nb\n"


async def test_the_type_of_output_is_stdout_or_stderr(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    for body in ({"type": "stdlog"}, {}):
        answer = await agent.post("/api/jobs/stream-output", json={"jobId": job_id, "data": "x", **body})
        assert (answer.status_code, answer.json()["error"]) == (400, "Invalid request")
    assert (await status(hostler, job_id))["stdout"] == ""


async def test_an_agent_cannot_touch_the_job_of_another(hostler: Hostler) -> None:
    mine, other, job_id = await hostler.agent("a"), await hostler.agent("b"), await submit(hostler)
    await taken(mine)
    output = {"jobId": job_id, "data": "evil\n", "type": "stdout"}
    result = {"jobId": job_id, "exitCode": 0}
    for path, body in (
        ("stream-output", output),
        ("submit-result", result),
        ("submit-result", {**result, "attempt": 1}),
    ):
        answer = await other.post(f"/api/jobs/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "STALE_ATTEMPT")
        assert answer.headers["X-Error-Code"] == "STALE_ATTEMPT"
    for path, body in (("jobs/submit-result", result), ("workers/heartbeat", {})):
        answer = await other.post(f"/api/{path}", json={**body, "workerId": "a"})
        assert answer.status_code == 403
    assert (await other.get("/api/jobs/get-job", params={"workerId": "a"})).status_code == 403
    assert (await other.put(f"/api/jobs/{job_id}/artifacts/x", content=b"x")).status_code == 409
    job = await status(hostler, job_id)
    assert (job["status"], job["stdout"]) == ("running", "")
    assert (await other.post("/api/jobs/stream-output", json={**output, "jobId": UNKNOWN})).status_code == 404


async def test_an_agent_learns_of_a_cancel_in_every_way(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    output = {"jobId": job_id, "data": "x\n", "type": "stdout"}
    check = ("/api/jobs/check-cancel", {"jobId": job_id})
    assert (await agent.post("/api/jobs/stream-output", json=output)).json()["cancelRequested"] is False
    assert (await agent.get(check[0], params=check[1])).json()["cancelled"] is False
    asked = await (await hostler.user()).post("/api/jobs/cancel", json={"jobId": job_id})
    assert asked.json()["status"] == "running"
    assert (await agent.post("/api/jobs/stream-output", json=output)).json()["cancelRequested"] is True
    assert (await agent.post("/api/workers/heartbeat", json={"workerId": "worker-001"})).json()["cancel"] == [
        job_id
    ]
    for answer in (
        await agent.get(check[0], params=check[1]),
        await agent.post(check[0], json=check[1]),
        await agent.get("/jobs/check-cancel", params=check[1]),
    ):
        assert (answer.json()["cancelled"], answer.json()["cancelRequested"]) == (True, True)
    await agent.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 137})
    assert (await status(hostler, job_id))["status"] == "cancelled"


async def test_a_heartbeat_puts_every_call_under_the_short_lease(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    agent, first = await hostler.agent(), await submit(hostler, timeout=1000)
    await taken(agent)
    seconds = redis_client.time()[0]
    assert redis_client.zscore("h:leases", first) - seconds * 1000 > 1_000_000
    await agent.get("/api/jobs/get-job")
    assert redis_client.zscore("h:leases", first) - seconds * 1000 > 1_000_000, "a bare call shortens nothing"
    beat = await agent.post(
        "/api/workers/heartbeat",
        json={"workerId": "worker-001", "status": "idle", "currentJobId": None, "jobsCompleted": 42},
    )
    assert 4500 <= beat.json()["nextCheckIn"] <= 5000
    assert beat.json()["serverTime"][-1] == "Z"
    assert redis_client.zscore("h:leases", first) - seconds * 1000 < 30_000
    second = await submit(hostler, timeout=1000)
    assert (await taken(agent))["leaseSeconds"] == 15
    for call in (
        agent.get("/api/jobs/get-job"),
        agent.post("/api/jobs/stream-output", json={"jobId": first, "data": "x\n", "type": "stdout"}),
        agent.get("/api/jobs/check-cancel", params={"jobId": first}),
        agent.post("/api/jobs/submit-result", json={"jobId": first, "exitCode": 0}),
    ):
        redis_client.zadd("h:leases", {second: 1})
        assert (await call).status_code < 300
        assert redis_client.zscore("h:leases", second) > 1, "each call renews all that the agent holds"


async def test_a_job_goes_to_an_agent_whose_tags_cover_it(hostler: Hostler) -> None:
    job_id = await submit(hostler, tags=["gpu", "linux"])
    plain = await hostler.agent("plain")
    assert (await plain.get("/api/jobs/get-job")).status_code == 204
    tagged = await hostler.agent("tagged", metadata={"tags": ["linux", "gpu", "x"]})
    assert (await taken(tagged))["jobId"] == job_id


async def test_a_waiting_agent_gets_a_job_as_soon_as_there_is_one(hostler: Hostler) -> None:
    agent = await hostler.agent()
    waiting = asyncio.ensure_future(taken(agent, wait=20))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    job_id = await submit(hostler)
    assert (await waiting)["jobId"] == job_id
    assert time.monotonic() - began < 1.5, "it is woken, and does not only look now and then"


async def test_a_job_that_woke_a_dead_agent_goes_to_the_next(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    dead, living = await hostler.agent("dead"), await hostler.agent("living")
    for agent in (dead, living):
        await agent.post("/api/workers/heartbeat", json={"status": "idle"})
    waits_for_nobody = asyncio.ensure_future(dead.get("/api/jobs/get-job", params={"wait": 20}))
    await asyncio.sleep(0.3)
    waiting = asyncio.ensure_future(taken(living, wait=20))
    await asyncio.sleep(0.3)
    redis_client.hset("h:worker:dead", "seen", 1)  # a host that died leaves its connections open
    began, job_id = time.monotonic(), await submit(hostler)
    assert (await waiting)["jobId"] == job_id
    assert time.monotonic() - began < 1.5
    assert (await waits_for_nobody).status_code == 204


async def test_agents_that_drain_take_no_turn_from_one_that_waits(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    drained = [await hostler.agent(f"drained-{number}") for number in range(3)]
    for number in range(3):
        redis_client.hset(f"h:worker:drained-{number}", "drain", "1")
    waits = [
        asyncio.ensure_future(each.get("/api/jobs/get-job", params={"wait": 3}))
        for each in [*drained, await hostler.agent("free")]
    ]
    await asyncio.sleep(0.5)  # all of them wait
    began, job_id = time.monotonic(), await submit(hostler)
    assert (await waits[-1]).json()["job"]["jobId"] == job_id
    assert time.monotonic() - began < 1.5
    assert [(await each).status_code for each in waits[:-1]] == [204] * 3


async def test_tags_that_somebody_wrote_are_none_and_count_once_they_are_mended(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    agent = await hostler.agent(tags=["gpu"])
    tagged = await submit(hostler, tags=["gpu"])
    for nonsense in ("nonsense", '{"a": 1}', "[1]"):
        redis_client.hset("h:worker:worker-001", "tags", nonsense)
        assert (await agent.get("/api/jobs/get-job")).status_code == 204
        beat = await agent.post("/api/workers/heartbeat", json={"workerId": "worker-001", "status": "idle"})
        assert beat.status_code == 200
    redis_client.hset("h:worker:worker-001", "tags", '["gpu"]')
    assert (await taken(agent))["jobId"] == tagged


async def test_a_wait_ends_empty_handed_in_its_time(hostler: Hostler) -> None:
    agent, began = await hostler.agent(), time.monotonic()
    assert (await agent.get("/api/jobs/get-job", params={"wait": 0.3})).status_code == 204
    assert 0.27 <= time.monotonic() - began < 2
    for wait in ("-1", "61", "x"):
        assert (await agent.get("/api/jobs/get-job", params={"wait": wait})).status_code == 400


async def test_an_agent_that_leaves_while_it_waits_swallows_no_job(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    token = (await hostler.agent()).headers["X-Worker-Token"]
    leave, sent = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        if not sent_request.is_set():
            sent_request.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)

    sent_request = asyncio.Event()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.1"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/api/jobs/get-job", "raw_path": b"/api/jobs/get-job", "query_string": b"wait=20",
        "headers": [(b"host", b"hostler.test"), (b"x-worker-token", token.encode())], "client": ("1.2.3.4", 5),
        "server": ("hostler.test", 80), "root_path": "",
    }  # fmt: skip
    serving = asyncio.ensure_future(hostler.app(scope, receive, send))
    await asyncio.sleep(0.3)
    assert not serving.done()
    leave.set()
    await asyncio.wait_for(serving, 2)  # noqa: TID251
    job_id = await submit(hostler)
    await asyncio.sleep(0.1)
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1) == [job_id.encode()]


async def test_a_stopping_server_lets_waiting_agents_go(hostler: Hostler) -> None:
    from api.app import create_app

    app = create_app(hostler.settings)
    end = await run_lifespan(app)
    agent = await hostler.agent()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://h", headers=agent.headers) as client:
        waiting = asyncio.ensure_future(client.get("/api/jobs/get-job", params={"wait": 20}))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await end()
        assert (await waiting).status_code in {204, 503}
        assert time.monotonic() - began < 2


async def test_a_forged_job_is_never_handed_out(hostler: Hostler, redis_client: redis.Redis) -> None:
    agent, forged, honest = await hostler.agent(), await submit(hostler), await submit(hostler)
    redis_client.hset(f"h:job:{forged}", "spec", '{"task":"command","command":"evil","timeout_s":5}')
    assert (await taken(agent))["jobId"] == honest
    job = await status(hostler, forged)
    assert (job["status"], job["reason"]) == ("failed", "invalid")
    assert "signature" in job["message"]


async def test_a_program_without_a_shell_is_also_told_as_a_command(hostler: Hostler) -> None:
    agent = await hostler.agent()
    answer = await (await hostler.user()).post("/api/jobs/submit", json={"argv": ["echo", "a b"]})
    job = await taken(agent)
    assert (job["jobId"], job["argv"], job["command"]) == (
        answer.json()["jobId"],
        ["echo", "a b"],
        "echo 'a b'",
    )


async def test_the_files_url_is_absolute_as_the_agent_addressed_us(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    redis_client.hset(
        "h:file:file-abc123",
        mapping={"state": "ready", "filename": "my project.zip", "expires": 1, "size": 1},
    )
    agent = await hostler.agent()
    await submit(hostler, fileUrl="/uploads/file-abc123/my%20project.zip")
    assert (await taken(agent))["fileUrl"] == "http://hostler.test/uploads/file-abc123/my%20project.zip"
    await submit(hostler, fileUrl="https://example.org/a.zip")
    assert (await taken(agent))["fileUrl"] == "https://example.org/a.zip"


async def test_an_agent_keeps_artifacts_that_viewers_download(hostler_with_s3: Hostler) -> None:
    hostler = hostler_with_s3
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    content = b"<report/>" * 1000
    for name in ("reports/über uns.xml", "b.txt"):
        kept = await agent.put(f"/api/jobs/{job_id}/artifacts/{name}", content=content)
        assert kept.status_code == 200, kept.text
        assert kept.json()["sha256"] == hashlib.sha256(content).hexdigest()
    await agent.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 0})
    viewer = await hostler.user("r")
    listed = (await viewer.get(f"/api/jobs/{job_id}/artifacts")).json()
    assert [(each["name"], each["size"]) for each in listed["artifacts"]] == [
        ("b.txt", len(content)), ("reports/über uns.xml", len(content))
    ]  # fmt: skip
    whole = await viewer.get(listed["artifacts"][1]["url"])
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["Content-Disposition"].startswith("attachment")
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    part = await viewer.get(listed["artifacts"][0]["url"], headers={"Range": "bytes=1-6"})
    assert (part.status_code, part.content) == (206, b"report")
    same = await viewer.get(listed["artifacts"][0]["url"], headers={"If-None-Match": whole.headers["ETag"]})
    assert same.status_code == 304
    assert (await viewer.get(f"/api/jobs/{job_id}/artifacts/none")).status_code == 404
    assert (await viewer.get(f"/api/jobs/{UNKNOWN}/artifacts")).status_code == 404
    late = await agent.put(f"/api/jobs/{job_id}/artifacts/late", content=b"x")
    assert (late.status_code, late.json()["code"]) == (409, "STALE_ATTEMPT")


@pytest.mark.parametrize("name", ["a/../../b", "a//b", "a%5Cb", "a%00b", "x" * 513])
async def test_an_artifact_with_a_treacherous_name_is_refused(
    hostler: Hostler, redis_client: redis.Redis, name: str
) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    request = agent.build_request("PUT", "/api/jobs/x", content=b"x")
    request.url = request.url.copy_with(raw_path=f"/api/jobs/{job_id}/artifacts/{name}".encode())
    assert (await agent.send(request)).status_code in {400, 404}
    assert redis_client.exists(f"h:artifacts:{job_id}") == 0


async def test_a_part_of_the_log_is_kept_whole(hostler_with_s3: Hostler) -> None:
    hostler = hostler_with_s3
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    frames = logs.encode_frame(1, 0, 2, "o", b"a\nb\n") + logs.encode_frame(1, 2, 1, "e", b"c\n")
    path, query = f"/api/jobs/{job_id}/log", {"first": 0, "next": 3}
    for bad, said in (
        (frames[:-1], query), (b"x" + frames, query), (frames, {"first": 0, "next": 4}), (b"", query),
        (frames, {"first": 1, "next": 4}), (frames, {"first": 0}),
        (frames.replace(b"1 2 1 e", b"1 9 1 e"), query),
    ):  # fmt: skip
        assert (await agent.post(path, params=said, content=bad)).status_code == 400
    assert (await agent.post(path, params={**query, "attempt": 2}, content=frames)).status_code == 409
    kept = await agent.post(path, params=query, content=frames)
    assert kept.status_code == 201, kept.text
    await agent.post("/api/jobs/stream-output", json={"jobId": job_id, "data": "a\nb\n", "type": "stdout"})
    await agent.post("/api/jobs/submit-result", json={"jobId": job_id, "exitCode": 0})
    stored = await hostler.store.objects.get(f"logs/{job_id}/1/000000000000", limit_bytes=1000)
    assert stored == frames


async def test_a_token_ends_with_its_registration(hostler: Hostler) -> None:
    first = await hostler.agent()
    renewed = await first.post("/api/workers/register", json={"workerId": "worker-001"})
    assert renewed.status_code == 201, "its own token is proof enough"
    assert (await first.get("/api/jobs/get-job")).status_code == 401
    second = hostler.client(X_Worker_Token=renewed.json()["token"])
    assert (await second.get("/api/jobs/get-job")).status_code == 204
    assert (await second.get("/api/jobs/list")).status_code == 403
    assert (await (await hostler.user("a")).get("/api/jobs/get-job")).status_code == 403


async def test_a_result_that_is_too_large_is_refused_and_the_job_goes_on(hostler: Hostler) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    result = {"jobId": job_id, "stdout": "x" * (16 * 1024 * 1024), "exitCode": 0}
    answer = await agent.post("/api/jobs/submit-result", json=result)
    assert (answer.status_code, answer.json()["code"]) == (413, "TOO_LARGE")
    assert (await jobs.get(hostler.store, job_id)).state == "running"


async def test_a_lease_that_ran_out_makes_late_writes_stale(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    agent, job_id = await hostler.agent(), await submit(hostler)
    await taken(agent)
    redis_client.zadd("h:leases", {job_id: 1})
    redis_client.set("h:reaper:last", redis_client.time()[0] * 1000)
    await hostler.store.call(script("reap", 15_000, 1000, 30_000, 10, "", 5000))
    for path, body in (
        ("stream-output", {"data": "x", "type": "stdout"}),
        ("submit-result", {"exitCode": 0}),
    ):
        answer = await agent.post(f"/api/jobs/{path}", json={"jobId": job_id, "attempt": 1, **body})
        assert (answer.status_code, answer.json()["code"]) == (409, "STALE_ATTEMPT")
    assert (await status(hostler, job_id))["status"] == "queued"
    assert (await agent.get("/api/jobs/check-cancel", params={"jobId": job_id})).json()[
        "cancelRequested"
    ] is True


async def test_an_agent_hands_a_job_back_and_another_takes_it(hostler: Hostler) -> None:
    await submit(hostler)
    first, second = await hostler.agent("one"), await hostler.agent("two")
    job = (await first.get("/api/jobs/get-job")).json()["job"]
    body = {"jobId": job["jobId"], "attempt": 1, "status": "released"}
    answer = await first.post("/api/jobs/submit-result", json=body)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    again = (await second.get("/api/jobs/get-job")).json()["job"]
    assert (again["jobId"], again["attempt"]) == (job["jobId"], 2)


async def test_a_heartbeat_tells_what_the_agent_holds(hostler: Hostler) -> None:
    await submit(hostler)
    agent = await hostler.agent()
    assert (await agent.post("/api/workers/heartbeat", json={"status": "idle"})).json()["held"] == []
    job = (await agent.get("/api/jobs/get-job")).json()["job"]
    told = (await agent.post("/api/workers/heartbeat", json={"status": "busy"})).json()
    assert told["held"] == [{"jobId": job["jobId"], "attempt": 1}]


async def test_an_agent_that_says_goodbye_is_offline_and_its_job_goes_to_others(hostler: Hostler) -> None:
    await submit(hostler)
    agent, other = await hostler.agent("one"), await hostler.agent("two")
    job = (await agent.get("/api/jobs/get-job")).json()["job"]
    assert (await agent.post("/api/workers/heartbeat", json={"status": "offline"})).status_code == 200
    shown = (await (await hostler.user("r")).get("/api/workers/one")).json()["worker"]
    assert (shown["status"], shown["offlineReason"]) == ("offline", "stopped")
    assert (await other.get("/api/jobs/get-job")).json()["job"]["jobId"] == job["jobId"]


# Several at once


async def test_an_exchange_ends_some_jobs_and_brings_others(hostler: Hostler) -> None:
    agent, store = await hostler.agent(), hostler.app.hub.store
    ids = [await submit(hostler) for _ in range(5)]
    first = (await agent.post(EXCHANGE, json={"most": 3, "startable": 1})).json()
    assert (first["results"], first["lost"]) == ([], [])
    assert [(each["jobId"], each["heldAhead"]) for each in first["jobs"]] == [
        (ids[0], False), (ids[1], True), (ids[2], True)
    ]  # fmt: skip
    said = {
        "results": [
            {"jobId": ids[0], "attempt": 1, "exitCode": 0},
            {"jobId": ids[1], "attempt": 1, "exitCode": 3},
        ],
        "begun": [{"jobId": ids[1], "attempt": 1}, {"jobId": ids[4], "attempt": 1}],
        "most": 1,
    }
    for jobs_left in ([ids[3]], [ids[4]]):  # said twice, it counts once, but for what it asks
        answer = (await agent.post(EXCHANGE, json=said)).json()
        assert [(each["jobId"], each["status"]) for each in answer["results"]] == [
            (ids[0], "completed"), (ids[1], "failed")
        ]  # fmt: skip
        assert ids[4] in answer["lost"]
        assert [each["jobId"] for each in answer["jobs"]] == jobs_left
    assert (await jobs.get(store, ids[1])).exit_code == 3
    assert (await store.call(fleet.fetch("worker-001"))).jobs_completed == 2


async def test_a_result_that_is_refused_stops_no_other(hostler: Hostler) -> None:
    agent = await hostler.agent()
    mine, others = await submit(hostler), await submit(hostler)
    await agent.get("/api/jobs/get-job")
    results = [
        {"jobId": others, "attempt": 1, "exitCode": 0}, {"jobId": "job-none", "attempt": 1, "exitCode": 0},
        {"jobId": mine, "attempt": 1, "exitCode": 0},
    ]  # fmt: skip
    answer = (await agent.post(EXCHANGE, json={"results": results})).json()
    assert [each["error"] for each in answer["results"]] == ["STALE_ATTEMPT", "NOT_FOUND", None]
    assert answer["results"][2]["status"] == "completed"
    for ending in (
        {"attempt": 2},
        {"exitCode": 1},
    ):  # repeated, one without an attempt might end the next one
        refused = await agent.post(EXCHANGE, json={"results": [{"jobId": mine, **ending}]})
        assert refused.status_code == 400
        assert "[0]" in refused.text
    assert (await agent.post(EXCHANGE, json={"workerId": "another", "most": 1})).status_code == 403


async def test_what_is_held_ahead_and_not_begun_is_nobodys_death(hostler: Hostler) -> None:
    agent = await hostler.agent()
    once = await submit(hostler, atMostOnce=True)
    (held,) = (await agent.post(EXCHANGE, json={"most": 1, "startable": 0})).json()["jobs"]
    assert (held["atMostOnce"], held["heldAhead"]) == (True, True)
    result = {"jobId": once, "attempt": 1, "status": "released", "reason": "unstarted"}
    answer = (await agent.post(EXCHANGE, json={"results": [result]})).json()
    assert answer["results"][0]["status"] == "queued"
    (again,) = (await agent.post(EXCHANGE, json={"most": 1})).json()["jobs"]
    assert (again["jobId"], again["attempt"], again["heldAhead"]) == (once, 2, False)
    answer = (await agent.post(EXCHANGE, json={"results": [result | {"attempt": 2, "reason": None}]})).json()
    assert answer["results"][0]["status"] == "failed"  # it may have started
