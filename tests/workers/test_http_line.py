"""An agent's line keeps its promises over a network that does not."""

import asyncio
from pathlib import Path

import engine
import pytest
from fake_server import Answer, FakeServer
from faulty_api import (
    EXCHANGE,
    GET_JOB,
    HEARTBEAT,
    LOST,
    OUTPUT,
    RESULT,
    Client,
    FaultyApi,
    Refused,
    eventually,
    text_of,
)
from line_talk import NOT_NOW, complete, job, run_out, say

from storage import fleet, jobs
from storage.errors import Stale, Unavailable
from storage.jobs import State
from storage.store import Store
from workers.output import Output


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
    await eventually(lambda: run_out(store, job_id))
    offer = await taken
    assert (offer.job_id, offer.attempt) == (job_id, 2)


async def test_what_polls_bring_is_not_kept_from_who_may_hand_it_back(client: Client, store: Store) -> None:
    ids = {await engine.submit(store), await engine.submit(store)}
    assert await client.line.claim(most=2, startable=2) == []
    await eventually(lambda: len(client.line._received) == 2)
    assert {each.job_id for each in client.line.brought()} == ids
    assert client.line.brought() == []


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
    await eventually(lambda: run_out(store, job_id))
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
