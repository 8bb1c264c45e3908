"""Requests through the whole of Hostler to an app that misbehaves: the rest goes on, and nobody waits or swells."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from processes import Stack, finished, new_stack, soon
from webs import start_web

from storage import apps, bootstrap, manifests, relay
from storage.errors import GatewayTimeout
from storage.relay import Ask
from storage.store import Store
from workers.supervisor.ending import stop_all

#: An app that does with a request what its path says.
APP = """
import asyncio, os

async def serve(reader, writer):
    path = (await reader.readuntil(b"\\r\\n\\r\\n")).split()[1].decode()
    writer.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Type: text/plain\\r\\n")
    try:
        if "hang" in path:
            await asyncio.sleep(3600)
        elif "drip" in path:
            writer.write(b"\\r\\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        elif "flood" in path:
            writer.write(b"\\r\\n")
            for _ in range(2048):
                writer.write(b"x" * 2**20)
                await writer.drain()
        elif "reset" in path:
            writer.write(b"Content-Length: 1000\\r\\n\\r\\nx")
            await writer.drain()
            writer.transport.abort()
        else:
            writer.write(b"Content-Length: 2\\r\\n\\r\\nok")
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()

async def main():
    async with await asyncio.start_unix_server(serve, os.environ["HOSTLER_SOCKET"]) as server:
        await server.serve_forever()

asyncio.run(main())
"""
MIB = 1024 * 1024


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    stack = new_stack()
    try:
        stack.worker("n1", wait=False)
        start_web(stack)
        stack.await_workers(["n1"])
        yield stack
    finally:
        for process in stack.processes:
            process.terminate()
            await asyncio.to_thread(process.wait, 30)
        await stop_all(stack.settings.apps_dir)
        await asyncio.to_thread(stack.end)


def rss_bytes(stack: Stack) -> int:
    """Return the most memory that any process of the stack has had."""
    pids = [process.pid for process in stack.processes]
    for pid in pids:
        with contextlib.suppress(OSError):
            pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    peaks = []
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)


@pytest.mark.proves("F60")
async def test_an_app_that_misbehaves_costs_its_own_requests_alone(stack: Stack, evidence: list[str]) -> None:
    store = Store(stack.settings)
    admin = await bootstrap.first_admin(store)
    assert admin is not None
    web = {"command": ["python3", "-c", APP], "socket": True}
    given = {
        "id": "odd",
        "version": "1.0.0",
        "processes": {"web": web},
        "routes": {"prefix": "/p", "process": "web"},
    }
    _, submitted = await apps.install(store, "test", inline=manifests.load(given), node="n1")
    job = await finished(store, submitted.id)
    assert job.state == "completed", job.facts
    headers = {"X-API-Key": admin.api_key}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=40, trust_env=False) as client:

        async def ok() -> bool:
            answer = await client.get("/api/plugins/odd/ok")
            return (answer.status_code, answer.text) == (200, "ok")

        deadline = time.monotonic() + 20
        while not await ok():
            assert time.monotonic() < deadline, (await client.get("/api/plugins/odd/ok")).text
            await asyncio.sleep(0.1)
        before = rss_bytes(stack)
        # what never ends takes some of the node's time, and what ends soon has its turn all the same
        slow = [
            asyncio.create_task(relay.request(store, "n1", Ask(app="odd", path=f"/p/{way}", timeout_s=2)))
            for way in ("hang", "drip") * 8
        ]
        await asyncio.sleep(0.2)
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert await ok()
            took.append(time.monotonic() - began)
        assert max(took) < 1.5, took
        outcomes = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {GatewayTimeout}
        floods = await asyncio.gather(*(client.get("/api/plugins/odd/flood") for _ in range(4)))
        assert {answer.status_code for answer in floods} == {502}
        assert (await client.get("/api/plugins/odd/reset")).status_code == 502
        assert await ok()
        grown = rss_bytes(stack) - before
        assert grown < 200 * MIB, grown
        await apps.change(store, "test", "odd", "stop")
        deadline = time.monotonic() + 20
        while (answer := await client.get("/api/plugins/odd/ok")).status_code != 503:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert answer.headers["X-Error-Code"] == "APP_NOT_RUNNING"
        with stack.redis() as redis:
            await soon(lambda: not redis.keys("h:relay:answer:*"), "nothing is left in Redis")
    await store.close()
    evidence.append(
        f"16 that hang or drip, 4 x 2 GB, a reset: 504, 502, 502; others {max(took) * 1000:.0f} ms at most"
    )
    evidence.append(f"memory grew by {grown // MIB} MiB")
