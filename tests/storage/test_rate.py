"""The rate at which a caller may come, far from its limit and near it."""

import redis

from storage import scripts

RATE = "h:rate:test"


def asked(client: redis.Redis, limit: int, at_ms: int, many: int = 1) -> list[int]:
    text = scripts.source("admit").split("local HANDOVER_MS")[0]
    call = text + "return {rated(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))}"
    return client.eval(call, 0, RATE, limit, at_ms, many)  # type: ignore[return-value]


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


def test_of_several_at_once_as_many_pass_as_one_by_one(redis_client: redis.Redis) -> None:
    passed: list[int] = []
    for number, at_ms in enumerate(range(1_000_000, 1_004_000, 7)):
        passed += [at_ms] * asked(redis_client, 200, at_ms, number % 5 + 1)[0]
    assert all(
        sum(1 for one in passed if first <= one < first + 1000) <= 200
        for first in range(1_000_000, 1_003_000, 10)
    )
    assert len(passed) >= 4 * 200


def test_what_is_left_is_told_for_the_last_of_several(redis_client: redis.Redis) -> None:
    assert asked(redis_client, 10, 1_000_000, 4) == [4, 6, 1000]
    assert asked(redis_client, 10, 1_000_500, 8) == [6, 0, 500]
    assert redis_client.llen(RATE) == 10
    assert asked(redis_client, 10, 1_000_999, 3) == [0, 0, 1]
    assert asked(redis_client, 10, 1_001_000, 3) == [3, 1, 500]


def test_a_list_of_many_that_come_in_heaps_lasts_as_long_as_it_must(redis_client: redis.Redis) -> None:
    for at_ms in range(1_000_000, 1_000_900, 30):
        assert asked(redis_client, 100_000, at_ms, 33)[0] == 33
    assert redis_client.llen(RATE) == 30 * 33
    assert 1000 < redis_client.pttl(RATE) <= 2000
