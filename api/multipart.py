"""multipart/form-data, split while it streams: one file, and a few small fields around it."""

from collections.abc import AsyncIterator

import falcon
from falcon.asgi.multipart import BodyPart
from falcon.media.multipart import MultipartParseError, MultipartParseOptions

from api.body import BODY_IDLE_S, Patience
from api.errors import UnsupportedMediaType
from storage.errors import Invalid

#: The headers of one part.
HEADERS_LIMIT_BYTES = 8 * 1024
#: All that is not the file's content: the text before the first boundary, and the fields around the file.
AROUND_LIMIT_BYTES = 64 * 1024
#: Parts of one form, the file's among them.
PARTS_LIMIT = 32

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

    def __init__(self, chunks: AsyncIterator[bytes], boundary: bytes) -> None:
        self._chunks = chunks
        self._delimiter = b"\r\n--" + boundary
        self._data = b"\r\n"  # so that the first boundary looks like all others
        self._at = 0
        self._parts = 0
        self._around_bytes = 0
        self._patience: Patience | None = None

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

    async def content(self) -> AsyncIterator[memoryview]:
        """Yield the file's bytes, then read the form to its end. Raises Invalid when that is no end."""
        async for piece in self._until_delimiter():
            yield piece
        while part := await self._next_part():
            if part.filename is not None:
                raise Invalid("Only one file can be uploaded at a time.")
            await self._skip()
        self._count(len(self._data) - self._at)
        while chunk := await self._chunk():  # what follows the last boundary means nothing, but is not free
            self._count(len(chunk))

    async def _skip(self) -> None:
        async for piece in self._until_delimiter():
            self._count(len(piece))

    def _count(self, size_bytes: int) -> None:
        self._around_bytes += size_bytes
        if self._around_bytes > AROUND_LIMIT_BYTES:
            raise Invalid(f"The form holds more than {AROUND_LIMIT_BYTES} bytes beside its file.")

    async def _until_delimiter(self) -> AsyncIterator[memoryview]:
        delimiter, overlap = self._delimiter, len(self._delimiter) - 1
        while True:
            end = self._data.find(delimiter, self._at)
            if end >= 0:
                piece = memoryview(self._data)[self._at : end]
                self._at = end + len(delimiter)
                if piece:
                    yield piece
                return
            # hold back no more than what may be the beginning of a delimiter
            end = self._data.find(b"\r", max(self._at, len(self._data) - overlap))
            end = len(self._data) if end < 0 else end
            piece = memoryview(self._data)[self._at : end]
            self._at = end
            if piece:
                yield piece
            held = bytes(self._data[end:])
            self._data, self._at = b"", 0  # what has been read is not held any longer than its reader wants
            chunk = await self._wanted()
            if held and (len(chunk) < overlap or 0 <= (held + chunk[:overlap]).find(delimiter) < len(held)):
                self._data = held + chunk
                continue
            self._data = chunk
            if held:
                yield memoryview(held)

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
        chunk = await self._wanted()
        rest = self._data[self._at :]
        self._data = rest + chunk if rest else chunk
        self._at = 0

    async def _wanted(self) -> bytes:
        chunk = await self._chunk()
        if not chunk:
            raise Invalid("The body ends before the form does.")
        return chunk

    async def _chunk(self) -> bytes:
        if self._patience is None:
            self._patience = Patience(BODY_IDLE_S)
        try:
            chunk = await self._patience.next(self._chunks)
        except TimeoutError:
            raise Invalid(f"The body stopped arriving for {BODY_IDLE_S} s.") from None
        if not chunk:
            self._patience.close()
        return chunk
