"""Archives that people upload: recognised by content, checked member by member, unpacked without trust.

What an archive says about itself is used to refuse early, never to accept: every byte that comes out is
counted, every path is taken apart, and every file is made anew below a directory that is held open.
"""

import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import zstandard

from storage.errors import Conflict, HostlerError, Invalid

KIB = 1024
MIB = 1024 * KIB
CHUNK_BYTES = 256 * KIB
PACKED_CHUNK_BYTES = 64 * KIB
BLOCK_BYTES = 512  # what a tar is made of

# Where files can be opened relative to an open directory, nobody can swap a parent for a link meanwhile.
ANCHORED = {os.open, os.mkdir, os.symlink, os.unlink} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
DIRECTORY_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
CREATE_FLAGS = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

COMPONENT_BYTES = 255  # what common file systems allow between two slashes
NAMES_BYTES = 16 * MIB  # all paths and link targets of one archive together: they are held in memory
DIRECTORY_BYTES = 24 * MIB  # a zip's table of contents: the same
EXTENSION_BYTES = MIB  # one tar header extension: the same
ZSTD_WINDOW_BYTES = 64 * MIB  # what `zstd -21` asks for
IDLE_READS = 1000  # packed pieces in a row that hold nothing
HEADERS_PER_MEMBER = 3  # most need one or two: the member's own, and one that extends it
LOOK_AHEAD_BYTES = 160 * MIB  # enough to see 100,000 empty members, before the first of them is made

Kind = Literal["file", "directory", "symbolic link"]
Parts = tuple[str, ...]

# What Windows reads as something other than a plain name: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
WINDOWS_TRAP = re.compile(
    r'[<>:"|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\.|$)', re.IGNORECASE
)
DRIVE = re.compile(r"[A-Za-z]:")


class ArchiveRefused(Invalid):
    """The archive is damaged, too large, or holds what may not be unpacked; the message says which."""

    code = "ARCHIVE_REFUSED"


class ExtractionCancelled(HostlerError):
    """Whoever asked for the files no longer wants them."""

    code = "CANCELLED"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an archive may hold."""

    max_members: int = 100_000  # files, links and directories, those that are only implied included
    max_total_bytes: int = 4 * KIB * MIB  # unpacked, with a tar's own headers
    max_ratio: int = 200  # unpacked : packed
    ratio_from_bytes: int = 8 * MIB  # unpacked; below, the ratio is nobody's concern
    max_path_bytes: int = 1024  # of one path, or of one link's target
    max_depth: int = 200  # directories above one file


@dataclass(frozen=True)
class Extracted:
    """What came out: regular files, and the bytes in them."""

    files: int
    size_bytes: int


def is_archive(path: Path) -> bool:
    """Say whether `extract` would know what to do with the file, whatever its name."""
    with path.open("rb") as raw:
        return _recognise(raw) is not None


def extract(
    archive: Path, into: Path, *, limits: Limits = Limits(), cancelled: Callable[[], bool] = lambda: False
) -> Extracted:
    """Unpack a zip, tar, tar.gz or tar.zst into the directory `into`, absent or empty: all of it, or nothing.

    Archives inside the archive stay packed. Of a mode, the permission bits stay, less what lets others write.
    `cancelled` is asked before each member and each 256 KiB, so it should be quick.

    Raises ArchiveRefused, ExtractionCancelled, Conflict when `into` is not empty, or OSError; `into` is then
    as it was before.
    """
    with archive.open("rb") as raw:
        kind = _recognise(raw)
        if kind is None:
            raise ArchiveRefused(f"{archive.name!r} is not a zip, tar, tar.gz or tar.zst archive.")
        tree = _Tree(into, limits)
        try:
            extracted = _unpack(raw, kind, tree, limits, cancelled)
            tree.make_links()
        except _DAMAGE as error:
            tree.discard()
            raise ArchiveRefused(f"{archive.name!r} is damaged: {error or type(error).__name__}.") from error
        except BaseException:
            tree.discard()
            raise
        finally:
            tree.close()
        return extracted


# What the parsers of the standard library and of zstandard raise at bytes that make no sense.
# NotImplementedError is a RuntimeError, UnicodeDecodeError a ValueError.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    zstandard.ZstdError,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    LookupError,
)


def _unpack(
    raw: BinaryIO, kind: str, tree: "_Tree", limits: Limits, cancelled: Callable[[], bool]
) -> Extracted:
    if kind == "zip":
        size_bytes = os.fstat(raw.fileno()).st_size
        return _unpack_zip(raw, tree, _Meter(limits, lambda: size_bytes, cancelled))
    _refuse_crowds(_Stream(_OPENERS[kind](raw), _Meter(limits, raw.tell, cancelled)), limits)
    raw.seek(0)
    meter = _Meter(limits, raw.tell, cancelled)
    return _unpack_tar(_Stream(_OPENERS[kind](raw), meter), tree, meter)


class _Meter:
    """Counts what comes out, and refuses when it is too much, or too much for what went in."""

    def __init__(
        self, limits: Limits, packed_bytes: Callable[[], int], cancelled: Callable[[], bool]
    ) -> None:
        self._limits = limits
        self._packed_bytes = packed_bytes
        self._cancelled = cancelled
        self._unpacked_bytes = 0

    def tick(self) -> None:
        if self._cancelled():
            raise ExtractionCancelled("Unpacking was cancelled.")

    def add(self, size_bytes: int) -> None:
        self.tick()
        self._unpacked_bytes += size_bytes
        limits = self._limits
        if self._unpacked_bytes > limits.max_total_bytes:
            raise ArchiveRefused(f"The archive unpacks to more than {limits.max_total_bytes:,} bytes.")
        if self._unpacked_bytes > limits.ratio_from_bytes and (
            self._unpacked_bytes > limits.max_ratio * self._packed_bytes()
        ):
            raise ArchiveRefused(f"The archive unpacks to more than {limits.max_ratio} times its size.")


# ---- the tree that is made -----------------------------------------------------------------------


def _folded(part: str) -> str:
    """Spell a name as the most forgiving file systems compare it: without case, accents in one form."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", part).casefold())


class _Tree:
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


# ---- recognising, and opening what is packed -----------------------------------------------------


class _Stream:
    """The unpacked bytes of a tar, metered, with an end that nobody runs past unnoticed."""

    def __init__(self, chunks: Iterator[bytes], meter: _Meter) -> None:
        self._chunks = chunks
        self._meter = meter
        self._chunk = b""
        self._used = 0

    def some(self, most_bytes: int) -> bytes:
        """Return between 1 and `most_bytes` bytes; none at the end."""
        if self._used == len(self._chunk):
            self._chunk, self._used = self._next(), 0
        piece = self._chunk[self._used : self._used + most_bytes]
        self._used += len(piece)
        return piece

    def _next(self) -> bytes:
        for _ in range(IDLE_READS):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._meter.add(len(chunk))
            if chunk:
                return chunk
        raise ArchiveRefused("The archive is packed in a great many pieces that hold nothing.")

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        """Give exactly so many bytes, piece by piece. Raises EOFError when there are fewer."""
        while size_bytes:
            piece = self.some(size_bytes)
            if not piece:
                raise EOFError("it ends in the middle of a member")
            size_bytes -= len(piece)
            yield piece

    def exactly(self, size_bytes: int) -> bytes:
        return b"".join(self.pieces(size_bytes))

    def skip(self, size_bytes: int) -> None:
        for _ in self.pieces(size_bytes):
            pass


def _plain(raw: BinaryIO) -> Iterator[bytes]:
    return iter(partial(raw.read, CHUNK_BYTES), b"")


def _gunzip(raw: BinaryIO) -> Iterator[bytes]:
    """Unpack gzip, member after member; the gzip module reads headers of any size, byte by byte."""
    packed = raw.read(PACKED_CHUNK_BYTES)
    while packed:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            unpacked = member.decompress(packed, CHUNK_BYTES)
            yield unpacked
            packed = member.unconsumed_tail
            if not member.eof and not packed and len(unpacked) < CHUNK_BYTES:
                packed = raw.read(PACKED_CHUNK_BYTES)
                if not packed:
                    raise EOFError("its gzip stream ends early")
        packed = (member.unused_data or raw.read(PACKED_CHUNK_BYTES)).lstrip(b"\0")  # tapes are padded


def _unzstd(raw: BinaryIO) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    reader = unpacker.stream_reader(raw, read_size=PACKED_CHUNK_BYTES, read_across_frames=True, closefd=False)
    return iter(partial(reader.read, CHUNK_BYTES), b"")


_OPENERS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "tar": _plain,
    "tar.gz": _gunzip,
    "tar.zst": _unzstd,
}
_MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b\x08": "tar.gz",
    b"\x28\xb5\x2f\xfd": "tar.zst",
}


def _recognise(raw: BinaryIO) -> str | None:
    """Name what the file is by its first bytes, looking inside compression for a tar."""
    head = raw.read(4)
    raw.seek(0)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "tar")
    if kind == "zip":
        return kind
    try:
        block = _Stream(_OPENERS[kind](raw), _Meter(Limits(), raw.tell, lambda: False)).exactly(BLOCK_BYTES)
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (*_DAMAGE, ArchiveRefused):
        return None
    finally:
        raw.seek(0)
    return kind


# ---- tar -----------------------------------------------------------------------------------------

_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_SPECIAL = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _refuse_crowds(stream: _Stream, limits: Limits) -> None:
    """Count the members at the front of a tar, so that a crowd of small ones is refused before they are made.

    A rough look: whatever it does not understand is left to `_unpack_tar` to judge.
    """
    headers = members = 0
    left_bytes = LOOK_AHEAD_BYTES
    while left_bytes > 0:
        header = stream.exactly(BLOCK_BYTES)
        digits, kind = header[124:136].strip(b" \0"), header[156:157]
        if not re.fullmatch(rb"[0-7]+", digits):
            return
        headers += 1
        members += kind not in _EXTENSIONS
        if members > limits.max_members or headers > HEADERS_PER_MEMBER * limits.max_members:
            raise ArchiveRefused(f"The archive holds more than {limits.max_members:,} members.")
        body_bytes = 0 if kind in b"123456" else _padded(int(digits, 8))
        stream.skip(min(body_bytes, left_bytes))
        left_bytes -= BLOCK_BYTES + body_bytes


def _tar_members(stream: _Stream, limits: Limits) -> Iterator[tarfile.TarInfo]:
    """Read headers and their extensions; the caller reads each file's data before asking for the next.

    TarFile would do, but for what it reads into memory on a header's word: pax records of any size.
    """
    everywhere: dict[str, str] = {}
    here: dict[str, str] = {}
    for _ in range(HEADERS_PER_MEMBER * limits.max_members + 1):  # and the end
        block = stream.exactly(BLOCK_BYTES)
        if not block.strip(b"\0"):
            while stream.some(CHUNK_BYTES):  # on to the checksum behind the padding
                pass
            return
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if member.type not in _EXTENSIONS:
            _apply(member, everywhere | here)
            here = {}
            yield member
            continue
        if not 0 <= member.size <= EXTENSION_BYTES:
            raise ArchiveRefused(f"Member {member.name!r} has a header extension of {member.size:,} bytes.")
        data = stream.exactly(_padded(member.size))[: member.size]
        if member.type == tarfile.XGLTYPE:
            everywhere |= _pax_records(data)
        elif member.type in {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}:
            here |= _pax_records(data)
        else:
            key = "path" if member.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            here.setdefault(key, data.split(b"\0", 1)[0].decode(errors="surrogateescape"))
    raise ArchiveRefused("The archive holds too many headers for its members.")


def _pax_records(data: bytes) -> dict[str, str]:
    """Parse records of length, blank, keyword, "=", value, newline; the length counts it all."""
    records = {}
    at = 0
    while at < len(data):
        space = data.index(b" ", at, at + 12)
        end = at + int(data[at:space])
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise ValueError("a pax record is malformed")
        if keyword in {b"path", b"linkpath", b"size"} or keyword.startswith(b"GNU.sparse"):
            records[keyword.decode()] = value.decode(errors="surrogateescape")
        at = end
    return records


def _apply(member: tarfile.TarInfo, records: dict[str, str]) -> None:
    """Let the extensions have the last word on path, link target and size."""
    if any(keyword.startswith("GNU.sparse") for keyword in records):
        member.type = tarfile.GNUTYPE_SPARSE
    member.name = records.get("path", member.name)
    member.linkname = records.get("linkpath", member.linkname)
    if "size" in records:
        if not re.fullmatch(r"[0-9]{1,20}", records["size"]):
            raise ValueError(f"the size of {member.name!r} is not a number")
        member.size = int(records["size"])


def _unpack_tar(stream: _Stream, tree: _Tree, meter: _Meter) -> Extracted:
    files = size_bytes = 0
    for member in _tar_members(stream, tree.limits):
        name = member.name
        meter.tick()
        if member.isdir():
            tree.make_directory(tree.claim(name, "directory"))
        elif member.issym():
            tree.note_link(name, tree.claim(name, "symbolic link"), member.linkname)
        elif member.type in _PLAIN_FILES and not name.endswith("/"):
            if member.size < 0:
                raise ArchiveRefused(f"Member {name!r} has a negative size.")
            with tree.create(tree.claim(name, "file"), member.mode) as file:
                for piece in stream.pieces(member.size):
                    file.write(piece)
            stream.skip(_padded(member.size) - member.size)
            files, size_bytes = files + 1, size_bytes + member.size
        elif member.islnk():
            files, size_bytes = files + 1, size_bytes + _copy(member, tree, meter)
        else:
            what = _SPECIAL.get(member.type, f"of the unknown type {member.type!r}")
            raise ArchiveRefused(f"Member {name!r} is {what}, which may not be unpacked.")
    return Extracted(files, size_bytes)


def _copy(member: tarfile.TarInfo, tree: _Tree, meter: _Meter) -> int:
    """Unpack a hard link as a copy of the earlier file that it names, and return the bytes in it."""
    source = tree.reopen(member.linkname)
    if source is None:
        raise ArchiveRefused(
            f"Member {member.name!r} is a hard link to {member.linkname!r}, which is no earlier file."
        )
    size_bytes = 0
    with source, tree.create(tree.claim(member.name, "file"), member.mode) as file:
        while piece := source.read(CHUNK_BYTES):
            meter.add(len(piece))
            file.write(piece)
            size_bytes += len(piece)
    return size_bytes


# ---- zip -----------------------------------------------------------------------------------------

LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # signature, then the lengths of name and extra field (APPNOTE 4.3.7)
ENCRYPTED_FLAGS = (
    0x1 | 0x40 | 0x2000
)  # encrypted, strongly encrypted, table of contents encrypted (APPNOTE 4.4.4)


class _TableOfContents:
    """A zip for zipfile to read, which takes its table in one gulp; this looks at the size first."""

    def __init__(self, raw: BinaryIO, limits: Limits) -> None:
        self._raw = raw
        self._limits = limits
        self.seek, self.tell, self.seekable = raw.seek, raw.tell, raw.seekable

    def read(self, size_bytes: int = -1) -> bytes:
        """Read at most so many bytes. Raises ArchiveRefused when they hold more members than are allowed."""
        if size_bytes > DIRECTORY_BYTES:
            raise ArchiveRefused(f"The archive's table of contents is larger than {DIRECTORY_BYTES:,} bytes.")
        data = self._raw.read(size_bytes)
        # The number of members in the trailer may lie, but zipfile makes one record for each signature. Small
        # reads may be anything, a zip inside the zip among them, and cannot hold a crowd.
        if len(data) > PACKED_CHUNK_BYTES + CHUNK_BYTES and data.count(b"PK\1\2") > self._limits.max_members:
            raise ArchiveRefused(f"The archive holds more than {self._limits.max_members:,} members.")
        return data


def _unpack_zip(raw: BinaryIO, tree: _Tree, meter: _Meter) -> Extracted:
    with zipfile.ZipFile(_TableOfContents(raw, tree.limits)) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        # Claimed sizes can only condemn; what really comes out is counted as well.
        meter_of_claims = copy(meter)
        ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
        for member, end in zip(members, ends, strict=True) if members else ():
            _check(member, raw, end)
            meter_of_claims.add(member.file_size)
            tree.claim(member.orig_filename, _kind(member, tree.limits))
        files = size_bytes = 0
        for member in members:
            kind, parts = _kind(member, tree.limits), tree.parse(member.orig_filename)
            if kind == "directory":
                tree.make_directory(parts)
            elif kind == "symbolic link":
                target = b"".join(_contents(archive, member, meter)).decode()
                tree.note_link(member.filename, parts, target)
            else:
                with tree.create(parts, member.external_attr >> 16 or 0o644) as file:
                    for piece in _contents(archive, member, meter):
                        file.write(piece)
                files, size_bytes = files + 1, size_bytes + member.file_size
    return Extracted(files, size_bytes)


def _check(member: zipfile.ZipInfo, raw: BinaryIO, end: int) -> None:
    """Refuse what zipfile would trust; `end` is where the next member, or the table, begins."""
    name = member.orig_filename
    if member.flag_bits & ENCRYPTED_FLAGS:
        raise ArchiveRefused(f"Member {name!r} is encrypted.")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        # bzip2 and LZMA: zipfile unpacks them without bound
        raise ArchiveRefused(
            f"Member {name!r} is packed by method {member.compress_type}, neither stored nor deflated."
        )
    if member.header_offset < 0:
        raise ArchiveRefused(f"Member {name!r} begins before the archive.")
    raw.seek(member.header_offset)
    signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
    begin = member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
    if signature != b"PK\x03\x04":
        raise ArchiveRefused(f"Member {name!r} is not where the table of contents says.")
    if begin + member.compress_size > end:
        raise ArchiveRefused(f"Member {name!r} overlaps the next one.")


def _kind(member: zipfile.ZipInfo, limits: Limits) -> Kind:
    """Tell what a member is, by the Unix mode where there is one (APPNOTE 4.4.15)."""
    mode = member.external_attr >> 16
    if member.orig_filename.endswith("/") or stat.S_ISDIR(mode):
        if member.file_size:
            raise ArchiveRefused(f"Member {member.orig_filename!r} is a directory that holds bytes.")
        return "directory"
    if stat.S_ISLNK(mode):
        if member.file_size > limits.max_path_bytes:
            raise ArchiveRefused(
                f"Member {member.orig_filename!r} is a symbolic link of {member.file_size:,} bytes."
            )
        return "symbolic link"
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        raise ArchiveRefused(
            f"Member {member.orig_filename!r} is a device, FIFO or socket, which may not be unpacked."
        )
    return "file"


def _contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo, meter: _Meter) -> Iterator[bytes]:
    size_bytes = 0
    with archive.open(member) as packed:
        while piece := packed.read(CHUNK_BYTES):
            meter.add(len(piece))
            size_bytes += len(piece)
            yield piece
    if size_bytes != member.file_size:
        raise EOFError(f"{member.orig_filename!r} is shorter than it claims")
