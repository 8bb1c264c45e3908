"""Many WebSocket clients in one process: each counts what it is told, a few note how late that was."""

import asyncio
import base64
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvloop

#: So many of the clients read what they are told; the others count frames.
READERS = 20
PATIENCE_S = 15.0


class _Client(asyncio.Protocol):
    def __init__(self, head: bytes, delays_ms: list[float] | None) -> None:
        self.head, self.delays_ms = head, delays_ms
        self.open = asyncio.get_running_loop().create_future()
        self.data = b""
        self.frames = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.head)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.open.done():
            head, end, self.data = self.data.partition(b"\r\n\r\n")
            if not end:
                self.data = head
                return
            self.open.set_result(head.startswith(b"HTTP/1.1 101"))
        now_ms = time.time() * 1000
        data, at = self.data, 0
        while len(data) >= at + 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            if len(data) < start + size:
                break
            if data[at] == 0x81:
                self.frames += 1
                if self.delays_ms is not None:
                    event = orjson.loads(data[start : start + size])["id"]
                    self.delays_ms.append(now_ms - int(event.partition("-")[0]))
            elif data[at] == 0x89:  # a ping; an unmasked key of zeros masks nothing
                self.transport.write(b"\x8a" + bytes((0x80 | size,)) + bytes(4) + data[start : start + size])
            at = start + size
        self.data = data[at:]


async def main(url: str, api_key: str, count: int, expected: int, told: Path) -> None:
    """Connect `count` clients, let each hear `expected` messages, and write what was found to `told`."""
    where = urlsplit(url)
    key = base64.b64encode(os.urandom(16)).decode()
    head = (
        f"GET /api/jobs/stream HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {api_key}\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    delays_ms: list[float] = []
    clients: list[_Client] = []
    for number in range(count):
        client = _Client(head, delays_ms if number % (count // READERS) == 0 else None)
        await asyncio.get_running_loop().create_connection(
            lambda: client,  # noqa: B023  called before the next round
            where.hostname or "",
            where.port or 80,
        )
        clients.append(client)
        if number % 50 == 49:
            await asyncio.gather(*(each.open for each in clients[-50:]))
    if not all(await asyncio.gather(*(each.open for each in clients))):
        sys.exit("a handshake was refused")
    await asyncio.sleep(1)
    print("listening", flush=True)
    heard, since = -1, time.monotonic()
    while (now := sum(each.frames for each in clients)) < count * expected:
        if now != heard:
            heard, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE_S:
            break
        await asyncio.sleep(0.1)
    p99 = statistics.quantiles(delays_ms, n=100, method="inclusive")[98]
    fresh = told.with_suffix(".new")
    fresh.write_bytes(orjson.dumps({"p99": p99, "missing": count * expected - now}))
    fresh.rename(told)
    with contextlib.suppress(OSError):
        for client in clients:
            client.transport.abort()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
