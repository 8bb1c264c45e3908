"""Who am I, and the first account of an installation."""

import asyncio
from typing import Any

import pytest

from storage import users

FIRST = {"username": "root", "email": "root@example.org", "password": "correct horse"}


async def test_a_session_learns_who_it_is(site: Any) -> None:
    ada = await site.session("ada", "w")
    answer = await ada.client.get("/api/auth/me")
    assert answer.json() == {
        "id": ada.user.id,
        "username": "ada",
        "email": "ada@example.org",
        "role": "w",
        "roleName": "operator",
        "kind": "user",
        "keyId": None,
        "keyName": None,
    }


async def test_a_key_learns_its_owner_and_its_own_role(site: Any) -> None:
    ada = await site.session("ada", "w")
    made = (await ada.client.post("/api/keys", json={"name": "ci"})).json()
    me = (await site.client(X_API_Key=made["key"]).get("/api/auth/me")).json()
    assert (me["id"], me["role"], me["kind"]) == (ada.user.id, "r", "key")
    assert (me["keyId"], me["keyName"]) == (made["id"], "ci")


async def test_nobody_is_nobody(site: Any) -> None:
    assert (await site.client().get("/api/auth/me")).status_code == 401


async def test_setup_makes_the_first_admin_and_logs_it_in(site: Any) -> None:
    client = site.client()
    answer = await client.post("/api/auth/setup", json=FIRST)
    assert answer.status_code == 201
    assert (answer.json()["user"]["role"], answer.json()["expiresIn"]) == ("admin", "24h")
    listed = await client.get("/api/users")  # by the cookie that came with the answer
    assert [(user["username"], user["role"]) for user in listed.json()["users"]] == [("root", "a")]
    login = await site.client().post("/api/auth/login", json={"email": "root", "password": "correct horse"})
    assert login.status_code == 200


async def test_of_fifty_setups_at_once_one_succeeds(site: Any) -> None:
    bodies = [{**FIRST, "username": f"root{n}", "email": f"root{n}@example.org"} for n in range(50)]
    answers = await asyncio.gather(*(site.client().post("/api/auth/setup", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201] + [403] * 49
    assert (await users.page(site.store, 10, 0))[1] == 1


async def test_setup_is_closed_once_there_is_any_user(site: Any) -> None:
    await site.user("ada", "a")
    answer = await site.client().post("/api/auth/setup", json=FIRST)
    assert answer.status_code == 403
    assert answer.json() == {"error": "This installation has its first admin already.", "code": "DENIED"}
    assert await users.named(site.store, "root") is None
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "changes",
    [
        {"email": "no email"},
        {"email": None},
        {"username": "two words"},
        {"username": "root\n"},
        {"username": ""},
        {"password": "short"},
        {"password": "x" * 1025},
        {"password": 12345678},
        {"role": "a"},
        {"isAdmin": True},
        {"id": "user-1"},
    ],
)
async def test_a_setup_that_makes_no_sense_creates_nobody(site: Any, changes: dict[str, Any]) -> None:
    answer = await site.client().post("/api/auth/setup", json={**FIRST, **changes})
    assert answer.status_code == 400
    assert answer.json()["details"].keys() == changes.keys()
    assert not await users.any_exist(site.store)


@pytest.mark.parametrize("missing", ["username", "email", "password"])
async def test_a_setup_names_what_is_missing(site: Any, missing: str) -> None:
    body = {name: value for name, value in FIRST.items() if name != missing}
    answer = await site.client().post("/api/auth/setup", json=body)
    assert answer.json()["error"] == f"{missing} is required"
