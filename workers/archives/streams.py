"""What lies in a compressed file, piece by piece: counted, and with an end that nobody runs past unnoticed."""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

import zstandard

from workers.archives.limits import KIB, MIB, ArchiveRefused, Meter

CHUNK_BYTES = 256 * KIB
PACKED_CHUNK_BYTES = 64 * KIB
ZSTD_WINDOW_BYTES = 64 * MIB  # what `zstd -21` asks for
IDLE_READS = 1000  # packed pieces in a row that hold nothing


class Stream:
    """The unpacked bytes of a tar, metered, with an end that nobody runs past unnoticed."""

    def __init__(self, chunks: Iterator[bytes], meter: Meter) -> None:
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
        """Return exactly so many bytes. Raises EOFError when there are fewer."""
        return b"".join(self.pieces(size_bytes))

    def skip(self, size_bytes: int) -> None:
        """Pass over exactly so many bytes. Raises EOFError when there are fewer."""
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


OPENERS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "tar": _plain,
    "tar.gz": _gunzip,
    "tar.zst": _unzstd,
}
