"""A Redis that somebody else runs: TLS with a certificate of its own making, and no CONFIG for anybody."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from servers import SECRET_KEY, Valkey
from tls import Front, tls_front

from settings import BadSettings, Settings
from storage import checks, wire
from storage.calls import command
from storage.checks import FAIL, OK, WARN
from storage.errors import Unavailable
from storage.store import Store

pytestmark = pytest.mark.stack


@pytest.fixture
def managed(valkey: Valkey, redis_client: redis.Redis, tmp_path: Path) -> Iterator[tuple[Front, str]]:
    """A TLS front before the test's Valkey, and the URL of a user who may do everything but CONFIG."""
    user, port = f"managed-{uuid.uuid4().hex[:8]}", redis_client.get_connection_kwargs()["port"]
    redis_client.acl_setuser(
        user, enabled=True, passwords=["+its-password"], keys="*", channels="*", categories=["+@all"],
        commands=["-config"],
    )  # fmt: skip
    with tls_front(tmp_path, port) as front:
        yield front, f"rediss://{user}:its-password@127.0.0.1:{front.port}/0"
    redis_client.acl_deluser(user)


def reading(url: str, **variables: str) -> Settings:
    return Settings.from_env({"REDIS_URL": url, "HOSTLER_SECRET_KEY": SECRET_KEY, **variables})


async def test_a_certificate_that_nobody_vouches_for_is_refused_and_named(managed: tuple[Front, str]) -> None:
    store = Store(reading(managed[1]))
    for _ in range(2):  # while it waits before it tries again, it still knows why
        with pytest.raises(Unavailable, match="certificate is not trusted: self-signed"):
            await store.call(command("PING"))
    first = (await checks.redis_checks(store))[0]
    assert first.status == FAIL
    assert "HOSTLER_REDIS_CA_FILE" in first.remedy
    await store.close()
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        redis.Redis.from_url(store.settings.redis_url).ping()


async def test_a_certificate_that_a_listener_met_first_is_named_too(
    managed: tuple[Front, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "backoff_s", lambda failures: 3600.0)
    store = Store(reading(managed[1]))
    listening = asyncio.create_task(store.wire.listen(["news"], lambda *_: None, lambda: None))
    async with asyncio.timeout(30):
        while not store.wire._failures:
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match="certificate is not trusted: self-signed"):
        await store.call(command("PING"))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await store.close()


@pytest.mark.parametrize("trust", ["authority", "anybody"])
async def test_every_client_trusts_whom_the_settings_name(managed: tuple[Front, str], trust: str) -> None:
    front, url = managed
    variables = {"HOSTLER_REDIS_CA_FILE": str(front.certificate)}
    if trust == "anybody":
        variables = {"HOSTLER_REDIS_TLS_VERIFY": "0"}
    store = Store(reading(url, **variables))
    assert await store.call(command("PING")) == b"PONG"
    heard, subscribed = asyncio.Queue[bytes](), asyncio.Event()
    listening = asyncio.create_task(
        store.wire.listen(
            ["news"],
            lambda _, message: heard.put_nowait(message),
            connected=subscribed.set,
        )
    )
    client = store.wire.address.client()
    async with asyncio.timeout(30):
        await subscribed.wait()
        await client.publish("news", "told")
        assert await heard.get() == b"told"
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await client.aclose()
    await store.close()
    with redis.Redis.from_url(store.settings.redis_url) as blocking:  # RQ's kind
        assert blocking.ping()


async def test_another_authority_than_the_named_one_is_refused(
    managed: tuple[Front, str], tmp_path: Path
) -> None:
    front, url = managed
    (tmp_path / "other").mkdir()
    with tls_front(tmp_path / "other", front.port) as other:
        store = Store(reading(url, HOSTLER_REDIS_CA_FILE=str(other.certificate)))
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            await store.call(command("PING"))
        await store.close()


async def test_who_hides_its_configuration_is_read_by_info_and_only_warned_about(
    managed: tuple[Front, str], caplog: pytest.LogCaptureFixture
) -> None:
    front, url = managed
    store = Store(reading(url, HOSTLER_REDIS_CA_FILE=str(front.certificate)))
    await checks.refuse_volatile(store)
    found = {check.name: check.status for check in await checks.redis_checks(store)}
    assert (found["redis persistence"], found["redis eviction"], found["redis fsync"]) == (OK, OK, WARN)
    assert FAIL not in found.values()
    await store.close()


async def test_what_info_tells_of_a_volatile_one_is_warned_about_and_not_refused(
    managed: tuple[Front, str], redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    front, url = managed
    store = Store(reading(url, HOSTLER_REDIS_CA_FILE=str(front.certificate)))
    redis_client.config_set("appendonly", "no")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await checks.refuse_volatile(store)
        found = {check.name: check.status for check in await checks.redis_checks(store)}
    finally:
        redis_client.config_set("appendonly", "yes")
        redis_client.config_set("maxmemory-policy", "noeviction")
        await store.close()
    assert (found["redis persistence"], found["redis eviction"]) == (WARN, WARN)
    assert len([record for record in caplog.records if record.name == "hostler.storage"]) == 2


@pytest.mark.parametrize(
    "variables",
    [
        {"REDIS_URL": "redis://h", "HOSTLER_REDIS_TLS_VERIFY": "0"},
        {"REDIS_URL": "redis://h", "HOSTLER_REDIS_CA_FILE": __file__},
        {"REDIS_URL": "rediss://h", "HOSTLER_REDIS_CA_FILE": "/nowhere"},
        {"REDIS_URL": "rediss://h", "HOSTLER_REDIS_CA_FILE": __file__, "HOSTLER_REDIS_TLS_VERIFY": "0"},
        {"REDIS_URL": "rediss://h", "HOSTLER_REDIS_TLS_VERIFY": "perhaps"},
    ],
)
def test_trust_that_makes_no_sense_is_refused_by_name(variables: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match="HOSTLER_REDIS_"):
        Settings.from_env(variables)


def test_a_url_that_says_something_already_keeps_it() -> None:
    settings = reading("rediss://h:7/1?socket_timeout=3", HOSTLER_REDIS_TLS_VERIFY="0")
    assert settings.redis_url == "rediss://h:7/1?socket_timeout=3&ssl_cert_reqs=none"
    assert reading("rediss://h:7/1").redis_url == "rediss://h:7/1"
