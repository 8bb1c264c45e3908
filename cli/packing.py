"""A project folder packed for upload: the same zip for the same files, without what nobody needs there."""

import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath

from storage.errors import Invalid

LEFT_OUT = {
    ".git",
    ".hg",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".svn",
    ".tox",
    ".venv",
    "__pycache__",
    "venv",
}
IGNORE_FILE = ".hostlerignore"
CHUNK_BYTES = 256 * 1024
DEFLATE_LEVEL = 3  # of 9: above, sources shrink by a few per cent more and take several times as long
ZIP64_FROM_BYTES = 2**31 - 2**27  # deflate may add a little to what it cannot shrink


@dataclass(frozen=True)
class Packed:
    """What went in: regular files, and the bytes in them before packing."""

    files: int
    size_bytes: int


def pack(directory: Path, target: Path, *, on_file: Callable[[str, int], None] | None = None) -> Packed:
    """Zip a folder into the file `target`, telling `on_file` each path and its size in bytes.

    Executable bits, empty directories and symbolic links that stay inside are kept. Left out are version
    control, virtual environments, caches, sockets, FIFOs, devices, and what a line of the folder's
    `.hostlerignore` matches (by fnmatch, against the path relative to the folder).

    Raises Invalid when a link leads out of the folder or a name cannot travel, or OSError; `target` is then
    gone. What was there before is replaced.
    """
    files = size_bytes = 0
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=DEFLATE_LEVEL) as archive:
            for path, status in _walk(directory, directory, _patterns(directory), target):
                name = _name(path, directory)
                if stat.S_ISDIR(status.st_mode):
                    _write(archive, name + "/", status.st_mode, b"")
                elif stat.S_ISLNK(status.st_mode):
                    link = _link_target(path, directory)
                    _write(archive, name, status.st_mode, os.fsencode(link))
                else:
                    written = _write_file(archive, name, path, status)
                    files, size_bytes = files + 1, size_bytes + written
                    if on_file is not None:
                        on_file(name, written)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Packed(files, size_bytes)


def _patterns(directory: Path) -> list[str]:
    try:
        lines = (directory / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [line.strip().strip("/") for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _walk(here: Path, root: Path, patterns: list[str], target: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Give what shall be packed, directories before what they hold, in the order of their names."""
    for path in sorted(here.iterdir(), key=lambda path: path.name):
        relative = path.relative_to(root).as_posix()
        status = path.lstat()
        if path.name in LEFT_OUT or any(fnmatchcase(relative, pattern) for pattern in patterns):
            continue
        if stat.S_ISDIR(status.st_mode):
            yield path, status
            yield from _walk(path, root, patterns, target)
        elif stat.S_ISLNK(status.st_mode) or (
            stat.S_ISREG(status.st_mode) and not os.path.samestat(status, target.stat())
        ):
            yield path, status


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Invalid(f"The name of {name!r} is not UTF-8, so it cannot be uploaded.") from None
    if "\\" in name:
        raise Invalid(f"The name of {name!r} holds a backslash, so it cannot be uploaded.")
    return name


def _link_target(path: Path, root: Path) -> str:
    """Say where a link leads, climbing first and then descending, which is how the other end wants it."""
    real, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if not real.is_relative_to(real_root):
        name = path.relative_to(root).as_posix()
        raise Invalid(f"The link {name!r} leads out of the folder, to {str(path.readlink())!r}.")
    target = PurePosixPath(path.readlink().as_posix())
    climbs = len(list(takewhile("..".__eq__, target.parts)))
    if (
        target.is_absolute()
        or ".." in target.parts[climbs:]
        or climbs > len(path.relative_to(root).parts) - 1
    ):
        return Path(os.path.relpath(real, os.path.realpath(path.parent))).as_posix()
    return target.as_posix()


def _write(archive: zipfile.ZipFile, name: str, mode: int, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980-01-01, like every entry: the same files give the same bytes
    entry.external_attr = mode << 16
    archive.writestr(entry, data)


def _write_file(archive: zipfile.ZipFile, name: str, path: Path, status: os.stat_result) -> int:
    written = 0
    with (
        path.open("rb") as file,
        archive.open(name, "w", force_zip64=status.st_size > ZIP64_FROM_BYTES) as out,
    ):
        while chunk := file.read(CHUNK_BYTES):
            out.write(chunk)
            written += len(chunk)
    archive.getinfo(name).external_attr = (stat.S_IFREG | stat.S_IMODE(status.st_mode)) << 16
    return written
