"""Entries: what one read of the worker brought, and how that lies in parts of the log, live streams and records."""

from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass

#: What readers call the two channels.
STREAMS = {"o": "stdout", "e": "stderr"}

#: How parts are packed: fast, since the object store takes far longer over a byte than this does.
_PACK_LEVEL = 1
#: What a packed part begins with (RFC 8878, section 3.1.1); frames begin with a digit.
_PACKED = b"\x28"
#: So much of a part is unpacked at once.
_UNPACKED_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """Output that came together on `channel` (o or e): its first line is `line`, and `count` lines end in it."""

    attempt: int
    line: int
    count: int
    channel: str
    data: bytes

    @property
    def stop(self) -> int:
        """Return the number of the line after those that end here."""
        return self.line + self.count

    @property
    def stream(self) -> str:
        """Return the channel's name for readers: stdout or stderr."""
        return STREAMS[self.channel]

    def split(self, line: int) -> "tuple[Entry, Entry]":
        """Return what comes before `line`, which begins inside this entry, and the rest."""
        end, count = 0, line - self.line
        for _ in range(count):
            end = self.data.find(b"\n", end) + 1 or len(self.data)
        return (
            Entry(self.attempt, self.line, count, self.channel, self.data[:end]),
            Entry(self.attempt, line, self.count - count, self.channel, self.data[end:]),
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines that are kept nowhere, by the `seq` of the first and the last one."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Place:
    """How far a reader is: the number of the next line, and how many pieces of that line it has already."""

    line: int = 0
    pieces: int = 0

    def past(self, entry: Entry) -> "Place":
        """Return the place after `entry`."""
        if entry.count:
            return Place(entry.stop)
        return Place(entry.line, self.pieces + 1 if entry.line == self.line else 1)

    def is_past(self, entry: Entry) -> bool:
        """Tell whether `entry` lies before this place; pieces of the next line are the caller's to count."""
        return entry.stop < self.line or (entry.stop == self.line and entry.count > 0)


# Frames: how a part of the log lies in the object store


def encode_frame(attempt: int, line: int, count: int, channel: str, data: bytes) -> bytes:
    """Return an entry as parts of the log hold it: the five facts in a line of their own, then the data."""
    return b"%d %d %d %s %d\n%s" % (attempt, line, count, channel.encode("ascii"), len(data), data)


def decode(frames: bytes) -> Iterator[Entry]:
    """Yield the entries of a part that is in memory; one that is cut off at the end is left out."""
    at = 0
    while (end := frames.find(b"\n", at)) >= 0:
        attempt, line, count, channel, length = frames[at:end].split(b" ")
        at = end + 1 + int(length)
        if at > len(frames):
            return
        data = bytes(frames[end + 1 : at])
        yield Entry(int(attempt), int(line), int(count), channel.decode("ascii"), data)


def pack(frames: bytes) -> bytes:
    """Return frames as parts of the log are stored: packed with Zstandard, or as they are where that gains little."""
    import zstandard  # noqa: PLC0415  most processes never store a part

    packed = zstandard.ZstdCompressor(level=_PACK_LEVEL, write_checksum=True).compress(frames)
    return packed if len(packed) < len(frames) * 0.75 else frames


async def _unpacked(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the frames of a stored part. Raises ValueError when it is damaged."""
    held: list[bytes] = []
    packed: bool | None = None  # not known before the first byte
    async for chunk in chunks:
        if packed is None and chunk:
            packed = chunk.startswith(_PACKED)
        if packed:
            held.append(chunk)  # what is packed is short, and would unpack to any length if it came by itself
        else:
            yield chunk
    if held:
        import zstandard  # noqa: PLC0415  as above

        try:
            unpacker = zstandard.ZstdDecompressor()
            for frames in unpacker.read_to_iter(b"".join(held), write_size=_UNPACKED_BYTES):
                yield frames
        except zstandard.ZstdError as error:
            raise ValueError(f"A part of a log is damaged: {error}.") from None


async def decode_stream(chunks: AsyncIterable[bytes]) -> AsyncIterator[Entry]:
    """Yield the entries of a stored part as it arrives, packed or not. Raises ValueError when it is damaged."""
    rest = b""
    async for chunk in _unpacked(chunks):
        rest += chunk
        used = 0
        for entry in decode(rest):
            used = rest.index(b"\n", used) + 1 + len(entry.data)
            yield entry
        rest = rest[used:]


def entry_of(head: bytes, data: bytes) -> Entry:
    """Read an entry of the live stream: `head` is "<attempt> <line> <count> <channel>"."""
    attempt, line, count, channel = head.split(b" ")
    return Entry(int(attempt), int(line), int(count), channel.decode("ascii"), data)


def unpacked(packed: bytes) -> Iterator[tuple[int, Entry]]:
    """Yield the entries of a log that was packed into its job's record (_packed.lua), each with its time (ms).

    What somebody else wrote there ends it.
    """
    at = 0
    while (end := packed.find(b"\n", at)) >= 0:
        words = packed[at:end].split(b" ")
        if len(words) != 6 or not all(word.isdigit() for word in (*words[:4], words[5])):
            return
        at = end + 1 + int(words[5])
        yield int(words[0]), entry_of(b" ".join(words[1:5]), packed[end + 1 : at])
