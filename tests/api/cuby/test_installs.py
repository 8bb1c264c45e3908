from typing import Any

from cuby.conftest import SCHEMA, Fleet
from storage import apps


async def start(fleet: Fleet, *wanted: dict[str, Any]) -> Any:
    return await fleet.operator.post("/api/install", json={"products": list(wanted)})


async def install_status(fleet: Fleet, product: str) -> Any:
    return (await fleet.viewer.get("/api/install/status", params={"productId": product})).json()


async def test_the_pages_example_installs_a_product_and_one_with_an_alias_beside_it(fleet: Fleet) -> None:
    await fleet.offer()
    answer = await start(fleet, {"productId": "processcube-engine"})
    assert answer.status_code == 202
    [begun] = answer.json()["products"]
    assert (begun["instanceId"], begun["status"]) == ("processcube-engine", "installing")
    answer = await start(fleet, {"productId": "processcube-engine", "alias": "staging"})
    assert answer.json()["products"][0]["instanceId"] == "processcube-engine__staging"
    told = await install_status(fleet, "processcube-engine")
    assert (told["status"], told["progress"], "error" in told) == ("installing", 0, False)
    assert (await fleet.status("processcube-engine__staging")) == "installing"
    await fleet.node.carry_out()
    for instance in ("processcube-engine", "processcube-engine__staging"):
        told = await install_status(fleet, instance)
        assert (told["instanceId"], told["status"], told["progress"]) == (instance, "installed", 100)
        assert (await fleet.status(instance)) == "running"
    config = (await fleet.viewer.get("/api/config")).json()
    product = next(each for each in config["products"] if each["alias"] == "staging")
    assert product["installedAt"].endswith("Z")
    del product["installedAt"]
    assert product == {
        "instanceId": "processcube-engine__staging", "id": "processcube-engine", "alias": "staging",
        "name": "processcube-engine", "npmPackage": "@processcube/processcube-engine.cuby", "version": "1.0.0",
        "url": None, "configured": True, "status": "running", "node": "n1",
    }  # fmt: skip


async def test_a_product_that_needs_a_configuration_waits_for_it(fleet: Fleet) -> None:
    instance = await fleet.install(config=SCHEMA)
    assert (await install_status(fleet, instance))["status"] == await fleet.status(instance) == "needs_config"
    refused = await fleet.operator.post(f"/api/products/{instance}/start")
    assert refused.status_code == 409


#: What cannot be installed, and the status that says so.
REFUSED: list[tuple[Any, int]] = [
    ([{"productId": "no-such-product"}], 404),
    ([{"productId": "processcube-engine"}, {"productId": "no-such-product"}], 404),
    ([{"productId": "processcube-engine", "version": "9.9.9"}], 404),
    ([{"productId": "processcube-engine", "alias": "../evil"}], 400),
    ([{"productId": "processcube-engine", "alias": "a__b"}], 400),
    ([{"productId": "processcube-engine"}, {"productId": "processcube-engine"}], 400),
    ([{"productId": "processcube-engine", "node": "nowhere"}], 422),
    ([], 400),
    ("processcube-engine", 400),
]


async def test_what_cannot_be_installed_is_refused_whole(fleet: Fleet) -> None:
    await fleet.offer()
    for products, status in REFUSED:
        answer = await fleet.operator.post("/api/install", json={"products": products})
        assert answer.status_code == status, answer.text
        assert set(answer.json()) <= {"error", "code", "details"}
    assert await apps.every(fleet.store) == []


async def test_what_is_installed_is_not_installed_again(fleet: Fleet) -> None:
    await fleet.install()
    answer = await start(fleet, {"productId": "processcube-engine"})
    assert answer.status_code == 409
    assert "alias" in answer.json()["error"]


async def test_a_pending_install_is_cancelled_and_leaves_nothing(fleet: Fleet) -> None:
    await fleet.offer()
    await start(fleet, {"productId": "processcube-engine"})
    body = {"instanceId": "processcube-engine"}
    assert (await fleet.viewer.post("/api/install/cancel", json=body)).status_code == 403
    answer = await fleet.operator.post("/api/install/cancel", json=body)
    assert answer.json() == {"instanceId": "processcube-engine", "message": "Installation cancelled"}
    assert (await fleet.operator.post("/api/install/cancel", json=body)).status_code == 404
    gone = await fleet.viewer.get("/api/install/status?productId=processcube-engine")
    assert gone.status_code == 404
    assert await fleet.node.carry_out() == 0


async def test_what_is_installed_already_is_not_cancelled(fleet: Fleet) -> None:
    instance = await fleet.install()
    answer = await fleet.operator.post("/api/install/cancel", json={"instanceId": instance})
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")


async def test_an_install_that_failed_says_why_and_may_be_asked_for_again(fleet: Fleet) -> None:
    await fleet.offer()
    await start(fleet, {"productId": "processcube-engine"})
    [claim] = await fleet.node.claim()
    from storage import attempts

    await fleet.store.call(attempts.begin(fleet.node.holder, claim.job_id, claim.attempt))
    said = apps.installing(
        fleet.node.holder, "processcube-engine", job=(claim.job_id, claim.attempt), progress=40, message="npm install",
        error="npm ended with exit code 1.",
    )  # fmt: skip
    await fleet.store.call(said)
    await fleet.store.call(
        attempts.settle(fleet.node.holder, claim.job_id, claim.attempt, "failed", "exit_code", 1)
    )
    told = await install_status(fleet, "processcube-engine")
    assert (told["status"], told["error"]) == ("failed", "npm ended with exit code 1.")
    assert await fleet.status("processcube-engine") == "failed"
    again = await start(fleet, {"productId": "processcube-engine"})
    assert again.status_code == 202, again.text
    assert (await install_status(fleet, "processcube-engine"))["status"] == "installing"


async def test_an_install_without_a_node_is_refused(hostler: Any) -> None:
    fleet = Fleet(hostler, None, *[await hostler.user(role) for role in "awr"])  # type: ignore[arg-type]
    await fleet.offer()
    answer = await start(fleet, {"productId": "processcube-engine"})
    assert answer.status_code == 409
    assert "node" in answer.json()["error"]


async def test_autostart_is_switched_for_what_is_installed_and_what_will_be(fleet: Fleet) -> None:
    await fleet.install("one")
    assert (await apps.get(fleet.store, "one")).autostart
    for enabled in (False, True, False):
        await fleet.operator.post("/api/config/autostart", json={"enabled": enabled})
        assert (await apps.get(fleet.store, "one")).autostart is enabled
    await fleet.install("two")
    assert not (await apps.get(fleet.store, "two")).autostart
