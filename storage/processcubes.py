"""Sub-Cubies: other Hostlers and Cubies whose ProcessCubes are shown here beside our own."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from storage.calls import command, script, text
from storage.errors import Conflict, Invalid, NotFound
from storage.records import opened, signed
from storage.seal import Forged
from storage.store import Store

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_KEY = re.compile(r"[!-~]+", re.ASCII)
LIMIT = 100
#: One that has not answered for so long is gone, and its ProcessCubes with it.
GONE_AFTER_MS = 60_000


@dataclass(frozen=True, slots=True)
class SubCuby:
    """One registered neighbour: the signed part, and what it told when it answered last. Times are in ms."""

    name: str
    url: str
    sealed: str
    added_by: str
    added_ms: int
    asked_ms: int | None = None
    answered_ms: int | None = None
    problem: str = ""
    cubes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def connected(self) -> bool:
        """Whether it answered when it was asked last."""
        return self.answered_ms is not None and not self.problem


_SIGNED = ("name", "url", "sealed", "added_by", "added_ms")


def check(name: str, key: str) -> None:
    """Check what a neighbour is to be called and asked with. Raises Invalid, naming the field."""
    if not NAME.fullmatch(name):
        problem = "Must be 1 to 63 letters, digits, '.', '_' or '-'."
        raise Invalid(f"name: {problem}", details={"name": problem})
    if not _KEY.fullmatch(key):
        problem = "Must be printable ASCII without spaces."
        raise Invalid(f"apiKey: {problem}", details={"apiKey": problem})


async def register(
    store: Store, actor: str, name: str, *, url: str, key: str, cubes: list[dict[str, Any]]
) -> SubCuby:
    """Keep a neighbour that has answered with `cubes`, in the place of one of the same name. Safe to run twice.

    Raises Invalid, or Conflict when there are 100.
    """
    check(name, key)
    sealed = store.seal.encrypt("sub-cuby key", key.encode(), bound_to=f"{name} {url}")
    now_ms = store.now_ms()
    sub = SubCuby(name, url, sealed, actor, now_ms, now_ms, now_ms, "", cubes)
    outcome = await store.call(
        script(
            "subcuby_register",
            now_ms,
            actor,
            name,
            _record(store, sub),
            orjson.dumps(cubes),
            LIMIT,
            read=text,
        )
    )
    if outcome == "full":
        raise Conflict(f"There are {LIMIT} sub-Cubies, which is the most; remove one first.")
    return sub


def _record(store: Store, sub: SubCuby) -> str:
    return signed(store.seal, "subcuby", sub.name, {each: asdict(sub)[each] for each in _SIGNED})


def key_of(store: Store, sub: SubCuby) -> str:
    """Return the API key that a neighbour is asked with. Raises Forged."""
    return store.seal.decrypt("sub-cuby key", sub.sealed, bound_to=f"{sub.name} {sub.url}").decode()


async def told(store: Store, sub: SubCuby, cubes: list[dict[str, Any]]) -> None:
    """Keep what a neighbour has answered, and tell of each ProcessCube that has come or gone. Safe to run twice."""
    await _seen(store, sub, "", cubes)


async def silent(store: Store, sub: SubCuby, problem: str, *, gone: bool) -> None:
    """Keep why a neighbour could not be asked; once it is `gone`, so are its ProcessCubes. Safe to run twice."""
    await _seen(store, sub, problem, [] if gone else None)


async def _seen(store: Store, sub: SubCuby, problem: str, cubes: list[dict[str, Any]] | None) -> None:
    shown = "" if cubes is None else orjson.dumps(cubes)
    await store.call(
        script("subcuby_seen", store.now_ms(), sub.name, _record(store, sub), problem[:500], shown)
    )


async def remove(store: Store, actor: str, name: str) -> None:
    """Forget a neighbour and its ProcessCubes. Raises NotFound."""
    if await store.call(script("subcuby_remove", store.now_ms(), actor, name, read=text)) == "missing":
        raise NotFound(f"There is no sub-Cuby {name!r}.")


async def every(store: Store) -> list[SubCuby]:
    """Return all neighbours by name; what was not written by us is left out."""
    names = sorted(text(each) for each in await store.call(command("SMEMBERS", "h:subcubies")))
    if not names:
        return []
    rows = await store.calls(
        *(
            command("HMGET", f"h:subcuby:{name}", "record", "asked", "answered", "problem", "cubes")
            for name in names
        )
    )
    found = (_read(store, name, row) for name, row in zip(names, rows, strict=True))
    return [sub for sub in found if sub is not None]


def _read(store: Store, name: str, row: list[bytes | None]) -> SubCuby | None:
    record, asked, answered, problem, cubes = row
    try:
        fields = opened(store.seal, "subcuby", name, record or b"")
        shown = orjson.loads(cubes or b"[]")
        return SubCuby(
            **fields, asked_ms=int(asked or 0) or None, answered_ms=int(answered or 0) or None,
            problem=text(problem), cubes=[each for each in shown if isinstance(each, dict)],
        )  # fmt: skip
    except (Forged, ValueError, TypeError):
        return None
