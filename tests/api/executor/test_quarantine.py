"""The quarantine over HTTP: a job that lost three workers is shown, and let run again or discarded."""

import engine
import pytest
from whole import Hostler

from storage import quarantine, upkeep
from storage.calls import command
from storage.store import Store


async def quarantined(store: Store) -> str:
    """Make a job that loses its worker three times."""
    job_id = await engine.submit(store, "kill-my-worker")
    for attempt in (1, 2, 3):
        holder = await engine.register(store, f"w{attempt}", f"r{attempt}")
        (claimed,) = await engine.claim(store, holder)
        await engine.output(store, holder, claimed, f"attempt {attempt}\n".encode())
        await store.calls(
            command("ZADD", "h:leases", 1, job_id),
            command("SET", "h:reaper:last", store.now_ms()),  # the reaper has looked a moment ago
            command("DEL", "h:reaper:hold"),
        )
        await store.call(upkeep.reap(store.settings))
    return job_id


@pytest.fixture
async def poison(hostler: Hostler) -> str:
    return await quarantined(hostler.store)


async def test_a_quarantined_job_is_listed_with_its_deaths_and_last_words(
    hostler: Hostler, poison: str
) -> None:
    viewer = await hostler.user("r")
    (shown,) = (await viewer.get("/api/jobs/quarantine")).json()["jobs"]
    assert (shown["jobId"], shown["reason"]) == (poison, "quarantined")
    assert [death["workerId"] for death in shown["deaths"]] == ["w1", "w2", "w3"]
    assert shown["lastLines"] == "attempt 3\n"


async def test_a_death_shows_the_signal_and_the_peak_memory_once_its_machine_has_told(
    hostler: Hostler, poison: str
) -> None:
    segfault = quarantine.obituary(poison, 2, how="by-itself", signal=11, max_rss_bytes=5 << 20)
    unknown = quarantine.obituary(poison, 4, how="by-itself", signal=11, max_rss_bytes=5 << 20)
    assert await hostler.store.calls(segfault, unknown) == [True, False]
    (shown,) = (await (await hostler.user("r")).get("/api/jobs/quarantine")).json()["jobs"]
    told = [(death["how"], death["exitSignal"], death["maxRssBytes"]) for death in shown["deaths"]]
    assert told == [(None, None, None), ("by-itself", 11, 5 << 20), (None, None, None)]


async def test_releasing_runs_the_command_again_as_a_new_job(hostler: Hostler, poison: str) -> None:
    operator = await hostler.user("w")
    answer = await operator.post(f"/api/jobs/quarantine/{poison}/release")
    assert answer.status_code == 201
    again = (await operator.get("/api/jobs/status", params={"jobId": answer.json()["jobId"]})).json()["job"]
    assert (again["command"], again["status"], again["retryOf"]) == ("kill-my-worker", "queued", poison)
    assert (await operator.get("/api/jobs/quarantine")).json()["total"] == 0
    assert (await operator.post(f"/api/jobs/quarantine/{poison}/release")).status_code == 404


async def test_a_discarded_job_stays_failed(hostler: Hostler, poison: str) -> None:
    operator = await hostler.user("w")
    assert (await operator.delete(f"/api/jobs/quarantine/{poison}")).status_code == 200
    assert (await operator.get("/api/jobs/quarantine")).json()["total"] == 0
    job = (await operator.get("/api/jobs/status", params={"jobId": poison})).json()["job"]
    assert (job["status"], job["reason"]) == ("failed", "quarantined")
    assert (await operator.delete(f"/api/jobs/quarantine/{poison}")).status_code == 404
