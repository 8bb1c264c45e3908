"""A job's log as text, as pages of lines, and as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from live import Live, serve

from api.executor.log import LogPage
from storage import users

UNKNOWN = "/api/jobs/job-00000000000000000000/log"


@pytest.fixture
async def live(settings) -> AsyncIterator[Live]:
    async with serve(settings) as live:
        yield live


async def events(live: Live, path: str, until: str = "", **headers: str) -> list[dict[str, str]]:
    """Return the server-sent events up to the first called `until`, or to the end."""
    taken: list[dict[str, str]] = []
    event: dict[str, str] = {}
    accept = {"Accept": "text/event-stream", **headers}
    async with asyncio.timeout(15), live.client.stream("GET", path, headers=accept) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name:
                event[name] = value
            elif event:
                taken.append(event)
                if event.get("event") == until:
                    return taken
                event = {}
    return taken


async def test_without_anything_it_is_the_text_as_printed(live):
    job = await live.running_job()
    await live.say(job, b"one\n")
    await live.say(job, b"oh \xff\n", channel="e")
    answer = await live.client.get(f"/api/jobs/{job.id}/log")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.content == b"one\noh \xff\n"


async def test_after_a_line_it_is_pages_of_json(live):
    job = await live.running_job()
    await live.say(job, b"one\n<b>two</b>\nthree\n")
    page = (await live.client.get(f"/api/jobs/{job.id}/log?after=1&limit=1")).json()
    assert page == {
        "success": True,
        "jobId": job.id,
        "lines": [{"seq": 2, "attempt": 1, "stream": "stdout", "text": "<b>two</b>"}],
        "next": 2,
        "gap": None,
        "status": "running",
        "more": True,
    }
    assert LogPage().validate({name: value for name, value in page.items() if name != "success"}) == {}
    rest = (await live.client.get(f"/api/jobs/{job.id}/log?after={page['next']}")).json()
    assert ([line["text"] for line in rest["lines"]], rest["more"]) == (["three"], False)
    whole = await live.client.get(f"/api/jobs/{job.id}/log", headers={"Accept": "application/json"})
    assert [line["seq"] for line in whole.json()["lines"]] == [1, 2, 3]


async def test_a_gap_is_told_with_its_lines(live):
    job = await live.running_job()
    for number in range(200):
        await live.say(job, b"line %04d\n" % number, live_bytes=500)
    page = (await live.client.get(f"/api/jobs/{job.id}/log?after=0")).json()
    assert page["gap"]["from"] == 1
    assert page["lines"][0]["seq"] == page["gap"]["to"] + 1


async def test_followed_it_is_events_until_the_job_has_ended(live):
    job = await live.running_job()
    await live.say(job, b"one\n")
    following = asyncio.create_task(events(live, f"/api/jobs/{job.id}/log"))
    await live.say(job, b"two\n")
    await live.end(job)
    taken = await following
    names = [event["event"] for event in taken]
    assert (names[0], set(names[1:-1]), names[-1]) == ("started", {"output"}, "completed")
    assert "".join(json.loads(e["data"])["data"] for e in taken[1:-1]) == "one\ntwo\n"
    assert all(json.loads(event["data"])["id"] == event["id"] for event in taken)
    assert json.loads(taken[-1]["data"])["status"] == "completed"


async def test_followers_come_back_with_the_id_of_their_last_event(live):
    job = await live.running_job()
    await live.say(job, b"one\n")
    await live.say(job, b"two\n")
    taken = await events(live, f"/api/jobs/{job.id}/log", until="output")
    await live.end(job)
    rest = await events(live, f"/api/jobs/{job.id}/log", **{"Last-Event-ID": taken[-1]["id"]})
    assert [event["event"] for event in rest] == ["output", "completed"]
    assert json.loads(rest[0]["data"])["data"] == "two\n"


async def test_a_silent_follower_gets_comments(live, monkeypatch):
    monkeypatch.setattr("api.realtime.sse.STANDING_S", 0.02)
    monkeypatch.setattr("api.realtime.sse.KEEP_ALIVE_S", 0.05)
    job = await live.running_job()
    accept = {"Accept": "text/event-stream"}
    async with (
        asyncio.timeout(10),
        live.client.stream("GET", f"/api/jobs/{job.id}/log", headers=accept) as answer,
    ):
        comments = 0
        async for line in answer.aiter_lines():
            comments += line.startswith(":")
            if comments == 2:
                break


async def test_a_follower_whose_session_ended_is_let_go(live, monkeypatch):
    monkeypatch.setattr("api.realtime.sse.STANDING_S", 0.05)
    job = await live.running_job()
    accept = {"Accept": "text/event-stream"}
    async with (
        asyncio.timeout(10),
        live.client.stream("GET", f"/api/jobs/{job.id}/log", headers=accept) as answer,
    ):
        assert answer.status_code == 200
        user = await users.named(live.store, "ada")
        await users.update(live.store, user.id, actor="test", changes={"role": "w"})
        assert b"event: started" in b"".join([chunk async for chunk in answer.aiter_bytes()])


async def test_followers_that_leave_leave_nothing_behind(live, redis_client):
    job = await live.running_job()
    for _ in range(5):
        path = f"/api/jobs/{job.id}/log"
        await asyncio.gather(*(events(live, path, until="started") for _ in range(5)))
    async with asyncio.timeout(10):
        while redis_client.pubsub_numsub(f"h:out:{job.id}")[0][1]:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("accept", ["text/plain", "application/json", "text/event-stream"])
async def test_an_unknown_job_has_no_log(live, accept):
    answer = await live.client.get(UNKNOWN, headers={"Accept": accept})
    assert answer.status_code == 404
    assert answer.json()["error"] == "Not found"


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=1&limit=0", "after=1&limit=10001", "what=1"])
async def test_bad_questions_are_refused(live, query):
    assert (await live.client.get(f"{UNKNOWN}?{query}")).status_code == 400
