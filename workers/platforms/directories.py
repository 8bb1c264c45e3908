"""Directories of jobs on Linux: whose they are while a command runs in them, and that it can come to them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from workers.platforms import IsolationUnavailable


class Directories:
    """Gives directories to the commands of slots and takes them back; `users` are those of the slots, if any."""

    def __init__(self, users: list[int]) -> None:
        self._users = users
        self._reachable: set[str] = set()  # parents that have been looked at

    def make(self, path: Path, slot: int) -> None:
        """Make a directory that is not there yet, for the commands of one slot alone.

        Raises OSError, and IsolationUnavailable when those commands could not reach it.
        """
        if self._users:
            self._see_that_parent_is_reachable(path)
        os.mkdir(path, 0o700)
        if self._users:
            os.chown(path, self._users[slot], self._users[slot], follow_symlinks=False)

    def _see_that_parent_is_reachable(self, path: Path) -> None:
        parent = os.path.dirname(path)  # a path's own parent is another path, which takes longer
        if parent not in self._reachable:
            if why := why_unreachable(Path(parent)):
                raise IsolationUnavailable(why)
            self._reachable.add(parent)

    def prepare(self, path: Path, slot: int) -> None:
        """Give a directory, made if it is missing, and all that lies in it to the commands of one slot alone.

        Raises IsolationUnavailable when those commands could not reach it.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        if not self._users:
            return
        self._see_that_parent_is_reachable(path)
        user = self._users[slot]
        os.chown(path, user, user, follow_symlinks=False)
        for _, folders, files, fd in os.fwalk(
            path
        ):  # by descriptor: no link put in the way can lead it elsewhere
            for name in (*folders, *files):
                os.chown(name, user, user, dir_fd=fd, follow_symlinks=False)

    def withhold(self, path: Path) -> None:
        """Keep the slot's next command, of the same user, out of a directory; a ruleset does so by itself."""
        if self._users:
            os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
            os.chmod(path, 0o700)

    def reclaim(self, path: Path) -> None:
        """Take a directory back after a command, so that the worker can read and remove what lies in it."""
        if self._users:  # root reads and removes everything, wherever it lies
            self.withhold(path)
            return
        path.chmod(0o700)
        for _, folders, _, fd in os.fwalk(path, onerror=_raise):
            for name in folders:
                if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.chmod(name, 0o700, dir_fd=fd)


def _raise(error: OSError) -> None:
    raise error


def why_unreachable(directory: Path) -> str | None:
    """Return why another user could not come to what lies in `directory`, or None."""
    for folder in _and_parents(directory.resolve()):
        if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
            return f"Other users cannot pass through '{folder}' to where jobs run: its mode lacks o+x."
    return None


def _and_parents(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents
