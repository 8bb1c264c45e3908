import asyncio
from typing import Any

import pytest
import redis
from whole import ORIGIN, Hostler

from storage import users

KEY = "1b4e28ba-2fa1-4d2e-883f-0016d3cca427"
OTHER = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


async def stored(hostler: Hostler, key: str = KEY, **more: Any) -> None:
    """Have an admin store the marketplace's key."""
    admin = await hostler.user("a")
    answer = await admin.post("/api/config/apikey", json={"apiKey": key, **more})
    assert answer.status_code == 200, answer.text


async def made_a_token(hostler: Hostler, **headers: str) -> Any:
    return await hostler.client(**headers).post("/api/auth/token")


async def test_a_stored_key_logs_in_as_a_bearer_and_for_a_cookie(hostler: Hostler) -> None:
    await stored(hostler)
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"X_API_Key": KEY},
        {"Authorization": f"Bearer {KEY.upper()}"},
    ):
        assert (await hostler.client(**headers).get("/api/config")).status_code == 200
    browser = hostler.client()
    answer = await browser.post("/api/auth", json={"apiKey": KEY})
    assert answer.json() == {"authenticated": True, "expiresIn": 86_400}
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert (await browser.get("/api/config")).status_code == 200


async def test_the_session_of_a_key_may_no_more_than_the_key(hostler: Hostler) -> None:
    await stored(hostler, role="viewer")
    browser = hostler.client(Origin=ORIGIN)
    await browser.post("/api/auth", json={"apiKey": KEY})
    assert (await browser.get("/api/config/autostart")).status_code == 200
    assert (await browser.post("/api/products/start-all")).status_code == 403
    assert (await browser.post("/api/setup/complete")).status_code == 403
    assert (await browser.get("/api/users")).status_code == 403  # it speaks Cuby's dialect alone
    assert (await browser.get("/api/jobs/list")).status_code == 403


async def test_a_cookie_changes_things_for_our_own_pages_alone(hostler: Hostler) -> None:
    await stored(hostler)
    browser = hostler.client()
    await browser.post("/api/auth", json={"apiKey": KEY})
    for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert (await browser.post("/api/products/start-all", headers=headers)).status_code == 403
    assert (await browser.post("/api/products/start-all", headers={"Origin": ORIGIN})).status_code == 202


@pytest.mark.parametrize("key", ["nonsense", OTHER, "cb_nonsense", "eyJhbGciOiJIUzI1NiJ9.e30.x"])
async def test_a_wrong_key_logs_nobody_in(hostler: Hostler, key: str) -> None:
    answer = await hostler.client().post("/api/auth", json={"apiKey": key})
    assert answer.status_code == 401
    assert answer.json() == {
        "error": "The API key is not valid, or no longer.",
        "code": "INVALID_CREDENTIALS",
    }
    assert "Set-Cookie" not in answer.headers


async def test_a_session_token_is_no_key(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    token = admin.headers["Authorization"].removeprefix("Bearer ")
    assert (await hostler.client().post("/api/auth", json={"apiKey": token})).status_code == 401


async def test_every_other_api_key_logs_in_too_until_it_is_revoked(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    made = (await admin.post("/api/keys", json={"name": "ci", "role": "viewer"})).json()
    browser = hostler.client()
    assert (await browser.post("/api/auth", json={"apiKey": made["key"]})).status_code == 200
    assert (await browser.get("/api/auth/me")).json()["role"] == "r"
    await admin.delete(f"/api/keys/{made['id']}")
    assert (await browser.get("/api/auth/me")).status_code == 401


async def test_a_new_key_ends_the_one_before_and_its_sessions(hostler: Hostler) -> None:
    await stored(hostler)
    browser = hostler.client()
    await browser.post("/api/auth", json={"apiKey": KEY})
    await stored(hostler, OTHER)
    assert (await browser.get("/api/config")).status_code == 401
    assert (await hostler.client(Authorization=f"Bearer {KEY}").get("/api/config")).status_code == 401
    assert (await hostler.client(Authorization=f"Bearer {OTHER}").get("/api/config")).status_code == 200


async def test_a_session_of_a_key_ends_with_its_logout(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    key = (await admin.post("/api/keys", json={"name": "ci"})).json()["key"]
    browser, other = hostler.client(Origin=ORIGIN), hostler.client()
    for each in (browser, other):
        await each.post("/api/auth", json={"apiKey": key})
    token = browser.cookies["auth_token"]
    assert (await browser.post("/api/auth/logout")).status_code == 200
    assert (await hostler.client(Cookie=f"auth_token={token}").get("/api/auth/me")).status_code == 401
    assert (await other.get("/api/auth/me")).status_code == 200
    assert (await hostler.client(X_API_Key=key).post("/api/auth/logout")).status_code == 400


async def test_a_key_is_kept_hashed_and_sealed(hostler: Hostler, redis_client: redis.Redis) -> None:
    await stored(hostler)
    for name in redis_client.scan_iter():
        kind = redis_client.type(name)
        dumped = repr(redis_client.dump(name)) if kind != b"string" else repr(redis_client.get(name))
        assert KEY not in dumped + repr(name), name
        assert KEY.replace("-", "") not in dumped, name


async def test_a_handoff_token_becomes_a_session_once(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    token = (await admin.post("/api/auth/token")).json()
    assert token["expiresIn"] == 60
    browsers = [hostler.client() for _ in range(8)]
    answers = await asyncio.gather(
        *(each.post("/api/auth/session", json={"token": token["token"]}) for each in browsers)
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 7
    winner = browsers[[answer.status_code for answer in answers].index(200)]
    me = (await winner.get("/api/auth/me")).json()
    assert (me["role"], me["kind"]) == ("a", "user")


async def test_a_handoff_token_is_too_late_after_a_minute(hostler: Hostler, monkeypatch: Any) -> None:
    admin = await hostler.user("a")
    now_ms = hostler.app.hub.store.now_ms()
    monkeypatch.setattr(hostler.app.hub.store, "now_ms", lambda: now_ms - 61_000)
    token = (await admin.post("/api/auth/token")).json()["token"]
    monkeypatch.undo()
    assert (await hostler.client().post("/api/auth/session", json={"token": token})).status_code == 401


async def test_a_handoff_of_a_key_is_a_session_of_that_key(hostler: Hostler) -> None:
    await stored(hostler)
    token = (await made_a_token(hostler, Authorization=f"Bearer {KEY}")).json()["token"]
    browser = hostler.client()
    assert (await browser.post("/api/auth/session", json={"token": token})).status_code == 200
    assert (await browser.get("/api/config")).status_code == 200
    assert (await browser.get("/api/jobs/list")).status_code == 403


async def test_a_handoff_ends_with_what_it_came_from(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    tokens = [(await admin.post("/api/auth/token")).json()["token"]]
    assert (await admin.post("/api/auth/logout")).status_code == 200
    await stored_by_another(hostler)
    bearer = {"Authorization": f"Bearer {KEY}"}
    tokens.append((await made_a_token(hostler, **bearer)).json()["token"])
    await stored_by_another(hostler, OTHER)
    viewer = await hostler.user("r")
    tokens.append((await viewer.post("/api/auth/token")).json()["token"])
    known = await users.named(hostler.store, "user-r")
    assert known is not None
    await users.update(hostler.store, known.id, actor="t", changes={"role": "w"})
    for token in tokens:
        answer = await hostler.client().post("/api/auth/session", json={"token": token})
        assert answer.status_code == 401, answer.text
        assert "Set-Cookie" not in answer.headers


async def stored_by_another(hostler: Hostler, key: str = KEY) -> None:
    """Have an admin with a session of its own store the key."""
    user = await users.named(hostler.store, "admin-2") or await users.create(
        hostler.store, actor="t", username="admin-2", email="a2@example.org", password="pass word", role="a"
    )
    from storage import sessions

    client = hostler.client(Authorization=f"Bearer {await sessions.issue(hostler.store, user)}")
    assert (await client.post("/api/config/apikey", json={"apiKey": key})).status_code == 200


async def test_a_forged_handoff_or_index_of_keys_is_not_believed(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    await stored(hostler)
    admin = await hostler.user("a")
    made = (await admin.post("/api/keys", json={"name": "ci"})).json()  # may only read
    strong = (await admin.post("/api/keys", json={"name": "strong", "role": "admin"})).json()
    redis_client.hset("h:apikeys", made["id"], redis_client.hget("h:apikeys", strong["id"]))
    answer = await hostler.client().post("/api/auth", json={"apiKey": made["key"]})
    assert answer.status_code == 401
    token = (await admin.post("/api/auth/token")).json()["token"]
    [name] = redis_client.keys("h:handoff:*")
    redis_client.set(name, redis_client.get(name).replace(b'"generation":1', b'"generation":2'))
    assert (await hostler.client().post("/api/auth/session", json={"token": token})).status_code == 401


async def test_the_session_of_the_marketplaces_key_can_be_ended(hostler: Hostler) -> None:
    await stored(hostler)
    browser = hostler.client(Origin=ORIGIN)
    await browser.post("/api/auth", json={"apiKey": KEY})
    token = browser.cookies["auth_token"]
    assert (await browser.delete("/api/auth/session")).status_code == 204
    assert "auth_token" not in browser.cookies
    assert (await hostler.client(Cookie=f"auth_token={token}").get("/api/config")).status_code == 401
    by_key = hostler.client(Authorization=f"Bearer {KEY}")
    assert (await by_key.delete("/api/auth/session")).status_code == 400
    assert (await by_key.get("/api/config")).status_code == 200
