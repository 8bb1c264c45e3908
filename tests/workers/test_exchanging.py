"""Results, beginnings and the next jobs that leave together mean what they mean apart."""

import asyncio

import engine
import pytest
from faulty_api import EXCHANGE, GET_JOB, LOST, Client, FaultyApi, Refused, eventually
from line_talk import NOT_NOW, complete, run_out

from storage import fleet, jobs
from storage.errors import Invalid, Unavailable
from storage.jobs import State
from storage.store import Store


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
    await eventually(lambda: run_out(store, other))
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
