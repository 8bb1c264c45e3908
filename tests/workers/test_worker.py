"""`hostler worker` as RQ and Hostler register it: before Redis is there, and against others of its name."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import rq
from engine import register, submit
from rq.serializers import JSONSerializer
from servers import free_port

from settings import Settings, process_environment
from storage import fleet
from storage.attempts import Holder
from storage.errors import HostlerError, Invalid
from storage.keyring import FOREIGN
from storage.store import Store
from workers import platforms, startup
from workers import worker as module
from workers.platforms import Platform
from workers.worker import Worker


@pytest.fixture
def platform() -> Any:
    platform = platforms.choose("none", slots=1)
    yield platform
    platform.close()


async def registered(worker: Worker, store: Store, platform: Platform, registration: str = "r") -> None:
    try:
        await asyncio.wait_for(worker._register(store, Holder(worker.name, registration), platform), 10)  # noqa: TID251
    finally:
        worker.connection.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_worker_may_open_what_its_slots_need_or_does_not_start() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
        startup._allow_descriptors(2, 2)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1000, before[1])
        startup._allow_descriptors(250, 32)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (128 + 8 * 250 + 4 * 32, before[1])
        if before[1] != resource.RLIM_INFINITY:
            refused = rf"may need \d+ open files, and this one may have {before[1]}: raise"
            with pytest.raises(Invalid, match=refused):
                startup._allow_descriptors(before[1], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_work_directory_that_cannot_be_used_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    environment = {**process_environment(), "HOSTLER_SECRET_KEY": "a secret key that is long enough"}
    for path, wrong in ((file, "File exists"), (file / "below", "Not a directory")):
        ended = subprocess.run(
            [sys.executable, "-m", "workers"], env={**environment, "HOSTLER_WORK_DIR": str(path)},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert ended.returncode == 2
        assert ended.stderr == f"HOSTLER_WORK_DIR: {path} cannot be made: {wrong}.\n"


async def test_a_worker_is_made_though_redis_is_away_and_says_once_where_it_looks_for_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = replace(settings, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    worker = Worker(away, name="w", slots=1, tags=("gpu",))
    assert worker.queue_names() == ["jobs.high", "jobs.normal", "jobs.low"]
    store = Store(away)
    platform = platforms.choose("none", slots=1)
    asleep, slept = asyncio.sleep, []

    async def doze(delay_s: float) -> None:
        slept.append(delay_s)
        await asleep(0.01)

    monkeypatch.setattr(module.asyncio, "sleep", doze)
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker._register(store, Holder("w", "r"), platform), 0.5)  # it waits  # noqa: TID251
        assert len(slept) > 1
        (said,) = [each for each in caplog.records if each.message == "cannot register for now"]
        assert said.__dict__["redis"] == away.redis_url.removeprefix("redis://").removesuffix("/0")
    finally:
        platform.close()
        await store.close()


async def test_a_worker_is_known_to_hostler_and_to_rq_with_the_queues_that_its_tags_cover(
    settings: Settings, store: Store, platform: Platform, redis_client: "redis.Redis[bytes]"
) -> None:
    await submit(store, tags=["gpu"])
    await submit(store, tags=["arm"])
    await registered(Worker(settings, name="w", slots=3, tags=("gpu",)), store, platform)
    known = await store.call(fleet.fetch("w"))
    assert (known.status, known.slots, known.tags, known.pid) == ("online", 3, ("gpu",), os.getpid())
    assert known.hostname == socket.gethostname()
    (seen,) = rq.Worker.all(connection=redis_client, serializer=JSONSerializer)
    assert seen.queue_names() == [
        "jobs.gpu.high", "jobs.high", "jobs.gpu.normal", "jobs.normal", "jobs.gpu.low", "jobs.low"
    ]  # fmt: skip


async def test_a_worker_with_another_secret_key_waits_and_ends_no_job_that_is_sound(
    settings: Settings, store: Store, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    await store.keyring.check()
    other = replace(settings, secret_key="another secret key, also long enough")
    worker, stranger = Worker(other, name="w", slots=1, tags=()), Store(other)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await worker._register(stranger, Holder("w", "r"), platform)
    worker.connection.close()
    await stranger.close()
    assert not await fleet.workers(store)
    assert caplog.records[-1].__dict__["why"] == FOREIGN


async def test_a_worker_waits_while_another_of_its_name_is_online(
    settings: Settings, store: Store, platform: Platform
) -> None:
    await register(store, "w", hostname="elsewhere", pid=1)
    worker = Worker(settings, name="w", slots=1, tags=())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker._register(store, Holder("w", "r2"), platform), 0.3)  # noqa: TID251
    worker.connection.close()


@pytest.mark.parametrize(
    ("facts", "free"),
    [
        ({"pid": 2**22 + 1}, True),  # no process has that number
        ({"pid": os.getppid()}, False),
        ({"pid": os.getppid(), "boot": "another"}, True),  # the machine was restarted since
        ({"pid": os.getpid()}, True),  # it is this very process
        ({"pid": 2**22 + 1, "hostname": "elsewhere"}, False),
        ({"pid": ""}, False),
    ],
)
async def test_a_name_is_free_once_its_worker_is_surely_dead(
    settings: Settings, store: Store, platform: Platform, facts: dict[str, Any], free: bool
) -> None:
    known = {"hostname": socket.gethostname(), "boot": module.boot_id(), **facts}
    await register(store, "w", **known)
    worker = Worker(settings, name="w", slots=1, tags=())
    if free:
        await registered(worker, store, platform, "r2")
        assert (await store.call(fleet.record("w")))["registration"] == "r2"
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker._register(store, Holder("w", "r2"), platform), 0.2)  # noqa: TID251
        worker.connection.close()


@pytest.mark.parametrize("name", ["../x", ".", "..", "", "a/b", "a b", "x" * 65])
def test_a_name_that_is_no_folders_name_is_refused(name: str) -> None:
    assert startup.problem_with_name(name) is not None
    assert startup.problem_with_name("builder-1.example_x") is None


async def test_a_worker_of_which_a_part_has_ended_stops_and_says_so() -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()

    async def part() -> None:
        raise OSError("no lock")

    loop.add_signal_handler(signal.SIGTERM, told.set)
    try:
        with pytest.raises(HostlerError, match="no lock"):
            async with module._at_work(part()), asyncio.timeout(5):
                await told.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
