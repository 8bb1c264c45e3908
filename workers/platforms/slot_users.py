"""Users of slots: which of them a worker may use for as long as it lives, apart from all others of the machine."""

import contextlib
import errno
import fcntl
import os
import pwd
import socket
from pathlib import Path
from typing import BinaryIO

#: Users of slots, and of commands that lie ready to follow in them. Below 65536, since containers often map no more;
#: Debian gives out none of these so far, systemd some in passing. A user that has a name is passed over.
SLOT_USERS = range(61488, 63024)
#: Where locks lie that workers in network namespaces of their own see, too; only root writes below /run.
LOCKS = Path("/run/hostler-slots")

Claim = socket.socket | BinaryIO

_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_KILL, _CAP_SETGID, _CAP_SETUID = 0, 1, 5, 6, 7


def why_none() -> str | None:
    """Return why commands cannot have users of their own, or None."""
    if os.geteuid() != 0:
        return "The worker does not run as root."
    status = Path("/proc/self/status").read_text().splitlines()
    capabilities = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    for needed in (_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_KILL, _CAP_SETGID, _CAP_SETUID):
        if not capabilities >> needed & 1:
            return (
                "The worker is root, but lacks one of CAP_CHOWN, _DAC_OVERRIDE, _KILL, _SETGID and _SETUID."
            )
    for kind in ("uid_map", "gid_map"):
        ranges = [
            [int(word) for word in line.split()]
            for line in Path(f"/proc/self/{kind}").read_text().splitlines()
        ]
        if not any(first <= SLOT_USERS[0] and SLOT_USERS[-1] < first + count for first, _, count in ranges):
            return f"This container does not map the users {SLOT_USERS[0]} to {SLOT_USERS[-1]}."
    return None


def claim(count: int) -> tuple[list[int], list[Claim]]:
    """Find users that no other worker of this machine uses; what holds them is answered beside them.

    A claim is an abstract socket, which ends with the last process that has it open. Each network namespace has sockets
    of its own, so it is a locked file as well, where /run can be written. Fewer users than asked for are answered when
    there are no more.
    """
    users: list[int] = []
    claims: list[Claim] = []
    for uid in SLOT_USERS:
        if len(users) == count:
            break
        with contextlib.suppress(KeyError):
            pwd.getpwuid(uid)
            continue
        held = _socket(uid)
        if held is None:
            continue
        try:
            locked = _locked(uid)
        except BlockingIOError:
            held.close()
            continue
        users.append(uid)
        claims += [held] if locked is None else [held, locked]
    return users, claims


def _socket(uid: int) -> socket.socket | None:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0hostler-slot-{uid}")
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return held


def _locked(uid: int) -> BinaryIO | None:
    """Return a user's file, locked; None where there can be none. Raises BlockingIOError when it is held elsewhere."""
    try:
        LOCKS.mkdir(mode=0o700, exist_ok=True)
        file = os.open(LOCKS / str(uid), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    held = os.fdopen(file, "wb", buffering=0)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise
    return held
