"""Outputs: the reading ends of what commands print, which never make the reader wait."""

import os
import socket
import sys
from contextlib import suppress

if sys.platform == "linux":
    import fcntl

#: What a pipe has room for by itself, and what it gets for a command that fills it faster than it is read.
ROOM_BYTES, WIDE_BYTES = 64 * 1024, 256 * 1024


class Pipe:
    """The reading end of a pipe."""

    __slots__ = ("_fd", "_widened", "room_bytes")

    def __init__(self) -> None:
        self._fd, self._widened, self.room_bytes = -1, False, ROOM_BYTES

    @property
    def closed(self) -> bool:
        """Whether it was closed here, or is not open yet."""
        return self._fd < 0

    def open(self) -> int:
        """Make the pipe and return its writing end, which the caller closes."""
        self._fd, end = os.pipe()
        os.set_blocking(self._fd, False)
        return end

    def fileno(self) -> int:
        """Return the descriptor to watch, -1 when it is closed."""
        return self._fd

    def read(self, size: int) -> bytes | None:
        """Return up to `size` bytes without waiting: None when there is nothing yet, b"" at the end."""
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return None

    def widen(self) -> None:
        """Have room for more, where the system allows it: who writes then waits for the reader less often."""
        if self._widened or self.closed:
            return
        self._widened = True
        if sys.platform == "linux":
            with suppress(OSError):  # what one user's pipes may have together is limited
                self.room_bytes = fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, WIDE_BYTES)

    def close(self) -> None:
        """Let go of it. Safe to run twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Stream:
    """The reading end of a socket pair, for Windows, where a selector watches nothing else."""

    room_bytes = ROOM_BYTES

    def __init__(self) -> None:
        self._ours, self.writing_end = socket.socketpair()
        self._ours.setblocking(False)

    @property
    def closed(self) -> bool:
        """Whether it was closed here."""
        return self._ours.fileno() < 0

    def fileno(self) -> int:
        """Return the descriptor to watch, -1 when it is closed."""
        return self._ours.fileno()

    def read(self, size: int) -> bytes | None:
        """Return up to `size` bytes without waiting: None when there is nothing yet, b"" at the end."""
        try:
            return self._ours.recv(size)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def widen(self) -> None:
        """Stay as it is."""

    def close(self) -> None:
        """Let go of it. Safe to run twice."""
        self._ours.close()
