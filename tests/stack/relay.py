"""A way to a server that breaks on demand: a TCP relay in the test's own loop."""

import asyncio
from contextlib import suppress


class Relay:
    """Passes bytes on between loopback ports; `cut` resets all connections, `stalled` keeps them open and still."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.latency_s = upstream, 0.0
        self._moving = asyncio.Event()
        self._moving.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def stalled(self) -> bool:
        """Whether nothing moves."""
        return not self._moving.is_set()

    @stalled.setter
    def stalled(self, still: bool) -> None:
        if still:
            self._moving.clear()
        else:
            self._moving.set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Reset every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            with suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
                writers.append(up_writer)
                ways = [self._pass(reader, up_writer), self._pass(up_reader, writer)]
                running = [asyncio.ensure_future(way) for way in ways]
                try:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in running:
                        way.cancel()
                    await asyncio.gather(*running, return_exceptions=True)
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()
                with suppress(OSError):
                    await each.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(self.latency_s)
            await self._moving.wait()
            writer.write(data)
            await writer.drain()
