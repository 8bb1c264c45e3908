"""Zips: zipfile reads them, once what it would trust has been looked at."""

import stat
import struct
import zipfile
from collections.abc import Iterator
from copy import copy
from typing import BinaryIO

from workers.archives.limits import MIB, ArchiveRefused, Limits, Meter
from workers.archives.streams import CHUNK_BYTES, PACKED_CHUNK_BYTES
from workers.archives.tree import Extracted, Kind, Tree

DIRECTORY_BYTES = 24 * MIB  # a zip's table of contents: it is held in memory
# Signature, then the lengths of name and extra field (APPNOTE 4.3.7).
LOCAL_HEADER = struct.Struct("<4s22xHH")
# Encrypted, strongly encrypted, table of contents encrypted (APPNOTE 4.4.4).
ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000


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


def unpack(raw: BinaryIO, tree: Tree, meter: Meter) -> Extracted:
    """Unpack a zip into the tree, whose links are left to make. Raises ArchiveRefused."""
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


def _contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo, meter: Meter) -> Iterator[bytes]:
    size_bytes = 0
    with archive.open(member) as packed:
        while piece := packed.read(CHUNK_BYTES):
            meter.add(len(piece))
            size_bytes += len(piece)
            yield piece
    if size_bytes != member.file_size:
        raise EOFError(f"{member.orig_filename!r} is shorter than it claims")
