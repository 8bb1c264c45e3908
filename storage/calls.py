"""One step in Redis, described without doing it, so that the web, the scheduler and the worker's loop can share it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from storage import scripts

T = TypeVar("T")
Word = bytes | str | int | float
#: What Redis calls an entry of a stream, as a regular expression; it takes no number that has more than 64 bits.
STREAM_ID = r"[0-9]{1,15}-[0-9]{1,15}"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A command, or a script of storage/scripts by its name, and how to read the reply.

    `read` turns the raw reply into the answer; it raises an error of storage/errors.py where the rules refused.
    """

    words: tuple[Word, ...]
    read: Callable[[Any], T]
    script: str | None = None


def _as_it_is(reply: Any) -> Any:
    return reply


@overload
def command(*words: Word) -> Call[Any]: ...
@overload
def command(*words: Word, read: Callable[[Any], T]) -> Call[T]: ...
def command(*words: Word, read: Callable[[Any], Any] = _as_it_is) -> Call[Any]:
    """Describe a plain Redis command."""
    return Call(words, read)


@overload
def script(name: str, *arguments: Word, keys: Sequence[str] = ()) -> Call[Any]: ...
@overload
def script(name: str, *arguments: Word, keys: Sequence[str] = (), read: Callable[[Any], T]) -> Call[T]: ...
def script(
    name: str, *arguments: Word, keys: Sequence[str] = (), read: Callable[[Any], Any] = _as_it_is
) -> Call[Any]:
    """Describe a run of the Lua script called `name`."""
    return Call(("EVALSHA", scripts.sha(name), len(keys), *keys, *arguments), read, name)


def text(value: bytes | None) -> str:
    """Return a reply's bytes as text, and nothing as the empty string."""
    return "" if value is None else value.decode("utf-8", "replace")


def pairs(reply: Sequence[bytes]) -> dict[str, str]:
    """Return the flat reply of HGETALL as a mapping."""
    return {text(reply[i]): text(reply[i + 1]) for i in range(0, len(reply), 2)}
