"""The users of apps: where the worker may, each app runs as a user of its own, the same one for all its life."""

import contextlib
import fcntl
import os
import pwd
import secrets
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import orjson

from storage.errors import HostlerError
from workers.platforms import IsolationUnavailable
from workers.platforms.launcher import is_anybody
from workers.supervisor.places import write_whole

#: Right above the users of slots (workers/platforms/slot_users.py), below 65534, which is nobody.
APP_USERS = range(63024, 65024)


class Users:
    """Which user each app below `apps_dir` has; workers that share the directory share the table."""

    def __init__(self, apps_dir: Path, *, isolation: str) -> None:
        self._file, self._separate = apps_dir / "users.json", isolation == "uid"
        self._known: dict[str, int] = {}
        apps_dir.mkdir(parents=True, exist_ok=True)
        if self._separate:
            apps_dir.chmod(0o711)  # apps reach their own directory by name, and list nothing

    def of(self, instance_id: str) -> int | None:
        """Return the user of an app, chosen once; None where apps share the worker's. Raises HostlerError, OSError."""
        if not self._separate:
            return None
        if instance_id not in self._known:
            with self._table() as table:
                if instance_id not in table:
                    table[instance_id] = _free(set(table.values()))
                self._known[instance_id] = table[instance_id]
        return self._known[instance_id]

    def forget(self, instance_id: str) -> None:
        """Give the user of a removed app back. Raises HostlerError, OSError."""
        if self._separate:
            with self._table() as table:
                table.pop(instance_id, None)
            self._known.pop(instance_id, None)

    @contextlib.contextmanager
    def _table(self) -> Iterator[dict[str, int]]:
        with self._file.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            table = self._read()
            before = dict(table)
            yield table
            if table != before:
                write_whole(self._file, orjson.dumps(table))

    def _read(self) -> dict[str, int]:
        try:
            table = orjson.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise HostlerError(f"{self._file} cannot be read: it is no JSON.") from error
        return {str(name): int(uid) for name, uid in table.items()}


def _free(taken: set[int]) -> int:
    # from a place of chance on: another Hostler on this machine may have given users to apps that do not run just now
    start = secrets.randbelow(len(APP_USERS))
    for uid in chain(APP_USERS[start:], APP_USERS[:start]):
        if uid in taken or is_anybody(uid):
            continue
        with contextlib.suppress(KeyError):
            pwd.getpwuid(uid)
            continue
        return uid
    raise IsolationUnavailable(f"All {len(APP_USERS)} users for apps are taken.")


def give(path: Path, uid: int | None) -> None:
    """Give a directory and all that lies in it to an app's user; without one, keep others out. Raises OSError."""
    path.chmod(0o700)
    if uid is None:
        return
    # by descriptor: no link put in the way can lead it elsewhere
    for _, folders, files, fd in os.fwalk(path):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    os.chown(path, uid, uid, follow_symlinks=False)
