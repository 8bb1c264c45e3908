"""multipart/form-data, split while it streams: one file, and a few small fields around it."""

from collections.abc import Callable

import falcon
import stringzilla
from falcon.asgi.multipart import BodyPart
from falcon.media.multipart import MultipartParseError, MultipartParseOptions

from api.errors import UnsupportedMediaType
from storage.errors import Invalid
from storage.read_into import ReadInto

#: The headers of one part.
HEADERS_LIMIT_BYTES = 8 * 1024
#: All that is not the file's content: the text before the first boundary, and the fields around the file.
AROUND_LIMIT_BYTES = 64 * 1024
#: Parts of one form, the file's among them.
PARTS_LIMIT = 32
#: What is read at once of all that is not the file's content.
_STEP_BYTES = 16 * 1024

_OPTIONS = MultipartParseOptions()


def boundary_of(content_type: str | None) -> bytes:
    """Return the delimiter's text from a Content-Type header. Raises UnsupportedMediaType or Invalid."""
    media_type, options = falcon.parse_header(content_type or "")
    if media_type.lower() != "multipart/form-data":
        raise UnsupportedMediaType("The body must be multipart/form-data.")
    boundary = options.get("boundary", "").rstrip()
    # RFC 2046, section 5.1.1
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise Invalid("The Content-Type must name a boundary of 1 to 70 characters.")
    return boundary.encode()


class Part:
    """What the headers of one part say. Raises Invalid when they cannot be read."""

    def __init__(self, block: bytes) -> None:
        headers = {}
        for line in block.split(b"\r\n"):
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        if headers.get(b"content-transfer-encoding", b"binary").lower() not in {b"binary", b"8bit", b"7bit"}:
            raise Invalid(
                "The parts of a form must be sent as they are, not encoded."
            )  # RFC 7578, section 4.7
        described = BodyPart(None, headers, _OPTIONS)  # type: ignore[arg-type]  # its stream is never asked for
        try:
            self.name: str | None = described.name
            self.filename: str | None = described.filename
            self.content_type: str = described.content_type
        except (UnicodeError, MultipartParseError):
            raise Invalid("The headers of a part of the form cannot be read.") from None


class FormReader:
    """A form as it arrives: find the part that is a file, read it, then make sure that the rest is harmless.

    Falcon's own reader copies more, bounds neither preamble nor fields, and takes a body that breaks off
    before its last boundary for a whole one.
    """

    def __init__(self, read_body: ReadInto, boundary: bytes) -> None:
        self._read_body = read_body
        self._delimiter = b"\r\n--" + boundary
        #: what was read and not yet handed on, from `_at`; begins so that the first boundary looks like all others
        self._data, self._at = bytearray(b"\r\n"), 0
        self._parts = 0
        self._around_bytes = 0
        self._over = False

    async def file(self, name: str) -> Part:
        """Go to the content of the file sent as `name`. Raises Invalid when the form has none."""
        await self._skip()
        while part := await self._next_part():
            if part.filename is not None:
                if part.name != name:
                    raise Invalid(
                        f"The file must be sent as {name}, not as {part.name}.", details={name: "missing"}
                    )
                return part
            await self._skip()
        raise Invalid(f"{name} is required", details={name: "missing"})

    async def read_into(self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
        """Read the file's content as ReadInto has it, and the form to its end. Raises Invalid when that is no end."""
        while not self._over:
            found = self._data.find(self._delimiter, self._at)
            sure = self._sure(self._data, self._at, len(self._data), found)
            if size := min(sure - self._at, end - start):
                buffer[start : start + size] = self._data[self._at : self._at + size]
                self._at += size
                look(start + size)
                return size
            if found >= 0:
                self._at = found + len(self._delimiter)
                await self._to_the_end()
                self._over = True
            elif end - start < _STEP_BYTES:
                await self._more()
            elif size := await self._read_in_place(buffer, start, end, look):
                return size
        return 0

    async def _read_in_place(
        self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool]
    ) -> int:
        """Read on where the content shall lie; all that has been read is what may be the beginning of a delimiter."""
        held = self._data[self._at :]
        first, sure = start + len(held), start
        buffer[start:first] = held

        def look_for_delimiter(upto: int) -> bool:
            nonlocal sure
            # as `buffer.find`, which takes twice as long, and for a boundary of some senders' choice a hundred times
            found = stringzilla.find(buffer, self._delimiter, sure, upto)
            sure = self._sure(buffer, sure, upto, found)
            return look(sure) and found < 0

        upto = first + await self._wanted(buffer, first, end, look_for_delimiter)
        self._data, self._at = buffer[sure:upto], 0
        return sure - start

    def _sure(self, data: bytearray, start: int, end: int, found: int) -> int:
        """Return up to where `data` is no part of a delimiter, nor may be: one was `found`, or none (-1)."""
        if found >= 0:
            return found
        begun = data.find(b"\r", max(start, end - len(self._delimiter) + 1), end)
        return end if begun < 0 else begun

    async def _to_the_end(self) -> None:
        while part := await self._next_part():
            if part.filename is not None:
                raise Invalid("Only one file can be uploaded at a time.")
            await self._skip()
        self._count(len(self._data) - self._at)
        rest = bytearray(_STEP_BYTES)
        # what follows the last boundary means nothing, but is not free
        while size := await self._read_body(rest, 0, len(rest), _on):
            self._count(size)

    async def _skip(self) -> None:
        """Pass over what comes before the next delimiter, and over that."""
        while (found := self._data.find(self._delimiter, self._at)) < 0:
            self._count_to(self._sure(self._data, self._at, len(self._data), found))
            await self._more()
        self._count_to(found)
        self._at += len(self._delimiter)

    def _count_to(self, end: int) -> None:
        self._count(end - self._at)
        self._at = end

    def _count(self, size_bytes: int) -> None:
        self._around_bytes += size_bytes
        if self._around_bytes > AROUND_LIMIT_BYTES:
            raise Invalid(f"The form holds more than {AROUND_LIMIT_BYTES} bytes beside its file.")

    async def _next_part(self) -> Part | None:
        """Read on after a delimiter: the next part's headers, or None at the end of the form."""
        while len(self._data) - self._at < 2:
            await self._more()
        if self._data.startswith(b"--", self._at):
            return None
        if (await self._line_until(b"\r\n")).strip(b" \t"):
            raise Invalid("The form has something behind a boundary.")
        self._parts += 1
        if self._parts > PARTS_LIMIT:
            raise Invalid(f"The form has more than {PARTS_LIMIT} parts.")
        block = await self._line_until(b"\r\n\r\n")
        self._count(len(block))
        return Part(block)

    async def _line_until(self, mark: bytes) -> bytes:
        while (end := self._data.find(mark, self._at)) < 0 and len(
            self._data
        ) - self._at <= HEADERS_LIMIT_BYTES:
            await self._more()
        if not 0 <= end - self._at <= HEADERS_LIMIT_BYTES:
            raise Invalid(f"The headers of a part exceed {HEADERS_LIMIT_BYTES} bytes.")
        line = bytes(self._data[self._at : end])
        self._at = end + len(mark)
        return line

    async def _more(self) -> None:
        """Read on behind what was read."""
        del self._data[: self._at]
        self._at, size = 0, len(self._data)
        self._data += bytes(_STEP_BYTES)
        size += await self._wanted(self._data, size, size + _STEP_BYTES, _on)
        del self._data[size:]

    async def _wanted(self, buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
        size = await self._read_body(buffer, start, end, look)
        if not size:
            raise Invalid("The body ends before the form does.")
        return size


def _on(_upto: int) -> bool:
    return True
