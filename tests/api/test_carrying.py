"""Requests whose first step admits their caller: whoever is not admitted has done, and learns, nothing."""

from typing import Any

import httpx
import pytest
import redis
from whole import Hostler

from storage import api_keys, users
from storage.identity import Identity

BODY = {"command": "true"}
UNKNOWN = "job-" + "0" * 20
REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/api/jobs/submit", BODY),
    ("POST", "/api/jobs/submit", {"nonsense": 1}),
    ("POST", "/api/jobs/submit-batch", {"jobs": [BODY]}),
    ("GET", f"/api/jobs/status?jobId={UNKNOWN}", None),
    ("GET", "/api/jobs/status", None),
    ("GET", "/api/jobs/list", None),
    ("POST", "/api/jobs/cancel", {"jobId": UNKNOWN}),
]
requests = pytest.mark.parametrize(("method", "path", "body"), REQUESTS)


class Caller:
    """An API key that this process has just seen, and what its owner may do about it."""

    def __init__(self, hostler: Hostler, owner: users.User, key: api_keys.ApiKey, secret: str) -> None:
        self.hostler, self.owner, self.key = hostler, owner, key
        self.client = hostler.client(Authorization=f"Bearer {secret}")
        self.identity = Identity("user", owner.id, "a", owner.username, "jti", user_id=owner.id)

    async def request(self, method: str, path: str, body: Any) -> httpx.Response:
        return await self.client.request(method, path, json=body)


@pytest.fixture
async def caller(hostler: Hostler) -> Caller:
    owner = await users.create(
        hostler.store, actor="t", username="ada", email="ada@example.org", password="pass word", role="a"
    )
    identity = Identity("user", owner.id, "a", owner.username, "jti", user_id=owner.id)
    key, secret = await api_keys.create(hostler.store, identity, name="ci", role="w")
    caller = Caller(hostler, owner, key, secret)
    assert (await caller.request("GET", "/api/jobs/list", None)).status_code == 200
    return caller


def nothing_happened(client: redis.Redis) -> bool:
    return not client.exists("h:jobs") and not list(client.scan_iter("h:batch*"))


@requests
async def test_a_revoked_key_is_401_before_anything_else(
    caller: Caller, redis_client: redis.Redis, method: str, path: str, body: Any
) -> None:
    await api_keys.revoke(caller.hostler.store, caller.identity, caller.key.id)
    assert (await caller.request(method, path, body)).status_code == 401
    assert nothing_happened(redis_client)


@requests
async def test_a_key_whose_owner_may_less_by_now_is_held_to_that(
    caller: Caller, redis_client: redis.Redis, method: str, path: str, body: Any
) -> None:
    other = Identity("user", "other", "a", "other", "jti")
    await users.create(
        caller.hostler.store, actor="t", username="eve", email="e@example.org", password="pass word", role="a"
    )
    await users.update(caller.hostler.store, caller.owner.id, actor=other.actor, changes={"role": "r"})
    answer = await caller.request(method, path, body)
    assert answer.status_code == (403 if method == "POST" else answer.status_code)
    assert method == "POST" or answer.status_code in {200, 400, 404}
    assert nothing_happened(redis_client)


@requests
async def test_a_record_that_somebody_forged_is_not_believed(
    caller: Caller, redis_client: redis.Redis, method: str, path: str, body: Any
) -> None:
    (name,) = redis_client.scan_iter("h:apikey:*")
    raw = redis_client.get(name)
    assert raw is not None
    redis_client.set(name, raw.replace(b'"role":"w"', b'"role":"a"'))
    assert (await caller.request(method, path, body)).status_code == 401
    assert nothing_happened(redis_client)


@requests
async def test_a_request_counts_once_however_it_ends(
    caller: Caller, method: str, path: str, body: Any
) -> None:
    before = await caller.request("GET", "/api/jobs/list", None)
    answer = await caller.request(method, path, body)
    left = [int(each.headers["X-RateLimit-Remaining"]) for each in (before, answer)]
    assert left[1] == left[0] - 1


async def test_over_the_limit_nothing_is_done_and_nothing_told(
    caller: Caller, redis_client: redis.Redis
) -> None:
    name = f"h:rate:key:{next(redis_client.scan_iter('h:apikey:*')).decode().removeprefix('h:apikey:')}"
    limit = caller.hostler.store.settings.rate_limit_per_s
    seconds, micros = redis_client.time()
    redis_client.delete(name)
    redis_client.lpush(name, *[seconds * 1000 + micros // 1000 + 500] * limit)
    for method, path, body in REQUESTS:
        answer = await caller.request(method, path, body)
        assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (429, "0"), path
        assert int(answer.headers["Retry-After"]) >= 1
    assert nothing_happened(redis_client)
    assert redis_client.llen(name) <= limit


async def test_a_session_that_was_logged_out_is_401(hostler: Hostler, redis_client: redis.Redis) -> None:
    client = await hostler.user()
    assert (await client.get("/api/jobs/list")).status_code == 200
    assert (await client.post("/api/auth/logout")).status_code == 200
    assert (await client.post("/api/jobs/submit", json=BODY)).status_code == 401
    assert nothing_happened(redis_client)


async def test_a_step_that_is_refused_by_its_own_rules_is_told_so(caller: Caller) -> None:
    answer = await caller.request("POST", "/api/jobs/cancel", {"jobId": UNKNOWN})
    assert (answer.status_code, answer.json()["message"]) == (404, "Job not found")
