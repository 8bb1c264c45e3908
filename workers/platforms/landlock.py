"""Landlock: what a job may touch where it shares the worker's user (see landlock(7))."""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

# one number on every architecture
_SYS_CREATE_RULESET, _SYS_ADD_RULE = 444, 445
_GET_VERSION, _RULE_PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
#: How many of the rights on files the kernel knows, by the version of its interface.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_RIGHTS = 16
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_USE_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
_ON_FILES = _EXECUTE | _USE_DEVICE  # the kernel refuses the other rights for anything but a directory

#: What every program needs to run, to be read and executed only.
READABLE = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/snap",
    "/proc", "/sys", "/run/systemd/resolve", "/run/resolvconf",
)  # fmt: skip
#: Devices that hold nobody's data; /dev/shm is shared with other jobs, but semaphores do not work without it.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")
SHARED_MEMORY = "/dev/shm"  # noqa: S108  it is named so that it may be allowed

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Return the version of the kernel's Landlock interface, 0 when there is none."""
    return max(
        0, int(_libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_GET_VERSION)))
    )


class Confinement:
    """Makes rulesets that let a job read the system and write its own directory.

    From version 6 on it can also signal nobody but itself.
    """

    def __init__(self, readable: Iterable[str]) -> None:
        self._version = version()
        self._rights = (1 << _RIGHTS.get(self._version, _NEWEST_RIGHTS)) - 1
        scoped = _SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL
        # older kernels know a shorter structure: file rights, network rights (from 4), scopes (from 6)
        fields = (self._rights, 0, scoped) if self._version >= 6 else (self._rights,)
        self._attributes = struct.pack(f"={len(fields)}Q", *fields)
        allowed: list[tuple[str, int]] = [(path, _READ) for path in (*READABLE, *readable)]
        allowed += [(f"/dev/{name}", _USE_DEVICE | _READ_DIR) for name in DEVICES]
        allowed += [("/dev", _READ_DIR), (SHARED_MEMORY, self._rights)]
        self._rules: list[tuple[int, int]] = []
        for path, rights in allowed:
            try:
                fd = os.open(path, os.O_PATH)
            except OSError:
                continue  # this system has no such place
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            self._rules.append((fd, rights if is_directory else rights & _ON_FILES))

    @property
    def scopes_signals(self) -> bool:
        """Whether a confined process is kept from signalling others."""
        return self._version >= 6

    def ruleset(self, *directories: Path, readable: Iterable[Path] = ()) -> int:
        """Return a descriptor, for the caller to close, of a ruleset that opens `directories` to who is behind it.

        `readable` may be read only. Raises OSError when there is no such directory.
        """
        size = ctypes.c_size_t(len(self._attributes))
        ruleset = int(_libc.syscall(_SYS_CREATE_RULESET, self._attributes, size, ctypes.c_uint(0)))
        if ruleset < 0:
            raise OSError(ctypes.get_errno(), "landlock_create_ruleset failed")
        try:
            for fd, rights in self._rules:
                self._allow(ruleset, fd, rights)
            places = [(each, self._rights) for each in directories] + [(each, _READ) for each in readable]
            for place, rights in places:
                own = os.open(place, os.O_PATH | os.O_DIRECTORY)
                try:
                    self._allow(ruleset, own, rights)
                finally:
                    os.close(own)
        except OSError:
            os.close(ruleset)
            raise
        return ruleset

    def _allow(self, ruleset: int, fd: int, rights: int) -> None:
        rule = struct.pack("=Qi", rights & self._rights, fd)
        if _libc.syscall(_SYS_ADD_RULE, ruleset, ctypes.c_uint(_RULE_PATH_BENEATH), rule, ctypes.c_uint(0)):
            raise OSError(ctypes.get_errno(), "landlock_add_rule failed")

    def close(self) -> None:
        """Let go of the places that the rules name."""
        for fd, _ in self._rules:
            os.close(fd)
        self._rules = []
