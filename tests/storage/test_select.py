"""Pages of jobs by several filters: the same whichever index is short, and in the wanted order."""

import itertools
import random

import pytest
import redis

from storage import jobs, scripts
from storage.store import Store

STATES, TAGS = ("completed", "failed"), ("a", "b")


def fill(client: redis.Redis, count: int) -> dict[str, dict[str, int]]:
    """Write jobs as their indexes have them; answers the indexes."""
    chance = random.Random(7)  # noqa: S311
    indexes: dict[str, dict[str, int]] = {}
    pipe = client.pipeline(transaction=False)
    for number in range(count):
        job_id, created, ended = f"job-{number:020}", number // 3, chance.randrange(count)
        tags = [tag for tag in TAGS if chance.random() < 0.4]
        state = chance.choice(STATES)
        for index, score in (
            ("h:jobs", created), ("h:ended", ended), (f"h:jobs:{state}", created),
            *((f"h:jobs:tag:{tag}", created) for tag in tags),
        ):  # fmt: skip
            indexes.setdefault(index, {})[job_id] = score
        pipe.hset(f"h:job:{job_id}", mapping={"state": state, "spec": '{"tags":[]}', "created": created})
    for index, members in indexes.items():
        pipe.zadd(index, members)
    pipe.execute()
    return indexes


@pytest.mark.parametrize("rule", ["expected < sizes[least]", "true", "false"])
async def test_every_combination_of_filters_gives_the_page_that_a_full_look_gives(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    indexes = fill(redis_client, 300)
    text = (
        scripts.source("select").replace("BLOCK = 500", "BLOCK = 7").replace("expected < sizes[least]", rule)
    )
    digest = redis_client.script_load(text)
    monkeypatch.setattr(scripts, "sha", lambda name: digest)
    for state, tags, order_by, newest, offset in itertools.product(
        (None, "failed"), ((), ("a",), ("a", "b")), ("createdAt", "completedAt"), (True, False), (0, 25)
    ):
        found, total = await jobs.page(
            store, limit=10, offset=offset, state=state, tags=tags, order_by=order_by, newest_first=newest
        )
        order = indexes[jobs.ORDERS[order_by]]
        wanted = set(order)
        for index in [*([f"h:jobs:{state}"] if state else []), *(f"h:jobs:tag:{tag}" for tag in tags)]:
            wanted &= set(indexes[index])
        ranked = sorted(wanted, key=lambda job_id: (order[job_id], job_id), reverse=newest)
        assert total == len(wanted)
        assert [job.id for job in found] == ranked[offset : offset + 10], (
            state,
            tags,
            order_by,
            newest,
            offset,
        )
