"""Copies of an app's data, taken while it stands still, and put back when an update did not go well.

A copy shares blocks with the original where the file system can (reflinks) and never shares files, for an app that
writes into a file in place would change both. Nothing is followed: neither a link in the data nor one put in the way.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from workers.installs.releases import remove_tree

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK_BYTES = 16 * 1024 * 1024
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def take(source: Path, target: Path, *, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Copy the directory `source` to `target`, whole or not at all, replacing what is there.

    Owners, modes, times and hard links within are kept; sockets, FIFOs and devices are left out. Raises
    InterruptedError once `cancelled` says so, or OSError; nothing is then left behind.
    """
    beside = target.with_name(f".{target.name}.new")
    remove_tree(beside)
    beside.mkdir(mode=0o700, parents=True)
    try:
        copying = _Copying(beside, cancelled)
        from_fd, to_fd = os.open(source, _DIRECTORY), os.open(beside, _DIRECTORY)
        try:
            copying.directory(from_fd, to_fd)
        finally:
            os.close(from_fd)
            os.close(to_fd)
        remove_tree(target)
        beside.replace(target)
    except BaseException:
        remove_tree(beside)
        raise


def restore(snapshot: Path, target: Path) -> None:
    """Put a snapshot in the place of the directory `target`; the snapshot stays. Safe to repeat. Raises OSError."""
    take(snapshot, target)


class _Copying:
    """One copy under way; remembers what has been copied, so that hard links stay links to one another."""

    def __init__(self, root: Path, cancelled: Callable[[], bool]) -> None:
        self._root, self._cancelled = root, cancelled
        self._linked: dict[tuple[int, int], Path] = {}

    def directory(self, source: int, target: int, at: Path = Path()) -> None:
        """Copy what is in one open directory into another, and then its own facts."""
        for name in sorted(os.listdir(source)):
            if self._cancelled():
                raise InterruptedError("The copy was cancelled.")
            facts = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                self._folder(name, source, target, at / name)
            elif stat.S_ISREG(facts.st_mode):
                self._file(name, source, target, at / name)
            elif stat.S_ISLNK(facts.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                with contextlib.suppress(PermissionError):
                    os.chown(name, facts.st_uid, facts.st_gid, dir_fd=target, follow_symlinks=False)
        _keep_facts(os.fstat(source), target)

    def _folder(self, name: str, source: int, target: int, at: Path) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        from_fd = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            to_fd = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                self.directory(from_fd, to_fd, at)
            finally:
                os.close(to_fd)
        finally:
            os.close(from_fd)

    def _file(self, name: str, source: int, target: int, at: Path) -> None:
        from_fd = os.open(name, _READ, dir_fd=source)
        try:
            facts = os.fstat(from_fd)
            if not stat.S_ISREG(facts.st_mode):
                return
            if facts.st_nlink > 1:
                first = self._linked.setdefault((facts.st_dev, facts.st_ino), at)
                if first != at:
                    os.link(self._root / first, name, dst_dir_fd=target, follow_symlinks=False)
                    return
            to_fd = os.open(name, _CREATE, 0o600, dir_fd=target)
            try:
                self._content(from_fd, to_fd)
                _keep_facts(facts, to_fd)
            finally:
                os.close(to_fd)
        finally:
            os.close(from_fd)

    def _content(self, source: int, target: int) -> None:
        if sys.platform == "linux":
            import fcntl  # noqa: PLC0415  Windows has it not

            try:
                fcntl.ioctl(target, _FICLONE, source)
                return
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise
        while data := os.read(source, _CHUNK_BYTES):
            if self._cancelled():
                raise InterruptedError("The copy was cancelled.")
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]


def _keep_facts(facts: os.stat_result, target: int) -> None:
    with contextlib.suppress(PermissionError):  # the worker's own files, where it is no root
        os.fchown(target, facts.st_uid, facts.st_gid)
    os.fchmod(target, stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
