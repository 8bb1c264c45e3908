"""The private directory in which the worker processes of one web server reach one another; its master makes it."""

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import psutil

_PREFIX = "hostler-web-"

#: Where it is; None where nobody made one, as in a server of a single process. Forked workers inherit it.
path: Path | None = None


def make() -> None:
    """Make the directory, and remove those of masters that were killed. Raises OSError."""
    global path  # noqa: PLW0603  what the master decides and its workers inherit
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{_PREFIX}*"):
        pid = old.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and old.lstat().st_uid == os.geteuid() and not _is_anothers(int(pid)):
                shutil.rmtree(old, ignore_errors=True)
    made = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    made.mkdir(mode=0o700)
    path = made


def remove() -> None:
    """Remove the directory. Safe to repeat."""
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)


def _is_anothers(pid: int) -> bool:
    """Tell whether a master of this number lives; our own number was another's before us, as in a container."""
    return pid != os.getpid() and psutil.pid_exists(pid)
