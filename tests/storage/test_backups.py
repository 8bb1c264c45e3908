"""Backups as they are remembered: what is wished, what may happen to them, and which records stay."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from engine import claim, reap, register, settle

from settings import Settings
from storage import attempts, backups, checks, jobs, relay
from storage.attempts import Claim, Holder
from storage.backups import (
    Backup,
    Drill,
    Record,
    RecordState,
    Retention,
    archives,
    changes,
    firing,
    reports,
    times,
)
from storage.calls import command, text
from storage.errors import Conflict, Denied, Invalid, NotFound, Stale, Unavailable
from storage.relay import Ask, Head
from storage.seal import Forged
from storage.store import Store

ENGINE = '{"backupEngine": "restic 0.14.0"}'
ACTOR = "user:u"
DAY_MS = 86_400_000


async def made(store: Store, *, admin: bool = True, **given: Any) -> Backup:
    wish = {"name": "nightly", "node": "w", "volumes": ["/srv/data"], **given}
    return await backups.create(store, ACTOR, wish, admin=admin)


@pytest.fixture
async def node(store: Store) -> Holder:
    """A node that has the engine."""
    return await register(store, metadata=ENGINE)


async def claimed(store: Store, holder: Holder) -> Claim:
    step = attempts.claim(holder, [], [], most=1, startable=1, lease_s=15, own=True)
    found, _ = await store.call(step)
    return found[0]


def proof(started_ms: int = 1000, **more: Any) -> dict[str, Any]:
    return {
        "snapshot": "a" * 64, "digest": "b" * 64, "started_ms": started_ms, "ended_ms": started_ms + 500,
        "size_bytes": 10, "added_bytes": 5, "files": 2, "node": "w", "engine": "restic 0.14.0",
        "sources": [{"name": "app:x", "type": "app", "path": "/apps/x/data"}], "prefix": "backups/x", **more,
    }  # fmt: skip


async def ran(store: Store, holder: Holder, backup: Backup, **more: Any) -> Record:
    """Have a backup run to its end, and return the record."""
    submitted = await backups.run(store, ACTOR, backup.id)
    offer = await claimed(store, holder)
    assert offer.job_id == submitted.id
    held = (offer.job_id, offer.attempt)
    await store.call(
        reports.recorded(store.seal, holder, held, backup.id, offer.job_id, proof(**more), summary="10 bytes")
    )
    await settle(store, holder, offer)
    return await backups.record(store, backup.id, offer.job_id)


def happened(redis_client: Any, name: str) -> list[dict[str, str]]:
    events = [{text(k): text(v) for k, v in fields.items()} for _, fields in redis_client.xrange("h:events")]
    return [each for each in events if each["e"] == name]


# What is wished


async def test_what_is_asked_for_is_what_is_kept(store: Store, node: Holder) -> None:
    given: dict[str, Any] = {
        "schedule": "0 3 * * *", "timezone": "Europe/Berlin", "jitter_s": 60, "misfire": "skip", "retention_count": 3,
        "retention": {"daily": 7}, "dest_path": "/nightly/", "excludes": ["*.tmp"], "timeout_s": 60, "tags": ["a"],
        "bandwidth_limit": 4096, "hooks": {"pre": "true"}, "drill": {"schedule": "0 4 * * 0", "command": "test -s x"},
    }  # fmt: skip
    backup = await made(store, **given)
    found = await backups.get(store, backup.id)
    assert found == backup
    assert (found.retention, found.misfire.value) == (Retention(last=3, daily=7), "skip")
    assert found.hooks(store.seal) == {"pre": "true"}
    assert found.prefix == f"backups/nightly/{found.id}"
    assert found.drill == Drill(schedule="0 4 * * 0", command="test -s x")
    assert found.next_ms is not None
    assert found.next_ms > store.now_ms()
    assert found.drill_next_ms is not None
    assert (await backups.page(store, limit=10, offset=0)) == ([found], 1)


async def test_a_password_is_sealed_and_never_shown(store: Store, node: Holder, redis_client: Any) -> None:
    dump = {"type": "postgresql", "database": "shop", "password": "the secret of the shop"}
    backup = await made(store, volumes=["app:shop", dump])
    assert [backups.shown_source(each) for each in backup.volumes] == [
        "app:shop",
        {"type": "postgresql", "name": "postgresql-1", "database": "shop"},
    ]
    assert backup.hooks(store.seal)["secrets"] == {"postgresql-1": "the secret of the shop"}
    kept = b"".join(redis_client.dump(key) or b"" for key in redis_client.keys("h:*"))
    assert b"secret of the shop" not in kept
    again = await backups.change(
        store, ACTOR, backup.id, {"volumes": [{**dump, "password": "other", "name": "x"}]}, admin=True
    )
    assert again.hooks(store.seal)["secrets"] == {"x": "other"}


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("volumes[0]", {"volumes": [7]}),
        ("volumes[0].path", {"volumes": ["/srv/../etc"]}),
        ("volumes[0].type", {"volumes": [{"type": "tape"}]}),
        ("volumes[0].type", {"volumes": [{"type": ["path"]}]}),
        ("volumes[0].app", {"volumes": [{"type": "app", "app": 5}]}),
        ("volumes[0].volume", {"volumes": ["no/volume"]}),
        ("volumes[0].app", {"volumes": ["app:../x"]}),
        ("volumes[0].user", {"volumes": [{"type": "mysql", "user": "--help"}]}),
        ("volumes[0].nonsense", {"volumes": [{"type": "redis", "nonsense": 1}]}),
        ("volumes[0].password", {"volumes": [{"type": "redis", "password": "a\nb"}]}),
        ("volumes", {"volumes": [{"type": "redis", "name": "x"}, {"type": "mysql", "name": "x"}]}),
        ("schedule", {"schedule": "every day"}),
        ("schedule", {"schedule": "0 0 30 2 *"}),
        ("timezone", {"schedule": "0 3 * * *", "timezone": "Mars/Olympus"}),
        ("drill.schedule", {"drill": {"schedule": "x"}}),
        ("drill.command", {"drill": {"command": "test -s \0"}}),
        ("dest_path", {"dest_path": "../elsewhere"}),
        ("dest_path", {"dest_path": "backup-in-the-way"}),
        ("retention", {"retention": {"last": 0}}),
        ("node_id", {"node": "nobody"}),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_field(
    store: Store, node: Holder, field: str, given: dict[str, Any]
) -> None:
    with pytest.raises(Invalid) as refused:
        await made(store, **given)
    assert list(refused.value.details) == [field]
    assert await backups.every(store) == []


async def test_a_node_without_the_engine_is_refused_in_words(store: Store) -> None:
    await register(store, "bare")
    with pytest.raises(Conflict, match="apt install restic"):
        await made(store, node="bare")


@pytest.mark.parametrize(
    "given",
    [
        {"volumes": ["/etc"]},
        {"volumes": [{"type": "redis"}]},
        {"volumes": ["app:x"], "hooks": {"pre": "id"}},
        {"volumes": ["app:x"], "drill": {"command": "id"}},
    ],
)
async def test_only_an_admin_has_a_node_read_its_paths_or_run_commands(
    store: Store, node: Holder, given: dict[str, Any]
) -> None:
    with pytest.raises(Denied):
        await made(store, admin=False, **given)
    mine = await made(store, admin=False, volumes=["app:x", "volume-y"])
    with pytest.raises(Denied):
        await backups.change(store, ACTOR, mine.id, given, admin=False)
    theirs = await made(store, **given)
    changed = await backups.change(store, ACTOR, theirs.id, {"retention_count": 2}, admin=False)
    assert changed.retention.last == 2
    with pytest.raises(Denied):
        await backups.change(store, ACTOR, theirs.id, {"excludes": ["x"]}, admin=False)


async def test_an_altered_wish_or_record_is_not_believed(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store)
    record = await ran(store, node, backup)
    key = f"h:backuprecord:{backup.id}:{record.id}"
    redis_client.hset(key, "proof", redis_client.hget(key, "proof").replace(b"aaaa", b"cccc"))
    with pytest.raises(Forged):
        await backups.record(store, backup.id, record.id)
    assert (await backups.records(store, backup.id))[0] == []
    wish = redis_client.hget(f"h:backup:{backup.id}", "wish")
    redis_client.hset(f"h:backup:{backup.id}", "wish", wish.replace(b"/srv/data", b"/etc/keys"))
    with pytest.raises(Forged):
        await backups.get(store, backup.id)


# Runs


async def test_a_record_is_there_once_it_is_whole_and_not_before(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store)
    submitted = await backups.run(store, ACTOR, backup.id)
    offer = await claimed(store, node)
    assert offer.read_spec(store.seal)["backup"] == backup.id
    held = (offer.job_id, offer.attempt)
    await store.call(
        reports.progress(node, held, percent=40, bytes_done=4, bytes_total=10, bytes_per_s=1, eta_s=6)
    )
    busy = await backups.get(store, backup.id)
    assert (busy.job, busy.progress["eta_s"]) == (submitted.id, 6)
    assert (await jobs.get(store, submitted.id)).progress == 40
    assert (await backups.records(store, backup.id)) == ([], 0)
    step = reports.recorded(store.seal, node, held, backup.id, offer.job_id, proof(), summary="10 bytes")
    await store.call(step)
    await store.call(step)
    await settle(store, node, offer)
    found, total = await backups.records(store, backup.id)
    assert (total, found[0].id, found[0].state, found[0].snapshot) == (1, submitted.id, "completed", "a" * 64)
    after = await backups.get(store, backup.id)
    assert (after.job, after.last_state, after.succeeded_ms) == (None, "completed", 1500)
    assert happened(redis_client, "notification")[0]["title"] == "Backup complete"


async def test_one_job_at_a_time_works_on_a_backup(store: Store, node: Holder) -> None:
    backup = await made(store)
    first = await backups.run(store, ACTOR, backup.id)
    for refused in (
        backups.run(store, ACTOR, backup.id),
        backups.delete(store, ACTOR, backup.id),
    ):
        with pytest.raises(Conflict, match=first.id):
            await refused
    await jobs.cancel(store, ACTOR, first.id)
    await backups.run(store, ACTOR, backup.id)


async def test_a_run_that_came_to_nothing_leaves_a_failed_record(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store)
    submitted = await backups.run(store, ACTOR, backup.id)
    offer = await claimed(store, node)
    await settle(
        store, node, offer, "failed", reason="invalid", exit_code=None, facts={"message": "The disk is gone."}
    )
    record = await backups.record(store, backup.id, submitted.id)
    assert (record.state, record.error, record.snapshot) == (RecordState.FAILED, "The disk is gone.", "")
    failed = happened(redis_client, "backup.failed")
    assert [(each["kind"], each["error"]) for each in failed] == [("run", "The disk is gone.")]
    after = await backups.get(store, backup.id)
    assert (after.job, after.last_state, after.succeeded_ms) == (None, "failed", None)
    for refused in (
        backups.restore(store, ACTOR, backup.id, record.id, admin=True),
        backups.verify(store, ACTOR, backup.id, record.id),
    ):
        with pytest.raises(Conflict, match="no data"):
            await refused


async def test_a_failure_is_tried_again_before_it_is_told(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store)
    submitted = await backups.run(store, ACTOR, backup.id)
    offer = await claimed(store, node)
    await settle(store, node, offer, "failed", facts={"message": "S3 is away."})
    assert (await jobs.get(store, submitted.id)).state == "queued"
    assert (await backups.records(store, backup.id))[1] == 0
    assert happened(redis_client, "backup.failed") == []
    with pytest.raises(Conflict):
        await backups.run(store, ACTOR, backup.id)


async def test_an_attempt_that_is_over_is_not_heard(store: Store, node: Holder) -> None:
    backup = await made(store)
    await backups.run(store, ACTOR, backup.id)
    offer = await claimed(store, node)
    await settle(store, node, offer, "released")
    later = await claimed(store, node)
    assert later.attempt == offer.attempt + 1
    for step in (
        reports.recorded(store.seal, node, (offer.job_id, offer.attempt), backup.id, offer.job_id, proof()),
        reports.forgotten(node, (offer.job_id, offer.attempt), [offer.job_id]),
        reports.still_held(node, (offer.job_id, offer.attempt)),
    ):
        with pytest.raises(Stale):
            await store.call(step)
    await store.call(reports.still_held(node, (later.job_id, later.attempt)))


async def test_a_corrupt_record_is_neither_restored_nor_handed_out_and_can_be_checked_again(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store)
    record = await ran(store, node, backup)
    for error in ("A pack was changed.", None):
        await backups.verify(store, ACTOR, backup.id, record.id)
        offer = await claimed(store, node)
        held = (offer.job_id, offer.attempt)
        await store.call(reports.checked(node, held, record.id, share=1.0, error=error))
        await settle(store, node, offer)
        found = await backups.record(store, backup.id, record.id)
        assert found.verified_ms is not None
        assert found.error == error
        if error is None:
            assert found.state is RecordState.COMPLETED
            continue
        assert found.state is RecordState.CORRUPT
        for refused in (
            backups.restore(store, ACTOR, backup.id, record.id, admin=True),
            backups.restorable(store, backup.id, record.id),
        ):
            with pytest.raises(Conflict, match="corrupt: A pack was changed"):
                await refused
        with pytest.raises(NotFound):
            await backups.drill(store, ACTOR, backup.id)
    assert happened(redis_client, "backup.corrupt")[0]["record"] == record.id


async def test_where_a_restore_goes_is_bounded(store: Store, node: Holder) -> None:
    backup = await made(store, volumes=["app:x"])
    record = await ran(store, node, backup)
    for target in ("/", "relative", "/a/../b"):
        with pytest.raises(Invalid):
            await backups.restore(store, ACTOR, backup.id, record.id, target=target, admin=True)
    with pytest.raises(Denied):
        await backups.restore(store, ACTOR, backup.id, record.id, target="/srv/x", admin=False)
    await register(store, "other", metadata=ENGINE)
    with pytest.raises(Denied):
        await backups.restore(store, ACTOR, backup.id, record.id, node="other", admin=False)
    submitted = await backups.restore(store, ACTOR, backup.id, record.id, admin=False)
    assert (await jobs.get(store, submitted.id)).queue == "node.w"
    await jobs.cancel(store, ACTOR, submitted.id)
    elsewhere = await backups.restore(
        store, ACTOR, backup.id, record.id, node="other", target="/srv/x", include=["/a"], admin=True
    )
    spec = (await jobs.get(store, elsewhere.id)).spec
    assert (spec["target"], spec["include"], spec["record"]) == ("/srv/x", ["/a"], record.id)


async def test_a_record_goes_back_to_where_it_was_made_whatever_its_job_is_about_by_now(
    store: Store, node: Holder
) -> None:
    backup = await made(store, volumes=["app:x"])
    mine = await ran(store, node, backup)
    theirs = await ran(
        store, node, backup, sources=[{"name": "/etc", "type": "path", "path": "/etc"}], started_ms=2000
    )
    await register(store, "other", metadata=ENGINE)
    await backups.change(store, ACTOR, backup.id, {"node": "other"}, admin=True)
    with pytest.raises(Denied):
        await backups.restore(store, ACTOR, backup.id, theirs.id, admin=False)
    with pytest.raises(Denied):
        await backups.restore(store, ACTOR, backup.id, mine.id, node="other", admin=False)
    submitted = await backups.restore(store, ACTOR, backup.id, mine.id, admin=False)
    assert (await jobs.get(store, submitted.id)).queue == "node.w"


async def test_a_removed_backup_leaves_its_data_for_a_week(
    store: Store, node: Holder, redis_client: Any
) -> None:
    first, second = await made(store, schedule="0 3 * * *"), await made(store)
    await ran(store, node, first)
    await backups.delete(store, ACTOR, first.id)
    await backups.delete(store, ACTOR, second.id, keep_data=True)
    with pytest.raises(NotFound):
        await backups.get(store, first.id)
    assert [text(key) for key in redis_client.keys("h:backup*")] == ["h:backups:gone"]
    ((gone, until_ms),) = redis_client.zrange("h:backups:gone", 0, -1, withscores=True)
    assert first.prefix in text(gone)
    assert until_ms > store.now_ms() + (backups.DATA_STAY_DAYS - 1) * DAY_MS
    assert await backups.sweep(store) == 0


async def test_only_data_of_removed_backups_are_deleted_and_not_too_early(
    settings_with_s3: Settings, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(settings_with_s3)
    await register(store, metadata=ENGINE)
    backup, other = await made(store), await made(store)
    kept = [f"{other.prefix}/config", "files/f/content"]
    await store.objects.ensure_bucket()
    for key in (f"{backup.prefix}/config", *kept):
        await store.objects.put(key, b"x")
    await backups.delete(store, ACTOR, backup.id)
    (gone,) = redis_client.zrange("h:backups:gone", 0, -1)
    # whoever can write to Redis
    forged = gone.replace(backup.prefix.encode(), b"files").replace(backup.id.encode(), b"files")
    redis_client.zadd("h:backups:gone", {b"files": 1, other.prefix: 1, forged: 1, gone: 1})
    assert await backups.sweep(store) == 0
    assert redis_client.zcard("h:backups:gone") == 0
    now_ms = store.now_ms()
    monkeypatch.setattr(store, "now_ms", lambda: now_ms + (backups.DATA_STAY_DAYS + 1) * DAY_MS)
    redis_client.zadd("h:backups:gone", {gone: 1})
    assert await backups.sweep(store) == 1
    assert [key for key in (*kept, f"{backup.prefix}/config") if await store.objects.keys(key)] == kept
    await store.close()


# Time


async def due_now(store: Store, backup: Backup, *, ago_ms: int = 100, drill: bool = False) -> None:
    at = store.now_ms() - ago_ms
    member, field = (f"{backup.id} drill", "drill_next") if drill else (backup.id, "next")
    await store.calls(
        command("ZADD", "h:backups:due", at, member), command("HSET", f"h:backup:{backup.id}", field, at)
    )


async def test_each_occurrence_fires_once(store: Store, node: Holder) -> None:
    backup = await made(store, schedule="* * * * *")
    await due_now(store, backup)
    stale = await backups.get(store, backup.id)
    assert await backups.fire_due(store, most=10) == 1
    assert await backups.fire_due(store, most=10) == 0
    after = await backups.get(store, backup.id)
    assert after.job is not None
    assert after.next_ms is not None
    assert after.next_ms > store.now_ms()
    with pytest.raises(changes.AlreadyFired):  # another scheduler that read it at the same time
        await firing._fire(store, stale, "run", store.now_ms())


async def test_an_occurrence_that_meets_a_job_at_work_is_refused_aloud(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store, schedule="* * * * *")
    job = (await backups.run(store, ACTOR, backup.id)).id
    await due_now(store, backup)
    assert await backups.fire_due(store, most=10) == 1
    refused = happened(redis_client, "backup.refused")
    assert len(refused) == 1
    assert job in refused[0]["error"]
    assert (await backups.get(store, backup.id)).next_ms


async def test_a_schedule_survives_schedulers_that_look_at_the_same_time(store: Store, node: Holder) -> None:
    backup = await made(store, schedule="0 3 * * *", drill={"schedule": "0 4 * * 0"})
    for kind in ("run", "drill"):  # one has found it due; another one has fired it since
        await firing._fire(store, backup, kind, store.now_ms())
    assert await store.call(command("ZCARD", "h:backups:due")) == 2
    at = text(await store.call(command("ZSCORE", "h:backups:due", backup.id)))
    assert int(at) == (await backups.get(store, backup.id)).next_ms


async def test_missed_occurrences_that_shall_all_run_do_so_one_after_the_other(
    store: Store, node: Holder, redis_client: Any
) -> None:
    backup = await made(store, schedule="0 * * * *", misfire="all")
    await due_now(store, backup, ago_ms=2 * 3_600_000 + 90_000)
    runs = 0
    while await backups.fire_due(store, most=10):
        assert await backups.fire_due(store, most=10) == 0
        await settle(store, node, await claimed(store, node))
        runs += 1
    assert runs in {2, 3}  # the one that was due, and those that should have followed it
    assert happened(redis_client, "backup.refused") == []
    after = await backups.get(store, backup.id)
    assert after.next_ms is not None
    assert after.next_ms > store.now_ms()


async def test_a_change_of_other_things_leaves_what_is_due(store: Store, node: Holder) -> None:
    backup = await made(store, schedule="0 3 * * *", drill={"schedule": "0 4 * * 0"})
    for drill in (False, True):
        await due_now(store, backup, drill=drill)
    due = await store.call(command("ZRANGE", "h:backups:due", 0, -1, "WITHSCORES"))
    shown = {"name": "other", "dest_path": backup.prefix, "drill": {"schedule": "0 4 * * 0", "sample": 0.5}}
    changed = await backups.change(store, ACTOR, backup.id, shown, admin=True)
    assert (changed.name, changed.prefix) == ("other", backup.prefix)
    assert await store.call(command("ZRANGE", "h:backups:due", 0, -1, "WITHSCORES")) == due
    changed = await backups.change(store, ACTOR, backup.id, {"schedule": "0 5 * * *"}, admin=True)
    assert changed.next_ms is not None
    assert changed.next_ms > store.now_ms()


@pytest.mark.parametrize(("misfire", "runs"), [("skip", 0), ("one", 1), ("all", 1)])
async def test_a_missed_occurrence_follows_the_policy(
    store: Store, node: Holder, misfire: str, runs: int
) -> None:
    backup = await made(store, schedule="0 * * * *", misfire=misfire)
    await due_now(store, backup, ago_ms=3 * 3_600_000 + 5000)
    assert await backups.fire_due(store, most=10) == 1
    after = await backups.get(store, backup.id)
    assert (after.job is not None) == bool(runs)
    assert after.next_ms is not None
    behind = after.next_ms < store.now_ms()
    assert behind == (misfire == "all")


async def test_what_is_not_enabled_is_not_due_and_can_be_run_by_hand(store: Store, node: Holder) -> None:
    backup = await made(store, schedule="* * * * *")
    off = await backups.change(store, ACTOR, backup.id, {"enabled": False}, admin=True)
    assert off.next_ms is None
    assert await store.call(command("ZCARD", "h:backups:due")) == 0
    await backups.run(store, ACTOR, backup.id)


async def test_a_drill_needs_a_record_and_says_so(store: Store, node: Holder, redis_client: Any) -> None:
    backup = await made(store, drill={"schedule": "0 4 * * 0"})
    await due_now(store, backup, drill=True)
    assert await backups.fire_due(store, most=10) == 1
    assert "no record" in happened(redis_client, "backup.refused")[0]["error"]
    record = await ran(store, node, backup)
    await due_now(store, backup, drill=True)
    assert await backups.fire_due(store, most=10) == 1
    offer = await claimed(store, node)
    await store.call(reports.proven(node, (offer.job_id, offer.attempt), record.id))
    assert (await backups.get(store, backup.id)).proven_ms is not None
    assert (await backups.record(store, backup.id, record.id)).proven_ms is not None


async def test_overdue_and_unproven_backups_are_told_once_and_again_after_they_were_well(
    store: Store, node: Holder, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = await made(store, schedule="0 3 * * *", drill={"schedule": "0 4 * * 0", "max_age_days": 30})
    assert await backups.look_after(store) == 0
    now_ms = store.now_ms()
    monkeypatch.setattr(store, "now_ms", lambda: now_ms + 40 * DAY_MS)
    assert await backups.look_after(store) == 2
    assert await backups.look_after(store) == 0
    await ran(store, node, backup, started_ms=now_ms)
    assert await backups.look_after(store) == 1
    assert len(happened(redis_client, "backup.overdue")) == 2
    assert len(happened(redis_client, "backup.unproven")) == 1


async def test_the_doctor_names_nodes_that_cannot_and_backups_that_are_late(
    store: Store, node: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [each.status for each in await checks.backup_checks(store)] == [checks.OK]
    await made(store, schedule="0 3 * * *")
    assert [each.status for each in await checks.backup_checks(store)] == [checks.OK]
    now_ms = store.now_ms()
    monkeypatch.setattr(store, "now_ms", lambda: now_ms + 40 * DAY_MS)
    (late,) = await checks.backup_checks(store)
    assert (late.status, late.message[:29]) == (checks.WARN, "nightly: A backup was due at ")
    await register(store, registration="r2", proof="r1")
    unable, _ = await checks.backup_checks(store)
    assert (unable.status, "has no restic" in unable.message) == (checks.FAIL, True)


def test_jitter_is_the_same_for_an_occurrence_and_within_its_bounds() -> None:
    backup = Backup(id="backup-x", name="x", node="w", volumes=(), schedule="0 3 * * *", jitter_s=600)
    moved = {times.jittered(backup, day * DAY_MS) - day * DAY_MS for day in range(200)}
    assert times.jittered(backup, DAY_MS) == times.jittered(backup, DAY_MS)
    assert len(moved) > 100
    assert all(0 <= each <= 600_000 for each in moved)


async def test_a_lost_worker_leaves_a_failed_record_in_the_end(store: Store, node: Holder) -> None:
    backup = await made(store)
    submitted = await backups.run(store, ACTOR, backup.id)
    for _ in range(3):
        await claimed(store, node)
        await store.call(command("ZADD", "h:leases", 1, submitted.id))
        await reap(store)
        await store.call(command("DEL", "h:reaper:hold"))
        await reap(store)
    record = await backups.record(store, backup.id, submitted.id)
    assert record.state is RecordState.FAILED
    assert (await backups.get(store, backup.id)).job is None


async def test_a_backup_is_no_job_for_workers_of_commands(store: Store, node: Holder) -> None:
    backup = await made(store)
    await backups.run(store, ACTOR, backup.id)
    other = await register(store, "other", metadata=ENGINE)
    assert await claim(store, other) == []


async def test_a_finished_run_can_be_asked_for_again_but_not_a_restore(store: Store, node: Holder) -> None:
    backup = await made(store)
    record = await ran(store, node, backup)
    again = await jobs.retry(store, ACTOR, record.id)
    assert (await jobs.get(store, again.id)).spec["kind"] == "run"
    await jobs.cancel(store, ACTOR, again.id)
    restored = await backups.restore(store, ACTOR, backup.id, record.id, admin=True)
    await jobs.cancel(store, ACTOR, restored.id)
    with pytest.raises(Conflict):
        await jobs.retry(store, ACTOR, restored.id)


# Retention


def a_record(day: float, state: RecordState = RecordState.COMPLETED) -> Record:
    at = int((datetime(2026, 3, 1, tzinfo=UTC).timestamp() + day * 86_400) * 1000)
    return Record(id=f"job-{day:08.3f}", backup="backup-x", state=state, started_ms=at, ended_ms=at + 1)


def kept(records: list[Record], **rule: int) -> list[float]:
    gone = {each.id for each in backups.retention.expired(records, Retention(**{"last": 0, **rule}))}
    return [float(each.id.removeprefix("job-")) for each in records if each.id not in gone]


def test_the_newest_of_so_many_periods_stay() -> None:
    hourly = [a_record(hour / 24) for hour in range(24 * 40)]
    assert kept(hourly, last=3) == pytest.approx([957 / 24, 958 / 24, 959 / 24], abs=1e-3)
    assert kept(hourly, daily=2) == pytest.approx([38 + 23 / 24, 39 + 23 / 24], abs=1e-3)
    # 2026-03-01 is a Sunday, 2026-04-09 a Thursday
    assert kept(hourly, weekly=2) == pytest.approx([35 + 23 / 24, 39 + 23 / 24], abs=1e-3)
    assert kept(hourly, monthly=2) == pytest.approx([30 + 23 / 24, 39 + 23 / 24], abs=1e-3)
    assert len(kept(hourly, last=3, daily=2, weekly=2, monthly=2)) == 6


def test_the_only_good_record_stays_whatever_else_there_is() -> None:
    good = a_record(0)
    bad = [a_record(day, RecordState.CORRUPT) for day in range(1, 5)]
    failed = [a_record(day, RecordState.FAILED) for day in range(5, 60)]
    left = kept([good, *bad, *failed], last=1)
    assert left[:5] == [0, 1, 2, 3, 4]  # what is corrupt may yet turn out to be readable
    assert len(left) == 25
    assert kept([good, *bad, a_record(9)], last=1) == [9]
    assert kept([good], daily=0) == [0]
    assert replace(good, state=RecordState.CORRUPT).good is False


async def test_an_archive_comes_of_another_node_where_its_own_has_just_gone_away(
    store: Store, node: Holder, settings: Settings
) -> None:
    backup = await made(store)
    record = await ran(store, node, backup)  # "w" counts as online, and answers nothing
    with pytest.raises(Unavailable, match="Node w is offline"):
        await archives.opened(store, backup, record)
    await register(store, "other", metadata=ENGINE)

    async def archive(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        yield Head(200, ())
        yield f"{ask.kind} {ask.path}".encode()

    theirs = Store(settings)
    serving = asyncio.create_task(relay.serve(theirs, "other", archive))
    try:
        async with asyncio.timeout(30):
            while not await store.call(command("EXISTS", "h:relay:session:other")):
                await asyncio.sleep(0.02)
            parts = await archives.opened(store, backup, record)
            assert [each async for each in parts] == [f"archive {record.id}".encode()]
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await theirs.close()
