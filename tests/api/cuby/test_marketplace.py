from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fake_server import Answer, Asked, FakeServer, error
from whole import Hostler, running

from settings import Settings
from storage import manifests, products

KEY = "1b4e28ba-2fa1-4d2e-883f-0016d3cca427"
OFFER = {
    "id": "studio", "name": "Studio", "description": "Draws processes.", "version": "2.1.0",
    "npmPackage": "@processcube/studio.cuby", "url": "https://processcube.example/studio",
}  # fmt: skip
COURSE = {"title": "First steps", "url": "https://learn.example/1", "duration": "10 min"}


@pytest.fixture
def above() -> Any:
    """A marketplace that knows one key."""
    server = FakeServer()

    def known(asked: Asked) -> bool:
        return asked.headers.get("authorization") == f"Bearer {KEY}"

    def guarded(body: Any) -> Any:
        return lambda asked: Answer(200, body) if known(asked) else error(401, "no")

    server.on(
        "GET /market/products", guarded({"products": [OFFER, {"id": "../evil", "version": "1"}, "nonsense"]})
    )
    server.on("GET /market/courses", guarded([COURSE, {"title": "Evil", "url": "javascript:alert(1)"}]))
    server.on("GET /market/videos", error(404, "none"))
    server.on(
        "GET /market/apikey", lambda asked: Answer(200, {"valid": True}) if known(asked) else error(401, "no")
    )
    server.on("POST /market/trials", Answer(201, {}))
    yield server
    server.close()


@pytest.fixture
async def below(settings: Settings, above: FakeServer) -> AsyncIterator[Hostler]:
    """A Hostler with that marketplace above it."""
    changed = replace(settings, marketplace_url=f"{above.url}/market", outbound_allow=("127.0.0.1",))
    async for each in running(changed):
        yield each


async def publish(hostler: Hostler, product: str, version: str, **rest: Any) -> None:
    manifest = manifests.load(
        {"id": product, "version": version, "processes": {"w": {"command": ["x"]}}, **rest}
    )
    source = {"kind": "npm", "package": f"@x/{product}", "version": version}
    await products.name(hostler.store, "t", product, source, manifest=manifest)


async def test_our_own_catalogue_is_listed_with_its_newest_version(hostler: Hostler) -> None:
    viewer = await hostler.user("r")
    nothing = {"products": [], "upstream": {"configured": False, "available": False, "message": ""}}
    assert (await viewer.get("/api/marketplace/products")).json() == nothing
    await publish(hostler, "hello", "1.9.0", name="Hello", description="Says so.")
    await publish(hostler, "hello", "1.10.0", name="Hello", description="Says so.")
    [shown] = (await viewer.get("/api/marketplace/products")).json()["products"]
    assert shown == {
        "id": "hello", "productId": "hello", "name": "Hello", "description": "Says so.", "version": "1.10.0",
        "versions": ["1.10.0", "1.9.0"], "npmPackage": "@x/hello", "url": None, "source": "local", "installed": False,
        "installedVersion": None, "updateAvailable": False, "instances": [],
    }  # fmt: skip


async def test_what_needs_a_marketplace_says_that_there_is_none(hostler: Hostler) -> None:
    admin = await hostler.user("a")
    for method, path in (("GET", "validate-apikey"), ("POST", "trial")):
        answer = await admin.request(method, f"/api/config/{path}")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (503, "NOT_CONFIGURED")
    assert not (await admin.get("/api/config")).json()["hasApiKey"]


async def test_an_admin_keeps_courses_and_videos(hostler: Hostler) -> None:
    admin, viewer = await hostler.user("a"), await hostler.user("r")
    for which in ("courses", "videos"):
        assert (await viewer.get(f"/api/marketplace/{which}")).json() == {which: []}
        assert (await viewer.put(f"/api/marketplace/{which}", json={which: [COURSE]})).status_code == 403
        assert (await admin.put(f"/api/marketplace/{which}", json={which: [COURSE]})).status_code == 200
        assert (await viewer.get(f"/api/marketplace/{which}")).json() == {which: [COURSE]}
        for wrong in (
            {"title": "x"},
            {"title": "x", "url": "javascript:alert(1)"},
            {**COURSE, "html": "<b>"},
        ):
            answer = await admin.put(f"/api/marketplace/{which}", json={which: [wrong]})
            assert answer.status_code == 400
        assert (await viewer.get(f"/api/marketplace/{which}")).json() == {which: [COURSE]}


async def test_what_the_marketplace_above_offers_is_listed_beside_ours(below: Hostler) -> None:
    admin = await below.user("a")
    await publish(below, "hello", "1.0.0")
    told = (await admin.get("/api/marketplace/products")).json()
    assert [each["id"] for each in told["products"]] == ["hello"]  # without a key it offers nothing
    assert told["upstream"]["configured"]
    assert not told["upstream"]["available"]
    assert "401" in told["upstream"]["message"]
    await admin.post("/api/config/apikey", json={"apiKey": KEY})
    told = (await admin.get("/api/marketplace/products")).json()
    assert told["upstream"] == {"configured": True, "available": True, "message": ""}
    ours, theirs = told["products"]
    assert (theirs["id"], theirs["version"], theirs["source"]) == ("studio", "2.1.0", "marketplace")
    assert (theirs["npmPackage"], theirs["url"]) == (OFFER["npmPackage"], OFFER["url"])
    assert ours["source"] == "local"
    assert (await admin.get("/api/marketplace/courses")).json() == {"courses": [COURSE]}
    await admin.put("/api/marketplace/videos", json={"videos": [COURSE]})
    assert (await admin.get("/api/marketplace/videos")).json() == {"videos": [COURSE]}  # it has none, so ours


async def test_answers_of_the_marketplace_above_serve_again_for_a_while(
    below: Hostler, above: FakeServer
) -> None:
    admin = await below.user("a")
    await admin.post("/api/config/apikey", json={"apiKey": KEY})
    for _ in range(3):
        await admin.get("/api/marketplace/products")
    assert sum(asked.path == "/market/products" for asked in above.asked) == 1


async def test_installing_what_is_offered_above_names_it_here_first(below: Hostler) -> None:
    admin = await below.user("a")
    await admin.post("/api/config/apikey", json={"apiKey": KEY})
    body = {"products": [{"productId": "studio"}]}
    assert (await admin.post("/api/install", json=body)).status_code == 409  # there is no node
    [release] = await products.releases(below.store, "studio")
    assert release.source == {"kind": "npm", "package": "@processcube/studio.cuby", "version": "2.1.0"}
    missing = await admin.post("/api/install", json={"products": [{"productId": "nothing"}]})
    assert missing.status_code == 404


async def test_a_key_is_validated_by_the_marketplace_above(below: Hostler, above: FakeServer) -> None:
    admin = await below.user("a")
    answer = (await admin.get("/api/config/validate-apikey")).json()
    assert answer == {"valid": False, "message": "No API key is stored."}
    await admin.post("/api/config/apikey", json={"apiKey": "7c9e6679-7425-40de-944b-e07fc1f90ae7"})
    assert not (await admin.get("/api/config/validate-apikey")).json()["valid"]
    await admin.post("/api/config/apikey", json={"apiKey": KEY})
    assert (await admin.get("/api/config/validate-apikey")).json() == {"valid": True, "message": ""}
    above.routes["GET /market/apikey"] = [Answer(500, {})]
    assert (await admin.get("/api/config/validate-apikey")).status_code == 503
    above.routes["GET /market/apikey"] = [Answer(200, b"<html>")]
    assert (await admin.get("/api/config/validate-apikey")).status_code == 503


async def test_a_trial_makes_a_key_that_the_marketplace_registers(below: Hostler, above: FakeServer) -> None:
    admin = await below.user("a")
    told = (await admin.post("/api/config/trial")).json()
    asked = above.last("/market/trials")
    assert asked.json == {"apiKey": told["trialKey"]}
    assert asked.headers["authorization"] == f"Bearer {told['trialKey']}"
    by_key = below.client(Authorization=f"Bearer {told['trialKey']}")
    config = (await by_key.get("/api/config")).json()
    assert config["apiKey"]["active"]
    assert config["operatorMode"]
    assert config["marketplace"]


async def test_a_trial_that_is_refused_changes_nothing(below: Hostler, above: FakeServer) -> None:
    admin = await below.user("a")
    await admin.post("/api/config/apikey", json={"apiKey": KEY})
    above.routes["POST /market/trials"] = [error(409, "no more")]
    answer = await admin.post("/api/config/trial")
    assert (answer.status_code, answer.json()["code"]) == (502, "MARKETPLACE_REFUSED")
    assert (await below.client(Authorization=f"Bearer {KEY}").get("/api/config")).status_code == 200


async def test_a_hostler_can_be_the_marketplace_of_another(hostler: Hostler) -> None:
    await (await hostler.user("a")).post("/api/config/apikey", json={"apiKey": KEY})
    by_key = hostler.client(Authorization=f"Bearer {KEY}")
    assert (await by_key.get("/api/marketplace/apikey")).json() == {"valid": True}
    assert (await hostler.client().get("/api/marketplace/apikey")).status_code == 401


async def test_a_marketplace_on_the_inside_is_asked_only_where_that_is_allowed(settings: Settings) -> None:
    async for hostler in running(replace(settings, marketplace_url="http://127.0.0.1:9/market")):
        viewer = await hostler.user("r")
        told = (await viewer.get("/api/marketplace/products")).json()
        assert told["upstream"]["message"] == "'127.0.0.1' is not a host that Hostler may reach."
