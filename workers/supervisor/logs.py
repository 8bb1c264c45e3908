"""Logs: what instances print is kept in a file, rotated, and told on line by line.

An instance writes to its file itself, so that its output outlives the worker. The file is never replaced under it:
once it is long, what has been told on is copied aside and its blocks are given back (a hole is punched at the front),
while the instance goes on appending at the end. So no line is lost, whenever it is written. Where the file system
knows no holes, the file is cut right after it was copied, which may cost a line written in between.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson

from workers.log import log

#: A longer line is told on in pieces.
LINE_BYTES = 4096
#: So much of a log is read at a time, and so much of it may wait before what is older is left to the file alone.
READ_BYTES, BACKLOG_BYTES = 64 * 1024, 4 * 1024 * 1024
#: A log file is rotated once it takes so much room; so many older ones are kept.
ROTATE_BYTES, OLDER_KEPT = 8 * 1024 * 1024, 2
#: No more lines are read at once, however short: each of them is an entry in Redis.
MOST_LINES = 1000
_COPY_BYTES = 1024 * 1024
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h


@dataclass(slots=True)
class Tail:
    """Reads one log file from where it was left; `position` is what has been told on, `start` where the file begins.

    What is read counts as told on with `told` only, so that it is read again after a failure.
    """

    path: Path
    position: int = 0
    start: int = 0
    number: int = 0  # of the next line
    skipped: int = 0

    @property
    def _note(self) -> Path:
        return self.path.with_name(f".{self.path.name}.tail")

    @classmethod
    def of(cls, path: Path) -> "Tail":
        """Return the tail of a log file, at the place where an earlier worker left it."""
        tail = cls(path)
        try:
            noted = orjson.loads(tail._note.read_bytes())
            size_bytes = path.stat().st_size
            tail.position, tail.start, tail.number = (
                int(noted[name]) for name in ("position", "start", "number")
            )
            if tail.position > size_bytes:  # it has been cut since
                tail.position = tail.start = 0
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return tail

    def read(self, *, finished: bool = False) -> tuple[list[bytes], int]:
        """Return the lines that are new, without their ends, and the position behind them. Raises OSError.

        What has no line end yet is left for later, unless it is `finished` or too long.
        """
        try:
            size_bytes = self.path.stat().st_size
        except FileNotFoundError:
            return [], self.position
        if size_bytes < self.position:  # cut by somebody else
            self.position = self.start = 0
        if size_bytes - self.position > BACKLOG_BYTES:
            self._skip(size_bytes - BACKLOG_BYTES // 2)
        if size_bytes == self.position:
            return [], self.position
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read(READ_BYTES)
        end = data.rfind(b"\n") + 1
        if not end and (finished or len(data) >= LINE_BYTES):
            end = len(data)
        lines = data[:end].split(b"\n", MOST_LINES) if end else []
        if len(lines) > MOST_LINES:  # the rest next time
            end -= len(lines[-1])
            lines[-1] = b""
        if lines and not lines[-1]:
            lines.pop()
        pieces = [
            line[at : at + LINE_BYTES] for line in lines for at in range(0, max(1, len(line)), LINE_BYTES)
        ]
        return pieces, self.position + end

    def _skip(self, to: int) -> None:
        with self.path.open("rb") as file:
            file.seek(to)
            to += len(file.readline(LINE_BYTES))
        self.skipped += to - self.position
        self.position = to

    def told(self, position: int, lines: int) -> None:
        """Note that everything up to `position`, which was so many lines, has been told on."""
        self.position, self.number = position, self.number + lines
        self.note()

    def note(self) -> None:
        """Keep the place for a later worker; a full disk only costs that lines may be told twice."""
        noted = orjson.dumps({"position": self.position, "start": self.start, "number": self.number})
        try:
            fd = os.open(self._note, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, noted.ljust(127) + b"\n", 0)  # in place: its block is there already
            finally:
                os.close(fd)
        except OSError as error:
            log.warning(
                "cannot note how far a log was read", extra={"log": self.path.name, "why": str(error)}
            )

    def rotate(self, *, limit_bytes: int = ROTATE_BYTES) -> bool:
        """Move what has been told on out of a file that is long, if it is; answers whether. Raises OSError."""
        if self.position - self.start < limit_bytes:
            return False
        fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            beside = _older(self.path, 0)
            try:
                _copy(fd, self.start, self.position, beside)
            except OSError:  # no room for a copy: then less is kept, but what is written now has room
                beside.unlink(missing_ok=True)
                for number in range(1, OLDER_KEPT + 1):
                    _older(self.path, number).unlink(missing_ok=True)
            else:
                for number in range(OLDER_KEPT, 0, -1):
                    if _older(self.path, number - 1).exists():
                        _older(self.path, number - 1).replace(_older(self.path, number))
            if _punch(fd, self.start, self.position - self.start):
                self.start = self.position
            elif os.fstat(fd).st_size == self.position:  # else next time, when nothing is written meanwhile
                os.ftruncate(fd, 0)
                self.start = self.position = 0
        finally:
            os.close(fd)
        self.note()
        return True


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _copy(fd: int, start: int, end: int, to: Path) -> None:
    with to.open("wb") as file:
        while start < end:
            data = os.pread(fd, min(_COPY_BYTES, end - start), start)
            if not data:
                return
            file.write(data)
            start += len(data)


def _punch(fd: int, start: int, length: int) -> bool:
    """Give the blocks of a part of a file back; False where that cannot be done."""
    if sys.platform != "linux":
        return False
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, start, length) == 0)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log file; those of a file just rotated may be few."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ_BYTES))
            data = file.read(READ_BYTES)
    except OSError:
        return []
    shown = data[data.rfind(b"\0\0\0\0") + 4 :] if b"\0\0\0\0" in data else data  # behind a hole
    return [line.decode("utf-8", "replace") for line in shown.splitlines()[-count:]]
