"""The rate at which a caller may come, far from its limit and near it."""

import redis

from storage import scripts

RATE = "h:rate:test"


def asked(client: redis.Redis, limit: int, at_ms: int) -> list[int]:
    text = scripts.source("admit").split("local HANDOVER_MS")[0]
    call = text + "return {rated(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))}"
    return client.eval(call, 0, RATE, limit, at_ms)  # type: ignore[return-value]


def test_in_no_second_do_more_than_the_limit_pass(redis_client: redis.Redis) -> None:
    passed: list[int] = []
    for at_ms in range(1_000_000, 1_004_000, 3):
        if asked(redis_client, 200, at_ms)[0]:
            passed.append(at_ms)
    assert all(
        sum(1 for one in passed if first <= one < first + 1000) <= 200
        for first in range(1_000_000, 1_003_000, 10)
    )
    assert len(passed) >= 4 * 200


def test_what_is_over_leaves_and_the_list_stays_as_long_as_a_second(redis_client: redis.Redis) -> None:
    for at_ms in range(1_000_000, 1_005_000, 2):
        assert asked(redis_client, 100_000, at_ms)[0] == 1
    assert 500 <= redis_client.llen(RATE) <= 532
    assert 0 < redis_client.pttl(RATE) <= 2000
    allowed, remaining, reset_ms = asked(redis_client, 100_000, 1_010_000)
    assert (allowed, remaining, reset_ms) == (1, 99_999, 1000)
    assert redis_client.llen(RATE) == 1
