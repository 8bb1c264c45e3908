"""What Prometheus scrapes: the fleet's numbers, this server's requests, and no name of anybody."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import engine
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from whole import Hostler

from storage import findings
from storage.calls import command

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


async def scraped(hostler: Hostler, **headers: str) -> str:
    """Scrape it as it is now, not as it was a moment ago."""
    await hostler.store.call(command("DEL", "h:census"))
    hostler.app.hub.store.cache.pop("metrics", None)  # type: ignore[attr-defined]
    answer = await hostler.client().get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in plain(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def one(hostler: Hostler, name: str, **labels: str) -> float:
    return samples(await scraped(hostler))[name][tuple(sorted(labels.items()))]


async def test_an_empty_fleet_has_every_series_that_alerts_ask_for(hostler: Hostler) -> None:
    await findings.look(hostler.store)
    found = samples(await scraped(hostler))
    assert found["hostler_queue_jobs"][("priority", "normal"), ("tags", "")] == 0
    assert found["hostler_workers"][("kind", "worker"), ("status", "online")] == 0
    assert found["hostler_leader_up"][()] == 0
    assert found["hostler_s3_up"][()] == 0
    assert found["hostler_redis_up"][()] == 1
    assert found["hostler_redis_memory_bytes"][()] > 100_000
    assert found["hostler_job_running_seconds_bucket"][("le", "+Inf"), ("state", "failed")] == 0


async def test_jobs_are_told_from_their_submission_to_their_end(hostler: Hostler) -> None:
    client = await hostler.user("w")
    for _ in range(3):
        assert (await client.post("/api/jobs/submit", json={"command": "true"})).status_code == 201
    assert await one(hostler, "hostler_queue_jobs", tags="", priority="normal") == 3
    holder = await engine.register(hostler.store, slots=4)
    (first,) = await engine.claim(hostler.store, holder)
    assert await one(hostler, "hostler_queue_running_jobs", tags="", priority="normal") == 1
    assert await one(hostler, "hostler_leases") == 1
    await engine.settle(hostler.store, holder, first, "failed")
    found = samples(await scraped(hostler))
    assert found["hostler_jobs_ended_total"] == {(("reason", "exit_code"), ("state", "failed")): 1}
    assert found["hostler_job_waiting_seconds_count"][(("priority", "normal"),)] == 1
    assert found["hostler_job_running_seconds_count"][(("state", "failed"),)] == 1
    assert found["hostler_workers_needed"][(("tags", ""),)] == 1
    assert found["hostler_slots"][()] == 4


async def test_requests_are_counted_by_their_declared_route_and_their_status(hostler: Hostler) -> None:
    def counts(text: str) -> dict[Any, float]:
        return samples(text).get("hostler_http_request_seconds_count", {})

    before = counts(await scraped(hostler))
    client = await hostler.user("w")
    ids = [
        (await client.post("/api/jobs/submit", json={"command": "true"})).json()["jobId"] for _ in range(2)
    ]
    for _ in range(3):
        await client.get("/api/workers/nobody-of-this-name")
    await client.get("/nowhere/at/all")
    await client.request("BREW", "/nowhere/else")
    text = await scraped(hostler)
    after = counts(text)

    def grown(method: str, route: str, status: str) -> float:
        key = (("method", method), ("route", route), ("status", status))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("POST", "/api/jobs/submit", "201") == 2
    assert grown("GET", "/api/workers/{workerId}", "404") == 3
    assert grown("GET", "", "404") == 1
    assert "BREW" not in text
    assert "nobody-of" not in text
    assert ids[0] not in text


async def test_openmetrics_tells_which_request_was_the_latest(hostler: Hostler) -> None:
    client = await hostler.user("w")
    answer = await client.get("/api/jobs/list", headers={"X-Request-Id": "0123456789abcdef"})
    assert answer.status_code == 200
    text = await scraped(hostler, **OPENMETRICS)
    assert text.endswith("# EOF\n")
    exemplars = {
        (sample.labels["route"], sample.exemplar.labels["request_id"])
        for family in openmetrics(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert ("/api/jobs/list", "0123456789abcdef") in exemplars
    assert "0123456789abcdef" not in await scraped(hostler)  # the plain format has no place for them
    await client.get("/api/jobs/list", headers={"X-Request-Id": "chosen-by-lovelace"})
    assert "lovelace" not in await scraped(hostler, **OPENMETRICS)


async def test_no_user_file_host_or_command_is_named(hostler: Hostler) -> None:
    client = await hostler.user("w")
    agent = {"hostname": "desktop-of-lovelace", "tags": ["gpu"]}
    await hostler.agent("machine-of-lovelace", **agent)
    body = {"command": "secret-command", "name": "secret-name", "tags": ["made-up-by-a-user"]}
    job = (await client.post("/api/jobs/submit", json=body)).json()["jobId"]
    await client.post("/api/jobs/submit", json={"command": "secret-command", "tags": ["gpu"]})
    await findings.look(hostler.store)
    for headers in ({}, OPENMETRICS):
        text = await scraped(hostler, **headers)
        for word in ("lovelace", "secret", "user-w", "made-up", job, "example.org", "machine"):
            assert word not in text, word
        assert 'tags="gpu"' in text
        assert 'tags="others"' in text
        assert not re.search(r"\b(job|user|key|file)-[0-9a-z]{20}", text)


async def test_tags_that_the_operator_names_are_named_before_any_worker_has_them(settings_for: Any) -> None:
    async with settings_for(metrics_tags=("gpu+linux",)) as hostler:
        client = await hostler.user("w")
        await client.post("/api/jobs/submit", json={"command": "true", "tags": ["linux", "gpu"]})
        assert await one(hostler, "hostler_workers_needed", tags="gpu+linux") == 1


async def test_without_redis_the_page_tells_that_and_what_this_process_knows(hostler: Hostler) -> None:
    store = hostler.app.hub.store  # type: ignore[attr-defined]
    await hostler.client().get("/api/health/live")
    store.cache.pop("metrics", None)
    await store.wire.close()
    address = store.wire.address
    store.wire.address = replace(address, port=1)
    try:
        answer = await hostler.client().get("/metrics")
    finally:
        store.wire.address = address
        store.cache.pop("metrics", None)
    found = samples(answer.text)
    assert found["hostler_redis_up"][()] == 0
    assert "hostler_jobs" not in found
    assert any(("route", "/api/health/live") in key for key in found["hostler_http_request_seconds_count"])


async def test_whoever_scrapes_within_a_second_hears_the_same(hostler: Hostler) -> None:
    client = hostler.client()
    await scraped(hostler)
    texts = await asyncio.gather(*(client.get("/metrics") for _ in range(5)))
    assert len({answer.text for answer in texts}) == 1
    assert texts[0].headers["content-type"].startswith("text/plain; version=")


async def test_a_hash_that_somebody_else_wrote_is_not_believed(
    hostler: Hostler, redis_client: redis.Redis
) -> None:
    redis_client.hset(
        "h:noted", mapping={"at_ms": "1", "s3_up": "true", "s3_s": "0", "apps": '{"evil\\n": 1}'}
    )
    redis_client.hset("h:tally", mapping={"end:evil:x": "1", "end:failed:evil": "2", "wait:evil:1": "3"})
    found = samples(text := await scraped(hostler))
    assert "evil" not in text
    assert found["hostler_jobs_ended_total"] == {(("reason", "others"), ("state", "failed")): 2}
    redis_client.hset("h:noted", "apps", "[")
    assert "hostler_s3_up" not in await scraped(hostler)
