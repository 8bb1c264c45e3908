"""Logging in, out, and staying logged in, as clients of either system see it."""

import asyncio
import re
from typing import Any

import pytest

PASSWORD = "correct horse"
ORIGIN = "http://hostler.test"


def login(client: Any, **body: Any) -> Any:
    return client.post("/api/auth/login", json=body)


async def status(site: Any, token: str) -> int:
    """Return what a token gets where only a user may go."""
    return int((await site.client(Authorization=f"Bearer {token}").get("/api/auth/me")).status_code)


@pytest.mark.parametrize("name", [{"email": "Ada@Example.org"}, {"username": "ada"}, {"email": "ada"}])
async def test_a_login_answers_with_a_token_that_works(site: Any, name: dict[str, str]) -> None:
    user = await site.user("ada", "w")
    answer = await login(site.client(), **name, password=PASSWORD)
    body = answer.json()
    assert answer.status_code == 200
    assert body == {
        "success": True,
        "token": body["token"],
        "user": {"id": user.id, "email": "ada@example.org", "username": "ada", "role": "operator"},
        "expiresIn": "24h",
    }
    me = await site.client(Authorization=f"Bearer {body['token']}").get("/api/auth/me")
    assert me.json()["id"] == user.id


async def test_the_cookie_of_a_login_is_out_of_reach_of_scripts_and_other_sites(site: Any) -> None:
    await site.user()
    client = site.client()
    answer = await login(client, email="ada", password=PASSWORD)
    cookie = answer.headers["Set-Cookie"]
    assert re.match(r"auth_token=[\w.-]+;", cookie)
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=86400"):
        assert attribute in cookie
    assert "Secure" not in cookie
    assert "Domain" not in cookie
    assert (await client.get("/api/auth/me")).status_code == 200  # the client keeps cookies, as browsers do


async def test_the_cookie_is_secure_where_clients_come_by_tls(site: Any) -> None:
    await site.user()
    direct = await login(site.client(url="https://hostler.test"), email="ada", password=PASSWORD)
    spoofed = await login(site.client(X_Forwarded_Proto="https"), email="ada", password=PASSWORD)
    site.configure(trusted_proxies=("10.0.0.0/8",))
    proxied = await login(site.client("10.0.0.5", X_Forwarded_Proto="https"), email="ada", password=PASSWORD)
    site.configure(public_url="https://hostler.example")
    public = await login(site.client(), email="ada", password=PASSWORD)
    assert ["Secure" in answer.headers["Set-Cookie"] for answer in (direct, spoofed, proxied, public)] == [
        True, False, True, True,
    ]  # fmt: skip


async def test_each_login_is_a_session_of_its_own_whatever_cookie_was_there_before(site: Any) -> None:
    await site.user()
    client = site.client(Cookie="auth_token=planted")
    tokens = [(await login(client, email="ada", password=PASSWORD)).json()["token"] for _ in range(2)]
    assert len({*tokens, "planted"}) == 3


async def test_a_wrong_password_and_an_unknown_account_get_the_same_answer(site: Any) -> None:
    await site.user()
    answers = [
        await login(site.client(), email=email, password="wrong horse")
        for email in ("ada@example.org", "nobody@example.org")
    ]
    for answer in answers:
        assert answer.status_code == 401
        assert answer.json() == {
            "error": "Invalid credentials",
            "message": "Email or password incorrect",
            "code": "INVALID_CREDENTIALS",
        }
    names = [sorted(name for name in answer.headers if name != "x-ratelimit-reset") for answer in answers]
    assert names[0] == names[1]
    assert site.store.passwords.verified == 2
    assert "Set-Cookie" not in answers[0].headers


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "email is required"),
        ({"password": PASSWORD}, "email is required"),
        ({"email": "ada"}, "password is required"),
        ({"email": "ada", "password": ""}, None),
        ({"email": "", "password": PASSWORD}, None),
        ({"email": ["ada"], "password": PASSWORD}, None),
        ({"email": {"$ne": ""}, "password": {"$ne": ""}}, None),
        ({"email": "ada", "password": "x" * 1025}, None),
        ({"email": "x" * 321, "password": PASSWORD}, None),
        ({"email": "ada", "username": "eve", "password": PASSWORD}, None),
        ({"email": "ada", "password": PASSWORD, "role": "admin"}, "role is not a known field"),
    ],
)
async def test_a_login_that_makes_no_sense_is_refused_by_name(
    site: Any, body: Any, message: str | None
) -> None:
    await site.user()
    answer = await login(site.client(), **body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "Invalid request"
    assert answer.json()["details"]
    if message:
        assert answer.json()["message"] == message


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_a_form_cannot_log_in(site: Any, content_type: str) -> None:
    await site.user()
    body = b'{"email": "ada", "password": "correct horse"}'
    answer = await site.client().post("/api/auth/login", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 415


async def test_brute_force_meets_429_whatever_addresses_the_client_claims(site: Any) -> None:
    await site.user()
    statuses = []
    for n in range(40):
        client = site.client(
            X_Forwarded_For=f"192.0.2.{n}", X_Real_IP=f"192.0.2.{n}", Forwarded=f"for=192.0.2.{n}"
        )
        answer = await login(client, email="ada", password=f"guess number {n}")
        statuses.append(answer.status_code)
    assert statuses == [401] * 5 + [429] * 35
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert answer.json()["retryAfter"] == int(answer.headers["Retry-After"])
    elsewhere = await login(site.client("198.51.100.9"), email="ada", password=PASSWORD)
    assert elsewhere.status_code == 200


async def test_an_ipv6_client_cannot_escape_the_throttle_within_its_network(site: Any) -> None:
    await site.user()
    answers = [
        await login(site.client(f"2001:db8::{n:x}"), email="ada", password="wrong horse") for n in range(1, 8)
    ]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2


async def test_logging_out_ends_the_session_and_takes_the_cookie_back(site: Any) -> None:
    await site.user()
    client = site.client()
    token = (await login(client, email="ada", password=PASSWORD)).json()["token"]
    answer = await client.post("/api/auth/logout", headers={"Origin": ORIGIN})
    assert answer.json() == {"success": True, "message": "Logged out successfully"}
    assert "expires=Thu, 01 Jan 1970" in answer.headers["Set-Cookie"]
    assert "auth_token" not in client.cookies
    assert await status(site, token) == 401
    assert (await site.client(Authorization=f"Bearer {token}").post("/api/auth/refresh")).status_code == 401


async def test_logging_out_needs_a_session(site: Any) -> None:
    answer = await site.client().post("/api/auth/logout")
    assert answer.status_code == 401
    assert answer.json()["error"] == "Unauthorized"


async def test_an_api_key_has_no_session_to_end(site: Any) -> None:
    ada = await site.session()
    key = (await ada.client.post("/api/keys", json={"name": "ci"})).json()["key"]
    by_key = site.client(X_API_Key=key)
    assert (await by_key.post("/api/auth/logout")).status_code == 400
    assert (await by_key.get("/api/auth/me")).status_code == 200


async def test_a_session_is_refreshed_by_bearer(site: Any) -> None:
    ada = await site.session("ada", "w")
    answer = await ada.client.post("/api/auth/refresh")
    body = answer.json()
    assert answer.status_code == 200
    assert body["success"] is True
    assert body["token"] != ada.token
    assert (body["expiresIn"], body["user"]["role"]) == ("24h", "operator")
    assert "Set-Cookie" not in answer.headers
    assert await status(site, body["token"]) == 200
    assert await status(site, ada.token) == 200  # for a minute, for what was under way


async def test_a_session_is_refreshed_by_cookie_from_our_own_pages_alone(site: Any) -> None:
    await site.user()
    client = site.client()
    old = (await login(client, email="ada", password=PASSWORD)).json()["token"]
    for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert (await client.post("/api/auth/refresh", headers=headers)).status_code == 403
    assert await status(site, old) == 200
    answer = await client.post("/api/auth/refresh", headers={"Origin": ORIGIN})
    assert answer.status_code == 200
    assert client.cookies["auth_token"] == answer.json()["token"] != old
    assert (await client.get("/api/auth/me")).status_code == 200


async def test_a_replayed_refresh_is_refused_and_ends_the_family(site: Any) -> None:
    ada = await site.session()
    new = (await ada.client.post("/api/auth/refresh")).json()["token"]
    replay = await ada.client.post("/api/auth/refresh")
    assert replay.status_code == 401
    assert replay.json()["error"] == "Unauthorized"
    assert await status(site, new) == 401


async def test_of_refreshes_at_once_one_is_answered(site: Any) -> None:
    ada = await site.session()
    answers = await asyncio.gather(*(ada.client.post("/api/auth/refresh") for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 9


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer nonsense"}, {"Cookie": "auth_token=nonsense"}]
)
async def test_without_a_session_nothing_is_refreshed(site: Any, headers: dict[str, str]) -> None:
    answer = await site.client().post("/api/auth/refresh", headers={**headers, "Origin": ORIGIN})
    assert answer.status_code == 401


async def test_an_api_key_is_not_traded_for_a_session(site: Any) -> None:
    ada = await site.session()
    key = (await ada.client.post("/api/keys", json={"name": "ci"})).json()["key"]
    for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
        assert (await site.client().post("/api/auth/refresh", headers=headers)).status_code == 401


@pytest.mark.parametrize("path", ["login", "logout", "refresh"])
async def test_reading_changes_nothing(site: Any, path: str) -> None:
    ada = await site.session()
    assert (await ada.client.get(f"/api/auth/{path}")).status_code == 405
    assert await status(site, ada.token) == 200
