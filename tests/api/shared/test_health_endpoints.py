from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis
from servers import free_port

from api.app import create_app
from settings import Settings, __version__
from storage import fleet
from storage.attempts import Holder
from storage.store import Store


async def _client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://hostler.test"
    ) as client:
        yield client
    for middleware in app._unprepared_middleware:
        await middleware.process_shutdown({}, {})


@pytest.fixture
async def client(settings_with_s3: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async for each in _client(settings_with_s3):
        yield each


@pytest.fixture
async def alone(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API whose Redis and whose object store are both away."""
    nowhere = f"127.0.0.1:{free_port()}"
    away = replace(
        settings, redis_url=f"redis://{nowhere}/0", s3_endpoint_url=f"http://{nowhere}", s3_access_key_id="x",
        s3_secret_access_key="y",
    )  # fmt: skip
    async for each in _client(away):
        yield each


def failed(told: Any) -> set[str]:
    return {check["name"] for check in told["checks"] if check["status"] == "failed"}


async def test_the_process_says_that_it_runs(client: httpx.AsyncClient) -> None:
    for path in ("/api/health", "/api/health/live"):
        told = (await client.get(path)).json()
        assert (told["status"], told["version"], told["timestamp"][-1]) == ("ok", __version__, "Z")


async def test_readiness_names_what_is_missing(
    client: httpx.AsyncClient, settings: Settings, redis_client: redis.Redis
) -> None:
    answer = await client.get("/api/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert failed(answer.json()) == {"scheduler", "workers"}
    assert all(check["latencyMs"] >= 0 for check in answer.json()["checks"])
    redis_client.set("h:leader", "1 me")
    store = Store(settings)
    await store.call(fleet.register(Holder("w", "r"), {"kind": "worker"}, silent_s=30))
    await store.close()
    answer = await client.get("/api/health/ready")
    assert (answer.json()["status"], failed(answer.json())) == ("ok", set())


async def test_a_missing_object_store_only_degrades(settings: Settings) -> None:
    away = replace(
        settings,
        s3_endpoint_url=f"http://127.0.0.1:{free_port()}",
        s3_access_key_id="x",
        s3_secret_access_key="y",
    )
    async for client in _client(away):
        answer = await client.get("/api/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert "objectStore" in failed(answer.json())


async def test_without_redis_nothing_is_ready_but_the_process_lives(alone: httpx.AsyncClient) -> None:
    answer = await alone.get("/api/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert "redis" in failed(answer.json())
    assert (await alone.get("/api/health/live")).status_code == 200
    assert (await alone.get("/api/openapi.json")).status_code == 200
    assert (await alone.get("/api/jobs/list")).status_code == 503
    assert (await alone.post("/api/auth/login", json={"email": "a@b.c", "password": "x"})).status_code == 503


async def test_the_description_is_served_with_its_page(client: httpx.AsyncClient) -> None:
    document = (await client.get("/api/openapi.json")).json()
    assert document["paths"]["/api/jobs/submit"]["post"]["summary"]
    page = await client.get("/api/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "sandbox" not in policy
    for name, media_type in (("reference.css", "text/css"), ("rapidoc-min.js", "text/javascript")):
        asset = await client.get(f"/api/docs/{name}")
        assert (asset.status_code, asset.headers["Content-Type"]) == (200, f"{media_type}; charset=utf-8")
        assert f"/api/docs/{name}" in page.text
    assert (await client.get("/api/docs/reference.js")).status_code == 200


@pytest.mark.parametrize("name", ["VENDORED.md", "index.html", "%2e%2e", "..%2fapp.py", "x"])
async def test_nothing_else_of_the_folder_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/api/docs/{name}")).status_code == 404
