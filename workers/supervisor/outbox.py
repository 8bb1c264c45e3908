"""The outbox of one app's logs: its lines, read from the files and told on in batches that count once."""

import asyncio
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from storage.apps import LogLine
from workers.supervisor.logs import ROTATE_BYTES, Tail
from workers.supervisor.reports import ControlPlane

#: With less room on the disk than one log may take, each is cut back once it is as long as this.
FULL_DISK_BYTES = 256 * 1024
#: So many lines go in one batch.
BATCH_LINES = 500


@dataclass(slots=True)
class _Batch:
    lines: list[LogLine]
    read: list[tuple[Tail, int, int]]  # how far each file was read for it, and how many lines that was
    session: str = ""
    number: int = 0


@dataclass(slots=True)
class Outbox:
    """Tells what the instances of one app print."""

    app: str
    logs: Path
    _tails: dict[str, Tail] = field(default_factory=dict)
    _waiting: _Batch | None = None
    _session: str = ""
    _sent: int = 0

    async def send(self, control: ControlPlane, alive: set[str]) -> bool:
        """Tell what is new; answers whether there was anything. `alive` are the instances that may still write.

        What could not be told is told again by the next call. Raises HostlerError, OSError.
        """
        if self._waiting is None:
            self._waiting = self._collect(alive)
        batch = self._waiting
        if batch is None:
            return False
        session = control.session()
        if session != self._session:
            self._session, self._sent = session, 0
        if batch.session != session:  # never told in this session; whether in the one before, nobody can say
            batch.session, batch.number = session, self._sent + 1
        await control.append(self.app, batch.lines, batch.number)
        self._sent = batch.number
        self._waiting = None
        for tail, position, count in batch.read:
            tail.told(position, count)
            await asyncio.to_thread(tail.rotate, limit_bytes=self._limit_bytes())
        return True

    def _limit_bytes(self) -> int:
        """Return how long a log may get: on a full disk, logs are what is given up first."""
        return ROTATE_BYTES if shutil.disk_usage(self.logs).free > ROTATE_BYTES else FULL_DISK_BYTES

    def _collect(self, alive: set[str]) -> _Batch | None:
        batch = _Batch([], [])
        for path in sorted(self.logs.glob("[!.]*.log")):
            name = path.name.removesuffix(".log")
            process, _, index = name.rpartition("-")
            tail = self._tails.get(name)
            if tail is None:
                tail = self._tails[name] = Tail.of(path)
            lines, position = tail.read(finished=name not in alive)
            at_ms = time.time_ns() // 1_000_000
            if tail.skipped:
                text = f"[hostler] {tail.skipped} bytes came too fast to be told; the log file has them"
                batch.lines.append(LogLine("", at_ms, process, int(index), "stderr", "warning", text))
                tail.skipped = 0
            batch.lines += [
                LogLine("", at_ms, process, int(index), "stdout", "info", line.decode("utf-8", "replace"))
                for line in lines
            ]
            if position != tail.position:
                batch.read.append((tail, position, len(lines)))
            if len(batch.lines) >= BATCH_LINES:
                break
        return batch if batch.read else None
