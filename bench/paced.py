"""HTTP load at a constant rate: requests leave when they are due, however slow the answers before them are.

Each answer's time counts from when its request was due, not from when a connection was free for it, so that a server
that stalls cannot hide it (what wrk2 calls coordinated omission). It runs as a process of its own:
`python -m bench.paced` reads an order from its standard input and writes what it found.
"""

import asyncio
import collections
import contextlib
import gc
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import orjson
import uvloop

from bench.latency import quantiles
from bench.processes import environment, python
from bench.wire import Line, request

CONNECTIONS = 64
PATIENCE_S = 15.0
NO_ANSWER = "0"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to send: the same request, `rate` times a second for `seconds`."""

    url: str
    rate: float
    seconds: float
    method: str = "GET"
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = CONNECTIONS
    patience_s: float = PATIENCE_S  #: what has no answer so long after the last request has none
    keep: str = ""  #: a pattern; its first group in each body of a success is kept


@dataclass(frozen=True)
class Answers:
    """What came back: how many of each status ("0": none), p50, p99 and the longest in ms, and what was kept."""

    statuses: dict[str, int]
    p50: float
    p99: float
    longest: float
    kept: list[str]

    @property
    def sent(self) -> int:
        """Return how many requests left."""
        return sum(self.statuses.values())

    def count(self, *statuses: str) -> int:
        """Return how many answers had one of `statuses`, of which `2` stands for all from 200 to 299."""
        return sum(n for each, n in self.statuses.items() if each.startswith(statuses))

    def expect_success(self) -> "Answers":
        """Return these answers. Raises RuntimeError unless all of them are successes."""
        if self.count("2") != self.sent:
            raise RuntimeError(f"Not all requests succeeded: {self.statuses}")
        return self


@contextlib.contextmanager
def pacing(order: Order) -> Iterator["subprocess.Popen[bytes]"]:
    """Send requests meanwhile; `collect` what came back."""
    with subprocess.Popen(
        python("-m", "bench.paced"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as child:
        assert child.stdin is not None  # noqa: S101  asked for above
        child.stdin.write(orjson.dumps(asdict(order)))
        child.stdin.close()
        child.stdin = None
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def collect(child: "subprocess.Popen[bytes]", order: Order) -> Answers:
    """Wait for the end of a paced load and return what came back. Raises RuntimeError."""
    told, _ = child.communicate(timeout=order.seconds + order.patience_s + 30)
    if child.returncode:
        raise RuntimeError(f"The load ended with exit code {child.returncode}.")
    return Answers(**orjson.loads(told))


def paced(order: Order) -> Answers:
    """Send requests at a constant rate and return what came back. Raises RuntimeError."""
    with pacing(order) as child:
        return collect(child, order)


class Load:
    """The connections, the requests that are due, and the answers."""

    def __init__(self, order: Order) -> None:
        self.order, where = order, urlsplit(order.url)
        self.host, self.port = where.hostname or "", where.port or 80
        self.request = request(order.method, order.url, order.headers, order.body)
        self.keep = re.compile(order.keep.encode()) if order.keep else None
        self.free: collections.deque[Line] = collections.deque()
        self.waiting: collections.deque[float] = collections.deque()
        self.due: dict[Line, float] = {}  # by the connection that has asked
        self.statuses: collections.Counter[str] = collections.Counter()
        self.taken_ms: list[float] = []
        self.kept: list[str] = []
        self.ended = False
        self.opening: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Send all, and wait for the answers."""
        await asyncio.gather(*(self.connect() for _ in range(self.order.connections)))
        total = round(self.order.rate * self.order.seconds)
        began = time.monotonic()
        for number in range(total):
            at = began + number / self.order.rate
            if (pause := at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            self.waiting.append(at)
            self.send()
        over = time.monotonic()
        while len(self.taken_ms) < total and time.monotonic() < over + self.order.patience_s:
            await asyncio.sleep(0.01)
        for at in [*self.waiting, *self.due.values()]:
            self.count(NO_ANSWER, at)
        await self.end()

    async def connect(self) -> None:
        """Open a connection; without one, what is due waits."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().create_connection(
                lambda: Line(self.offer, self.answered, self.replace), self.host, self.port
            )

    async def end(self) -> None:
        """Close the connections."""
        self.ended = True
        lines = [*self.free, *self.due]
        self.due.clear()
        for line in lines:
            line.transport.abort()
        await asyncio.gather(*self.opening)

    def offer(self, line: Line) -> None:
        """Take a connection that can be asked."""
        self.free.append(line)
        self.send()

    def send(self) -> None:
        """Send what is due as far as connections are free."""
        while self.waiting and self.free and not self.ended:
            line = self.free.popleft()
            self.due[line] = self.waiting.popleft()
            line.send(self.request)

    def answered(self, line: Line, status: int, body: bytes) -> None:
        """Note an answer."""
        self.count(str(status), self.due.pop(line))
        if self.keep is not None and 200 <= status < 300 and (found := self.keep.search(body)):
            self.kept.append(found[1].decode())

    def count(self, status: str, due: float) -> None:
        """Count an answer, or that there was none."""
        self.statuses[status] += 1
        self.taken_ms.append((time.monotonic() - due) * 1000)

    def replace(self, line: Line) -> None:
        """Open a connection in the place of one that was closed."""
        if line in self.due:
            self.count(NO_ANSWER, self.due.pop(line))
        with contextlib.suppress(ValueError):
            self.free.remove(line)
        if self.ended:
            return
        task = asyncio.get_running_loop().create_task(self.connect())
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)


async def _main() -> None:
    order = Order(**orjson.loads(sys.stdin.buffer.read()))
    gc.disable()  # its pauses would be the server's
    load = Load(order)
    await load.run()
    found = quantiles(load.taken_ms)
    answers = Answers(dict(load.statuses), found["p50"], found["p99"], max(load.taken_ms), load.kept)
    sys.stdout.buffer.write(orjson.dumps(asdict(answers)))


if __name__ == "__main__":
    uvloop.run(_main())
