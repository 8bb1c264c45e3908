from typing import Any

import pytest
import redis
from whole import Hostler

PATH = "/api/jobs/submit-batch"


async def test_a_batch_is_accepted_whole_and_answers_its_ids(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    jobs = [{"command": "a"}, {"argv": ["b", "c"], "timeout": 5}]
    answer = await (await hostler.user()).post(PATH, json={"jobs": jobs})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert list(told) == ["success", "batchId", "createdAt", "jobIds", "total"]
    assert [each.decode() for each in redis_client.lrange("rq:queue:jobs.normal", 0, -1)] == told["jobIds"]
    assert redis_client.hget(f"h:job:{told['jobIds'][1]}", "timeout") == b"5"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "jobs is required"),
        ({"jobs": []}, "jobs: Length must be between 1 and 1000."),
        ({"jobs": [{"command": "x"}] * 1001}, "jobs: Length must be between 1 and 1000."),
        ({"jobs": {"command": "x"}}, "jobs: Not a valid list."),
        ({"jobs": [{"command": "x"}, {}]}, "jobs[1].command is required"),
        ({"jobs": [{"command": "x"}, 7]}, "jobs[1]: Invalid input type."),
        ({"jobs": [{"command": "x"}] * 17 + [{"command": ""}]}, "jobs[17].command: Must not be empty."),
        ({"jobs": [{"command": "x", "nonsense": 1}]}, "jobs[0].nonsense is not a known field"),
        (
            {"jobs": [{"command": "x", "schedule": "* * * * *"}]},
            "jobs[0].schedule: A job of a batch cannot recur.",
        ),
    ],
)
async def test_what_is_wrong_with_one_is_told_by_its_place_and_refuses_all(
    hostler: Hostler, redis_client: redis.Redis, body: dict[str, Any], message: str
) -> None:
    answer = await (await hostler.user()).post(PATH, json=body)
    assert (answer.status_code, answer.json()["message"]) == (400, message)
    assert not redis_client.exists("h:jobs")
    assert not list(redis_client.scan_iter("h:batch*"))


async def test_an_address_that_must_not_be_requested_is_told_by_its_place(hostler: Hostler) -> None:
    jobs = [{"command": "x"}, {"command": "x", "webhook": "http://127.0.0.1/"}]
    answer = await (await hostler.user()).post(PATH, json={"jobs": jobs})
    assert answer.status_code == 400
    assert list(answer.json()["details"]) == ["jobs[1].webhook"]
    assert answer.json()["message"].startswith("jobs[1].webhook: ")


async def test_an_idempotency_key_counts_for_the_whole_batch(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    client, headers = await hostler.user(), {"Idempotency-Key": "nightly"}
    first = await client.post(PATH, json={"jobs": [{"command": "a"}, {"command": "b"}]}, headers=headers)
    again = await client.post(PATH, json={"jobs": [{"command": "a"}, {"command": "b"}]}, headers=headers)
    assert again.json() == first.json()
    other = await client.post(PATH, json={"jobs": [{"command": "a"}]}, headers=headers)
    single = await client.post("/api/jobs/submit", json={"command": "a"}, headers=headers)
    assert (other.status_code, single.status_code) == (422, 422)
    assert redis_client.zcard("h:jobs") == 2


async def test_who_may_not_submit_may_not_submit_a_batch(hostler: Hostler) -> None:
    assert (await (await hostler.user("r")).post(PATH, json={"jobs": []})).status_code == 403
    assert (await hostler.client().post(PATH, json={"jobs": [{"command": "x"}]})).status_code == 401


async def test_many_are_cancelled_and_run_again_each_with_an_outcome_of_its_own(hostler: Hostler) -> None:
    client = await hostler.user()
    ids = (await client.post(PATH, json={"jobs": [{"command": "a"}, {"command": "b"}]})).json()["jobIds"]
    named = {"jobIds": [*ids, ids[0], "job-nonsense"]}
    cancelled = (await client.post("/api/jobs/cancel-batch", json=named)).json()
    assert [each["status"] for each in cancelled["results"]] == ["cancelled", "cancelled", None]
    assert (cancelled["succeeded"], cancelled["failed"]) == (2, 1)
    assert cancelled["results"][2]["code"] == "NOT_FOUND"

    headers = {"Idempotency-Key": "again"}
    made = await client.post("/api/jobs/retry-batch", json=named, headers=headers)
    new = [each["newJobId"] for each in made.json()["results"]]
    assert len({*new, *ids}) == 5
    assert new[2] is None
    repeated = await client.post("/api/jobs/retry-batch", json=named, headers=headers)
    assert repeated.json() == made.json()  # nothing was made twice
    waiting = await client.post("/api/jobs/retry-batch", json={"jobIds": new[:1]})
    assert waiting.json()["results"][0]["error"].endswith("only a finished job can be retried.")


async def test_no_more_than_a_thousand_are_named_and_viewers_may_name_none(hostler: Hostler) -> None:
    answer = await (await hostler.user()).post("/api/jobs/cancel-batch", json={"jobIds": ["x"] * 1001})
    assert (answer.status_code, answer.json()["details"].keys()) == (400, {"jobIds"})
    viewer = await hostler.user("r")
    assert (await viewer.post("/api/jobs/retry-batch", json={"jobIds": ["x"]})).status_code == 403
