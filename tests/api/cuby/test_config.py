from typing import Any

from whole import Hostler

from settings import __version__

KEY = "1b4e28ba-2fa1-4d2e-883f-0016d3cca427"


async def test_the_configuration_at_a_glance(hostler: Hostler) -> None:
    viewer, admin = await hostler.user("r"), await hostler.user("a")
    told = (await viewer.get("/api/config")).json()
    none = {"configured": False, "prefix": None, "active": False, "role": None, "storedAt": None}
    assert told == {
        "products": [], "apiKey": none, "hasApiKey": False, "operatorMode": False, "autostart": True,
        "setupCompleted": False, "marketplace": False, "version": __version__,
    }  # fmt: skip
    await admin.post("/api/config/apikey", json={"apiKey": KEY})
    told = (await admin.get("/api/config")).json()
    assert told["operatorMode"]
    assert KEY not in str(told)
    assert {**told["apiKey"], "storedAt": ""} == {
        "configured": True, "prefix": KEY[:4], "active": True, "role": "operator", "storedAt": "",
    }  # fmt: skip


#: What is no UUID of version 4, or none that was drawn by chance.
NO_KEYS = [
    "", "DEIN_API_KEY", "1b4e28ba-2fa1-1d2e-883f-0016d3cca427", "1b4e28ba-2fa1-4d2e-c83f-0016d3cca427",
    "1b4e28ba2fa14d2e883f0016d3cca427", "{1b4e28ba-2fa1-4d2e-883f-0016d3cca427}",
    "00000000-0000-4000-8000-000000000000", "11111111-2222-4111-8111-222222222222", 5, None,
]  # fmt: skip


async def test_only_a_random_uuid_of_version_4_is_a_key(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    for key in NO_KEYS:
        answer = await admin.post("/api/config/apikey", json={"apiKey": key})
        assert answer.status_code == 400, key
        assert "apiKey" in answer.json()["details"]
    assert not (await admin.get("/api/config")).json()["hasApiKey"]


async def test_a_key_never_may_more_than_who_stored_it(hostler: Hostler) -> None:
    admin, operator = await hostler.user("a"), await hostler.user("w")
    assert (await operator.post("/api/config/apikey", json={"apiKey": KEY})).status_code == 403
    assert (await admin.post("/api/config/apikey", json={"apiKey": KEY, "role": "admin"})).status_code == 200
    by_key = hostler.client(Authorization=f"Bearer {KEY}")
    assert (await by_key.post("/api/setup/complete")).status_code == 200
    [key] = (await admin.get("/api/keys")).json()["keys"]
    assert (key["name"], key["role"], key["scope"]) == ("marketplace", "a", "cuby")
    await admin.delete(f"/api/keys/{key['id']}")
    assert (await by_key.get("/api/config")).status_code == 401
    told = (await admin.get("/api/config")).json()["apiKey"]
    assert (told["configured"], told["active"]) == (True, False)  # the marketplace is still asked with it


async def test_to_store_the_same_key_again_changes_its_role(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    for role in ("admin", "viewer", "viewer"):
        assert (await admin.post("/api/config/apikey", json={"apiKey": KEY, "role": role})).status_code == 200
    assert len((await admin.get("/api/keys")).json()["keys"]) == 1
    by_key = hostler.client(Authorization=f"Bearer {KEY}")
    assert (await by_key.post("/api/products/start-all")).status_code == 403


async def test_the_setup_is_completed_once(hostler: Hostler, redis_client: Any) -> None:
    admin = await hostler.user("a")
    first = (await admin.post("/api/setup/complete")).json()
    assert first["setupCompleted"]
    audited = redis_client.xlen("h:audit")
    assert (await admin.post("/api/setup/complete")).json() == first
    assert redis_client.xlen("h:audit") == audited
    assert (await admin.get("/api/config")).json()["setupCompleted"]


async def test_autostart_is_switched_for_what_is_to_come(hostler: Hostler) -> None:
    operator, viewer = await hostler.user("w"), await hostler.user("r")
    assert (await viewer.get("/api/config/autostart")).json() == {"enabled": True}
    assert (await viewer.post("/api/config/autostart", json={"enabled": False})).status_code == 403
    for enabled in (False, True, False):
        answer = await operator.post("/api/config/autostart", json={"enabled": enabled})
        assert answer.json() == (await viewer.get("/api/config/autostart")).json() == {"enabled": enabled}
    for wrong in ({}, {"enabled": "yes"}, {"enabled": 1}, {"enabled": None}):
        assert (await operator.post("/api/config/autostart", json=wrong)).status_code == 400, wrong


async def test_the_health_that_every_system_asks_for_has_what_cuby_shows(hostler: Hostler) -> None:
    told = (await hostler.client().get("/api/health")).json()
    assert told["status"] == "ok"
    assert told["timestamp"].endswith("Z")
