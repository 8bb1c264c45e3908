"""Questions to apps and their answers: what they say, how large they may be, and how long an answer may take."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from settings import MIB
from storage.identity import Identity

#: How large a body may be, either way, where nothing else is said; and how large at most.
LIMIT_BYTES, MOST_BYTES = 10 * MIB, 64 * MIB
#: How long an answer may take, where nothing else is said; and how long at most.
#: Routers of platforms hang up on a request that nothing has been heard of for 30 s.
TIMEOUT_S, MOST_TIMEOUT_S = 25.0, 600.0
#: An archive of a backup has no limit of its size, and this one of its time; but who takes nothing is gone (ways.py).
ARCHIVE_TIMEOUT_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to an app, or to its node about it.

    `http` is passed on to the process (`process` empty: the one that serves the app's routes); `file` reads `path`
    below `within` in the active release, or else `fallback`; `log` reads the last `lines` of an instance's log file;
    `archive` is of the record `path` of the backup job `app`.
    `caller` is told to the app in a signed header, `forwarded` (for, proto, host, prefix) in X-Forwarded-*, and of
    `headers` what opens none of our doors.
    """

    app: str
    kind: Literal["http", "file", "log", "archive"] = "http"
    process: str = ""
    index: int = 0
    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    within: str = ""
    fallback: str = ""
    lines: int = 500
    caller: Mapping[str, str] | None = None
    forwarded: Mapping[str, str] = field(default_factory=dict)
    limit_bytes: int = LIMIT_BYTES
    timeout_s: float = TIMEOUT_S

    @property
    def within_s(self) -> float:
        """Return how long its answer may take."""
        return ARCHIVE_TIMEOUT_S if self.kind == "archive" else min(self.timeout_s, MOST_TIMEOUT_S)

    @property
    def within_bytes(self) -> int | None:
        """Return how large bodies may be, either way; None for no limit."""
        return None if self.kind == "archive" else min(self.limit_bytes, MOST_BYTES)


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the app said, whole."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever the case of its name."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)


#: Answers one question on its node: a Head first, then the body in pieces. What it raises reaches the asker.
Handle = Callable[[Ask], AsyncGenerator[Head | bytes, None]]


def caller(identity: Identity | None) -> dict[str, str] | None:
    """Return what an app is told of who asks."""
    if identity is None:
        return None
    return {"sub": identity.id, "name": identity.name, "role": identity.role, "kind": identity.kind}
