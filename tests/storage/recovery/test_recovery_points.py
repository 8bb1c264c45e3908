"""Recovery points: whole or not there, sealed, checked before they are believed, and pruned with care."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from engine import submit

from settings import Settings
from storage import recovery, users
from storage.calls import Call, command, pairs
from storage.errors import HostlerError, NotFound
from storage.recovery import Place, Point, RecoveryError, points, routine
from storage.recovery.pacing import Pace
from storage.recovery.points import kept_of
from storage.seal import Seal
from storage.store import Store
from storage.wire import Wire


async def told(store: Store, name: str) -> list[dict[str, str]]:
    entries = await store.call(command("XRANGE", "h:events", "-", "+"))
    return [found for _, fields in entries if (found := pairs(fields))["e"] == name]


async def test_a_point_is_listed_verified_and_holds_nothing_in_the_clear(store: Store, place: Place) -> None:
    job_id = await submit(store, "echo a-word-to-look-for")
    point = await recovery.make(store)
    assert [each.id for each in await recovery.every(place)] == [point.id]
    assert point.counts["job"] == 1
    assert await recovery.verify(place, point) >= point.keys
    for key in await place.objects.keys("recovery/"):
        stored = await place.objects.get(key, limit_bytes=1 << 20)
        assert b"a-word-to-look-for" not in stored
        assert job_id.encode() not in stored


@pytest.mark.proves("F52")
async def test_one_flipped_byte_anywhere_is_found_and_named(
    store: Store, place: Place, evidence: list[str]
) -> None:
    for number in range(5):
        await submit(store, f"echo {number}")
    point = await recovery.make(store)
    keys = await place.objects.keys("recovery/")
    assert len(keys) == 3
    flipped = 0
    for key in keys:
        whole = await place.objects.get(key, limit_bytes=1 << 24)
        for at in (0, 5, len(whole) // 2, len(whole) - 1):
            spoilt = bytearray(whole)
            spoilt[at] ^= 1
            await place.objects.put(key, bytes(spoilt))
            with pytest.raises((RecoveryError, NotFound)) as refused:
                await recovery.verify(place, await recovery.get(place, point.id))
            assert point.id in str(refused.value)
            flipped += 1
        await place.objects.put(key, whole)
    assert await recovery.verify(place, await recovery.get(place, point.id)) > 0
    evidence += [f"{flipped} flipped bytes in record, index and part: each found before anything is read"]


async def test_a_point_of_another_key_says_so(store: Store, place: Place) -> None:
    point = await recovery.make(store)
    other = Place(place.objects, Seal("another-secret-key-of-somebody-else-0123456789"))
    with pytest.raises(
        RecoveryError, match=f"another HOSTLER_SECRET_KEY: its fingerprint is {point.fingerprint}"
    ):
        await recovery.get(other, point.id)
    assert await recovery.every(other) == []


async def test_parts_of_one_point_do_not_pass_for_those_of_another(store: Store, place: Place) -> None:
    await submit(store, "echo one")
    first = await recovery.make(store)
    await submit(store, "echo two")
    second = await recovery.make(store)
    for name in ("part-000000", "index"):
        own = await place.objects.get(place.key(second.id, name), limit_bytes=1 << 24)
        await place.objects.put(
            place.key(second.id, name),
            await place.objects.get(place.key(first.id, name), limit_bytes=1 << 24),
        )
        with pytest.raises(RecoveryError, match="was altered"):
            await recovery.verify(place, second)
        await place.objects.put(place.key(second.id, name), own)


def a_point(made: datetime) -> Point:
    return Point(
        id=f"{made:%Y%m%dT%H%M%SZ}-00000000", made_ms=int(made.timestamp() * 1000), took_ms=1, version="1",
        fingerprint="", parts=0, size_bytes=0, plain_bytes=0, keys=0, counts={}, index_sha256="",
    )  # fmt: skip


def test_the_newest_of_each_day_and_week_are_kept() -> None:
    start = datetime(2026, 3, 31, 23, 50, tzinfo=UTC)
    made = [a_point(start - timedelta(hours=6 * number)) for number in range(200)]
    kept = kept_of(made, last=3, days=5, weeks=4)
    days = {datetime.fromtimestamp(each.made_ms / 1000, UTC).date() for each in made if each.id in kept}
    assert {made[0].id, made[1].id, made[2].id} <= kept
    assert {start.date() - timedelta(days=number) for number in range(5)} <= days
    assert len(kept) == 3 + 4 + 2  # one of the weeks' is one of the days' already
    assert kept_of(made[:1], last=1, days=0, weeks=0) == {made[0].id}


async def test_pruning_deletes_what_no_rule_keeps_and_what_was_cut_short(store: Store, place: Place) -> None:
    made = [
        await recovery.make(store) for _ in range(8)
    ]  # most of them within one second, as their ids tell it
    assert [each.id for each in await recovery.every(place)] == [each.id for each in made[::-1]]
    forsaken = place.key("20200101T000000Z-0123abcd", "part-000000")
    young = place.key(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-0123abcd", "part-000000")
    await place.objects.put(forsaken, b"half")
    await place.objects.put(young, b"half")
    gone = await recovery.prune(place, last=1, days=0, weeks=0)
    left = await recovery.every(place)
    assert [each.id for each in left] == [made[-1].id]
    assert sorted(gone) == sorted(each.id for each in made[:-1])
    keys = await place.objects.keys("recovery/points/")
    assert forsaken not in keys
    assert young in keys
    assert {key.split("/")[2] for key in keys} == {left[0].id, young.split("/")[2]}


async def test_a_point_is_made_when_it_is_due_and_not_before(store: Store, place: Place) -> None:
    assert await recovery.keep_up(store) is None  # of nothing at all
    await users.create(store, actor="t", username="ada", email="a@b.org", password="pass word", role="a")
    assert await recovery.keep_up(store) is not None
    assert await recovery.keep_up(store) is None
    await store.call(command("DEL", "h:recovery"))  # a scheduler on a Redis that knows nothing of it
    assert await recovery.keep_up(store) is None
    await store.call(command("HSET", "h:recovery", "last", store.now_ms() - 901_000))
    assert await recovery.keep_up(store) is not None
    assert len(await told(store, "recovery.made")) == 2
    store.settings = dataclasses.replace(store.settings, recovery_every_s=0)
    await store.call(command("HSET", "h:recovery", "last", 1))
    assert await recovery.keep_up(store) is None
    assert len(await recovery.every(place)) == 2


def test_points_take_no_more_than_their_share_of_the_time() -> None:
    standing = recovery.Standing(last_ms=0, took_ms=240_000, failed_ms=None, why="", told=False)
    assert standing.period_s(900) == 1200
    assert standing.period_s(3600) == 3600


async def test_failures_are_told_once_in_a_row_and_again_when_the_newest_is_overdue(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(store: Store, *, share: float) -> Point:
        raise HostlerError("The bucket is full.")

    assert await recovery.keep_up(store, now=True) is not None
    monkeypatch.setattr(routine, "make", fail)
    for last_ms, expected in (
        (store.now_ms() - 1000_000, (1, 0)),
        (store.now_ms() - 1000_000, (1, 0)),
        (store.now_ms() - 3000_000, (1, 1)),
        (store.now_ms() - 3000_000, (1, 1)),
    ):
        await store.call(command("HSET", "h:recovery", "last", last_ms))
        with pytest.raises(HostlerError, match="full"):
            await recovery.keep_up(store, now=True)
        assert (
            len(await told(store, "recovery.failed")),
            len(await told(store, "recovery.overdue")),
        ) == expected
    titles = [each["title"] for each in await told(store, "notification")]
    assert titles == ["Recovery point failed", "Recovery point overdue"]
    assert await recovery.keep_up(store) is None  # not again within a minute
    monkeypatch.undo()
    assert await recovery.keep_up(store, now=True) is not None
    standing = await recovery.standing(store)
    assert (standing.failed_ms, standing.told) == (None, False)


async def test_older_points_stay_until_the_new_one_has_been_read_back(
    store: Store, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.settings = dataclasses.replace(
        store.settings, recovery_keep_last=1, recovery_keep_days=0, recovery_keep_weeks=0
    )
    good = await recovery.keep_up(store, now=True)
    assert good is not None

    async def spoil(place: Place, point: Point, *, share: float) -> int:
        raise RecoveryError("It does not come back as it was written.")

    monkeypatch.setattr(routine, "verify", spoil)
    with pytest.raises(RecoveryError):
        await recovery.keep_up(store, now=True)
    assert good.id in {each.id for each in await recovery.every(place)}


async def test_large_keys_are_read_in_pieces_and_memory_stays_bounded(
    store: Store, place: Place, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "PART_BYTES", 1 << 20)
    many: Any = {f"member-{number:08d}": number for number in range(20_000)}
    redis_client.zadd("h:quarantine", many)
    for number in range(0, 20_000, 1000):
        redis_client.rpush("h:deaths:job-x", *(f"word-{number + each}" * 5 for each in range(1000)))
    for number in range(40):
        redis_client.xadd("h:log:job-x", {"s": str(number), "d": bytes([number]) * 20_000})
    point = await recovery.make(store)
    assert point.parts >= 2
    sizes = []
    async for part in points.commands(place, point):
        sizes.append(sum(len(word) for words in part for word in words))
    assert max(sizes) < 3 << 20


async def test_what_is_read_at_once_does_not_grow_with_what_is_stored(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(500):
        redis_client.hset(f"h:job:job-{number}", mapping={"state": "completed", "spec": "x" * (number * 20)})
    rows: list[list[Any]] = []
    rests: list[float] = []

    class Watched(Wire):
        async def call(self, call: Call[Any], *, deadline_s: float = 4.0) -> Any:
            answer = await super().call(call, deadline_s=deadline_s)
            if call.script == "capture":
                rows.append(answer[1])
            return answer

    async def rest(pace: Pace) -> None:
        rests.append(pace.due_s())

    monkeypatch.setattr(points, "Wire", Watched)
    monkeypatch.setattr(Pace, "rest", rest)
    point = await recovery.make(store, share=0.25)
    assert point.keys >= 500
    assert max(len(some) for some in rows) <= 20
    assert max(sum(len(word) for *_, content in some for word in content) for some in rows) < 100_000
    assert len(rests) >= len(rows)
    assert any(rests)


async def test_a_store_without_a_bucket_says_what_is_wrong_and_leaves_nothing(settings: Settings) -> None:
    away = dataclasses.replace(
        settings, s3_endpoint_url="http://127.0.0.1:9", s3_access_key_id="a", s3_secret_access_key="b"
    )
    store = Store(away)
    with pytest.raises(HostlerError, match="object store"):
        await recovery.keep_up(store, now=True)
    assert len(await told(store, "recovery.failed")) == 1
    await store.close()
