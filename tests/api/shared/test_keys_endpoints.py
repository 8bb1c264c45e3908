"""API keys over HTTP: shown once, their owner's alone, and never above it."""

from typing import Any

import pytest


async def test_a_new_keys_secret_is_shown_once_and_works_both_ways(site: Any) -> None:
    ada = await site.session("ada", "w")
    answer = await ada.client.post("/api/keys", json={"name": "ci", "role": "operator"})
    made = answer.json()
    assert answer.status_code == 201
    assert made["key"].startswith("cb_")
    assert made["key"].startswith(made["prefix"])
    assert (made["name"], made["role"], made["userId"]) == ("ci", "w", ada.user.id)
    for client in (site.client(X_API_Key=made["key"]), site.client(Authorization=f"Bearer {made['key']}")):
        assert (await client.get("/probe/operator")).status_code == 200
    listed = await ada.client.get("/api/keys")
    assert listed.json() == {"keys": [{name: made[name] for name in made if name != "key"}], "total": 1}
    assert made["key"] not in listed.text


async def test_a_key_may_only_read_unless_more_is_asked_for(site: Any) -> None:
    ada = await site.session("ada", "a")
    assert (await ada.client.post("/api/keys", json={"name": "ci"})).json()["role"] == "r"


@pytest.mark.parametrize(("role", "wanted"), [("r", "w"), ("r", "admin"), ("w", "a")])
async def test_a_key_above_its_owner_is_refused(site: Any, role: Any, wanted: str) -> None:
    ada = await site.session("ada", role)
    answer = await ada.client.post("/api/keys", json={"name": "ci", "role": wanted})
    assert answer.status_code == 403
    assert (await ada.client.get("/api/keys")).json()["total"] == 0


async def test_a_key_makes_no_key_above_itself(site: Any) -> None:
    ada = await site.session("ada", "a")
    reader = (await ada.client.post("/api/keys", json={"name": "reader"})).json()["key"]
    by_key = site.client(X_API_Key=reader)
    assert (await by_key.post("/api/keys", json={"name": "more", "role": "a"})).status_code == 403
    assert (await by_key.post("/api/keys", json={"name": "as much"})).status_code == 201


async def test_a_revoked_key_is_over_at_once(site: Any) -> None:
    ada = await site.session("ada", "r")
    made = (await ada.client.post("/api/keys", json={"name": "ci"})).json()
    answer = await ada.client.delete(f"/api/keys/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await site.client(X_API_Key=made["key"]).get("/api/auth/me")).status_code == 401
    assert (await ada.client.get("/api/keys")).json()["total"] == 0
    assert (await ada.client.delete(f"/api/keys/{made['id']}")).status_code == 404


async def test_anothers_key_is_neither_seen_nor_revoked(site: Any) -> None:
    ada, eve = await site.session("ada", "w"), await site.session("eve", "w")
    made = (await ada.client.post("/api/keys", json={"name": "ci"})).json()
    assert (await eve.client.get("/api/keys")).json() == {"keys": [], "total": 0}
    assert (await eve.client.get("/api/keys", params={"all": "true"})).status_code == 403
    anothers = await eve.client.delete(f"/api/keys/{made['id']}")
    missing = await eve.client.delete("/api/keys/key-0000")
    assert anothers.status_code == missing.status_code == 404
    assert anothers.json()["code"] == missing.json()["code"]
    assert (await site.client(X_API_Key=made["key"]).get("/api/auth/me")).status_code == 200


async def test_an_admin_sees_and_revokes_everybodys_keys_on_request(site: Any) -> None:
    root, ada = await site.session("root"), await site.session("ada", "w")
    made = (await ada.client.post("/api/keys", json={"name": "ci"})).json()
    assert (await root.client.get("/api/keys")).json()["total"] == 0
    everybodys = (await root.client.get("/api/keys", params={"all": "true"})).json()
    assert [key["userId"] for key in everybodys["keys"]] == [ada.user.id]
    assert (await root.client.delete(f"/api/keys/{made['id']}")).status_code == 204
    assert (await site.client(X_API_Key=made["key"]).get("/api/auth/me")).status_code == 401


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "x" * 101}, {"name": 7}, {"name": "ci", "role": "x"}, {"name": "ci", "owner": "root"},
     {"name": "ci", "key": "cb_chosen"}, {"name": "ci", "id": "key-1"}, {"name": "ci", "userId": "user-1"}],
)  # fmt: skip
async def test_a_key_that_makes_no_sense_is_refused(site: Any, body: dict[str, Any]) -> None:
    ada = await site.session("ada", "w")
    answer = await ada.client.post("/api/keys", json=body)
    assert answer.status_code == 400
    assert answer.json()["details"]
    assert (await ada.client.get("/api/keys")).json()["total"] == 0


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_keys_are_for_users_and_not_for_nobody(site: Any, method: str) -> None:
    path = "/api/keys/key-1" if method == "DELETE" else "/api/keys"
    assert (await site.client().request(method, path)).status_code == 401
