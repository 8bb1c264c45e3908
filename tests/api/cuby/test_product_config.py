import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cuby.conftest import COMPONENTS, SCHEMA, Fleet
from storage import apps, attempts
from storage.errors import NotFound
from storage.relay import Ask, Head

ENGINE = "processcube-engine"


async def configure(fleet: Fleet, body: Any, instance: str = ENGINE) -> Any:
    return await fleet.operator.post(f"/api/products/{instance}/configure", json=body)


async def config_of(fleet: Fleet, instance: str = ENGINE) -> Any:
    return (await fleet.viewer.get(f"/api/products/{instance}/config")).json()


async def kept(fleet: Fleet) -> dict[str, Any]:
    """Return the configuration as its node gets it."""
    return (await apps.get(fleet.store, ENGINE)).config(fleet.store.seal)


async def test_a_configuration_is_stored_and_deployed(fleet: Fleet) -> None:
    await fleet.install(config=SCHEMA)
    told = await config_of(fleet)
    assert told == {
        "instanceId": ENGINE, "productId": ENGINE, "configured": False, "config": {}, "schema": SCHEMA,
    }  # fmt: skip
    assert (await fleet.viewer.post(f"/api/products/{ENGINE}/configure", json={})).status_code == 403
    answer = await configure(fleet, {"greeting": "hello", "token": "s3cret"})
    assert answer.status_code == 202, answer.text
    assert set(answer.json()) == {"instanceId", "productId", "status", "message", "jobId"}
    await fleet.node.carry_out()
    assert await fleet.status(ENGINE) == "running"
    told = await config_of(fleet)
    assert (told["configured"], told["config"]) == (True, {"greeting": "hello", "token": "********"})
    assert fleet.node.done[-1] == (ENGINE, "configure")


async def test_a_configuration_waits_for_the_install_that_asked_for_it(fleet: Fleet) -> None:
    await fleet.offer(config=SCHEMA)
    installing = await fleet.operator.post("/api/install", json={"products": [{"productId": ENGINE}]})
    (claim,) = await fleet.node.claim()
    holder, attempt = fleet.node.holder, (claim.job_id, claim.attempt)
    await fleet.store.call(attempts.begin(holder, *attempt))
    given, manifest = (
        claim.read_spec(fleet.store.seal)["release"],
        (await apps.get(fleet.store, ENGINE)).manifest,
    )
    assert manifest is not None
    await apps.released(
        fleet.store, holder, ENGINE, job=attempt, version="1.0.0", directory="1.0.0", source=given["source"],
        manifest=manifest,
    )  # fmt: skip
    assert await fleet.status(ENGINE) == "needs_config"
    asked = asyncio.create_task(configure(fleet, {"greeting": "hello", "token": "s3cret"}))
    await asyncio.sleep(0.1)
    assert not asked.done()
    await fleet.store.call(attempts.settle(holder, *attempt, "completed", "", 0))
    answer = await asked
    assert (installing.status_code, answer.status_code) == (202, 202), answer.text


@pytest.mark.parametrize("wrapped", [False, True])
async def test_the_mask_leaves_a_secret_as_it_is(fleet: Fleet, wrapped: bool) -> None:
    await fleet.install(config=SCHEMA)
    for config in ({"greeting": "hello", "token": "s3cret"}, {"greeting": "good day", "token": "********"}):
        assert (await configure(fleet, {"config": config} if wrapped else config)).status_code == 202
        await fleet.node.carry_out()
    assert await kept(fleet) == {"greeting": "good day", "token": "s3cret"}


async def test_a_product_with_a_property_called_config_is_configured_bare(fleet: Fleet) -> None:
    schema = {"type": "object", "properties": {"config": {"type": "object"}}}
    await fleet.install(config=schema)
    assert (await configure(fleet, {"config": {"x": 1}})).status_code == 202
    assert await kept(fleet) == {"config": {"x": 1}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "config.greeting"),
        ({"greeting": ""}, "config.greeting"),
        ({"greeting": 5}, "config.greeting"),
        ({"greeting": "x", "other": 1}, "config.other"),
        ({"greeting": "x", "token": 5}, "config.token"),
    ],
)
async def test_what_the_schema_does_not_allow_is_refused_and_not_kept(
    fleet: Fleet, body: dict[str, Any], field: str
) -> None:
    await fleet.install(config=SCHEMA)
    answer = await configure(fleet, body)
    assert answer.status_code == 400
    assert field in answer.json()["details"]
    assert await kept(fleet) == {}
    assert await fleet.node.carry_out() == 0


async def test_a_secret_is_in_no_answer_and_nowhere_in_redis(fleet: Fleet, redis_client: Any) -> None:
    await fleet.install(config=SCHEMA)
    secret = "correct-horse-battery"
    answer = await configure(fleet, {"greeting": 5, "token": secret})
    assert secret not in answer.text
    answer = await configure(fleet, {"greeting": "x", "token": secret})
    await fleet.node.carry_out()
    for text in (answer.text, str(await config_of(fleet)), (await fleet.viewer.get("/api/config")).text):
        assert secret not in text
    for name in redis_client.scan_iter():
        kind = redis_client.type(name)
        read = {
            b"string": redis_client.get,
            b"hash": redis_client.hgetall,
            b"stream": redis_client.xrange,
        }.get(kind)
        assert secret not in repr(read(name) if read else redis_client.dump(name)), name


async def test_bodies_that_are_no_configuration_are_refused(fleet: Fleet) -> None:
    await fleet.install(config=SCHEMA)
    assert (await configure(fleet, [])).status_code == 400
    big = await configure(fleet, {"greeting": "x" * 300_000})
    assert big.status_code == 413
    form = await fleet.operator.post(f"/api/products/{ENGINE}/configure", data={"greeting": "x"})
    assert form.status_code == 415


async def test_what_a_product_brings_is_told(fleet: Fleet) -> None:
    await fleet.install("bare")
    await fleet.install("full", config=SCHEMA, components=COMPONENTS)
    for product, has in (("bare", False), ("full", True)):
        config = (await fleet.viewer.get(f"/api/products/{product}/has-config")).json()
        assert config == {"hasConfig": has, "hasSchema": has}
        assert (await fleet.viewer.get(f"/api/products/{product}/has-detail")).json() == {"hasDetail": has}
    for which in ("config", "detail"):
        answer = await fleet.viewer.get(f"/api/products/bare/{which}-component.js")
        assert answer.status_code == 404


async def test_a_product_with_a_schema_alone_has_a_form_made_from_it(fleet: Fleet) -> None:
    await fleet.install(config=SCHEMA)
    told = (await fleet.viewer.get(f"/api/products/{ENGINE}/has-config")).json()
    assert told == {"hasConfig": True, "hasSchema": True}
    answer = await fleet.viewer.get(f"/api/products/{ENGINE}/config-component.js")
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert "export default function Form" in answer.text
    assert (await fleet.viewer.get(f"/api/products/{ENGINE}/detail-component.js")).status_code == 404


async def test_a_component_comes_from_the_active_release(fleet: Fleet) -> None:
    await fleet.install(components=COMPONENTS)
    asked: list[Ask] = []

    async def handle(ask: Ask) -> AsyncIterator[Head | bytes]:
        asked.append(ask)
        if ask.path == "/ui/detail.js":
            raise NotFound("There is no such file.")
        yield Head(200, (("content-type", "text/html"), ("set-cookie", "auth_token=evil")))
        yield b"export default () => null;"

    path = f"/api/products/{ENGINE}/config-component.js"
    assert (await fleet.viewer.get(path)).status_code == 503  # its node is away
    async with fleet.answering(handle):
        answer = await fleet.viewer.get(path)
        assert (answer.status_code, answer.text) == (200, "export default () => null;")
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Set-Cookie" not in answer.headers
        again = await fleet.viewer.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304
        assert (await fleet.viewer.get(f"/api/products/{ENGINE}/detail-component.js")).status_code == 404
    assert {(each.kind, each.path) for each in asked} == {
        ("file", "/ui/config.js"),
        ("file", "/ui/detail.js"),
    }
    assert (await fleet.hostler.client().get(path)).status_code == 401


async def test_a_component_that_is_too_large_is_not_served(fleet: Fleet) -> None:
    await fleet.install(components=COMPONENTS)

    async def handle(ask: Ask) -> AsyncIterator[Head | bytes]:
        yield Head(200)
        for _ in range(6):
            yield b"x" * 1024 * 1024

    async with fleet.answering(handle):
        answer = await fleet.viewer.get(f"/api/products/{ENGINE}/config-component.js")
    assert answer.status_code == 502
