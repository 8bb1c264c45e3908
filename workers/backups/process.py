"""One external program at a time, its output taken as fast as whoever runs it takes it.

It dies with the worker, whatever that dies of, and with all that it has started.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from workers.attended import Attended
from workers.platforms import Child, Outcome, Output

READ_BYTES = 256 * 1024
#: What is remembered of a program's complaints, to say why it failed.
TAIL_LINES = 60
KILL_GRACE_S = 5.0


class Programs(Attended):
    """Runs programs of a node for one job. Close it."""

    def __init__(self, job_id: str) -> None:
        super().__init__("none", job_id)

    @contextlib.asynccontextmanager
    async def started(
        self, argv: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> AsyncGenerator["Process", None]:
        """Start a program, and end it with what is within. Raises HostlerError."""
        process = Process(self._spawn(argv, directory, environment))
        self._attend(process.child, process.has_exited)
        try:
            yield process
        finally:
            try:
                await process.end()
            finally:
                self._leave()
                process.close()


class Process:
    """A program that runs."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._pipes: dict[str, Output] = {"o": child.stdout, "e": child.stderr}
        self._moved = asyncio.Event()
        self._exited = asyncio.Event()

    def has_exited(self) -> None:
        """Hear that it is gone, and all that it wrote is in its outputs."""
        self._exited.set()
        self._moved.set()

    async def output(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield what it prints, by channel o or e, until its end; nothing more is read while the caller is busy."""
        while True:
            exited = self._exited.is_set()  # asked before reading: what it wrote before its end is then there
            found = False
            for channel, pipe in list(self._pipes.items()):
                data = pipe.read(READ_BYTES)
                if data:
                    found = True
                    yield channel, data
                elif data == b"":
                    del self._pipes[channel]
            if not found and exited:
                return
            if not found:
                await self._readable()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._moved.clear()
        if self._exited.is_set():
            return
        watched = [pipe.fileno() for pipe in self._pipes.values()]
        for number in watched:
            loop.add_reader(number, self._moved.set)
        try:
            await self._moved.wait()
        finally:
            for number in watched:
                loop.remove_reader(number)

    async def lines(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield what it prints by lines, without their ends; of its complaints the last are remembered."""
        begun = {"o": b"", "e": b""}
        async with contextlib.aclosing(self.output()) as pieces:
            async for channel, data in pieces:
                *whole, begun[channel] = (begun[channel] + data).split(b"\n")
                for line in whole:
                    yield channel, self._kept(channel, line)
        for channel, line in begun.items():
            if line:
                yield channel, self._kept(channel, line)

    def _kept(self, channel: str, line: bytes) -> bytes:
        if channel == "e":
            self.tail.append(line.decode("utf-8", "replace"))
        return line

    def outcome(self) -> Outcome:
        """Return how it ended, once its output has."""
        return self.child.outcome()

    async def end(self) -> None:
        """Have it end: TERM, some seconds, KILL. Nothing when it has."""
        if self._exited.is_set():
            return
        self.child.terminate()
        try:
            async with asyncio.timeout(KILL_GRACE_S):
                await self._exited.wait()
        except (TimeoutError, asyncio.CancelledError):
            self.child.kill()
            await asyncio.shield(self._exited.wait())

    def close(self) -> None:
        """Let go of its outputs."""
        self.child.close()
