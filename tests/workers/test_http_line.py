"""An agent's line keeps its promises over a network that does not."""

import asyncio
import hashlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import engine
import pytest
from fake_server import Answer, FakeServer, error
from faulty_api import (
    EXCHANGE,
    GET_JOB,
    HEARTBEAT,
    LOST,
    OUTPUT,
    REGISTER,
    RESULT,
    SECRET,
    Client,
    FaultyApi,
    Refused,
    eventually,
    plane,
    serve,
    text_of,
)

from settings import Settings
from storage import fleet, jobs
from storage.errors import (
    Conflict,
    Denied,
    Invalid,
    NotFound,
    Stale,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from storage.jobs import State
from storage.store import Store
from workers.control_plane import TokenFile
from workers.http_line import HttpLine
from workers.lines import IntegrityError, Offer
from workers.output import Output

NOT_NOW = Refused(503, ((b"retry-after", b"0"),))


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    store = Store(settings)
    yield store
    await store.close()


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[FaultyApi]:
    async with serve(replace(settings, enroll_secret=SECRET)) as api:
        yield api


@pytest.fixture
async def client(api: FaultyApi, tmp_path: Path) -> AsyncIterator[Client]:
    """An agent that is registered."""
    api_plane = plane(api.url, tmp_path)
    await api_plane.register()
    client = Client(api_plane, HttpLine(api_plane))
    yield client
    await client.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that registers everybody, and answers as told beyond that."""
    server = FakeServer()
    server.on(f"POST {REGISTER}", Answer(201, {"token": "token-1"}))
    server.on(f"POST {HEARTBEAT}", Answer(200, {"nextCheckIn": 3000, "cancel": []}))
    server.on(f"POST {EXCHANGE}", refusal(404, "NOT_FOUND"))  # an API of before
    yield server
    server.close()


@pytest.fixture
async def faked(fake: FakeServer, tmp_path: Path) -> AsyncIterator[Client]:
    """An agent that is registered with the fake."""
    fake_plane = plane(fake.url, tmp_path)
    await fake_plane.register()
    client = Client(fake_plane, HttpLine(fake_plane, poll_wait_s=0.01))
    yield client
    await client.close()


def job(**more: Any) -> Answer:
    return Answer(
        200, {"job": {"jobId": "job-1", "attempt": 1, "command": "true", "timeout": 60, "lines": 0, **more}}
    )


def refusal(status: int, code: str, message: str = "No.") -> Answer:
    answer = error(status, message)
    return Answer(status, answer.body, {"X-Error-Code": code})


async def say(client: Client, offer: Offer, data: bytes, first_line: int = 0, channel: str = "o") -> Any:
    return await client.line.output(offer, channel, data, first_line=first_line, line_count=data.count(b"\n"))


async def complete(client: Client, offer: Offer, exit_code: int = 0) -> str:
    outcome, reason = ("completed", "") if exit_code == 0 else ("failed", "exit_code")
    return await client.line.settle(offer, outcome, reason, exit_code, {"cpu_ms": 7, "max_rss_bytes": 4096})


# Taking work


async def test_a_job_is_taken_reported_on_and_settled(client: Client, store: Store) -> None:
    job_id = await engine.submit(store, "make test", env={"A": "b"}, artifacts=["*.txt"], timeout_s=77)
    offer = await client.offer()
    assert (offer.job_id, offer.attempt, offer.lines) == (job_id, 1, 0)
    assert offer.spec["command"] == "make test"
    assert (offer.spec["env"], offer.spec["artifacts"]) == ({"A": "b"}, ["*.txt"])
    assert offer.spec["timeout_s"] == 77
    received = await say(client, offer, b"one\ntwo\n")
    assert received.next_line == 2
    assert not received.cancel
    assert await complete(client, offer, exit_code=3) == "failed"
    done = await jobs.get(store, job_id)
    assert (done.state, done.exit_code, done.reason, done.worker) == (State.FAILED, 3, "exit_code", "agent-1")
    assert done.facts == {"cpu_ms": "7", "max_rss_bytes": "4096"}
    assert await text_of(store, job_id) == "one\ntwo\n"


async def test_a_job_that_comes_while_a_poll_waits_is_taken_at_once(client: Client, store: Store) -> None:
    taking = asyncio.create_task(client.offer())
    await asyncio.sleep(0.3)  # the poll is parked at the API by now, or comes to find the job there
    began = asyncio.get_running_loop().time()
    job_id = await engine.submit(store)
    assert (await taking).job_id == job_id
    assert asyncio.get_running_loop().time() - began < 1.5  # not at the slow look behind the wake-up


async def test_there_is_a_poll_for_each_free_slot_and_none_without(api: FaultyApi, client: Client) -> None:
    assert await client.line.claim(most=3, startable=0) == []
    assert await client.line.claim(most=3, startable=2) == []
    assert await client.line.claim(most=3, startable=2) == []
    await eventually(lambda: api.count(GET_JOB) == 2)
    client.line.stop_polling()
    await client.line.claim(most=3, startable=2)
    await asyncio.sleep(0)
    assert api.count(GET_JOB) == 2


async def test_polls_go_on_after_the_api_was_away(api: FaultyApi, client: Client, store: Store) -> None:
    api.plan(GET_JOB, NOT_NOW, LOST)
    job_id = await engine.submit(store)
    taken = asyncio.create_task(client.offer())
    # the second poll took it, and nobody heard
    await eventually(lambda: api.count(GET_JOB) >= 3)
    await eventually(lambda: _lost(store, job_id))
    offer = await taken
    assert (offer.job_id, offer.attempt) == (job_id, 2)


async def _lost(store: Store, job_id: str) -> bool:
    """Let the first attempt's lease run out, and tell whether that was noticed."""
    job = await jobs.get(store, job_id)
    if job.attempt == 1 and job.state is State.RUNNING:
        await store.call(jobs.command("SET", "h:reaper:last", store.now_ms()))
        await store.call(jobs.command("ZADD", "h:leases", 1, job_id))
        await engine.reap(store)
        return False
    return True


async def test_where_results_leave_anyway_the_next_jobs_come_with_the_answer(
    api: FaultyApi, client: Client, store: Store
) -> None:
    ids = [await engine.submit(store) for _ in range(5)]
    offer = await client.offer()
    polls = api.count(GET_JOB)
    ended, offers = await asyncio.gather(complete(client, offer), client.line.claim(most=3, startable=1))
    assert ended == "completed"
    assert [(each.job_id, each.held_ahead) for each in offers] == [
        (ids[1], False),
        (ids[2], True),
        (ids[3], True),
    ]
    assert (api.count(EXCHANGE), api.count(GET_JOB)) == (1, polls)
    lost: list[str] = []
    client.line.begin_unheard(offers[1], lambda: lost.append("begun"))
    assert await client.line.begin(offers[2])
    assert (await client.beat(*offers)).lost == []
    assert [await complete(client, each) for each in offers] == ["completed"] * 3
    assert lost == []
    assert (await store.call(fleet.fetch("agent-1"))).jobs_completed == 4


async def test_what_a_poll_brought_is_kept_while_there_are_no_answers(
    api: FaultyApi, client: Client, store: Store
) -> None:
    ids = [await engine.submit(store), await engine.submit(store)]
    client.work.clear()
    assert await client.line.claim(most=1, startable=1) == []
    async with asyncio.timeout(20):
        await client.work.wait()  # the first has come
    client.line._flows = True
    api.plan(EXCHANGE, NOT_NOW)
    (first,) = await client.line.claim(most=3, startable=1)  # which waits for no other request
    assert (first.job_id, api.count(EXCHANGE)) == (ids[0], 0)
    with pytest.raises(Unavailable):
        await client.line.claim(most=2, startable=1)
    assert [each.job_id for each in await client.line.claim(most=2, startable=1)] == ids[1:]


async def test_what_polls_bring_is_not_kept_from_who_may_hand_it_back(client: Client, store: Store) -> None:
    ids = {await engine.submit(store), await engine.submit(store)}
    assert await client.line.claim(most=2, startable=2) == []
    await eventually(lambda: len(client.line._received) == 2)
    assert {each.job_id for each in client.line.brought()} == ids
    assert client.line.brought() == []


async def test_a_result_that_the_api_takes_for_nonsense_is_said_by_itself_and_stops_no_other(
    api: FaultyApi, client: Client, store: Store
) -> None:
    ids = [await engine.submit(store) for _ in range(2)]
    offers = [await client.offer() for _ in ids]
    with_nonsense = client.line.settle(offers[0], "completed", "", 0, {"signal": 4711})
    refused, state = await asyncio.gather(with_nonsense, complete(client, offers[1]), return_exceptions=True)
    assert isinstance(refused, Invalid)
    assert state == "completed"
    assert client.line._exchanges.possible


async def test_a_held_job_that_is_lost_is_not_begun(api: FaultyApi, client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    await client.offer()
    other = await engine.submit(store)
    client.line._flows = True
    (held,) = await client.line.claim(most=1, startable=0)
    assert (held.job_id, held.held_ahead) == (other, True)
    await eventually(lambda: _lost(store, other))
    api.plan(EXCHANGE, LOST, NOT_NOW)
    lost = asyncio.Event()
    client.line.begin_unheard(held, lost.set)
    async with asyncio.timeout(20):
        await lost.wait()
    assert not await client.line.begin(held)
    assert (await jobs.get(store, job_id)).state is State.RUNNING


async def test_a_held_job_of_which_an_older_api_cannot_be_told_is_handed_back(
    api: FaultyApi, client: Client, store: Store
) -> None:
    await engine.submit(store)
    await client.offer()
    once = await engine.submit(store, at_most_once=True)
    client.line._flows = True
    (held,) = await client.line.claim(most=1, startable=0)
    known = api.count(EXCHANGE)
    of_before = Refused(404, ((b"x-error-code", b"NOT_FOUND"),), b"{}")
    api.plan(EXCHANGE, of_before, of_before)
    client.line.begin_unheard(held, lambda: pytest.fail("nobody said so"))
    assert not await client.line.begin(held)
    assert api.count(EXCHANGE) <= known + 2
    job = await jobs.get(store, once)
    assert (job.state, job.reason) == (State.QUEUED, None)


# Faults while it runs


async def test_output_whose_answer_got_lost_counts_once(api: FaultyApi, client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    api.plan(OUTPUT, LOST, NOT_NOW)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await say(client, offer, b"one\n")
    await say(client, offer, b"one\n")
    await say(client, offer, b"two\n", first_line=1)
    assert await text_of(store, job_id) == "one\ntwo\n"


async def test_a_result_whose_answer_got_lost_counts_once(
    api: FaultyApi, client: Client, store: Store
) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    api.plan(EXCHANGE, LOST, Refused(500))
    for _ in range(2):
        with pytest.raises(Unavailable):
            await complete(client, offer)
    assert await complete(client, offer) == "completed"
    assert (await store.call(fleet.fetch("agent-1"))).jobs_completed == 1
    assert (await jobs.get(store, job_id)).attempt == 1


async def test_an_attempt_that_is_over_is_stale(client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    await eventually(lambda: _lost(store, job_id))
    with pytest.raises(Stale):
        await say(client, offer, b"late\n")
    with pytest.raises(Stale):
        await complete(client, offer)


async def test_a_cancel_comes_with_output_and_with_a_heartbeat(client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    assert (await client.beat(offer)).cancel == []
    await jobs.cancel(store, "user:u", job_id)
    assert (await say(client, offer, b"still here\n")).cancel
    beaten = await client.beat(offer)
    assert (beaten.cancel, beaten.lost) == ([job_id], [])
    state = await client.line.settle(offer, "cancelled", "cancelled", None, {})
    assert state == "cancelled"


async def test_heartbeats_keep_a_lease(client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    before = await store.call(jobs.command("ZSCORE", "h:leases", job_id))
    await asyncio.sleep(0.02)
    await client.beat(offer)
    after = await store.call(jobs.command("ZSCORE", "h:leases", job_id))
    assert float(before) < float(after) < float(before) + 15_000


# Being known


async def test_a_registration_that_is_gone_is_made_anew_and_what_was_held_is_lost(
    api: FaultyApi, client: Client, store: Store
) -> None:
    await engine.submit(store)
    offer = await client.offer()
    await store.call(fleet.depart("agent-1", reason="removed", forget=True))
    second = await client.offer()  # handed out again, under the new registration
    assert (second.job_id, second.attempt) == (offer.job_id, 2)
    asked = api.count(OUTPUT)
    with pytest.raises(Stale):
        await say(client, offer, b"too late\n")
    assert api.count(OUTPUT) == asked
    assert (await client.beat(offer, second)).lost == [offer.job_id]
    assert await complete(client, second) == "completed"


async def test_calls_that_are_refused_together_register_once(
    api: FaultyApi, client: Client, store: Store
) -> None:
    await store.call(fleet.depart("agent-1", reason="removed", forget=True))
    await asyncio.gather(*(client.beat() for _ in range(5)))
    assert api.count(REGISTER) == 2


async def test_a_restart_proves_itself_with_its_token(api: FaultyApi, client: Client, tmp_path: Path) -> None:
    stranger = plane(api.url, tmp_path / "..", "agent-1")  # without the file
    with pytest.raises(Conflict):
        await stranger.register()
    await stranger.close()
    again = plane(api.url, tmp_path)
    await again.register()
    await again.close()


async def test_a_restart_with_an_api_key_proves_itself_too(
    api: FaultyApi, client: Client, tmp_path: Path
) -> None:
    again = plane(api.url, tmp_path, secret=None, api_key="cb_not-even-needed")
    await again.register()
    await again.close()


async def test_nobody_registers_without_a_right_to(api: FaultyApi, tmp_path: Path) -> None:
    for more in ({"secret": None}, {"secret": "guessed"}, {"secret": None, "api_key": "cb_guessed"}):
        stranger = plane(api.url, tmp_path, "agent-2", **more)
        with pytest.raises((Unauthenticated, Denied)):
            await stranger.register()
        await stranger.close()


async def test_a_name_that_the_api_does_not_take_is_told(api: FaultyApi, tmp_path: Path) -> None:
    odd = plane(api.url, tmp_path, "agent-3", facts={"tags": ["no spaces"]})
    with pytest.raises(Invalid, match="tags"):
        await odd.register()
    await odd.close()


def test_a_token_is_kept_for_its_owner_one_server_and_one_name(tmp_path: Path) -> None:
    kept = TokenFile(tmp_path / "registration.json")
    assert kept.read("https://a", "agent") is None
    kept.write("https://a", "agent", "secret")
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.read("https://a", "agent") == "secret"
    assert kept.read("https://b", "agent") is None
    assert kept.read("https://a", "other") is None
    kept.path.write_bytes(b"{torn")
    assert kept.read("https://a", "agent") is None
    assert [each.name for each in tmp_path.iterdir()] == ["registration.json"]
    kept.remove()
    kept.remove()


async def test_the_api_says_how_often_it_wants_to_hear(faked: Client) -> None:
    assert faked.plane.heartbeat_s == 3.0


# Offers that got lost on their way


async def test_what_the_api_believes_us_to_hold_is_handed_back(fake: FakeServer, faked: Client) -> None:
    fake.routes[f"POST {HEARTBEAT}"] = [Answer(200, {"held": [{"jobId": "job-1", "attempt": 4}]})]
    fake.on(f"POST {RESULT}", Answer(200, {"status": "queued"}))
    await faked.beat()
    assert not [each for each in fake.asked if each.path == RESULT]  # its offer may be on its way
    await faked.beat()
    said = fake.last(RESULT).json
    assert (said["jobId"], said["attempt"], said["status"]) == ("job-1", 4, "released")
    fake.on(f"GET {GET_JOB}", job(attempt=4), job(attempt=5))
    assert (await faked.offer()).attempt == 5  # the offer that came after all is not run


async def test_what_the_api_no_longer_lists_is_lost(fake: FakeServer, faked: Client) -> None:
    fake.on(f"GET {GET_JOB}", job())
    offer = await faked.offer()
    held = [{"jobId": "job-1", "attempt": 1}]
    fake.routes[f"POST {HEARTBEAT}"] = [Answer(200, {"held": held}), Answer(200, {"held": []})]
    assert (await faked.beat(offer)).lost == []
    assert fake.last(HEARTBEAT).json["jobs"] == held
    assert (await faked.beat(offer)).lost == ["job-1"]


async def test_what_nobody_has_claimed_is_handed_back_when_polling_stops(
    fake: FakeServer, faked: Client
) -> None:
    fake.on(f"GET {GET_JOB}", job())
    fake.on(f"POST {RESULT}", Answer(200, {"status": "queued"}))
    faked.work.clear()
    await faked.line.claim(most=1, startable=1)
    await faked.work.wait()  # it has come, and nobody claims it
    faked.line.stop_polling()
    faked.line.stop_polling()
    await faked.line.depart("stopped")
    said = [each.json for each in fake.asked if each.path == RESULT]
    assert [(each["jobId"], each["status"]) for each in said] == [("job-1", "released")]
    assert fake.last(HEARTBEAT).json["status"] == "offline"


# Output as text


@pytest.mark.parametrize("before", [b"", b"x", b"xx"])
async def test_characters_of_a_line_that_is_broken_stay_whole(
    api: FaultyApi, client: Client, store: Store, tmp_path: Path, before: bytes
) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    printed = before.decode() + "€" * 50_000
    api.plan(OUTPUT, NOT_NOW, LOST)
    output = Output(
        client.line, offer, directory=str(tmp_path), limit_bytes=1 << 20, live_bytes=1 << 20,
        gone=lambda: None, cancel=lambda: None,
    )  # fmt: skip
    output.feed("o", printed.encode())
    output.end()
    await output.delivered()
    await output.close()
    assert await text_of(store, job_id) == printed


async def test_what_is_no_text_is_replaced_and_an_unended_line_counts(client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    await client.line.output(offer, "o", b"\xff\x00\xc3", first_line=0, line_count=1)
    received = await say(client, offer, b"after\n", first_line=1, channel="e")
    assert received.next_line == 2
    assert await text_of(store, job_id) == "\ufffd\x00\ufffdafter\n"


async def test_progress_is_read_out_of_the_output(client: Client, store: Store) -> None:
    job_id = await engine.submit(store)
    offer = await client.offer()
    await say(client, offer, b"HOSTLER_PROGRESS=45\n")
    assert (await jobs.get(store, job_id)).progress == 45


async def test_output_slows_down_before_the_rate_is_used_up(fake: FakeServer, faked: Client) -> None:
    fake.on(f"GET {GET_JOB}", job())
    offer = await faked.offer()
    headers = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "20"}
    fake.on(f"POST {OUTPUT}", Answer(200, {"received": True}, headers))
    await say(faked, offer, b"one\n")
    began = asyncio.get_running_loop().time()
    await say(faked, offer, b"two\n", first_line=1)
    assert asyncio.get_running_loop().time() - began > 0.15


# What answers is not always Hostler


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (Answer(502, b"<html>"), Unavailable),
        (Answer(404, b"<html>a proxy that lost its upstream"), Unavailable),
        (Answer(200, b"<html>sign in to this wireless network"), Unavailable),
        (Answer(200, b"[]"), Unavailable),
        (Answer(302, b"", {"Location": "https://elsewhere.example/"}), Unavailable),
        (Answer(drop=True), Unavailable),
        (refusal(429, "TOO_MANY_REQUESTS"), Unavailable),
        (refusal(503, "UNAVAILABLE"), Unavailable),
        (refusal(404, "NOT_FOUND"), NotFound),
        (refusal(409, "STALE_ATTEMPT"), Stale),
        (refusal(409, "CONFLICT"), Conflict),
        (refusal(413, "TOO_LARGE"), TooLarge),
        (refusal(403, "DENIED"), Denied),
        (refusal(422, "UNPROCESSABLE"), Invalid),
    ],
)
async def test_answers_mean_what_they_should(
    fake: FakeServer, faked: Client, answer: Answer, raised: type[Exception]
) -> None:
    fake.on(f"GET {GET_JOB}", job())
    offer = await faked.offer()
    fake.on(f"POST {RESULT}", answer)
    with pytest.raises(raised) as caught:
        await complete(faked, offer)
    assert caught.type is raised


async def test_a_retry_after_is_handed_on(fake: FakeServer, faked: Client) -> None:
    fake.on("GET /x", Answer(429, {"message": "Slow down."}, {"X-Error-Code": "X", "Retry-After": "7"}))
    with pytest.raises(Unavailable) as caught:
        await faked.plane.call("GET", "/x")
    assert caught.value.retry_after_s == 7


async def test_a_token_goes_to_nobody_else(fake: FakeServer, faked: Client, tmp_path: Path) -> None:
    other = FakeServer()
    other.on("GET /loot", Answer(200, b"loot"))
    try:
        fake.on("GET /file", Answer(302, b"", {"Location": f"{other.url}/loot", "X-Error-Code": "X"}))
        fake.on(
            f"GET {GET_JOB}",
            job(fileUrl=f"{other.url}/loot"),
            job(jobId="job-2", fileUrl=f"{fake.url}/file?a=b"),
        )
        outside, inside = await faked.offer(), await faked.offer()
        assert outside.spec["file_url"] == f"{other.url}/loot"
        assert "file" not in outside.spec
        assert inside.spec["file"] == "/file?a=b"
        with pytest.raises(Unavailable, match="redirects"):
            await faked.line.fetch_file(inside, tmp_path / "f", limit_bytes=100)
        assert other.asked == []
        assert fake.last("/file").headers["x-worker-token"] == "token-1"
    finally:
        other.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://hostler.example:444/f", "http://hostler.example/f", "https://hostler.example.org/f",
        "https://hostler.example@evil.example/f", "//evil.example/f", "https://[::1/f", "/f",
    ],
)  # fmt: skip
async def test_only_the_very_same_origin_is_ours(tmp_path: Path, url: str) -> None:
    strict = plane("https://hostler.example/", tmp_path)
    assert strict.path_of("https://HOSTLER.example:443/f?x=1") == "/f?x=1"
    assert strict.path_of(url) is None
    await strict.close()


# Files


async def test_a_file_is_fetched_whole_or_not_at_all(fake: FakeServer, faked: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    disposition = "attachment; filename*=UTF-8''pro%20ject.zip"
    good = Answer(200, content, {"ETag": tag, "Content-Disposition": disposition})
    fake.on(
        "GET /uploads/f/project.zip",
        Answer(503, b"<html>"),
        good,
        good,
        Answer(200, content[:-1], {"ETag": tag}),
        good,
        refusal(403, "DENIED"),
    )
    fake.on(f"GET {GET_JOB}", job(fileUrl=f"{fake.url}/uploads/f/project.zip"))
    offer, into = await faked.offer(), tmp_path / "fetched"
    with pytest.raises(Unavailable):
        await faked.line.fetch_file(offer, into, limit_bytes=10**9)
    assert await faked.line.fetch_file(offer, into, limit_bytes=10**9) == "pro ject.zip"
    assert into.read_bytes() == content
    with pytest.raises(InterruptedError):
        await faked.line.fetch_file(offer, into, limit_bytes=10**9, cancelled=lambda: True)
    with pytest.raises(IntegrityError):
        await faked.line.fetch_file(offer, into, limit_bytes=10**9)
    with pytest.raises(TooLarge):
        await faked.line.fetch_file(offer, into, limit_bytes=1000)
    with pytest.raises(Denied):
        await faked.line.fetch_file(offer, into, limit_bytes=1000)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("attachment; filename=_t_.zip; filename*=UTF-8''%C3%A9t%C3%A9.zip", "été.zip"),
        ("attachment; filename*=UTF-8''%C3%A9t%C3%A9.zip; filename=_t_.zip", "été.zip"),
        ('attachment; filename="a b.zip"', "a b.zip"),
        ("attachment", "path.zip"),
    ],
)
async def test_a_file_keeps_the_name_that_is_said_in_full(
    fake: FakeServer, faked: Client, tmp_path: Path, disposition: str, name: str
) -> None:
    fake.on("GET /uploads/f/path.zip", Answer(200, b"x", {"Content-Disposition": disposition}))
    fake.on(f"GET {GET_JOB}", job(fileUrl=f"{fake.url}/uploads/f/path.zip"))
    assert await faked.line.fetch_file(await faked.offer(), tmp_path / "fetched", limit_bytes=10) == name


async def test_a_file_that_breaks_off_is_fetched_again(
    fake: FakeServer, faked: Client, tmp_path: Path
) -> None:
    class Broken(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        broken = plane(f"http://127.0.0.1:{server.server_port}", tmp_path)
        line = HttpLine(broken)
        line._received.append(
            line._taken_offer({"jobId": "job-1", "attempt": 1, "fileUrl": broken.url + "/f"})
        )
        with pytest.raises(Unavailable):
            await line.fetch_file(line._received[0], tmp_path / "f", limit_bytes=10**6)
        await broken.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_artifacts_and_log_parts_arrive_as_they_are(
    fake: FakeServer, faked: Client, tmp_path: Path
) -> None:
    fake.on(f"GET {GET_JOB}", job())
    offer, content = await faked.offer(), bytes(range(256)) * 4000
    (tmp_path / "report.bin").write_bytes(content)
    fake.on(
        "PUT /api/jobs/job-1/artifacts/out/a%20%23b.bin",
        refusal(503, "UNAVAILABLE"),
        Answer(200, {"size": 1}),
    )
    with pytest.raises(Unavailable):
        await faked.line.put_artifact(offer, "out/a #b.bin", tmp_path / "report.bin")
    await faked.line.put_artifact(offer, "out/a #b.bin", tmp_path / "report.bin")
    asked = fake.asked[-1]
    assert asked.body == content
    assert asked.query == {"attempt": "1"}
    assert asked.headers["content-length"] == str(len(content))
    fake.on("PUT /api/jobs/job-1/artifacts/b", refusal(409, "CONFLICT", "There are 1000 already."))
    with pytest.raises(Invalid, match="1000"):
        await faked.line.put_artifact(offer, "b", tmp_path / "report.bin")
    fake.on("POST /api/jobs/job-1/log", Answer(201, {"size": 1}))
    await faked.line.put_log(offer, b"1 0 1 o 2\na\n", first_line=0, next_line=1)
    asked = fake.asked[-1]
    assert (asked.body, asked.query) == (b"1 0 1 o 2\na\n", {"attempt": "1", "first": "0", "next": "1"})


# The way there


async def test_a_server_nobody_vouches_for_is_not_spoken_to(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    heard = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head)
        body = json.dumps({"token": "t"}).encode()
        writer.write(
            b"HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    stranger, friend = plane(url, tmp_path), plane(url, tmp_path, ca_file=certificate)
    with pytest.raises(Unavailable, match="certificate"):
        await stranger.register()
    assert heard == []
    await friend.register()
    assert len(heard) == 2
    await stranger.close()
    await friend.close()
    server.close()
    await server.wait_closed()


def _certificate(directory: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate_file, key_file = directory / "ca.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_file, key_file


async def test_a_proxy_is_used_for_elsewhere_and_not_for_this_machine(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = FakeServer()
    try:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        here = plane(fake.url, tmp_path)
        await here.register()
        assert proxy.asked == []
        elsewhere = plane("http://hostler.invalid", tmp_path, "agent-2")
        with pytest.raises(Unavailable):
            await elsewhere.register()
        assert proxy.asked[0].headers["host"] == "hostler.invalid"
        await here.close()
        await elsewhere.close()
    finally:
        proxy.close()
