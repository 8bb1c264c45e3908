"""The checks: what is fit for Hostler passes, and each thing that is not is found and can be mended."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import hiredis
import pytest
import redis

from settings import Settings
from storage import checks
from storage.calls import Call, command
from storage.checks import FAIL, OK, WARN, Check, Volatile
from storage.store import Store

pytestmark = pytest.mark.stack

SETTABLE = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")


@pytest.fixture
def configure(redis_client: redis.Redis) -> Iterator[Callable[..., None]]:
    """Set what Redis is configured to, and set it back afterwards."""
    before = {name: redis_client.config_get(name)[name] for name in SETTABLE}

    def configure(**values: str) -> None:
        for name, value in values.items():
            redis_client.config_set(name.replace("_", "-"), value)

    yield configure
    for name, value in before.items():
        redis_client.config_set(name, value)


class Retold(Store):
    """A store whose Redis tells of itself as the test says; an exception is raised instead of an answer."""

    def __init__(self, settings: Settings, **told: Any) -> None:
        super().__init__(settings)
        self.told = told

    async def call(self, call: Call[Any]) -> Any:
        word = str(call.words[0])
        if word not in self.told:
            return await super().call(call)
        told = self.told[word]
        if isinstance(told, Exception):
            raise told
        if isinstance(told, Mapping):
            answer = (await super().call(call)).decode().splitlines()
            kept = [line for line in answer if line.partition(":")[0] not in told]
            return "\r\n".join(
                [*kept, *(f"{name}:{value}" for name, value in told.items() if value)]
            ).encode()
        return told


async def found(settings: Settings, name: str, **told: Any) -> Check:
    """Return the check called `name`, of a Redis that tells what the test says."""
    store = Retold(settings, **told)
    try:
        return {check.name: check for check in await checks.redis_checks(store)}[name]
    finally:
        await store.close()


async def test_a_fresh_installation_only_lacks_workers_a_scheduler_and_what_that_makes(
    settings_with_s3: Settings,
) -> None:
    store = Store(settings_with_s3)
    results = {check.name: check for check in await checks.everything(store)}
    await store.close()
    lacking = {name for name, check in results.items() if check.status != OK}
    assert lacking == {"workers", "scheduler", "recovery point"}
    assert all(check.remedy for check in results.values() if check.status != OK)
    assert {
        "s3 put",
        "s3 get",
        "s3 delete",
        "s3 presigned URL",
        "s3 conditional PUT",
        "queues",
        "secret key",
    } <= set(results)


async def test_the_checks_leave_nothing_behind(settings_with_s3: Settings, redis_client: redis.Redis) -> None:
    store = Store(settings_with_s3)
    await store.keyring.check()
    before = set(redis_client.scan_iter())
    await checks.everything(store)
    assert set(redis_client.scan_iter()) == before
    assert await store.objects.delete_prefix("doctor/") == 0
    await store.close()


async def test_a_redis_that_is_away_fails_alone_and_quickly(settings: Settings) -> None:
    store = Store(replace(settings, redis_url="redis://127.0.0.1:1/0"))
    first = (await checks.redis_checks(store))[0]
    assert (first.name, first.status) == ("redis", FAIL)
    assert "REDIS_URL" in first.remedy
    await store.close()


@pytest.mark.parametrize(
    ("values", "name", "status"),
    [
        ({"appendonly": "no"}, "redis persistence", FAIL),
        ({"appendfsync": "no"}, "redis fsync", FAIL),
        ({"appendfsync": "always"}, "redis fsync", OK),
        ({"maxmemory_policy": "allkeys-lru"}, "redis eviction", FAIL),
        ({"maxmemory_policy": "volatile-ttl"}, "redis eviction", FAIL),
        ({"maxmemory": "1gb"}, "redis memory", OK),
    ],
)
async def test_how_redis_is_configured(
    values: dict[str, str], name: str, status: str, store: Store, configure: Callable[..., None]
) -> None:
    configure(**values)
    check = {check.name: check for check in await checks.redis_checks(store)}[name]
    assert check.status == status
    assert bool(check.remedy) is (status != OK)


FULL, SHORT = {"used_memory": "990", "maxmemory": "1000"}, {"used_memory": "1000", "maxmemory": "1000"}


@pytest.mark.parametrize(
    ("name", "told", "status"),
    [
        ("redis version", {"valkey_version": None, "redis_version": "6.0.20"}, FAIL),
        ("redis version", {"valkey_version": None, "redis_version": "6.2.5"}, WARN),
        ("redis version", {"valkey_version": None, "redis_version": "7.0.15"}, WARN),
        ("redis version", {"valkey_version": None, "redis_version": "7.4.6"}, OK),
        ("redis version", {"valkey_version": None, "redis_version": "8.6.2"}, WARN),
        ("redis version", {"valkey_version": None, "redis_version": "9.0.0"}, OK),
        ("redis version", {"valkey_version": "8.1.3"}, WARN),
        ("redis version", {"valkey_version": "9.1.2"}, OK),
        ("redis memory", FULL, WARN),
        ("redis memory", SHORT, FAIL),
        ("redis role", {"role": "slave"}, FAIL),
        ("redis disk", {"aof_last_write_status": "err"}, FAIL),
        ("redis disk", {"rdb_last_bgsave_status": "err"}, WARN),
    ],
)
async def test_what_redis_says_of_itself(
    name: str, told: dict[str, str | None], status: str, settings: Settings
) -> None:
    assert (await found(settings, name, INFO=told)).status == status


FORBIDDEN = hiredis.ReplyError("NOPERM this user has no permissions to run the 'config|get' command")


@pytest.mark.parametrize(
    ("name", "told", "status"),
    [
        ("redis persistence", {"aof_enabled": "1"}, OK),
        ("redis persistence", {"aof_enabled": "0"}, WARN),
        ("redis fsync", {}, WARN),
        ("redis eviction", {"maxmemory_policy": "noeviction"}, OK),
        ("redis eviction", {"maxmemory_policy": "volatile-lru"}, WARN),
    ],
)
async def test_a_managed_redis_that_hides_its_configuration_is_warned_about_at_most(
    name: str, told: dict[str, str], status: str, settings: Settings
) -> None:
    assert (await found(settings, name, INFO=told, CONFIG=FORBIDDEN)).status == status


@pytest.mark.parametrize(("offset_s", "status"), [(0, OK), (5, FAIL), (-5, FAIL)])
async def test_clocks_that_differ_are_found(offset_s: int, status: str, settings: Settings) -> None:
    seconds = int(time.time()) + offset_s
    assert (await found(settings, "redis clock", TIME=[str(seconds).encode(), b"500000"])).status == status


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("redis://127.0.0.1/0", OK),
        ("redis://localhost/0", OK),
        ("unix:///run/redis.sock", OK),
        ("redis://redis.example.com/0", FAIL),
        ("redis://:secret@redis.example.com/0", WARN),
        ("rediss://:secret@redis.example.com/0", OK),
        ("rediss://:secret@redis.example.com/0?ssl_cert_reqs=none", WARN),
    ],
)
async def test_a_redis_elsewhere_wants_a_password_and_tls(url: str, status: str, settings: Settings) -> None:
    store = Store(replace(settings, redis_url=url))
    check = checks._exposure(store)
    await store.close()
    assert (check.name, check.status) == ("redis access", status)


@pytest.mark.parametrize("values", [{"appendonly": "no"}, {"maxmemory_policy": "allkeys-lru"}])
async def test_a_volatile_redis_is_refused_unless_that_is_accepted(
    values: dict[str, str],
    settings: Settings,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(**values)
    strict, lenient = Store(settings), Store(replace(settings, allow_volatile=True))
    with pytest.raises(Volatile, match="HOSTLER_ALLOW_VOLATILE=1 accepts the risk"):
        await checks.refuse_volatile(strict)
    with caplog.at_level(logging.WARNING, "hostler.storage"):
        await checks.refuse_volatile(lenient)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await asyncio.gather(strict.close(), lenient.close())


async def test_a_redis_that_keeps_everything_is_not_refused(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hostler.storage"):
        await checks.refuse_volatile(store)
    assert caplog.records == []


async def test_a_managed_redis_is_not_refused_but_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store = Retold(settings, INFO={"aof_enabled": "0"}, CONFIG=FORBIDDEN)
    with caplog.at_level(logging.WARNING, "hostler.storage"):
        await checks.refuse_volatile(store)
    assert len(caplog.records) == 1
    await store.close()


async def test_another_secret_key_is_noticed(store: Store, settings: Settings) -> None:
    await store.keyring.check()
    assert [check.status for check in await checks.secret_checks(store)] == [OK]
    other = Store(replace(settings, secret_key="another-" + "x" * 40))
    assert [check.status for check in await checks.secret_checks(other)] == [FAIL]
    await other.close()


async def test_an_s3_that_is_away_fails_in_one_check(settings: Settings) -> None:
    elsewhere = {
        "s3_access_key_id": "a",
        "s3_secret_access_key": "b",
        "s3_endpoint_url": "http://127.0.0.1:1",
    }
    store = Store(replace(settings, **elsewhere))  # type: ignore[arg-type]
    results = await checks.s3_checks(store)
    assert [(check.name, check.status) for check in results] == [("s3 bucket", FAIL)]
    await store.close()


async def test_jobs_that_wait_for_long_and_work_that_is_overdue(store: Store) -> None:
    now = store.now_ms()
    await store.calls(
        command("SADD", "rq:queues", "rq:queue:jobs.normal"),
        command("RPUSH", "rq:queue:jobs.normal", "job-1", "job-2"),
        command("HSET", "h:job:job-1", "created", now - 2 * 3600 * 1000),
    )
    waiting, stuck = await checks.queue_checks(store)
    assert (waiting.status, stuck.status) == (WARN, OK)
    assert waiting.message.startswith("2 jobs wait")
    await store.calls(
        command("ZADD", "h:leases", now - 120_000, "job-3"), command("ZADD", "h:delayed", now + 9000, "job-4")
    )
    _, stuck = await checks.queue_checks(store)
    assert stuck.status == WARN
    assert stuck.message.startswith("1 running jobs have lost their worker, and 0 jobs")


async def test_a_worker_without_isolation_is_pointed_out(store: Store) -> None:
    for name, isolation in (("good", "uid"), ("bad", "none")):
        fields = (
            "registration",
            "r",
            "status",
            "online",
            "slots",
            "2",
            "kind",
            "worker",
            "isolation",
            isolation,
        )
        fresh = ("seen", store.now_ms())
        await store.calls(
            command("ZADD", "h:workers", 1, name),
            command("ZADD", "h:workers:seen", store.now_ms(), name),
            command("HSET", f"h:worker:{name}", *fields, *fresh),
        )
    first, *others = await checks.fleet_checks(store)
    assert first.message == "Workers online: 2, with 4 slots in all."
    assert ["'bad'" in check.message for check in others] == [True]


async def test_a_scheduler_that_leads_is_named(store: Store) -> None:
    await store.call(command("SET", "h:leader", "3 host:42"))
    [check] = await checks.scheduler_checks(store)
    assert (check.status, "'host:42'" in check.message) == (OK, True)
