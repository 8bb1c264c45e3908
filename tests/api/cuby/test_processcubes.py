from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import fake_server
import pytest
import redis
from fake_server import Answer, Asked, FakeServer
from whole import Hostler, running

from scheduler import duties
from settings import Settings

CUBE = {
    "productId": "processcube-engine", "name": "Engine", "engineUrl": "https://engine.example:8000",
    "lowcodeUrls": ["https://lowcode.example"], "authorityUrl": "https://authority.example",
}  # fmt: skip
KEY = "1b4e28ba-2fa1-4d2e-883f-0016d3cca427"


@pytest.fixture
async def hostler(settings: Settings) -> AsyncIterator[Hostler]:
    """The whole API, which may ask servers on this machine."""
    async for each in running(replace(settings, outbound_allow=("127.0.0.1",))):
        yield each


@pytest.fixture
def neighbour() -> Any:
    """Another Hostler with one ProcessCube."""
    server = FakeServer()

    def answer(asked: Asked) -> Answer:
        assert asked.query == {"scope": "local"}
        known = asked.headers.get("authorization") == f"Bearer {KEY}"
        return Answer(200, [CUBE]) if known else fake_server.error(401, "no")

    server.on("GET /api/processcubes", answer)
    yield server
    server.close()


async def register(hostler: Hostler, neighbour: FakeServer, name: str = "plant-2", key: str = KEY) -> Any:
    admin = await hostler.user("a")
    body = {"url": f"{neighbour.url}/", "apiKey": key}
    return await admin.put(f"/api/processcubes/sub-cubies/{name}", json=body)


async def test_a_registered_neighbours_cubes_are_listed_and_told_of(
    hostler: Hostler, neighbour: FakeServer, redis_client: redis.Redis
) -> None:
    viewer, admin = await hostler.user("r"), await hostler.user("a")
    assert (await viewer.get("/api/processcubes")).json() == []
    answer = await register(hostler, neighbour)
    assert answer.status_code == 200, answer.text
    entry = answer.json()
    assert (entry["name"], entry["connected"], entry["processCubes"]) == ("plant-2", True, 1)
    shown = {**CUBE, "instanceId": None, "source": "plant-2"}
    assert (await viewer.get("/api/processcubes")).json() == [shown]
    assert (await viewer.get("/api/processcubes?scope=local")).json() == []
    assert events(redis_client) == [("processcube.registered", "https://engine.example:8000")]
    assert (await register(hostler, neighbour)).status_code == 200
    assert len(events(redis_client)) == 1  # nothing new
    assert (await admin.delete("/api/processcubes/sub-cubies/plant-2")).status_code == 204
    assert (await viewer.get("/api/processcubes")).json() == []
    assert events(redis_client)[1:] == [("processcube.unregistered", "https://engine.example:8000")]
    assert (await admin.delete("/api/processcubes/sub-cubies/plant-2")).status_code == 404


def events(redis_client: redis.Redis) -> list[tuple[str, str]]:
    entries: Any = redis_client.xrange("h:events")
    found = ({name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries)
    return [(each["e"], each["engineUrl"]) for each in found if each["e"].startswith("processcube.")]


async def test_a_neighbour_that_does_not_know_the_key_is_not_registered(
    hostler: Hostler, neighbour: FakeServer
) -> None:
    answer = await register(hostler, neighbour, key="another-key")
    assert (answer.status_code, answer.json()["code"]) == (502, "SUB_CUBY_REFUSED")
    assert (await (await hostler.user("a")).get("/api/processcubes/sub-cubies")).json() == {"subCubies": []}


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "ftp://x.example", "https://u:p@x.example", "http://127.0.0.2:1"]
)
async def test_an_address_inside_is_not_asked(hostler: Hostler, url: str) -> None:
    admin = await hostler.user("a")
    answer = await admin.put("/api/processcubes/sub-cubies/x", json={"url": url, "apiKey": KEY})
    assert answer.status_code == 400
    assert KEY not in answer.text


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a%20b", KEY, "name"),
        ("-x", KEY, "name"),
        ("x", "\u202ekey", "apiKey"),
        ("x", "a b", "apiKey"),
        ("x", "k\n", "apiKey"),
    ],
)
async def test_a_bad_name_or_key_is_refused_before_anybody_is_asked(
    hostler: Hostler, neighbour: FakeServer, name: str, key: str, field: str
) -> None:
    answer = await register(hostler, neighbour, name, key)
    assert (answer.status_code, list(answer.json()["details"])) == (400, [field])
    assert not neighbour.asked


async def test_a_neighbours_key_is_sealed_and_never_shown(
    hostler: Hostler, neighbour: FakeServer, redis_client: redis.Redis
) -> None:
    await register(hostler, neighbour)
    kept = redis_client.hgetall("h:subcuby:plant-2")
    assert KEY.encode() not in b"".join(kept.values())
    assert KEY not in (await (await hostler.user("a")).get("/api/processcubes/sub-cubies")).text
    for role in ("r", "w"):
        assert (await (await hostler.user(role)).get("/api/processcubes/sub-cubies")).status_code == 403


async def test_one_whose_address_was_changed_in_redis_is_not_asked(
    hostler: Hostler, neighbour: FakeServer, redis_client: redis.Redis
) -> None:
    await register(hostler, neighbour)
    record = redis_client.hget("h:subcuby:plant-2", "record")
    redis_client.hset(
        "h:subcuby:plant-2", "record", record.replace(neighbour.url.encode(), b"http://127.0.0.1:9")
    )
    asked = len(neighbour.asked)
    await duties.ask_sub_cubies(hostler.store)
    assert len(neighbour.asked) == asked
    assert (await (await hostler.user("r")).get("/api/processcubes")).json() == []


async def test_the_leader_asks_and_a_neighbour_that_is_gone_takes_its_cubes_with_it(
    hostler: Hostler, neighbour: FakeServer, redis_client: redis.Redis, monkeypatch: Any
) -> None:
    hostler.store.settings = hostler.settings
    await register(hostler, neighbour)
    viewer, admin = await hostler.user("r"), await hostler.user("a")
    other = {**CUBE, "engineUrl": "https://engine-2.example", "lowcodeUrls": ["javascript:alert(1)"]}
    neighbour.routes["GET /api/processcubes"] = [Answer(200, [CUBE, other, {"productId": 1}, "x"])]
    await duties.ask_sub_cubies(hostler.store)
    shown = (await viewer.get("/api/processcubes")).json()
    assert [(each["engineUrl"], each["lowcodeUrls"]) for each in shown] == [
        (CUBE["engineUrl"], CUBE["lowcodeUrls"]),
        ("https://engine-2.example", []),
    ]
    neighbour.routes["GET /api/processcubes"] = [Answer(503, {})]
    await duties.ask_sub_cubies(hostler.store)
    assert len((await viewer.get("/api/processcubes")).json()) == 2  # it may come back
    [entry] = (await admin.get("/api/processcubes/sub-cubies")).json()["subCubies"]
    assert not entry["connected"]
    assert "503" in entry["problem"]
    now_ms = hostler.store.now_ms()
    monkeypatch.setattr(hostler.store, "now_ms", lambda: now_ms + 61_000)
    await duties.ask_sub_cubies(hostler.store)
    assert (await viewer.get("/api/processcubes")).json() == []
    assert sorted(events(redis_client)[2:]) == [
        ("processcube.unregistered", "https://engine-2.example"),
        ("processcube.unregistered", "https://engine.example:8000"),
    ]
    neighbour.routes["GET /api/processcubes"] = [Answer(200, [CUBE])]
    await duties.ask_sub_cubies(hostler.store)
    assert len((await viewer.get("/api/processcubes")).json()) == 1
    neighbour.routes["GET /api/processcubes"] = [Answer(401, {})]
    await duties.ask_sub_cubies(hostler.store)
    assert (await viewer.get("/api/processcubes")).json() == []
