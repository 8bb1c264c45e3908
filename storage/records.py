"""Signed records: what lies in Redis and counts only with a signature made under the secret key."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields as fields_of
from typing import Any, TypeVar

import orjson

from storage.seal import Forged, Seal

log = logging.getLogger("hostler.storage")
T = TypeVar("T")


def signed(seal: Seal, purpose: str, name: str, fields: dict[str, Any]) -> str:
    """Return the record called `name`: its signature, a line feed, and JSON (see scripts/_record.lua)."""
    content = orjson.dumps(fields).decode()
    return f"{seal.signature(purpose, name, content)}\n{content}"


def opened(seal: Seal, purpose: str, name: str, raw: bytes) -> dict[str, Any]:
    """Return the fields of a signed record. Raises Forged when it was altered, or belongs to another name."""
    signature, _, content = raw.partition(b"\n")
    seal.check(purpose, signature.decode("ascii", "replace"), name, content)
    fields: dict[str, Any] = orjson.loads(content)
    return fields


def understood(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Return `fields` as a dataclass; what a later version wrote beside, and this one knows nothing of, is left out.

    Raises TypeError when one is missing.
    """
    known = {each.name for each in fields_of(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in fields.items() if name in known})


def genuine(records: Iterable[tuple[str, bytes | None]], read: Callable[[str, bytes], T]) -> list[T]:
    """Return what `read` makes of each named record; the missing and the forged are left out."""
    found: list[T] = []
    for name, raw in records:
        try:
            found += [read(name, raw)] if raw else []
        except Forged as error:
            log.error("a record is not believed", extra={"record": name, "reason": str(error)})
    return found
