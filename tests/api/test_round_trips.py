"""How often each endpoint waits for Redis: pinned, so that no one-by-one loop creeps in."""

from typing import Any

import pytest
from whole import Hostler

#: Method, path, body, and how many writes to Redis it may take once the process knows its caller.
PINNED: list[tuple[str, str, Any, int]] = [
    ("POST", "/api/jobs/submit", {"command": "true"}, 1),
    ("POST", "/api/jobs/submit", {"command": "true", "tags": ["gpu"], "priority": "high"}, 1),
    ("POST", "/api/jobs/submit-batch", {"jobs": [{"command": "true"}] * 50}, 3),
    ("GET", "/api/jobs/status?jobId={job}", None, 1),
    ("GET", "/api/jobs/list", None, 1),
    ("GET", "/api/jobs/list?status=queued&tags=a,b&limit=1000", None, 1),
    ("GET", "/api/jobs/list?sort=-completedAt&offset=50", None, 1),
    ("POST", "/api/jobs/cancel", {"jobId": "{job}"}, 1),
    ("POST", "/api/jobs/cancel-batch", {"jobIds": [f"job-{number:020}" for number in range(50)]}, 2),
    ("GET", "/api/workers/list", None, 2),
    ("GET", "/api/files/list", None, 2),
    ("GET", "/api/schedules", None, 2),
    ("GET", "/api/queues?targetSeconds=5&tags=a,b", None, 2),
    ("GET", "/metrics", None, 1),
]


async def writes(hostler: Hostler, client: Any, method: str, path: str, body: Any) -> int:
    connection = hostler.app.hub.store.wire._connection  # type: ignore[attr-defined]
    assert connection is not None
    flush, count = connection._flush, 0

    def counted() -> None:
        nonlocal count
        count += 1
        flush()

    connection._flush = counted  # type: ignore[method-assign]  # each write is one wait of somebody
    try:
        answer = await client.request(method, path, json=body)
    finally:
        connection._flush = flush  # type: ignore[method-assign]
    assert answer.is_success, answer.text
    return count


@pytest.mark.parametrize(("method", "path", "body", "most"), PINNED, ids=lambda value: str(value)[:60])
async def test_an_endpoint_waits_for_redis_so_often_and_no_more(
    hostler: Hostler, method: str, path: str, body: Any, most: int
) -> None:
    client = await hostler.user("a")
    for _ in range(30):
        answer = await client.post("/api/jobs/submit", json={"command": "true", "tags": ["a", "b"]})
    job_id = answer.json()["jobId"]
    path = path.replace("{job}", job_id)
    body = {name: job_id if value == "{job}" else value for name, value in body.items()} if body else None
    await client.request(method, path, json=body)  # Redis learns the script, and the process what it keeps
    await hostler.app.hub.store.keyring.check()  # which every few seconds takes a turn of its own
    hostler.app.hub.store.cache.pop("metrics", None)  # what it answers again within a second
    assert await writes(hostler, client, method, path, body) == most
