"""Forms with a file in them, as bytes."""

import os

from settings import MIB

DATA = os.urandom(3 * MIB + 17)
BOUNDARY = b"----hostler-tests"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.zip"'
FIELD = b'Content-Disposition: form-data; name="note"'


def form(*parts: tuple[bytes, bytes], end: bytes = b"--" + BOUNDARY + b"--\r\n") -> bytes:
    body = b"".join(b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return body + end
