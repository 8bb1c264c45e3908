"""What a node answers about its apps: requests passed on to their processes, files of their releases, their logs.

Nothing that opens Hostler's doors reaches an app: credentials stay here, and a short-lived signed header says who asks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.seal import Seal


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process of an app listens: a unix socket, else a port on 127.0.0.1."""

    socket: Path | None = None
    port: int | None = None


class Apps(Protocol):
    """What is asked of the supervisor. Names are checked by it: an unknown one never becomes a path."""

    def address(self, instance_id: str, process: str, index: int) -> Address:
        """Return where an instance listens; process "" is the one that serves the routes.

        Raises NotFound for an app, process or index that is not on this node, NotRunning.
        """

    def release(self, instance_id: str) -> Path:
        """Return the directory of the active release. Raises NotFound."""

    def log_file(self, instance_id: str, process: str, index: int) -> Path:
        """Return where an instance's output goes; process "" is the first. Raises NotFound."""


def identity_key(seal: Seal, instance_id: str) -> str:
    """Return the key with which one app checks who asks, as its environment has it in HOSTLER_IDENTITY_KEY."""
    return seal.signature("app identity", instance_id)
