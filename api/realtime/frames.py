"""WebSocket frames encoded apart from any connection, and how a server takes them."""

from collections.abc import Callable

#: The extension of ASGI by which a server takes frames that are already encoded: a `Write` in the scope's extensions.
FRAMES = "hostler.frames"
#: Writes encoded frames to one client; answers how many bytes it has not taken.
Write = Callable[[bytes], int]


def frame(text: str) -> bytes:
    """Return a text message as a WebSocket frame of a server (RFC 6455, section 5.2)."""
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload
