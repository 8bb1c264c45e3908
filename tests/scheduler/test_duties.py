"""The duties: what each does to the store, and webhooks told over real connections."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from engine import claim, register, settle, submit

from scheduler import duties
from scheduler.duties import Messenger
from settings import Settings
from storage import archive, jobs
from storage.store import Store


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """A store whose webhooks may go to this machine."""
    store = Store(replace(settings, outbound_allow=("127.0.0.1",)))
    yield store
    await store.close()


@dataclass
class Target:
    """An HTTP server that keeps what it is told and answers `status` after `pause_s` seconds."""

    status: int = 200
    pause_s: float = 0
    told: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        self.told.append((headers, await reader.readexactly(int(headers["content-length"]))))
        await asyncio.sleep(self.pause_s)
        writer.write(b"HTTP/1.1 %d Said\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.status)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    @property
    def hook(self) -> dict[str, str]:
        return {"url": f"http://127.0.0.1:{self.port}/hook", "secret": "shh"}


@pytest.fixture
async def targets() -> AsyncIterator[Callable[..., Awaitable[Target]]]:
    servers = []

    async def start(**how: Any) -> Target:
        target = Target(**how)
        server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
        target.port = server.sockets[0].getsockname()[1]
        servers.append(server)
        return target

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def ended(store: Store, hook: dict[str, str]) -> str:
    job_id = await submit(store, webhook=hook)
    await jobs.cancel(store, "user:u", job_id)
    return job_id


async def test_a_webhook_is_told_once_with_a_signature(
    store: Store, targets: Any, redis_client: "redis.Redis[bytes]"
) -> None:
    target, messenger = await targets(), Messenger()
    job_id = await ended(store, target.hook)
    for _ in range(2):
        await messenger.run(store)
        await messenger.settled()
    ((headers, body),) = target.told
    assert json.loads(body)["jobId"] == job_id
    assert headers["x-hostler-signature-256"].startswith("sha256=")
    assert redis_client.zcard("h:webhooks") == 0


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_a_webhook_that_does_not_agree_is_told_again_later(
    store: Store, targets: Any, redis_client: "redis.Redis[bytes]", status: int
) -> None:
    target, messenger = await targets(status=status), Messenger()
    job_id = await ended(store, target.hook)
    await messenger.run(store)
    await messenger.settled()
    assert len(target.told) == 1
    due_ms = int(redis_client.zscore("h:webhooks", job_id) or 0)
    assert 8_000 < due_ms - store.now_ms() <= 10_000
    redis_client.zadd("h:webhooks", {job_id: 1})
    target.status = 204
    await messenger.run(store)
    await messenger.settled()
    assert len(target.told) == 2
    assert redis_client.zcard("h:webhooks") == 0


async def test_slow_targets_delay_nobody(store: Store, targets: Any) -> None:
    slow, quick, messenger = await targets(pause_s=1.5), await targets(), Messenger()
    for _ in range(10):
        await ended(store, {**slow.hook, "url": slow.hook["url"].replace("127.0.0.1", "localhost")})
    job_id = await ended(store, quick.hook)
    allowed = Store(replace(store.settings, outbound_allow=("127.0.0.1", "localhost")))
    try:
        began = time.monotonic()
        await messenger.run(allowed)
        async with asyncio.timeout(1):
            while not quick.told:
                await asyncio.sleep(0.01)
        assert time.monotonic() - began < 1
        assert json.loads(quick.told[0][1])["jobId"] == job_id
        assert len(slow.told) <= Messenger.MOST_OF_A_HOST
        await messenger.settled()
        assert len(slow.told) == Messenger.MOST_OF_A_HOST
    finally:
        await allowed.close()


async def test_a_private_target_is_not_told(
    settings: Settings, targets: Any, redis_client: "redis.Redis[bytes]"
) -> None:
    target, messenger, store = await targets(), Messenger(), Store(settings)
    try:
        job_id = await ended(store, target.hook)
        await messenger.run(store)
        await messenger.settled()
        assert target.told == []
        assert redis_client.hget(f"h:job:{job_id}", "webhook_tries") == b"1"
    finally:
        await store.close()


async def test_reaping_gives_back_what_a_dead_worker_held(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    holder, job_id = await register(store), await submit(store)
    await claim(store, holder)
    await duties.reap(store)  # the first look after a pause gives everybody a lease
    redis_client.delete("h:reaper:hold")
    redis_client.zadd("h:leases", {job_id: 1})
    await duties.reap(store)
    job = await jobs.get(store, job_id)
    assert (job.state, job.deaths) == ("queued", 1)


async def test_promoting_and_restoring_bring_jobs_into_their_queue(
    store: Store, redis_client: "redis.Redis[bytes]"
) -> None:
    await submit(store, delay_s=0.01)
    vanished = await submit(store)
    redis_client.lrem("rq:queue:jobs.normal", 0, vanished)
    await asyncio.sleep(0.02)
    await duties.promote(store)
    await duties.restore(store)
    assert redis_client.llen("rq:queue:jobs.normal") == 2


async def test_archiving_takes_the_old_and_the_surplus(
    settings_with_s3: Settings, redis_client: "redis.Redis[bytes]"
) -> None:
    store = Store(replace(settings_with_s3, finished_keep_count=1))
    try:
        holder = await register(store)
        ids = []
        for _ in range(3):
            ids.append(await submit(store))
            (claimed,) = await claim(store, holder)
            await settle(store, holder, claimed)
        await duties.archive_jobs(store)
        assert redis_client.zrange("h:ended", 0, -1) == [ids[2].encode()]
        assert (await archive.get(store, ids[0]))["state"] == "completed"
    finally:
        await store.close()


def test_no_two_duties_have_one_name_and_the_reaper_is_as_quick_as_told() -> None:
    table = duties.table(0.5)
    assert len({duty.name for duty in table}) == len(table)
    assert next(duty for duty in table if duty.name == "reap").every_s == 0.5
