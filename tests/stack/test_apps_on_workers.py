"""Apps as real processes of a real worker: they outlive it, whatever ends it, and are never there twice."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest
from processes import Stack, finished, new_stack, processes_with, soon

from storage import apps, manifests
from storage.apps import App
from storage.store import Store
from workers.supervisor import ending

pytestmark = pytest.mark.stack


@pytest.fixture
def stack() -> Iterator[Stack]:
    """One Hostler without a web; its apps end with the test."""
    stack = new_stack()
    yield stack
    stack.end()


@pytest.fixture
async def store(stack: Stack) -> AsyncIterator[Store]:
    store = Store(stack.settings)
    yield store
    await store.close()


def instances(stack: Stack, name: str = "") -> set[int]:
    return processes_with(f"HOSTLER_INSTANCE={name}".encode(), below=str(stack.directory))


async def install(store: Store, **processes: Any) -> None:
    manifest = manifests.load({"id": "a", "version": "1.0.0", "processes": processes})
    _, submitted = await apps.install(store, "user:u", inline=manifest, node="n1")
    assert (await finished(store, submitted.id)).state == "completed"


async def change(store: Store, action: str, **how: Any) -> App:
    submitted = await apps.change(store, "user:u", "a", action, **how)
    job = await finished(store, submitted.id)
    assert job.state == "completed", job.facts
    return await apps.get(store, "a")


def pids(app: App) -> dict[str, int | None]:
    return {each.id: each.pid for each in app.instances}


async def test_apps_outlive_their_worker_and_are_taken_over_by_the_next_one(
    stack: Stack, store: Store
) -> None:
    worker = stack.worker("n1")
    await install(store, web={"command": "echo up; exec sleep 600", "scale": 2})
    before = pids(await apps.get(store, "a"))
    for how in (signal.SIGKILL, signal.SIGTERM):
        worker.send_signal(how)
        worker.wait(20)
        assert instances(stack, "a/web-") == set(before.values())
        worker = stack.worker("n1")
        app = await change(store, "start")
        assert pids(app) == before
        assert app.status == "running"
    os.kill(before["web-0"] or 0, signal.SIGKILL)  # what an earlier worker started is watched, too
    await soon(lambda: len(instances(stack, "a/web-0/")) == 0, "its end is certain")
    app = await change(store, "restart", process="web")
    assert set(pids(app).values()) == instances(stack, "a/web-")
    assert not set(pids(app).values()) & set(before.values())
    lines = [line.text for line in await apps.lines(store, "a")]
    assert set(lines) == {"up"}
    assert stack.start("workers", "--stop-apps").wait(30) == 1  # a worker would start them again
    assert set(pids(app).values()) == instances(stack, "a/web-")
    worker.terminate()
    worker.wait(20)
    assert stack.start("workers", "--stop-apps").wait(30) == 0
    assert not instances(stack)


async def test_a_start_that_fails_says_so_with_the_last_lines_and_needs_no_command_slot(
    stack: Stack, store: Store
) -> None:
    from storage import jobs
    from storage.jobs import Order

    stack.worker("n1", "--slots", "1")
    never = {"policy": "never"}
    await install(store, web={"command": "echo dear me; exit 4", "restart": never, "initial": "stopped"})
    blocking = (await jobs.submit(store, "user:u", Order(command="sleep 600"))).id
    submitted = await apps.change(store, "user:u", "a", "start")
    job = await finished(store, submitted.id)
    assert (job.state, job.reason, job.exit_code) == ("failed", "exit_code", 4)
    assert "dear me" in job.facts["message"]
    assert (await jobs.get(store, blocking)).state == "running"
    assert (await apps.get(store, "a")).status == "failed"


async def test_a_stop_overtakes_a_start_and_its_job_says_so(stack: Stack, store: Store) -> None:
    stack.worker("n1")
    check = {"kind": "exec", "command": "exit 1", "delay_s": 0, "period_s": 0.2, "failures": 1000}
    await install(store, web={"command": "exec sleep 600", "health": check, "initial": "stopped"})
    starting = await apps.change(store, "user:u", "a", "start")
    await soon(lambda: instances(stack, "a/web-0/"), "it is started")
    app = await change(store, "stop")
    assert app.status == "stopped"
    assert not instances(stack, "a/web-0/")
    assert (await finished(store, starting.id)).state == "cancelled"


@pytest.mark.slow
@pytest.mark.proves("F59")
async def test_an_app_that_is_killed_and_raced_over_is_there_once_and_fails_in_the_end(
    stack: Stack, store: Store
) -> None:
    stack.worker("n1")
    rules = {"policy": "always", "attempts": 20, "backoff_s": 0.1, "max_s": 0.5}
    await install(store, web={"command": "exec sleep 600", "restart": rules})
    for number in range(21):
        (pid,) = await soon(lambda: instances(stack, "a/web-0/"), f"it is there the {number}. time")
        os.kill(pid, signal.SIGKILL)
        await soon(lambda pid=pid: pid not in instances(stack, "a/web-0/"), "it is gone")
    await soon(lambda: _states(stack) == ["failed"], "its attempts are spent")
    most = 0
    for number in range(200):
        await apps.change(store, "user:u", "a", "stop" if number % 2 else "start")
        most = max(most, len(instances(stack, "a/web-0/")))
    app = await change(store, "stop")
    assert most <= 1
    assert (app.status, instances(stack, "a/")) == ("stopped", set())
    app = await change(store, "start")
    assert set(pids(app).values()) == instances(stack, "a/")


def _states(stack: Stack) -> list[str]:
    with stack.redis() as client:
        return [each["state"] for each in orjson.loads(client.hget("h:app:a", "instances") or b"[]")]


@pytest.mark.slow
@pytest.mark.proves("F46")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
async def test_a_disk_that_is_full_keeps_apps_from_being_restarted_until_there_is_room(
    stack: Stack, store: Store
) -> None:
    small = stack.directory / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", small], check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    stack.env["HOSTLER_APPS_DIR"] = str(small)
    try:
        worker = stack.worker("n1")
        await install(
            store, web={"command": "exec sleep 600", "restart": {"policy": "always", "backoff_s": 0.1}}
        )
        filler = small / "a" / "data" / "filler"
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(65536))
                file.flush()
        (pid,) = instances(stack, "a/web-0/")
        os.kill(pid, signal.SIGKILL)
        await soon(lambda: _states(stack) == ["crashed"], "its end was noticed")
        worker.kill()  # also a worker that starts on a full disk comes up
        worker.wait(10)
        stack.worker("n1")
        async with asyncio.timeout(30):
            while "disk" not in (await apps.get(store, "a")).message:
                await asyncio.sleep(0.1)
        assert not instances(stack, "a/web-0/")
        filler.unlink()
        await soon(lambda: instances(stack, "a/web-0/"), "it runs once there is room")
    finally:
        stack.end(*stack.processes)
        await ending.stop_all(small)
        subprocess.run(["umount", small], check=True)
