"""`python unlinked.py DIRECTORY... -- PROGRAM...`: becomes a program that can follow no link in these directories.

Whoever reads as root what others may write to could be led elsewhere: a directory is exchanged for a link between the
look at it and the reading of what is in it. So the program gets mounts of its own, under which the directories are
mounted once more, `nosymfollow` (Linux 5.10): links are still read as links, and no path leads through one. Where the
system does not let us, this says so and the program runs as it is. Directories of the system stay as they are: root
alone writes there, and the program itself needs the links in them, such as /etc/resolv.conf. Needs nothing but the
standard library.
"""

import ctypes
import os
import sys

_CLONE_NEWNS = 0x20000
_OF_THE_SYSTEM = ("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_MS_REMOUNT, _MS_NOSYMFOLLOW, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 256, 4096, 16384, 1 << 18


def main(arguments: list[str]) -> None:
    """Mount, and become the program."""
    end = arguments.index("--")
    directories, program = [each for each in arguments[:end] if not of_the_system(each)], arguments[end + 1 :]
    found = os.path.realpath(program[0])  # which may lie below one of them
    try:
        if directories and os.geteuid() == 0:
            hold(directories)
    except OSError as error:
        message = (
            f"links in {', '.join(directories)} might be followed while they are exchanged: {error.strerror}"
        )
        os.write(2, f"{message}\n".encode())
    os.execv(found, program)  # noqa: S606  what we were told to become


def of_the_system(directory: str) -> bool:
    """Tell whether a directory is one of the system's own, or lies in one, or has all of them in it."""
    real = os.path.realpath(directory)
    return real == "/" or any(f"{real}/".startswith(f"{os.path.realpath(each)}/") for each in _OF_THE_SYSTEM)


def hold(directories: list[str]) -> None:
    """Give this process mounts of its own, in which no path leads through a link below these. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(done: int) -> None:
        if done != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    call(libc.unshare(_CLONE_NEWNS))
    call(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    for directory in directories:
        here = os.fsencode(directory)
        call(libc.mount(here, here, None, _MS_BIND | _MS_REC, None))
        for place in below(here):
            call(libc.mount(None, place, None, _MS_REMOUNT | _MS_BIND | _MS_NOSYMFOLLOW, None))


def below(directory: bytes) -> list[bytes]:
    """Return what is mounted at a directory or below it, each once."""
    with open("/proc/self/mountinfo", "rb") as file:
        places = [line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in file]
    inside = directory.rstrip(b"/") + b"/"
    return list(dict.fromkeys(each for each in places if each == directory or each.startswith(inside)))


if __name__ == "__main__":
    main(sys.argv[1:])
