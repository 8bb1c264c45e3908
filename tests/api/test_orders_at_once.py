"""Orders of one plain job that are accepted at once, held against the ordinary way: the same jobs, the same answers."""

import asyncio
import math
import time
from typing import Any

import engine
import httpx
import orjson
import pytest
import redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from test_at_once import Caller, a_caller
from test_direct import shown
from whole import Hostler

from api import measuring
from storage import api_keys, attempts, fleet
from storage.calls import command

SUBMIT = "/api/jobs/submit"

#: Orders that are accepted at once.
PLAIN: dict[str, dict[str, Any]] = {
    "a command": {"command": "echo hello"},
    "an argv": {"argv": ["echo", "ä", ""]},
    "an urgent one": {"command": "true", "priority": "high"},
    "one with tags": {"command": "true", "tags": ["linux", "gpu", "linux"], "priority": "low"},
    "one with more to it": {
        "command": "true", "env": {"A": "b"}, "name": "build", "metadata": {"x": [1, None]}, "timeout": 5,
        "workingDirectory": "a/b", "artifacts": ["*.txt"], "fileUrl": None,
    },
}  # fmt: skip

#: Bodies that are not.
ORDINARY: dict[str, Any] = {
    "retries": {"command": "true", "retries": 2, "backoff": {"delay": 1}},
    "a delay": {"command": "true", "delay": 5},
    "a webhook": {"command": "true", "webhook": "https://192.0.2.1/x"},
    "a recurrence": {"command": "true", "schedule": "0 3 * * *"},
    "a key": {"command": "true", "concurrencyKey": "x"},
    "a file that is not there": {"command": "true", "fileUrl": "/api/files/file-00000000000000000000"},
    "a parent that is not there": {"command": "true", "dependsOn": ["job-00000000000000000000"]},
    "no command": {},
    "both": {"command": "a", "argv": ["a"]},
    "an unknown field": {"command": "true", "nonsense": 1},
    "no object": [],
    "no number": {"command": "true", "timeout": "x"},
    "metadata without a bottom": {"command": "true", "metadata": {"x": orjson.loads("[" * 300 + "]" * 300)}},
}


JSON = ("Content-Type", "application/json")


@pytest.fixture
async def caller(hostler: Hostler) -> Caller:
    caller = await a_caller(hostler, "w")
    assert (await caller.ordinary.post(SUBMIT, json={"command": "first"})).status_code == 201
    return caller


def records(client: redis.Redis, job_id: str) -> dict[str, Any]:
    """Return all that Redis holds of a job, without what is drawn or read from a clock."""
    drawn = {"sig", "created", "created_at", "enqueued_at", "data"}
    kept: dict[str, Any] = {}
    for name in (f"h:job:{job_id}", f"rq:job:{job_id}"):
        kept[name.replace(job_id, "job")] = row = {
            key.decode(): value
            for key, value in client.hgetall(name).items()
            if key.decode() not in drawn and value
        }
        if "spec" in row:
            row["spec"] = {**orjson.loads(row["spec"]), "cause": "drawn"}
            row["spec"] |= {"env": "sealed"} if "env" in row["spec"] else {}
    kept["in"] = sorted(
        index.decode()
        for index in client.scan_iter("h:jobs*")
        if client.type(index) == b"zset" and client.zscore(index, job_id) is not None
    )
    kept["lined"] = [
        name for name in client.scan_iter("rq:queue:*") if job_id.encode() in client.lrange(name, 0, -1)
    ]
    kept["events"] = [
        {key: value for key, value in fields.items() if value != job_id.encode()}
        for _, fields in client.xrange("h:events")
        if job_id.encode() in fields.values() or job_id.encode() in fields.get(b"ids", b"").split()
    ]
    audited = [orjson.loads(fields[b"line"]) for _, fields in client.xrange("h:audit")]
    kept["audited"] = [line[1:3] for line in audited if line[3] == job_id]
    return kept


@pytest.mark.parametrize("name", PLAIN)
async def test_both_ways_make_the_same_job(caller: Caller, redis_client: redis.Redis, name: str) -> None:
    first = await caller.ordinary.post(SUBMIT, json=PLAIN[name])
    second = await caller.client.post(SUBMIT, json=PLAIN[name])
    assert (first.status_code, caller.server.at_once) == (201, 1), second.text
    assert shown(first) == shown(second)
    made, expected = (records(redis_client, each.json()["jobId"]) for each in (second, first))
    assert made == expected
    assert len(made["lined"]) == len(made["events"]) == len(made["audited"]) == 1


async def test_jobs_of_one_turn_take_nothing_over_from_one_another(
    caller: Caller, redis_client: redis.Redis
) -> None:
    long = {"command": "echo " + "x" * 1100, "name": "Ünï😀"}
    bodies = [*PLAIN.values(), long, {"command": "b", "timeout": 7}] * 3
    together = await asyncio.gather(*(caller.client.post(SUBMIT, json=body) for body in bodies))
    assert caller.server.at_once == len(bodies)
    for body, answer in zip(bodies, together, strict=True):
        alone = await caller.ordinary.post(SUBMIT, json=body)
        made, expected = (records(redis_client, each.json()["jobId"]) for each in (answer, alone))
        for each in (made, expected):
            del each["events"], each["audited"]  # which they have in common
        assert made == expected
        rq_job = RqJob.fetch(answer.json()["jobId"], connection=redis_client, serializer=JSONSerializer)
        assert (rq_job.args, rq_job.timeout) == ([rq_job.id], body.get("timeout", 600))
        assert redis_client.ttl(f"rq:job:{rq_job.id}") == -1


async def test_orders_of_one_turn_go_to_their_own_queues(caller: Caller, redis_client: redis.Redis) -> None:
    asked = [["gpu"], [], ["a", "b"], ["gpu"], ["b", "a"]]
    answers = await asyncio.gather(
        *(caller.client.post(SUBMIT, json={"command": "true", "tags": tags}) for tags in asked)
    )
    ids = [each.json()["jobId"].encode() for each in answers]
    assert redis_client.lrange("rq:queue:jobs.gpu.normal", 0, -1) == [ids[0], ids[3]]
    assert redis_client.lrange("rq:queue:jobs.a+b.normal", 0, -1) == [ids[2], ids[4]]
    assert redis_client.lrange("rq:queue:jobs.normal", 0, -1)[-1] == ids[1]
    assert set(redis_client.zrange("h:jobs:tag:b", 0, -1)) == {ids[2], ids[4]}
    assert redis_client.smembers("h:tagsets") == {b"gpu", b"a+b"}
    assert caller.server.at_once == 5


@pytest.mark.parametrize("name", ORDINARY)
async def test_what_is_not_plain_goes_the_ordinary_way(caller: Caller, name: str) -> None:
    answers = [await way.post(SUBMIT, json=ORDINARY[name]) for way in (caller.ordinary, caller.client)]
    assert shown(answers[0]) == shown(answers[1])
    assert caller.server.at_once == 0


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([JSON, ("Idempotency-Key", "once")], b'{"command":"true"}'),
        ([("Content-Type", "text/plain")], b'{"command":"true"}'),
        ([JSON, ("Content-Type", "text/plain")], b'{"command":"true"}'),
        ([JSON], b'{"command"'),
        ([JSON], b""),
    ],
)
async def test_what_is_said_beside_an_order_is_heard(
    caller: Caller, headers: list[tuple[str, str]], body: bytes
) -> None:
    answers = [
        await way.post(SUBMIT, content=body, headers=headers) for way in (caller.ordinary, caller.client)
    ]
    assert [shown(each) for each in answers] == [shown(answers[0])] * 2
    assert caller.server.at_once == 0


async def test_who_may_only_read_orders_nothing_either_way(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    caller = await a_caller(hostler, "r")
    assert (await caller.client.post(SUBMIT, json={"command": "true"})).status_code == 403
    assert redis_client.zcard("h:jobs") == 0


async def test_a_revoked_key_orders_nothing_more(caller: Caller, redis_client: redis.Redis) -> None:
    assert (await caller.client.post(SUBMIT, json={"command": "true"})).status_code == 201
    await api_keys.revoke(caller.hostler.store, caller.identity, caller.key.id)
    assert (await caller.client.post(SUBMIT, json={"command": "true"})).status_code == 401
    assert redis_client.zcard("h:jobs") == 2


def accepted(answers: list[httpx.Response]) -> list[str]:
    return [each.json()["jobId"] for each in answers if each.status_code == 201]


async def test_orders_of_one_turn_are_one_step_and_each_is_a_job_that_is_counted(
    caller: Caller, redis_client: redis.Redis
) -> None:
    store = caller.hostler.app.hub.store  # type: ignore[attr-defined]
    sent: list[int] = []
    flush = store.wire._connection._flush
    store.wire._connection._flush = lambda: sent.append(len(store.wire._connection.out)) or flush()
    bodies = [{"command": f"echo {number}"} for number in range(40)]
    answers = await asyncio.gather(*(caller.client.post(SUBMIT, json=body) for body in bodies))
    store.wire._connection._flush = flush
    ids = accepted(answers)
    assert len(set(ids)) == 40
    assert sent == [3]  # 32 and 8, behind a word by which whom they are handed to hears of them first
    lined = [each.decode() for each in redis_client.lrange("rq:queue:jobs.normal", 0, -1)]
    assert lined[1:] == ids
    specs = [orjson.loads(redis_client.hget(f"h:job:{each}", "spec"))["command"] for each in ids]  # type: ignore[arg-type]
    assert specs == [body["command"] for body in bodies]
    left = [int(each.headers["x-ratelimit-remaining"]) for each in answers]
    assert left == list(range(left[0], left[0] - 40, -1))


async def test_no_more_orders_are_accepted_than_the_rate_allows(
    settings_for: Any, redis_client: redis.Redis
) -> None:
    async with settings_for(rate_limit_per_s=20) as hostler:
        caller = await a_caller(hostler, "w")
        began = time.monotonic()
        answers = [await caller.client.post(SUBMIT, json={"command": "true"})]
        answers += await asyncio.gather(
            *(caller.client.post(SUBMIT, json={"command": "true"}) for _ in range(50))
        )
        codes = [each.status_code for each in answers]
        assert codes.count(201) + codes.count(429) == len(codes)
        assert 0 < codes.count(201) <= 20 * (1 + math.ceil(time.monotonic() - began))
        assert redis_client.zcard("h:jobs") == codes.count(201)


async def test_a_step_that_redis_has_forgotten_makes_each_job_once(
    caller: Caller, redis_client: redis.Redis
) -> None:
    redis_client.script_flush()
    answers = [await caller.client.post(SUBMIT, json={"command": "true"}) for _ in range(4)]
    assert [each.status_code for each in answers] == [201] * 4
    assert redis_client.zcard("h:jobs") == 1 + 4
    assert caller.server.at_once >= 1


async def test_orders_whose_answer_is_lost_are_not_repeated_and_said_to_be_unknown(
    caller: Caller, redis_client: redis.Redis
) -> None:
    assert (await caller.client.post(SUBMIT, json={"command": "true"})).status_code == 201
    wire = caller.hostler.app.hub.store.wire  # type: ignore[attr-defined]
    orders = [asyncio.create_task(caller.client.post(SUBMIT, json={"command": "true"})) for _ in range(3)]
    while not wire._connection.waiting:
        await asyncio.sleep(0)
    wire._connection.close()
    answers = [await each for each in orders]
    assert {each.status_code for each in answers} <= {201, 503}
    ids = accepted(answers)
    assert len(ids) <= redis_client.zcard("h:jobs") - 2 <= 3
    assert all(redis_client.exists(f"h:job:{each}") for each in ids)
    assert (await caller.client.post(SUBMIT, json={"command": "true"})).status_code == 201


async def test_an_answer_that_cannot_be_written_is_no_second_job(
    caller: Caller, redis_client: redis.Redis
) -> None:
    def fail(*_: Any) -> None:
        time.sleep(0.02)
        raise AssertionError("It is not as the schema has it.")

    caller.hostler.app.at_once._check = fail  # type: ignore[attr-defined]
    answer = await caller.client.post(SUBMIT, json={"command": "true"})
    assert answer.status_code == 500
    _, job_id = redis_client.zrange("h:jobs", 0, -1)
    # what is told of the request is one story, though two ways had their part in it
    request_id = answer.headers["x-request-id"]
    assert orjson.loads(redis_client.hget(f"h:job:{job_id.decode()}", "spec"))["cause"] == request_id  # type: ignore[arg-type]
    took_s, _, counted, _ = measuring.requests()._latest["POST", SUBMIT, 500]
    assert (counted, took_s >= 0.02) == (request_id, True)


async def test_an_answer_that_fails_keeps_no_other_order_waiting(
    caller: Caller, redis_client: redis.Redis
) -> None:
    at_once = caller.hostler.app.at_once  # type: ignore[attr-defined]
    observe, failed = at_once._observe, list[str]()

    def fail_once(*about: Any) -> None:
        if not failed:
            failed.append("yes")
            raise RuntimeError("The connection is closed.")
        observe(*about)

    at_once._observe = fail_once
    async with asyncio.timeout(20):
        orders = (caller.client.post(SUBMIT, json={"command": "true"}) for _ in range(3))
        answers = await asyncio.gather(*orders)
    assert [each.status_code for each in answers] == [500, 201, 201]
    assert redis_client.zcard("h:jobs") == 1 + 3


async def test_the_first_of_a_turn_is_handed_to_a_worker_that_idles_and_the_rest_wait_their_turn(
    caller: Caller, redis_client: redis.Redis
) -> None:
    store = caller.hostler.store
    await store.call(command("DEL", "rq:queue:jobs.normal"))
    found, ready = list[attempts.Claim](), asyncio.Event()
    holder = await engine.register(store, "w", slots=1, lease_ms=15000)

    def tell(_: bytes, message: bytes) -> None:
        found.extend(filter(None, [attempts.offered(holder, message)]))

    listening = asyncio.create_task(store.wire.listen(["h:offer:w"], tell, ready.set))
    async with asyncio.timeout(20):
        await ready.wait()
    sets = await fleet.tag_sets(store)
    asking = attempts.claim(holder, sets, (), most=1, startable=1, lease_s=15, hears=True)
    assert await store.call(asking) == ([], [])
    caller.hostler.app.hub.store.cache.pop("fleet")  # type: ignore[attr-defined]
    first, *_ = await asyncio.gather(*(caller.client.post(SUBMIT, json={"command": "x"}) for _ in range(2)))
    await caller.hostler.app.hub.store.call(command("DEL", "rq:queue:jobs.normal"))  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        while not found:
            await asyncio.sleep(0.005)
    assert found[0].job_id == first.json()["jobId"]
    await engine.settle(store, holder, found[0])
    assert await store.call(asking) == ([], [])
    answers = await asyncio.gather(*(caller.client.post(SUBMIT, json={"command": "x"}) for _ in range(3)))
    ids = accepted(answers)
    async with asyncio.timeout(20):
        while len(found) < 2:
            await asyncio.sleep(0.005)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert [each.job_id for each in found[1:]] == ids[:1]
    assert [each.decode() for each in redis_client.lrange("rq:queue:jobs.normal", 0, -1)] == ids[1:]
    assert caller.server.at_once >= 3
