import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from bench.paced import Load, Order
from bench.wire import Client

OK = b'HTTP/1.1 201 Created\r\nContent-Length: 13\r\n\r\n{"jobId":"j"}'


class Server:
    """Answers each request, the first ones only after `stalls_s`; closes after every `closes_after`th."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.arrived: list[float] = []
        self.serving: list[asyncio.Task[None] | None] = []
        self.stalls_s, self.closes_after = 0.0, 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_one = 0
        self.serving.append(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.arrived.append(time.monotonic())
                await asyncio.sleep(self.began + self.stalls_s - time.monotonic())
                writer.write(OK)
                with_one += 1
                if with_one == self.closes_after:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1")
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/jobs"
    yield server
    for task in server.serving:
        assert task is not None
        task.cancel()
        await task
    listening.close()
    await listening.wait_closed()


async def load(server: Server, **how: float) -> Load:
    order = Order(url=server.url, method="POST", body="{}", keep='"jobId":"([^"]+)"', **how)  # type: ignore[arg-type]
    load = Load(order)
    await load.run()
    return load


async def test_requests_leave_at_the_rate_that_was_asked_for(server: Server) -> None:
    began = time.monotonic()
    done = await load(server, rate=100, seconds=0.5)
    assert dict(done.statuses) == {"201": 50}
    assert done.kept == ["j"] * 50
    assert server.arrived[-1] - began >= 0.49


async def test_a_stall_counts_for_every_request_that_was_due_meanwhile(server: Server) -> None:
    server.began, server.stalls_s = time.monotonic(), 0.4
    done = await load(server, rate=100, seconds=0.4, connections=1)
    assert dict(done.statuses) == {"201": 40}
    assert (
        sum(taken > 150 for taken in done.taken_ms) >= 20
    )  # not the one alone that the connection waited for


async def test_connections_that_the_server_closes_are_replaced(server: Server) -> None:
    server.closes_after = 5
    done = await load(server, rate=100, seconds=0.3, connections=2)
    assert done.statuses.total() == 30
    assert done.statuses["201"] >= 24


async def test_requests_that_are_never_answered_are_counted(server: Server) -> None:
    server.stalls_s = 5.0
    done = await load(server, rate=100, seconds=0.2, connections=5, patience_s=0.1)
    assert dict(done.statuses) == {"0": 20}  # those that no connection was free for too


async def test_a_connection_of_ones_own_is_opened_anew(server: Server) -> None:
    server.closes_after = 1
    client = Client(server.url.removesuffix("/jobs"))
    for _ in range(2):
        assert await client.ask("GET", "/jobs", {}) == (201, b'{"jobId":"j"}')
        while client.is_open:
            await asyncio.sleep(0.01)
    client.close()
