"""The gate: which credentials count, where they count, and how often."""

import asyncio
import time
from typing import Any

import falcon.testing
import pytest
import redis
from falcon.errors import WebSocketDisconnected

from api.auth import Gate
from storage import api_keys, sessions, users
from storage.identity import Identity, RoleLetter

ORIGIN = "http://hostler.test"


async def new_key(site: Any, owner: Any, role: RoleLetter = "r") -> str:
    caller = Identity("user", owner.id, "a", owner.username, "jti", user_id=owner.id)
    return (await api_keys.create(site.store, caller, name="ci", role=role))[1]


async def new_worker(site: Any, redis_client: redis.Redis, name: str = "worker-001") -> str:
    redis_client.hset(f"h:worker:{name}", "registration", "registration-1")
    return await sessions.issue_worker_token(site.store, name, "registration-1")


async def test_without_credentials_a_protected_endpoint_answers_401(site: Any) -> None:
    answer = await site.client().get("/probe/viewer")
    assert answer.status_code == 401
    assert answer.json() == {"error": "Authentication is required.", "code": "UNAUTHENTICATED"}
    assert answer.headers["X-Error-Code"] == "UNAUTHENTICATED"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_every_credential_comes_by_its_headers(site: Any, redis_client: redis.Redis) -> None:
    ada = await site.session("ada", "w")
    key, worker = await new_key(site, ada.user), await new_worker(site, redis_client)
    for headers, kind in (
        ({"Authorization": f"Bearer {ada.token}"}, "user"),
        ({"authorization": f"bearer  {ada.token} "}, "user"),
        ({"Cookie": f"auth_token={ada.token}"}, "user"),
        ({"Authorization": f"Bearer {key}"}, "key"),
        ({"X-API-Key": key}, "key"),
        ({"x-worker-token": worker}, "worker"),
        ({"Authorization": f"Bearer {worker}"}, "worker"),
    ):
        answer = await site.client().get("/probe/both", headers=headers)
        assert (answer.status_code, answer.json()["kind"]) == (200, kind), headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Bearer cb_nonsense"},
        {"Authorization": "Basic YWRhOmNvcnJlY3QgaG9yc2U="},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"X-API-Key": "cb_nonsense"},
        {"X-API-Key": "nonsense"},
        {"x-worker-token": "nonsense"},
        {"Cookie": "auth_token=nonsense"},
        {"Cookie": "auth_token="},
    ],
)
async def test_wrong_credentials_answer_401(site: Any, headers: dict[str, str]) -> None:
    await site.user()
    answer = await site.client().get("/probe/viewer", headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "name", ["token", "access_token", "auth_token", "api_key", "apiKey", "key", "X-API-Key"]
)
async def test_credentials_in_the_url_are_ignored(site: Any, name: str) -> None:
    ada = await site.session()
    for secret in (ada.token, await new_key(site, ada.user)):
        assert (await site.client().get("/probe/viewer", params={name: secret})).status_code == 401


async def test_a_header_goes_before_the_cookie_even_when_it_is_wrong(site: Any) -> None:
    ada, eve = await site.session("ada"), await site.session("eve", "r")
    cookie = {"Cookie": f"auth_token={ada.token}"}
    answer = await site.client().get(
        "/probe/viewer", headers={**cookie, "Authorization": f"Bearer {eve.token}"}
    )
    assert answer.json()["id"] == eve.user.id
    answer = await site.client().get("/probe/viewer", headers={**cookie, "X-API-Key": "cb_wrong"})
    assert answer.status_code == 401


async def test_of_two_cookies_with_our_name_none_is_believed(site: Any) -> None:
    ada, eve = await site.session("ada"), await site.session("eve")
    cookies = f"auth_token={eve.token}; auth_token={ada.token}"
    assert (await site.client().get("/probe/viewer", headers={"Cookie": cookies})).status_code == 401


@pytest.mark.parametrize(
    ("role", "passes"),
    [
        ("r", {"viewer"}),
        ("w", {"viewer", "operator"}),
        ("a", {"viewer", "operator", "admin"}),
    ],
)
async def test_each_role_passes_its_own_rung_and_those_below(
    site: Any, role: RoleLetter, passes: set[str]
) -> None:
    ada = await site.session("ada", role)
    for name in ("viewer", "operator", "admin", "worker"):
        expected = 200 if name in passes else 403
        assert (await ada.client.get(f"/probe/{name}")).status_code == expected


async def test_a_worker_stands_beside_the_ladder(site: Any, redis_client: redis.Redis) -> None:
    client = site.client(x_worker_token=await new_worker(site, redis_client))
    for name, expected in (
        ("viewer", 403),
        ("operator", 403),
        ("admin", 403),
        ("worker", 200),
        ("both", 200),
    ):
        assert (await client.get(f"/probe/{name}")).status_code == expected


async def test_a_worker_that_registered_again_leaves_its_old_token_worthless(
    site: Any, redis_client: redis.Redis
) -> None:
    client = site.client(x_worker_token=await new_worker(site, redis_client))
    redis_client.hset("h:worker:worker-001", "registration", "registration-2")
    assert (await client.get("/probe/worker")).status_code == 401


async def test_an_open_endpoint_serves_everybody_and_knows_whom_it_can(site: Any) -> None:
    ada = await site.session()
    assert (await site.client().get("/probe/open")).json()["kind"] is None
    assert (await site.client(Authorization="Bearer wrong").get("/probe/open")).json()["kind"] is None
    assert (await ada.client.get("/probe/open")).json()["id"] == ada.user.id


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://hostler.test", "http://hostler.test:1"]
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"]
)
async def test_a_cookie_changes_nothing_for_another_sites_page(
    site: Any, origin: str | None, content_type: str
) -> None:
    ada = await site.session()
    client = site.client(Cookie=f"auth_token={ada.token}", Content_Type=content_type)
    headers = {"Origin": origin} if origin else {}
    assert (await client.post("/probe/viewer", headers=headers)).status_code == 403
    assert (await client.post("/probe/open", headers=headers)).json()["kind"] is None
    assert (await client.get("/probe/viewer", headers=headers)).status_code == 200


async def test_a_cookie_counts_for_our_own_pages(site: Any) -> None:
    ada = await site.session()
    cookie = {"Cookie": f"auth_token={ada.token}"}
    answer = await site.client().post("/probe/viewer", headers={**cookie, "Origin": ORIGIN})
    assert answer.json()["id"] == ada.user.id
    site.configure(public_url="https://hostler.example")
    answer = await site.client().post(
        "/probe/viewer", headers={**cookie, "Origin": "https://hostler.example"}
    )
    assert answer.json()["id"] == ada.user.id


async def test_headers_that_no_page_can_send_need_no_origin(site: Any) -> None:
    ada = await site.session()
    for headers in ({"Authorization": f"Bearer {ada.token}"}, {"X-API-Key": await new_key(site, ada.user)}):
        headers |= {"Origin": "http://evil.example", "Cookie": f"auth_token={ada.token}"}
        assert (await site.client().post("/probe/viewer", headers=headers)).status_code == 200


async def handshake(site: Any, headers: dict[str, str]) -> str | None:
    """Return what a WebSocket says first, or None when its handshake is refused."""
    async with falcon.testing.ASGIConductor(site.app) as conductor:
        try:
            async with conductor.simulate_ws("/probe/viewer", headers=headers) as ws:
                return str(await ws.receive_text())
        except WebSocketDisconnected:
            return None


async def test_a_websocket_by_cookie_needs_our_own_origin(site: Any) -> None:
    ada = await site.session()
    cookie = {"Cookie": f"auth_token={ada.token}"}
    for origin in (None, "null", "http://evil.example"):
        assert await handshake(site, {**cookie, **({"Origin": origin} if origin else {})}) is None
    # the host that Falcon's simulator addresses
    assert await handshake(site, {**cookie, "Origin": "http://falconframework.org"}) == ada.user.id


async def test_a_websocket_by_header_needs_credentials_and_no_origin(site: Any) -> None:
    ada = await site.session()
    assert await handshake(site, {"Authorization": f"Bearer {ada.token}"}) == ada.user.id
    assert await handshake(site, {"Authorization": "Bearer wrong"}) is None
    assert await handshake(site, {}) is None


@pytest.mark.parametrize("path", ["/no/such/path", "/probe/open"])
async def test_a_websocket_to_where_there_is_none_is_refused_and_no_failure_of_ours(
    site: Any, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with falcon.testing.ASGIConductor(site.app) as conductor:
        with pytest.raises(WebSocketDisconnected) as refused:
            async with conductor.simulate_ws(path):
                pass
    assert refused.value.code == 3403  # as Falcon's simulator calls a handshake that is not accepted
    assert not caplog.records


async def test_a_hundred_requests_at_once_at_limit_ten_pass_ten(site: Any) -> None:
    site.configure(rate_limit_per_s=10)
    ada = await site.session()
    await site.client().get("/probe/open")  # opens the connection to Redis
    answers = await asyncio.gather(*(ada.client.get("/probe/viewer") for _ in range(100)))
    passed = [answer for answer in answers if answer.status_code == 200]
    assert len(passed) == 10
    assert {answer.headers["X-RateLimit-Limit"] for answer in answers} == {"10"}
    assert sorted(int(answer.headers["X-RateLimit-Remaining"]) for answer in passed) == list(range(10))
    for answer in answers:
        assert abs(int(answer.headers["X-RateLimit-Reset"]) - time.time()) < 3
        if answer.status_code != 200:
            assert answer.status_code == 429
            assert answer.headers["X-RateLimit-Remaining"] == "0"
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["retryAfter"] == 1
            assert answer.json()["error"] == "Rate limit exceeded"


async def test_a_flood_without_credentials_is_limited_by_the_real_address(site: Any) -> None:
    site.configure(rate_limit_per_s=3)
    statuses = []
    for n in range(6):
        spoofed = {
            "X-Forwarded-For": f"192.0.2.{n}",
            "X-Real-IP": f"192.0.2.{n}",
            "Forwarded": f"for=192.0.2.{n}",
        }
        statuses.append(
            (await site.client(Authorization=f"Bearer {n}").get("/probe/viewer", headers=spoofed)).status_code
        )
    assert statuses == [401] * 3 + [429] * 3
    assert (await site.client("198.51.100.9").get("/probe/viewer")).status_code == 401


async def test_a_limited_address_does_not_hold_up_an_identity_behind_it(site: Any) -> None:
    site.configure(rate_limit_per_s=2)
    ada = await site.session()
    for _ in range(4):
        await site.client().get("/probe/open")
    assert (await site.client().get("/probe/open")).status_code == 429
    assert (await ada.client.get("/probe/viewer")).status_code == 200


async def test_clients_behind_a_trusted_proxy_are_limited_apart(site: Any) -> None:
    site.configure(rate_limit_per_s=1, trusted_proxies=("10.0.0.0/8",))
    proxy = site.client("10.0.0.5")
    for address, expected in (("192.0.2.1", 200), ("192.0.2.1", 429), ("192.0.2.2", 200)):
        answer = await proxy.get("/probe/open", headers={"X-Forwarded-For": address})
        assert answer.status_code == expected


async def test_a_long_connection_learns_that_it_would_no_longer_be_admitted(site: Any) -> None:
    await site.user("root")
    ada = await site.session("ada", "w")
    gate = Gate(site.store)
    scope = falcon.testing.create_scope(headers={"Authorization": f"Bearer {ada.token}"})
    req = falcon.asgi.Request(scope, None)
    identity = await gate.admit(req, None, optional=False)
    assert identity is not None
    assert await gate.still_admits(req, identity)
    await users.update(site.store, ada.user.id, actor="test", changes={"password": "another horse"})
    assert not await gate.still_admits(req, identity)


async def test_a_long_connection_by_key_learns_that_its_owner_may_less(site: Any) -> None:
    await site.user("root")
    ada = await site.session("ada", "w")
    gate = Gate(site.store)
    scope = falcon.testing.create_scope(headers={"X-API-Key": await new_key(site, ada.user, "w")})
    req = falcon.asgi.Request(scope, None)
    identity = await gate.admit(req, None, optional=False)
    assert identity is not None
    await users.update(site.store, ada.user.id, actor="test", changes={"role": "r"})
    assert not await gate.still_admits(req, identity)
