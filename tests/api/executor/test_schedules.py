"""Schedules over HTTP: made by a submit, listed, shown, ended."""

from whole import Hostler

DAILY = {"command": "true", "schedule": {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "misfire": "skip"}}


async def test_a_submitted_schedule_is_listed_with_the_occurrence_that_waits(hostler: Hostler) -> None:
    operator = await hostler.user("w")
    job_id = (await operator.post("/api/jobs/submit", json=DAILY)).json()["jobId"]
    (shown,) = (await operator.get("/api/schedules")).json()["schedules"]
    assert (shown["jobId"], shown["cron"], shown["timezone"]) == (job_id, "0 3 * * *", "Europe/Berlin")
    assert (shown["misfire"], shown["command"]) == ("skip", "true")
    one = (await operator.get(f"/api/schedules/{shown['scheduleId']}")).json()["schedule"]
    assert one == shown
    job = (await operator.get("/api/jobs/status", params={"jobId": job_id})).json()["job"]
    assert (job["wait"], job["notBefore"]) == ("schedule", shown["nextAt"])


async def test_ending_a_schedule_cancels_the_occurrence_that_waits(hostler: Hostler) -> None:
    operator = await hostler.user("w")
    job_id = (await operator.post("/api/jobs/submit", json=DAILY)).json()["jobId"]
    (shown,) = (await operator.get("/api/schedules")).json()["schedules"]
    assert (await operator.delete(f"/api/schedules/{shown['scheduleId']}")).status_code == 200
    assert (await operator.get("/api/schedules")).json()["total"] == 0
    job = (await operator.get("/api/jobs/status", params={"jobId": job_id})).json()["job"]
    assert job["status"] == "cancelled"
    assert (await operator.delete(f"/api/schedules/{shown['scheduleId']}")).status_code == 404


async def test_a_schedule_that_makes_no_sense_is_refused_and_nothing_is_kept(hostler: Hostler) -> None:
    operator = await hostler.user("w")
    for schedule in (
        {"cron": "61 * * * *"},
        {"cron": "* * * * *", "timezone": "Mars/Olympus"},
        {"cron": "0 0 30 2 *"},
    ):
        answer = await operator.post("/api/jobs/submit", json={"command": "true", "schedule": schedule})
        assert answer.status_code == 400, schedule
    assert (await operator.get("/api/schedules")).json()["total"] == 0
    assert (await operator.get("/api/jobs/list")).json()["total"] == 0
