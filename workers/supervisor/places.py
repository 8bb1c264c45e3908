"""Where an app lies on its node: its releases, its data, its logs, its sockets, and what is remembered of it.

<apps_dir>/<instance id>/
  releases/<version>/, current -> releases/...   what was installed; a release belongs to the app's own user
  data/, tmp/                                    what the app keeps
  config/config.json                             its configuration, 0600
  logs/<process>-<i>.log                         what it prints
  records/<process>-<i>                          what each instance's keeper notes
  state.json                                     what the supervisor remembers
  run/<process>-<i>.sock, events.sock            its sockets; elsewhere when the path would be too long for one

Everything but releases, data, tmp and run belongs to the worker, and the app cannot write there.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Conflict, Invalid, NotFound

#: sun_path holds 108 bytes on Linux and 104 on macOS; what an app's own tools append must fit, too.
SOCKET_PATH_BYTES = 100
_LONGEST_NAME = len("a" * 40 + "-999.sock")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LOCKS: "weakref.WeakValueDictionary[Path, asyncio.Lock]" = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Places:
    """The directories of one app."""

    root: Path

    @property
    def lock(self) -> asyncio.Lock:
        """Return the lock of the one job that may work on its files: an install, say, or a restore of its data."""
        return _LOCKS.setdefault(self.root, asyncio.Lock())

    @property
    def releases(self) -> Path:
        """Return where its releases lie, each in a directory."""
        return self.root / "releases"

    @property
    def current(self) -> Path:
        """Return the link to the release that runs."""
        return self.root / "current"

    @property
    def data(self) -> Path:
        """Return what the app keeps, over updates, too."""
        return self.root / "data"

    @property
    def tmp(self) -> Path:
        """Return the directory for its temporary files."""
        return self.root / "tmp"

    @property
    def logs(self) -> Path:
        """Return where its output is kept."""
        return self.root / "logs"

    @property
    def records(self) -> Path:
        """Return where the keepers note how instances are."""
        return self.root / "records"

    @property
    def state(self) -> Path:
        """Return the file in which the supervisor remembers."""
        return self.root / "state.json"

    @property
    def config(self) -> Path:
        """Return the file that holds its configuration."""
        return self.root / "config" / "config.json"

    @property
    def sockets(self) -> Path:
        """Return the directory, the worker's own, below which its sockets are; short enough for one."""
        longest = len(os.fsencode(self.root / "run")) + 1 + _LONGEST_NAME
        if longest <= SOCKET_PATH_BYTES:
            return self.root
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir(), f"hostler-{os.getuid()}-{digest}")

    @property
    def run(self) -> Path:
        """Return the directory in which the app makes its sockets."""
        return self.sockets / "run"

    @property
    def events(self) -> Path:
        """Return the socket that takes the app's events."""
        return self.sockets / "events.sock"

    def log(self, process: str, index: int) -> Path:
        """Return the file that holds what an instance printed."""
        return self.logs / f"{process}-{index}.log"

    def record(self, process: str, index: int) -> Path:
        """Return the record of an instance."""
        return self.records / f"{process}-{index}"

    def socket(self, process: str, index: int) -> Path:
        """Return the socket of an instance, which it makes itself."""
        return self.run / f"{process}-{index}.sock"

    def release(self) -> Path:
        """Return the directory of the release that runs, without the link in between. Raises NotFound, Conflict."""
        try:
            target = self.current.resolve(strict=True)
        except OSError:
            raise NotFound(f"App {self.root.name!r} has no release on this node.") from None
        if self.releases.resolve() not in target.parents:
            raise Conflict(f"The current release of {self.root.name!r} is no release of it.")
        return target

    def make(self, uid: int | None) -> None:
        """Make what is missing; what the app writes to is given to its user `uid`. Raises OSError, Conflict."""
        passable = 0o711 if uid is not None else 0o700
        for directory in (self.root, self.releases, self.config.parent):
            _make(directory, passable)
        for directory in (self.logs, self.records):
            _make(directory, 0o700)
        if self.sockets != self.root:
            _make(self.sockets, passable)
        for directory in (self.data, self.tmp, self.run):
            _make(directory, 0o700, uid)

    def write_config(self, content: bytes, uid: int | None) -> None:
        """Put the configuration where the app, and nobody else, can read it. Raises OSError."""
        write_whole(self.config, content, uid=uid)

    def remove(self, *, keep_data: bool) -> None:
        """Take the app away from this node; its data only when told so. Safe to repeat. Raises OSError."""
        if self.sockets != self.root:
            shutil.rmtree(self.sockets, ignore_errors=True)
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if keep_data and path == self.data:
                continue
            if path.is_dir() and not path.is_symlink():
                _open_up(path)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.root.is_dir() and not keep_data:
            self.root.rmdir()


def of(apps_dir: Path, instance_id: str) -> Places:
    """Return the places of an app. Raises Invalid for a name that could lead elsewhere."""
    if not _NAME.fullmatch(instance_id):
        raise Invalid(f"{instance_id!r} cannot be the name of an app's directory.")
    return Places(apps_dir / instance_id)


def _open_up(path: Path) -> None:
    """Make what lies below a directory removable, whatever modes an app has given its own. Raises OSError."""
    if os.getuid() == 0:  # root removes everything
        return
    path.chmod(0o700)
    for _, folders, _, fd in os.fwalk(path):
        for name in folders:
            if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.chmod(name, 0o700, dir_fd=fd)


def _make(directory: Path, mode: int, uid: int | None = None) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = directory.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in {os.getuid(), uid}:
        raise Conflict(f"{directory} is not a directory of this worker's.")
    # by descriptor: where the app may write, it may put a link in the way
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if uid is not None and facts.st_uid != uid:
            os.fchown(fd, uid, uid)
        if stat.S_IMODE(facts.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def write_whole(path: Path, content: bytes, *, uid: int | None = None, durable: bool = True) -> None:
    """Replace a file in one step, 0600 and perhaps another user's: readers see the old or the new.

    `durable`: also after a loss of power. Raises OSError.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with open(beside, "wb", opener=_private) as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if uid is not None:
                os.fchown(file.fileno(), uid, uid)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def connectable(path: Path, uid: int | None) -> Iterator[str]:
    """Give the path to connect to for an app's socket, which no link can lead elsewhere.

    The app makes its socket in a directory that it can write: a link there would make the worker, which may be root,
    talk to whatever the app cannot reach itself. Raises NotFound while there is no socket, or none of the app's.
    """
    if not hasattr(os, "O_PATH"):  # not Linux: the check is all there is
        facts = path.lstat() if path.exists() else None
        if facts is None or not stat.S_ISSOCK(facts.st_mode):
            raise NotFound(f"There is no socket {path.name!r}.")
        yield str(path)
        return
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise NotFound(f"There is no socket {path.name!r}.") from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISSOCK(facts.st_mode) or (uid is not None and facts.st_uid != uid):
            raise NotFound(f"{path.name!r} is no socket of the app's.")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
