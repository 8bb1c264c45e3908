"""Looks and orders that are answered at once, held against the ordinary way: the same requests, the same answers."""

import asyncio
import math
import time
from typing import Any

import engine
import httpx
import pytest
import redis
from test_direct import shown
from whole import Hostler

from storage import api_keys, archive, fleet, users
from storage.calls import command
from storage.errors import NotFound
from storage.identity import Identity
from storage.store import Store

UNKNOWN = "job-" + "0" * 20


class Server:
    """The application behind what api/server.py does: it asks for an answer at once before all else."""

    def __init__(self, app: Any) -> None:
        self.app, self.at_once, self.ordinary = app, 0, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope = {**scope, "extensions": {}}
        asking = _Asking(scope)
        body = (await receive())["body"]
        if scope["method"] == "GET":
            begun = self.app.at_once.look(asking, asking.ordinarily)
        else:
            begun = self.app.at_once.accepts(scope["path"]) and self.app.at_once.accept(
                asking, body, asking.ordinarily
            )
        answer = await asking.done if begun else None
        if answer is None:
            self.ordinary += 1
            await self.app(scope, _again(body, receive), send)
            return
        self.at_once += 1
        status, lines, body = answer
        fields = [tuple(line.split(b": ", 1)) for line in lines.split(b"\r\n")[:-1]]
        fields.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


class _Asking:
    def __init__(self, scope: Any) -> None:
        self.scope, self.done = scope, asyncio.get_running_loop().create_future()

    def answer_at_once(self, status: int, lines: bytes, body: bytes) -> None:
        self.done.set_result((status, lines, body))

    def ordinarily(self) -> None:
        self.done.set_result(None)


def _again(body: bytes, receive: Any) -> Any:
    """Return a `receive` that begins with a body that was read already."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Any:
        return first.pop() if first else await receive()

    return receive_again


class Caller:
    """An API key that this process has just seen, with a client by each way."""

    def __init__(self, hostler: Hostler, owner: users.User, key: api_keys.ApiKey, secret: str) -> None:
        self.hostler, self.key, self.server = hostler, key, Server(hostler.app)
        self.identity = Identity("user", owner.id, "a", owner.username, "jti", user_id=owner.id)
        self.ordinary = hostler.client(Authorization=f"Bearer {secret}")
        self.client = hostler.client(Authorization=f"Bearer {secret}")
        self.client._transport = httpx.ASGITransport(app=self.server)

    async def look(self, job_id: str) -> httpx.Response:
        return await self.client.get("/api/jobs/status", params={"jobId": job_id})

    async def ordinarily(self, job_id: str) -> httpx.Response:
        return await self.ordinary.get("/api/jobs/status", params={"jobId": job_id})


async def a_caller(hostler: Hostler, role: Any = "r") -> Caller:
    owner = await users.create(
        hostler.store, actor="t", username="ada", email="ada@example.org", password="pass word", role="a"
    )
    identity = Identity("user", owner.id, "a", owner.username, "jti", user_id=owner.id)
    key, secret = await api_keys.create(hostler.store, identity, name="ci", role=role)
    caller = Caller(hostler, owner, key, secret)
    assert (await caller.ordinary.get("/api/jobs/list")).status_code == 200
    return caller


@pytest.fixture
async def caller(hostler: Hostler) -> Caller:
    return await a_caller(hostler)


async def ran(store: Store, *pieces: bytes, outcome: str = "completed") -> str:
    job_id, holder = await engine.submit(store, "echo 'ä' \"%d\""), await engine.register(store)
    (claimed,) = await engine.claim(store, holder)
    for number, piece in enumerate(pieces):
        await engine.output(store, holder, claimed, piece, channel="oe"[number % 2])
    if outcome:
        await engine.settle(store, holder, claimed, outcome)
    return job_id


async def speaking(store: Store, *, loses: bool = False, size_bytes: int = 1000) -> str:
    """Return a job in the middle of its first line, or whose worker was lost there."""
    job_id, holder = await engine.submit(store, at_most_once=True), await engine.register(store)
    (claimed,) = await engine.claim(store, holder)
    await engine.output(store, holder, claimed, b"x" * size_bytes, line_count=0)
    if loses:
        await store.call(fleet.depart("w", "r1", reason="stopped"))
    return job_id


async def archived(store: Store) -> str:
    job_id = await ran(store, b"one\n")

    class Kept:
        async def put(self, key: str, data: bytes, **_: Any) -> None:
            self.data = data

        async def get(self, key: str, **_: Any) -> bytes:
            if job_id not in key:
                raise NotFound("There is no such object.")
            return self.data

        def close(self) -> None:
            return None

    store.objects.close()
    store.objects = Kept()  # type: ignore[assignment]
    assert await archive.put(store, job_id)
    return job_id


async def spoilt(store: Store) -> str:
    await store.call(command("HSET", f"h:job:{UNKNOWN}", "state", "nonsense", "spec", "{"))
    return UNKNOWN


async def tampered(store: Store, *field: str) -> str:
    job_id = await ran(store, b"one\n")
    await store.call(command("HSET", f"h:job:{job_id}", *field))
    return job_id


#: How a job comes about, and whether a look at it needs no more than its record.
JOBS: dict[str, tuple[Any, bool]] = {
    "queued": (lambda store: engine.submit(store, "true", tags=["a"], metadata={"x": [1]}), True),
    "running": (lambda store: ran(store, outcome=""), True),
    "running and speaking": (lambda store: ran(store, b"one\n", outcome=""), False),
    "running and in its first line": (speaking, False),
    "lost in its short first line": (lambda store: speaking(store, loses=True, size_bytes=3), True),
    "lost in its first line": (lambda store: speaking(store, loses=True), False),
    "completed": (lambda store: ran(store, b"one\n", b"\xff\n", b"two"), True),
    "completed in silence": (ran, True),
    "failed": (lambda store: ran(store, b"one\n", outcome="failed"), True),
    "cancelled": (lambda store: ran(store, b"one\n", outcome="cancelled"), True),
    "completed with much to say": (lambda store: ran(store, *[b"x" * 500 + b"\n"] * 200), False),
    "unknown": (lambda store: asyncio.sleep(0, UNKNOWN), False),
    "no id": (lambda store: asyncio.sleep(0, "../x"), False),
    "blank": (lambda store: asyncio.sleep(0, ""), False),
    "archived": (archived, False),
    "spoilt": (spoilt, False),
    "with a number too great": (lambda store: tampered(store, "exit", "9" * 30), False),
    "with a spec of other types": (lambda store: tampered(store, "spec", '{"tags": 3}'), False),
    "with a log on no channel": (lambda store: tampered(store, "log", "1 1 0 1 x 3\nabc"), False),
}


@pytest.mark.parametrize("name", JOBS)
async def test_both_ways_answer_the_same(caller: Caller, name: str) -> None:
    make, at_once = JOBS[name]
    job_id = await make(caller.hostler.store)
    caller.hostler.app.hub.store.objects = caller.hostler.store.objects  # type: ignore[attr-defined]
    expected = shown(await caller.ordinarily(job_id))
    for _ in range(3):  # the second time from memory
        assert shown(await caller.look(job_id)) == expected
    assert caller.server.at_once == (3 if at_once else 0)


@pytest.mark.parametrize(
    "query", ["jobId={job}&jobId=x", "jobId={job}&nonsense=1", "", "jobId=%6Aob{rest}", "jobId={job}&jobId="]
)
async def test_odd_queries_are_read_alike(caller: Caller, query: str) -> None:
    job_id = await ran(caller.hostler.store, b"one\n")
    path = "/api/jobs/status?" + query.format(job=job_id, rest=job_id.removeprefix("job"))
    assert shown(await caller.client.get(path)) == shown(await caller.ordinary.get(path))


async def test_a_look_shows_what_has_changed_since_the_last_one(caller: Caller) -> None:
    store = caller.hostler.store
    job_id, holder = await engine.submit(store), await engine.register(store)
    for state in ("queued", "queued", "running", "completed"):
        if state == "running":
            (claimed,) = await engine.claim(store, holder)
        if state == "completed":
            await engine.settle(store, holder, claimed)
        assert (await caller.look(job_id)).json()["job"]["status"] == state
    assert caller.server.ordinary == 0


async def test_a_revoked_key_counts_at_once(caller: Caller) -> None:
    job_id = await ran(caller.hostler.store)
    assert (await caller.look(job_id)).status_code == 200
    await api_keys.revoke(caller.hostler.store, caller.identity, caller.key.id)
    assert (await caller.look(job_id)).status_code == 401


async def test_a_forged_key_and_a_header_too_many_go_the_ordinary_way(caller: Caller) -> None:
    job_id = await ran(caller.hostler.store)
    path = f"/api/jobs/status?jobId={job_id}"
    forged = await caller.client.get(path, headers={"Authorization": f"Bearer {api_keys.PREFIX}forged"})
    assert forged.status_code == 401
    named = await caller.client.get(path, headers={"X-Request-Id": "request-0001"})
    assert named.headers["x-request-id"] == "request-0001"
    assert caller.server.at_once == 0


async def test_looks_of_one_turn_share_a_round_trip_and_each_is_counted(caller: Caller) -> None:
    ids = [await engine.submit(caller.hostler.store) for _ in range(5)]
    await caller.look(ids[0])
    store = caller.hostler.app.hub.store  # type: ignore[attr-defined]
    sent: list[int] = []
    flush = store.wire._connection._flush
    store.wire._connection._flush = lambda: sent.append(len(store.wire._connection.out)) or flush()
    answers = await asyncio.gather(*(caller.look(job_id) for job_id in ids))
    store.wire._connection._flush = flush
    assert [each.json()["job"]["jobId"] for each in answers] == ids
    assert sent == [len(ids) + 1]
    left = [int(each.headers["x-ratelimit-remaining"]) for each in answers]
    assert left == list(range(left[0], left[0] - len(ids), -1))


async def test_no_more_looks_are_answered_than_the_rate_allows(settings_for: Any) -> None:
    async with settings_for(rate_limit_per_s=20) as hostler:
        caller = await a_caller(hostler)
        job_id = await ran(hostler.store)
        began = time.monotonic()
        answers = await asyncio.gather(*(caller.look(job_id) for _ in range(50)))
        codes = [each.status_code for each in answers]
        assert codes.count(200) + codes.count(429) == len(codes)
        assert 0 < codes.count(200) <= 20 * (1 + math.ceil(time.monotonic() - began))
        refused = next(each for each in answers if each.status_code == 429)
        assert refused.headers["retry-after"] == "1"


async def test_looks_go_on_after_the_scripts_were_flushed(caller: Caller, redis_client: redis.Redis) -> None:
    job_id = await ran(caller.hostler.store)
    redis_client.script_flush()
    for _ in range(3):
        assert (await caller.look(job_id)).status_code == 200
    assert caller.server.at_once >= 1


async def test_a_connection_that_is_lost_under_looks_is_told_of_and_made_anew(caller: Caller) -> None:
    job_id = await ran(caller.hostler.store)
    await caller.look(job_id)
    wire = caller.hostler.app.hub.store.wire  # type: ignore[attr-defined]
    looks = [asyncio.create_task(caller.look(job_id)) for _ in range(3)]
    for _ in range(2):
        await asyncio.sleep(0)
    wire._connection.close()
    for each in looks:
        answer = await each
        assert answer.status_code in {200, 503}
    assert (await caller.look(job_id)).status_code == 200


async def test_what_is_remembered_holds_no_records_that_are_long(caller: Caller) -> None:
    """The environment of a job is a part of its record, and is shown to nobody."""
    job_id = await engine.submit(caller.hostler.store, env={"LONG": "x" * 100_000})
    small = await engine.submit(caller.hostler.store)
    for each in (job_id, job_id, small):
        assert (await caller.look(each)).status_code == 200
    assert caller.server.at_once == 3
    remembered = caller.hostler.app.at_once._remembered  # type: ignore[attr-defined]
    assert [len(key) for key in remembered] == [3]
    assert all(small in str(word) for *_, word in remembered)


async def test_a_record_that_cannot_be_read_keeps_no_other_look_waiting(caller: Caller) -> None:
    store = caller.hostler.store
    ids = [await engine.submit(store), await tampered(store, "exit", "9" * 30), await engine.submit(store)]
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(caller.look(job_id) for job_id in ids))
    assert [each.status_code for each in answers] == [200, 500, 200]


@pytest.mark.parametrize("loses", [False, True])
@pytest.mark.parametrize("size_bytes", [3, 1000])
async def test_a_line_without_its_end_is_shown(caller: Caller, loses: bool, size_bytes: int) -> None:
    job_id = await speaking(caller.hostler.store, loses=loses, size_bytes=size_bytes)
    for way in (caller.look, caller.ordinarily):
        assert (await way(job_id)).json()["job"]["stdout"] == "x" * size_bytes
