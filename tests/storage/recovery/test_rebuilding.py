"""Rebuilding: all comes back or nothing, what ran is put back or ended by its policy, and nothing is overwritten."""

import dataclasses
from typing import Any

import orjson
import pytest
import redis
from engine import claim, reap, register, settle, submit
from nodes import Node, manifest

from settings import Settings
from storage import apps, attempts, audit, backups, jobs, recovery, schedules, sessions, users
from storage.calls import command
from storage.errors import Conflict, Stale, Unauthenticated
from storage.jobs import Order, State
from storage.recovery import Place, RecoveryError, keyspace, rebuilding
from storage.schedules import Recurrence
from storage.seal import Seal
from storage.store import Store

Redis = redis.Redis


def contents(client: Redis) -> dict[str, Any]:
    """Return all that Hostler holds for good, by key."""
    read: dict[bytes, Any] = {
        b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange, b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }  # fmt: skip
    found = {}
    for key in client.scan_iter(count=1000):
        name = key.decode()
        passing = name.startswith((*keyspace._PASSING, "h:audit", "rq:queues"))
        if keyspace.is_ours(name) and not passing and not keyspace.is_of_sessions(name):
            found[name] = read[client.type(key)](key)
    return found


def database(store: Store, number: int) -> Redis:
    """Return a client of another database of the same Valkey."""
    return redis.Redis.from_url(store.settings.redis_url.removesuffix("/0") + f"/{number}")


async def rebuilt(store: Store, place: Place, client: Redis, **how: Any) -> recovery.Rebuilt:
    """Make a point, lose everything, and rebuild."""
    point = await recovery.make(store)
    client.flushall()
    return await recovery.rebuild(store.settings, place, point, **how)


async def test_everything_at_rest_is_as_it_was_to_the_byte(
    store: Store, place: Place, redis_client: Redis
) -> None:
    await users.create(store, actor="t", username="Ada", email="ada@b.org", password="pass word", role="a")
    await users.create(store, actor="t", username="bob", email="bob@b.org", password="pass word", role="r")
    holder = await register(store)
    parent = await submit(store, "true", tags=["gpu", "big"])
    await submit(store, "child", depends_on=[parent])
    await submit(store, "later", delay_s=3600)
    await submit(store, "keyed", concurrency_key="k")
    await jobs.submit(store, "user:u", Order(command="once"), idempotency_key="i-1")
    done = await submit(store, "first", priority="high")
    (claimed,) = await claim(store, holder)
    assert claimed.job_id == done
    await settle(store, holder, claimed, "failed")
    await schedules.create(store, "user:u", Order(command="true"), Recurrence("0 3 * * *", "Europe/Berlin"))
    redis_client.set("h:idem:extra", "x", px=600_000)
    before, audited = contents(redis_client), redis_client.xrange("h:audit")
    result = await rebuilt(store, place, redis_client)
    after = contents(redis_client)
    for name, value in before.items():  # attempts of what has not ended are counted on from higher
        if name.startswith("h:job:") and value[b"state"] == b"queued":
            value[b"attempt"] = b"1000"
            for each in (value, after[name]):  # when it came into its queue, and that it waits for no time
                each.pop(b"lined", None)
                if not each.get(b"due"):
                    each.pop(b"due", None)
        if name.startswith(("rq:deferred:", "rq:scheduled:")):
            continue
        assert after[name] == value, name
    assert set(before) == set(after)
    assert redis_client.xrange("h:audit")[:-1] == audited
    assert 0 < redis_client.pttl("h:idem:extra") <= 600_000
    assert (result.jobs_back_in_queues, result.jobs_waiting, result.jobs_running) == (3, 3, 0)
    assert (result.audit_broken_at, result.unbelieved, result.aside) == (None, [], None)
    assert (await audit.read(store)).broken_at is None
    assert redis_client.info("keyspace").keys() == {"db0"}


async def test_queues_keep_their_order_and_jobs_can_be_run(
    store: Store, place: Place, redis_client: Redis
) -> None:
    wanted = [await submit(store, f"echo {number}") for number in range(30)]
    await rebuilt(store, place, redis_client)
    holder = await register(store)
    found = await claim(store, holder, most=30)
    assert [each.job_id for each in found] == wanted
    assert {each.attempt for each in found} == {1001}
    assert found[0].read_spec(store.seal)["command"] == "echo 0"
    assert await settle(store, holder, found[0]) == "completed"


async def test_what_ran_is_put_back_after_a_lease_and_who_still_has_it_is_refused(
    store: Store, place: Place, redis_client: Redis
) -> None:
    holder = await register(store, registration="before")
    plain, once, ended, held = [
        await submit(store, name, at_most_once=name in {"once", "held"})
        for name in ("plain", "once", "cancelled", "held")
    ]
    claims = {each.job_id: each for each in await claim(store, holder, most=4, startable=3)}
    assert redis_client.hget(f"h:job:{held}", "ahead") == b"1"  # it may be started any moment now
    await jobs.cancel(store, "user:u", ended)
    result = await rebuilt(store, place, redis_client)
    assert result.jobs_running == 4
    # a worker of before: its registration is gone, and its attempts count for nothing
    beaten = attempts.beat(holder, [(plain, 1)], lease_s=15, rq_ttl_s=0, status={"running": 1})
    with pytest.raises(attempts.Unregistered):
        await store.call(beaten)
    with pytest.raises(Stale):
        await settle(store, holder, claims[plain])
    assert (await jobs.get(store, plain)).state is State.RUNNING
    redis_client.zadd("h:leases", dict.fromkeys([plain, once, ended, held], 1))  # time passes
    redis_client.set("h:reaper:last", int(redis_client.time()[0]) * 1000)
    await reap(store)
    found = {name: await jobs.get(store, name) for name in (plain, once, ended, held)}
    assert (found[plain].state, found[plain].deaths) == (State.QUEUED, 0)
    for name in (once, held):
        assert (found[name].state, found[name].reason) == (State.FAILED, "lost")
    assert found[ended].state is State.CANCELLED
    again = await register(store, registration="after")
    (claimed,) = await claim(store, again, most=3)
    assert (claimed.job_id, claimed.attempt) == (plain, 1002)
    with pytest.raises(Stale):  # the same worker with the attempt of before
        await settle(store, holder, claims[plain])


async def test_what_may_have_started_since_and_must_not_start_twice_ends_as_lost(
    store: Store, place: Place, redis_client: Redis
) -> None:
    waiting = await submit(store, "once", at_most_once=True)
    due_later = await submit(store, "once", at_most_once=True, delay_s=3600)
    result = await rebuilt(store, place, redis_client)
    assert result.jobs_lost == 1
    assert (await jobs.get(store, waiting)).reason == "lost"
    assert (await jobs.get(store, due_later)).state is State.QUEUED


async def test_sessions_end_and_users_log_in_anew(store: Store, place: Place, redis_client: Redis) -> None:
    user = await users.create(
        store, actor="t", username="ada", email="a@b.org", password="pass word", role="a"
    )
    token = await sessions.issue(store, user)
    assert await store.keyring.read(token)
    await rebuilt(store, place, redis_client)
    fresh = Store(store.settings)
    try:
        with pytest.raises(Unauthenticated):
            await fresh.keyring.read(token)
        named = await users.named(fresh, "ADA")
        assert named is not None
        assert named.id == user.id
        assert await fresh.keyring.read(await sessions.issue(fresh, named))
    finally:
        await fresh.close()


async def test_a_planned_move_may_keep_sessions(store: Store, place: Place, redis_client: Redis) -> None:
    user = await users.create(
        store, actor="t", username="ada", email="a@b.org", password="pass word", role="a"
    )
    token = await sessions.issue(store, user)
    await rebuilt(store, place, redis_client, keep_sessions=True)
    fresh = Store(store.settings)
    assert await fresh.keyring.read(token)
    await fresh.close()


async def test_a_redis_that_is_not_empty_is_refused_and_stays_as_it_is(
    store: Store, place: Place, redis_client: Redis
) -> None:
    await submit(store, "old")
    point = await recovery.make(store)
    redis_client.flushall()
    newer = await submit(store, "new")
    before = contents(redis_client)
    with pytest.raises(RecoveryError, match="not empty"):
        await recovery.rebuild(store.settings, place, point)
    assert contents(redis_client) == before
    assert redis_client.info("keyspace").keys() == {"db0"}
    result = await recovery.rebuild(store.settings, place, point, force=True)
    assert result.aside is not None
    with database(store, result.aside) as aside:
        assert aside.exists(f"h:job:{newer}")
    assert not redis_client.exists(f"h:job:{newer}")
    assert redis_client.zcard("h:jobs") == 1


async def test_a_dry_run_checks_everything_and_writes_nothing(
    store: Store, place: Place, redis_client: Redis
) -> None:
    await submit(store, "old")
    point = await recovery.make(store)
    redis_client.flushall()
    result = await recovery.rebuild(store.settings, place, point, dry_run=True)
    assert result.counts["job"] == 1
    assert redis_client.info("keyspace") == {}


async def test_what_processes_write_into_a_blank_redis_is_no_obstacle(
    store: Store, place: Place, redis_client: Redis
) -> None:
    job_id = await submit(store, "old")
    point = await recovery.make(store)
    redis_client.flushall()
    await store.keyring.rotate("system")
    await register(store)
    result = await recovery.rebuild(store.settings, place, point)
    assert (await jobs.get(store, job_id)).state is State.QUEUED
    assert result.aside is None
    assert not redis_client.exists("h:worker:w")  # it registers anew


async def test_only_one_rebuild_at_a_time_and_a_dead_one_is_cleared_away(
    store: Store, place: Place, redis_client: Redis
) -> None:
    await submit(store, "old")
    point = await recovery.make(store)
    redis_client.flushall()
    with database(store, 15) as spare:
        spare.set("h:rebuild", f"0123456789abcdef {store.now_ms()}")
        with pytest.raises(Conflict, match="under way"):
            await recovery.rebuild(store.settings, place, point)
        assert spare.exists("h:rebuild")
        spare.set("h:rebuild", f"0123456789abcdef {store.now_ms() - 61_000}")
        spare.set("h:job:half", "x")
        await recovery.rebuild(store.settings, place, point)
        assert spare.dbsize() == 0
    assert not redis_client.exists("h:job:half")


async def test_databases_of_others_are_left_alone(store: Store, place: Place, redis_client: Redis) -> None:
    with database(store, 15) as theirs:
        point = await recovery.make(store)
        redis_client.flushall()
        theirs.set("theirs", "1")
        await recovery.rebuild(store.settings, place, point)
        assert theirs.get("theirs") == b"1"


async def test_without_a_second_database_nothing_happens(
    store: Store, place: Place, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = await recovery.make(store)
    redis_client.flushall()
    monkeypatch.setattr(rebuilding, "_MOST_DATABASES", 1)
    with pytest.raises(RecoveryError, match="second, empty database"):
        await recovery.rebuild(store.settings, place, point)
    assert redis_client.dbsize() == 0


async def test_apps_come_back_under_wishes_that_their_nodes_take_for_new_ones(
    store: Store, place: Place, redis_client: Redis
) -> None:
    node = await Node.online(store)
    app = await node.install(manifest())
    point = await recovery.make(store)
    await apps.change(store, "user:u", app.instance_id, "stop")  # lost, but the node has acted on it
    seen = await apps.get(store, app.instance_id)
    redis_client.flushall()
    await recovery.rebuild(store.settings, place, point)
    found = await apps.get(store, app.instance_id)
    assert found.age > seen.age
    assert (found.desired, found.status, found.node) == (app.desired, found.status, app.node)
    assert not found.online
    assert [each.instance_id for each in await apps.of_node(store, app.node)] == [app.instance_id]
    again = await Node.online(store)
    assert (await apps.get(store, app.instance_id)).online
    assert again.holder.worker == app.node


async def test_an_app_whose_job_is_not_in_the_point_is_not_installing_for_ever(
    store: Store, place: Place, redis_client: Redis
) -> None:
    await Node.online(store)
    app, submitted = await apps.install(store, "user:u", inline=manifest())
    redis_client.delete(f"h:job:{submitted.id}", f"rq:job:{submitted.id}")
    await rebuilt(store, place, redis_client)
    assert (await apps.get(store, app.instance_id)).status == "failed"


async def test_a_schedule_whose_occurrence_is_not_in_the_point_gets_it_anew(
    store: Store, place: Place, redis_client: Redis
) -> None:
    made = await schedules.create(store, "user:u", Order(command="true"), Recurrence("0 3 * * *"))
    redis_client.delete(f"h:job:{made.id}", f"rq:job:{made.id}")
    await rebuilt(store, place, redis_client)
    (schedule,), total = await schedules.page(store, limit=10, offset=0)
    assert (total, schedule.job_id) == (1, made.id)
    job = await jobs.get(store, made.id)
    assert (job.state, job.wait, job.not_before_ms) == (State.QUEUED, "schedule", schedule.next_ms)


async def test_backups_are_listed_and_due_as_their_own_records_say(
    store: Store, place: Place, redis_client: Redis
) -> None:
    await register(store, metadata='{"backupEngine": "restic"}')
    wish = {
        "name": "n",
        "node": "w",
        "volumes": ["/srv"],
        "schedule": "0 3 * * *",
        "drill": {"schedule": "0 4 * * 0"},
    }
    backup = await backups.create(store, "user:u", wish, admin=True)
    # read a moment before it was made, and with a job that was accepted after its place had been read
    redis_client.delete("h:backups", "h:backups:due")
    redis_client.hset(f"h:backup:{backup.id}", "job", "job-of-which-nothing-is-known")
    result = await rebuilt(store, place, redis_client)
    assert result.unbelieved == []
    assert await backups.page(store, limit=10, offset=0) == ([backup], 1)
    due = {member.decode(): at for member, at in redis_client.zrange("h:backups:due", 0, -1, withscores=True)}
    assert due == {backup.id: backup.next_ms, f"{backup.id} drill": backup.drill_next_ms}


async def test_a_broken_audit_log_comes_back_and_is_told_of(
    store: Store, place: Place, redis_client: Redis
) -> None:
    for number in range(3):
        await submit(store, f"echo {number}")
    second = redis_client.xrange("h:audit")[1][0]
    redis_client.xdel("h:audit", second)
    result = await rebuilt(store, place, redis_client)
    assert result.audit_broken_at is not None
    assert redis_client.xlen("h:audit") == 3  # two of before, and the rebuild


async def test_a_forged_user_comes_back_as_unbelieved_as_before(
    store: Store, place: Place, redis_client: Redis
) -> None:
    forged = orjson.dumps({"id": "user-x", "username": "eve", "role": "a", "names": ["eve"]})
    redis_client.set("h:user:user-x", b"AAAA\n" + forged)
    result = await rebuilt(store, place, redis_client)
    assert result.unbelieved == ["h:user:user-x"]
    assert redis_client.zcard("h:users") == 0
    assert redis_client.scard("h:users:admins") == 0


async def test_a_point_signed_with_our_key_that_holds_other_commands_is_refused(
    store: Store, place: Place, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def evil(*_: Any) -> Any:
        yield "h:job:x", [("CONFIG", "h:job:x", "dir", "/somewhere")]

    monkeypatch.setattr("storage.recovery.capturing.commands", evil)
    point = await recovery.make(store)
    redis_client.flushall()
    with pytest.raises(RecoveryError, match="must not"):
        await recovery.rebuild(store.settings, place, point)
    assert redis_client.info("keyspace") == {}


async def test_the_wrong_key_and_a_spoilt_point_change_nothing(
    store: Store, place: Place, redis_client: Redis, settings_with_s3: Settings
) -> None:
    await submit(store, "old")
    point = await recovery.make(store)
    redis_client.flushall()
    other = Place(place.objects, Seal("another-secret-key-of-somebody-else-0123456789"))
    with pytest.raises(RecoveryError):
        await recovery.rebuild(settings_with_s3, other, point)
    altered = dataclasses.replace(point, keys=point.keys + 1)
    with pytest.raises(RecoveryError, match="its record says"):
        await recovery.rebuild(settings_with_s3, place, altered)
    await place.objects.delete(place.key(point.id, "part-000000"))
    with pytest.raises(RecoveryError, match="missing"):
        await recovery.rebuild(settings_with_s3, place, point)
    assert redis_client.info("keyspace") == {}
    assert await store.call(command("DBSIZE")) == 0
