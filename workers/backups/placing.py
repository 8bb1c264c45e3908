"""How restored files come to where they belong: staged where nobody else writes, then exchanged, all or nothing."""

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Conflict
from workers.installs.releases import remove_tree

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True, slots=True)
class Move:
    """What shall lie at `target` lies at `staged`. Below `within` others write, so that no link there is followed."""

    staged: Path
    target: Path
    within: Path | None = None


@contextlib.contextmanager
def staging(target: Path, backup_id: str, own: Path) -> Iterator[Path]:
    """Give a fresh directory on the file system of `target`, and remove it with all that is then in it.

    In the worker's own place where that is the same file system; else beside the target. Only one job works on a backup
    at a time, so what an attempt that died has left is removed. Raises Conflict, OSError.
    """
    if os.path.ismount(target):
        raise Conflict(
            f"{target} is a mount point, which cannot be exchanged; restore to a directory below or beside it."
        )
    above = target.parent
    while not above.is_dir():
        above = above.parent
    place = own if _exchangeable(own, above) else above / f".hostler-restore-{backup_id}"
    remove_tree(place)
    place.mkdir(mode=0o700, parents=True)
    try:
        yield place
    finally:
        remove_tree(place)


def _exchangeable(own: Path, above: Path) -> bool:
    """Tell whether a rename leads from one directory to the other: devices alone do not say that of mounts."""
    own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own.parent.stat().st_dev != above.stat().st_dev:
        return False
    probe, there = own.with_name(f"{own.name}.probe"), above / f".hostler-probe-{os.getpid()}"
    try:
        remove_tree(probe)
        probe.mkdir(mode=0o700)
        probe.rename(there)
        there.rmdir()
    except OSError:
        remove_tree(probe)
        return False
    return True


def put(moves: Sequence[Move]) -> None:
    """Put everything in its place, or nothing. What was there lies afterwards where the restored files were staged.

    No link is followed but those that led to where others write. Raises OSError, and Conflict where one is in the way.
    """
    done: list[tuple[Move, int]] = []
    try:
        for move in moves:
            parent = _parent(move)
            done.append((move, parent))
            try:
                _exchange(move.staged, parent, move.target.name)
            except BaseException:
                done.pop()
                os.close(parent)
                raise
    except BaseException:
        for move, parent in reversed(done):
            _exchange(move.staged, parent, move.target.name)
        raise
    finally:
        for _, parent in done:
            os.close(parent)


def _parent(move: Move) -> int:
    """Open the directory above a target, and make what is missing of it."""
    within = move.within or move.target.parent
    within.mkdir(parents=True, exist_ok=True)
    opened = os.open(os.path.realpath(within), _DIRECTORY)
    for name in move.target.parent.relative_to(within).parts:
        above = opened
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
            opened = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise Conflict(f"{name!r} above {move.target} is a link, or no directory.") from None
            raise
        finally:
            os.close(above)
    return opened


def _exchange(staged: Path, parent: int, name: str) -> None:
    """Have `staged` and `name` in an open directory change places; either of the two may be missing."""
    here, there = _exists(staged), _exists(name, parent)
    if here and not there:
        os.rename(staged, name, dst_dir_fd=parent)
    elif there and not here:
        os.rename(name, staged, src_dir_fd=parent)
    elif here and there and not _exchanged_at_once(staged, parent, name):
        aside = staged.with_name(f"{staged.name}.before")
        os.rename(name, aside, src_dir_fd=parent)
        try:
            os.rename(staged, name, dst_dir_fd=parent)
        except BaseException:
            os.rename(aside, name, dst_dir_fd=parent)
            raise
        os.rename(aside, staged)


def _exists(path: Path | str, parent: int | None = None) -> bool:
    try:
        os.stat(path, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _exchanged_at_once(staged: Path, parent: int, name: str) -> bool:
    """Exchange two places in one step, where system and file system can. Raises OSError for any other reason."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(staged), parent, os.fsencode(name), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), name)


def empty_or_missing(target: Path) -> bool:
    """Tell whether nothing is lost when something takes the place of `target`."""
    try:
        facts = target.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(facts.st_mode) and not any(target.iterdir())


def is_there(path: Path) -> bool:
    """Tell whether there is something, be it a link that leads nowhere."""
    return _exists(path)
