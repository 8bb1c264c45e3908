"""Reading Socket.IO's library without what its clients and its managers of other brokers would bring along."""

import importlib
import sys

#: It reads each of these that is installed, for parts of it that this server has no use for; together up to 25 MiB and
#: half a second of CPU. It does without them as where they are not installed.
_NOT_NEEDED = (
    "aio_pika", "aiohttp", "kafka", "kombu", "redis", "requests", "tornado", "valkey", "websocket", "zmq",
)  # fmt: skip


def read() -> None:
    """Import the library for good in a process that only serves; what is hidden from it others import as ever."""
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: there is none to be found
    try:
        for name in ("engineio", "socketio"):
            importlib.import_module(name)
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
