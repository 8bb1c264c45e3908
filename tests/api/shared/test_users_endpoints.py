"""Users over HTTP: what admins may do, and what follows for those it is done to."""

import asyncio
import re
from typing import Any

import pytest

NEW = {"username": "grace", "email": "grace@example.org", "password": "another horse", "role": "w"}


def login(site: Any, name: str, password: str) -> Any:
    return site.client().post("/api/auth/login", json={"username": name, "password": password})


async def test_a_created_user_can_log_in_and_has_its_role(site: Any) -> None:
    admin = await site.session()
    answer = await admin.client.post("/api/users", json=NEW)
    body = answer.json()
    assert answer.status_code == 201
    assert body.keys() == {"id", "username", "email", "role", "createdAt", "updatedAt"}
    assert (body["username"], body["email"], body["role"]) == ("grace", "grace@example.org", "w")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["createdAt"])
    token = (await login(site, "grace", "another horse")).json()["token"]
    client = site.client(Authorization=f"Bearer {token}")
    assert (await client.get("/probe/operator")).status_code == 200
    assert (await client.get("/probe/admin")).status_code == 403


@pytest.mark.parametrize(
    ("said", "meant"), [("admin", "a"), ("operator", "w"), ("viewer", "r"), ("a", "a"), (None, "r")]
)
async def test_a_role_is_a_letter_or_a_word_and_the_least_by_default(
    site: Any, said: str | None, meant: str
) -> None:
    admin = await site.session()
    body = {name: value for name, value in {**NEW, "role": said}.items() if value}
    assert (await admin.client.post("/api/users", json=body)).json()["role"] == meant


@pytest.mark.parametrize("role", ["r", "w"])
@pytest.mark.parametrize("method", ["GET", "POST", "GET {}", "PUT {}", "DELETE {}"])
async def test_only_admins_touch_users(site: Any, role: Any, method: str) -> None:
    admin = await site.session("root")
    other = await site.session("ada", role)
    verb, _, one = method.partition(" ")
    path = f"/api/users/{admin.user.id}" if one else "/api/users"
    assert (await site.client().request(verb, path, json={})).status_code == 401
    answer = await other.client.request(verb, path, json={})  # though the body makes no sense either
    assert answer.status_code == 403
    assert answer.json()["code"] == "DENIED"


@pytest.mark.parametrize(
    "field",
    ["id", "createdAt", "created_at", "created_ms", "generation", "isAdmin", "password_hash", "owner_id"],
)
async def test_fields_that_are_not_for_callers_are_refused_by_name(site: Any, field: str) -> None:
    admin = await site.session()
    made = await admin.client.post("/api/users", json={**NEW, field: 1})
    changed = await admin.client.put(f"/api/users/{admin.user.id}", json={"username": "root", field: 1})
    for answer in (made, changed):
        assert answer.status_code == 400
        assert answer.json()["details"] == {field: "Unknown field."}
    assert (await admin.client.get("/api/users")).json()["total"] == 1
    assert (await admin.client.get("/api/auth/me")).json()["username"] == "ada"


@pytest.mark.parametrize(
    "changes",
    [{"role": "root"}, {"role": ""}, {"role": "rw"}, {"role": None}, {"role": ["a"]}, {"role": "worker"},
     {"email": "x"}, {"username": "a b"}, {"password": "short"}],
)  # fmt: skip
async def test_values_that_make_no_sense_are_refused_by_name(site: Any, changes: dict[str, Any]) -> None:
    admin = await site.session()
    for answer in (
        await admin.client.post("/api/users", json={**NEW, **changes}),
        await admin.client.put(f"/api/users/{admin.user.id}", json=changes),
    ):
        assert answer.status_code == 400
        assert answer.json()["details"].keys() == changes.keys()


@pytest.mark.parametrize("body", [{**NEW, "username": "ADA"}, {**NEW, "email": "ADA@example.org"}])
async def test_a_taken_name_is_a_conflict(site: Any, body: dict[str, str]) -> None:
    admin = await site.session()
    answer = await admin.client.post("/api/users", json=body)
    assert answer.status_code == 409
    assert "exists" in answer.json()["error"]


async def test_users_are_listed_in_parts(site: Any) -> None:
    admin = await site.session()
    for n in range(4):
        await site.user(f"user{n}", "r")
    first = (await admin.client.get("/api/users", params={"limit": 3})).json()
    rest = (await admin.client.get("/api/users", params={"limit": 3, "offset": 3})).json()
    assert (first["total"], first["limit"], first["offset"], first["hasMore"]) == (5, 3, 0, True)
    assert rest["hasMore"] is False
    names = {user["username"] for user in first["users"] + rest["users"]}
    assert names == {"ada", "user0", "user1", "user2", "user3"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1e9",
        "limit=1000000000",
        "limit=x",
        "offset=-1",
        "limit=1&limit=2",
        "sort=x",
    ],
)
async def test_a_list_of_nonsense_is_refused(site: Any, query: str) -> None:
    admin = await site.session()
    assert (await admin.client.get(f"/api/users?{query}")).status_code == 400


async def test_no_answer_ever_shows_a_password(site: Any) -> None:
    admin = await site.session()
    made = await admin.client.post("/api/users", json=NEW)
    one = await admin.client.get(f"/api/users/{made.json()['id']}")
    for answer in (made, one, await admin.client.get("/api/users"), await admin.client.get("/api/auth/me")):
        assert "argon2" not in answer.text
        assert "another horse" not in answer.text


async def test_a_change_names_only_what_changes(site: Any) -> None:
    admin = await site.session()
    other = await site.user("grace", "r")
    path = f"/api/users/{other.id}"
    answer = await admin.client.put(path, json={"email": "hopper@example.org"})
    assert answer.status_code == 200
    assert (await admin.client.get(path)).json() == answer.json()
    assert (answer.json()["email"], answer.json()["username"], answer.json()["role"]) == (
        "hopper@example.org",
        "grace",
        "r",
    )
    assert (await admin.client.put(path, json={})).status_code == 400


async def test_a_changed_password_ends_the_sessions_and_only_the_new_one_opens(site: Any) -> None:
    admin = await site.session()
    other = await site.session("grace", "w")
    await admin.client.put(f"/api/users/{other.user.id}", json={"password": "another horse"})
    assert (await other.client.get("/api/auth/me")).status_code == 401
    assert (await other.client.post("/api/auth/refresh")).status_code == 401
    assert (await login(site, "grace", "correct horse")).status_code == 401
    assert (await login(site, "grace", "another horse")).status_code == 200


async def test_a_changed_role_ends_the_sessions_and_limits_the_keys(site: Any) -> None:
    admin = await site.session()
    other = await site.session("grace", "w")
    key = (await other.client.post("/api/keys", json={"name": "ci", "role": "w"})).json()["key"]
    by_key = site.client(X_API_Key=key)
    assert (await by_key.get("/probe/operator")).status_code == 200
    await admin.client.put(f"/api/users/{other.user.id}", json={"role": "viewer"})
    assert (await other.client.get("/api/auth/me")).status_code == 401
    assert (await by_key.get("/probe/operator")).status_code == 403
    assert (await by_key.get("/probe/viewer")).status_code == 200


async def test_a_deleted_user_is_out_with_its_sessions_and_keys(site: Any) -> None:
    admin = await site.session()
    other = await site.session("grace", "w")
    key = (await other.client.post("/api/keys", json={"name": "ci"})).json()["key"]
    path = f"/api/users/{other.user.id}"
    answer = await admin.client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await other.client.get("/api/auth/me")).status_code == 401
    assert (await site.client(X_API_Key=key).get("/api/auth/me")).status_code == 401
    assert (await login(site, "grace", "correct horse")).status_code == 401
    for method in ("GET", "DELETE"):
        assert (await admin.client.request(method, path)).status_code == 404
    assert (await admin.client.put(path, json={"role": "r"})).status_code == 404


async def test_the_last_admin_stays_an_admin(site: Any) -> None:
    admin = await site.session()
    path = f"/api/users/{admin.user.id}"
    for answer in (await admin.client.put(path, json={"role": "w"}), await admin.client.delete(path)):
        assert answer.status_code == 409
        assert "last admin" in answer.json()["error"]
    assert (await admin.client.get("/probe/admin")).status_code == 200


async def test_two_admins_who_demote_each_other_at_once_leave_one(site: Any) -> None:
    one, other = await site.session("one"), await site.session("other")
    answers = await asyncio.gather(
        one.client.put(f"/api/users/{other.user.id}", json={"role": "r"}),
        other.client.put(f"/api/users/{one.user.id}", json={"role": "r"}),
    )
    # the loser is refused as the last admin, or finds itself demoted already
    assert sorted(answer.status_code for answer in answers)[0] == 200
    assert sorted(answer.status_code for answer in answers)[1] in (401, 403, 409)


@pytest.mark.parametrize("name", ["nobody", "..%2f..%2fetc", "%00", "'", "*", "a" * 500])
async def test_a_user_that_does_not_exist_is_not_found(site: Any, name: str) -> None:
    admin = await site.session()
    assert (await admin.client.get(f"/api/users/{name}")).status_code == 404
