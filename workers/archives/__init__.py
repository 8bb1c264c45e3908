"""Archives that people upload: recognised by content, checked member by member, unpacked without trust.

What an archive says about itself is used to refuse early, never to accept: every byte that comes out is
counted, every path is taken apart, and every file is made anew below a directory that is held open.
"""

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import zstandard

from workers.archives import tars, zips
from workers.archives.limits import ArchiveRefused, ExtractionCancelled, Limits, Meter
from workers.archives.streams import OPENERS, Stream
from workers.archives.tree import Extracted, Tree

_USUAL = Limits()
_MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b\x08": "tar.gz",
    b"\x28\xb5\x2f\xfd": "tar.zst",
}
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


def is_archive(path: Path) -> bool:
    """Say whether `extract` would know what to do with the file, whatever its name."""
    with path.open("rb") as raw:
        return _recognise(raw) is not None


def extract(
    archive: Path, into: Path, *, limits: Limits = _USUAL, cancelled: Callable[[], bool] = lambda: False
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
        tree = Tree(into, limits)
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


def _unpack(raw: BinaryIO, kind: str, tree: Tree, limits: Limits, cancelled: Callable[[], bool]) -> Extracted:
    if kind == "zip":
        size_bytes = os.fstat(raw.fileno()).st_size
        return zips.unpack(raw, tree, Meter(limits, lambda: size_bytes, cancelled))
    tars.refuse_crowds(Stream(OPENERS[kind](raw), Meter(limits, raw.tell, cancelled)), limits)
    raw.seek(0)
    meter = Meter(limits, raw.tell, cancelled)
    return tars.unpack(Stream(OPENERS[kind](raw), meter), tree, meter)


def _recognise(raw: BinaryIO) -> str | None:
    """Name what the file is by its first bytes, looking inside compression for a tar."""
    head = raw.read(4)
    raw.seek(0)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "tar")
    if kind == "zip":
        return kind
    try:
        block = Stream(OPENERS[kind](raw), Meter(_USUAL, raw.tell, lambda: False)).exactly(tars.BLOCK_BYTES)
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (*_DAMAGE, ArchiveRefused):
        return None
    finally:
        raw.seek(0)
    return kind


__all__ = ["ArchiveRefused", "Extracted", "ExtractionCancelled", "Limits", "extract", "is_archive"]
