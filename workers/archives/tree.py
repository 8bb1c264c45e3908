"""The tree that an archive becomes: every path is taken apart and claimed, and made anew below an open directory."""

import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from storage.errors import Conflict
from workers.archives.limits import MIB, ArchiveRefused, Limits

# Where files can be opened relative to an open directory, nobody can swap a parent for a link meanwhile.
ANCHORED = {os.open, os.mkdir, os.symlink, os.unlink} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
DIRECTORY_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
CREATE_FLAGS = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

COMPONENT_BYTES = 255  # what common file systems allow between two slashes
NAMES_BYTES = 16 * MIB  # all paths and link targets of one archive together: they are held in memory

Kind = Literal["file", "directory", "symbolic link"]
Parts = tuple[str, ...]

# What Windows reads as something other than a plain name: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
WINDOWS_TRAP = re.compile(
    r'[<>:"|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\.|$)', re.IGNORECASE
)
DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Extracted:
    """What came out: regular files, and the bytes in them."""

    files: int
    size_bytes: int


def _folded(part: str) -> str:
    """Spell a name as the most forgiving file systems compare it: without case, accents in one form."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", part).casefold())


class Tree:
    """What is unpacked so far. A path is first claimed, which checks it against all others, and then made."""

    def __init__(self, into: Path, limits: Limits) -> None:
        self._into = into
        self.limits = limits
        self._kinds: dict[str, Kind] = {}
        self._names_bytes = 0
        self._links: list[tuple[Parts, str]] = []
        self._parent: tuple[Parts, int] | None = None
        self._was_absent = not os.path.lexists(into)
        into.mkdir(parents=True, exist_ok=True)
        self._root = os.open(into, DIRECTORY_FLAGS) if ANCHORED else None
        if os.listdir(into if self._root is None else self._root):
            self.close()
            raise Conflict(f"{str(into)!r} is not empty, so nothing can be unpacked into it.")

    def claim(self, name: str, kind: Kind) -> Parts:
        """Take a path apart and note what will stand there. Returns () for the root itself."""
        parts = self.parse(name)
        if not parts:
            if kind != "directory":
                raise ArchiveRefused(f"Member {name!r} is a {kind} that has no name.")
            return ()
        key = "/".join(folded := [_folded(part) for part in parts])
        if self._kinds.get(key[: -len(folded[-1]) - 1]) != "directory":
            for depth in range(1, len(parts)):
                self._note(name, "/".join(folded[:depth]), "directory")
        self._note(name, key, kind)
        return parts

    def _note(self, name: str, key: str, kind: Kind) -> None:
        there = self._kinds.get(key)
        if there is None:
            self._kinds[key] = kind
            self._count_name(key)
            if len(self._kinds) > self.limits.max_members:
                raise ArchiveRefused(f"The archive holds more than {self.limits.max_members:,} members.")
        elif not there == kind == "directory":
            raise ArchiveRefused(
                f"Member {name!r} needs a {kind} at {key!r}, where there is already a {there}."
            )

    def _count_name(self, name: str) -> None:
        self._names_bytes += len(name)
        if self._names_bytes > NAMES_BYTES:
            raise ArchiveRefused(f"The archive's paths are longer than {NAMES_BYTES:,} bytes together.")

    def parse(self, name: str) -> Parts:
        """Refuse every name that means, on any system, something other than a path below the root."""
        parts = tuple(part for part in name.split("/") if part not in {"", "."})
        if wrong := self._wrong_with(name, parts):
            shown = name if len(name) <= 200 else name[:200] + "…"
            raise ArchiveRefused(f"Member {shown!r} {wrong}.")
        return parts

    def _wrong_with(self, name: str, parts: Parts) -> str | None:
        try:
            path_bytes = len(name.encode())
        except UnicodeEncodeError:
            return "has a name that is not UTF-8"
        rules = (
            (not name, "has no name"),
            (name.startswith("/"), "has an absolute path"),
            ("\0" in name, "has a NUL in its name"),
            ("\\" in name, "has a backslash in its name"),
            (DRIVE.match(name), "names a drive"),
            (".." in parts, "leads up with '..'"),
            (path_bytes > self.limits.max_path_bytes, "has too long a path"),
            (len(parts) > self.limits.max_depth, "lies too deep"),
            (any(len(part.encode()) > COMPONENT_BYTES for part in parts), "has too long a name"),
            (
                os.name == "nt" and any(WINDOWS_TRAP.search(part) for part in parts),
                "has a name that Windows reserves",
            ),
        )
        return next((wrong for applies, wrong in rules if applies), None)

    def note_link(self, name: str, parts: Parts, target: str) -> None:
        """Check where a symbolic link leads; it is made by `make_links`, when every file has been written.

        A target may climb first and then descend, never climb again: since no member lies beyond a link,
        climbing happens among real directories and is counted truly, and descending through further links
        stays inside by induction.
        """
        steps = [step for step in target.split("/") if step not in {"", "."}]
        climbs = next((at for at, step in enumerate(steps) if step != ".."), len(steps))
        if (
            not target
            or target.startswith("/")
            or "\0" in target
            or "\\" in target
            or DRIVE.match(target)
            or climbs > len(parts) - 1
            or ".." in steps[climbs:]
            or len(target.encode(errors="surrogateescape")) > self.limits.max_path_bytes
        ):
            raise ArchiveRefused(
                f"Member {name!r} is a symbolic link that may lead out, to {target[:200]!r}."
            )
        self._count_name(target)
        self._links.append((parts, target))

    def create(self, parts: Parts, mode: int) -> BinaryIO:
        """Open a claimed file for writing. Never the file that is already there, never through a link."""
        name, parent = self._place(parts)
        return os.fdopen(os.open(name, CREATE_FLAGS, (mode & 0o755) | 0o600, dir_fd=parent), "wb")

    def reopen(self, name: str) -> BinaryIO | None:
        """Open a file that was unpacked earlier for reading; None when there is none by that name."""
        parts = self.parse(name)
        if self._kinds.get("/".join(_folded(part) for part in parts)) != "file":
            return None
        leaf, parent = self._place(parts)
        try:
            return os.fdopen(os.open(leaf, READ_FLAGS, dir_fd=parent), "rb")
        except FileNotFoundError:  # the names differ in case, and the file system minds
            return None

    def make_directory(self, parts: Parts) -> None:
        """Make a claimed directory and those above it. Does nothing if it is there."""
        self._place((*parts, ""))

    def make_links(self) -> None:
        """Make the symbolic links, now that nothing is left to be written through them."""
        for parts, target in self._links:
            name, parent = self._place(parts)
            os.symlink(target, name, dir_fd=parent)

    def _place(self, parts: Parts) -> tuple[str, int | None]:
        """Make what lies above a path; return its name and the open directory this is relative to."""
        *above, name = parts
        if self._root is None:
            directory = self._into.joinpath(*above)
            directory.mkdir(parents=True, exist_ok=True)
            return str(directory / name), None
        if self._parent is None or self._parent[0] != tuple(above):
            self._leave()
            self._parent = (tuple(above), self._enter(above))
        return name, self._parent[1]

    def _enter(self, above: list[str]) -> int:
        assert self._root is not None  # noqa: S101 — _place asked
        here = os.dup(self._root)
        for part in above:
            outer = here
            try:
                try:
                    here = os.open(part, DIRECTORY_FLAGS, dir_fd=outer)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=outer)
                    here = os.open(part, DIRECTORY_FLAGS, dir_fd=outer)
            finally:
                os.close(outer)
        return here

    def _leave(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def discard(self) -> None:
        """Remove all that was unpacked, and the directory itself if it was not there before."""
        self._leave()
        for name in os.listdir(self._into if self._root is None else self._root):
            place = name if self._root is not None else str(self._into / name)
            try:
                os.unlink(place, dir_fd=self._root)
            except (IsADirectoryError, PermissionError):  # the latter is how macOS and Windows say the former
                shutil.rmtree(place, dir_fd=self._root)
        if self._was_absent:
            self._into.rmdir()

    def close(self) -> None:
        """Let go of the directories that are held open."""
        self._leave()
        if self._root is not None:
            os.close(self._root)
            self._root = None
