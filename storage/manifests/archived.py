"""The manifest of a release that is still packed: found in its archive without unpacking anything to a disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import zstandard

from storage import manifests
from storage.errors import Invalid, NotFound
from storage.manifests import LIMIT_BYTES, OWN, SQUAREBERG, Manifest

#: Where the search ends: what holds more before its manifest is no release.
MOST_MEMBERS, MOST_BYTES = 100_000, 1 << 30
_ZSTD, _ZSTD_WINDOW_BYTES = b"\x28\xb5\x2f\xfd", 64 << 20


def read(archive: BinaryIO) -> Manifest:
    """Return the manifest in a zip, or in a tar as it is or packed by gzip, bzip2, xz or zstd; `archive` can seek.

    It lies at the top, or in the one directory that is there. Raises Invalid, or NotFound where there is none.
    """
    found: dict[str, bytes] = {}
    with _in_our_words():
        head = archive.read(4)
        zipped = zipfile.is_zipfile(archive)
        archive.seek(0)
        members = _of_zip(archive) if zipped else _of_tar(archive, head)
        for name, content in members:
            found.setdefault(name, content)
            if name == OWN:
                break
    try:
        return manifests.read(found.get(OWN), found.get(SQUAREBERG))
    except NotFound:
        message = f"The archive holds neither {OWN} nor {SQUAREBERG}."
        raise Invalid(message, details={"fileId": message}) from None


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, zstandard.ZstdError, EOFError, OSError, ValueError,
        NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        message = f"The file is no archive that can be read: {str(error)[:200]}"
        raise Invalid(message, details={"fileId": message}) from None


def _wanted(path: str) -> str | None:
    """Return which manifest a member is, if it is one."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", "."}]
    for name in (OWN, SQUAREBERG):
        wanted = name.split("/")
        if parts in (wanted, [*parts[:1], *wanted]) and ".." not in parts:
            return name
    return None


def _of_zip(archive: BinaryIO) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist()[:MOST_MEMBERS]:
            name = _wanted(member.filename)
            if name is not None and not member.is_dir():
                with opened.open(member) as content:
                    yield name, content.read(LIMIT_BYTES + 1)


class _Counted:
    """A stream that ends with an error once more has come out of it than a release may hold."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner, self._left = inner, MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(min(size, 1 << 20) if size >= 0 else 1 << 20)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it holds more than 1 GiB before its manifest")
        return data


def _of_tar(archive: BinaryIO, head: bytes) -> Iterator[tuple[str, bytes]]:
    if head == _ZSTD:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        with unpacker.stream_reader(archive, closefd=False) as plain:
            yield from _members(_Counted(plain), "r|")  # type: ignore[arg-type]  # all that tarfile calls is read()
    else:
        yield from _members(archive, "r|*")


def _members(stream: BinaryIO, mode: str) -> Iterator[tuple[str, bytes]]:
    passed = 0
    with tarfile.open(fileobj=stream, mode=mode) as opened:  # type: ignore[call-overload]  # one of two literals
        for count, member in enumerate(opened):
            passed += member.size
            if count > MOST_MEMBERS or passed > MOST_BYTES:
                raise ValueError("it holds too much before its manifest")
            name = _wanted(member.name)
            if name is not None and member.isfile():
                content = opened.extractfile(member)
                if content is not None:
                    yield name, content.read(LIMIT_BYTES + 1)
