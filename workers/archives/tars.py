"""Tars: their headers and extensions are read by ourselves, so that none takes memory on its own word."""

import re
import tarfile
from collections.abc import Iterator

from workers.archives.limits import MIB, ArchiveRefused, Limits, Meter
from workers.archives.streams import CHUNK_BYTES, Stream
from workers.archives.tree import Extracted, Tree

BLOCK_BYTES = 512  # what a tar is made of
EXTENSION_BYTES = MIB  # one header extension: it is held in memory
HEADERS_PER_MEMBER = 3  # most need one or two: the member's own, and one that extends it
LOOK_AHEAD_BYTES = 160 * MIB  # enough to see 100,000 empty members, before the first of them is made

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


def refuse_crowds(stream: Stream, limits: Limits) -> None:
    """Count the members at the front of a tar, so that a crowd of small ones is refused before they are made.

    A rough look: whatever it does not understand is left to `unpack` to judge.
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


def _tar_members(stream: Stream, limits: Limits) -> Iterator[tarfile.TarInfo]:
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


def unpack(stream: Stream, tree: Tree, meter: Meter) -> Extracted:
    """Unpack a tar into the tree, whose links are left to make. Raises ArchiveRefused."""
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


def _copy(member: tarfile.TarInfo, tree: Tree, meter: Meter) -> int:
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
