"""What a backup consists of: paths and dumps as people write them, and as they are kept."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from storage import manifests
from storage.backups.records import DUMPS, FILES
from storage.errors import Invalid

MOST = 64
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", re.ASCII)
_DUMP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}|/[\x21-\x7e]{1,255}", re.ASCII)
_WORD = re.compile(r"[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]{0,127}")

#: What a source of each kind may say, besides its type; a password is sealed apart.
_TAKES: Mapping[str, frozenset[str]] = {
    "path": frozenset({"path"}),
    "app": frozenset({"app"}),
    "volume": frozenset({"volume"}),
    "postgresql": frozenset({"name", "host", "port", "user", "database", "password", "container"}),
    "mysql": frozenset({"name", "host", "port", "user", "database", "password", "container"}),
    "redis": frozenset({"name", "host", "port", "user", "password", "container"}),
    "command": frozenset({"name", "command"}),
}


def parsed(given: Sequence[Any]) -> tuple[tuple[Mapping[str, Any], ...], dict[str, str]]:
    """Return sources as they are kept, and their passwords by the names of their dumps. Raises Invalid.

    A string is a path when it begins with a slash, an app's data as `app:<id>`, and else a named volume.
    """
    if not 1 <= len(given) <= MOST:
        raise _invalid("volumes", f"must be 1 to {MOST} sources")
    found: list[Mapping[str, Any]] = []
    secrets: dict[str, str] = {}
    for index, each in enumerate(given):
        field = f"volumes[{index}]"
        source = _from_string(each) if isinstance(each, str) else each
        if not isinstance(source, Mapping):
            raise _invalid(field, "must be a string or an object with a type")
        source = _checked(field, dict(source), index)
        if password := source.pop("password", ""):
            secrets[source["name"]] = password
        found.append(source)
    names = [each["name"] for each in found if "name" in each]
    if twice := {each for each in names if names.count(each) > 1}:
        raise _invalid("volumes", f"two dumps are called {min(twice)!r}")
    return tuple(found), secrets


def shown(source: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return a source as people write it."""
    kind = source["type"]
    if kind == "path":
        return str(source["path"])
    if kind in FILES:
        return f"{kind}:{source[kind]}"
    return dict(source)


def _from_string(word: str) -> dict[str, Any]:
    if word.startswith("/"):
        return {"type": "path", "path": word}
    if word.startswith("app:"):
        return {"type": "app", "app": word.removeprefix("app:")}
    return {"type": "volume", "volume": word.removeprefix("volume:")}


def _checked(field: str, source: dict[str, Any], index: int) -> dict[str, Any]:
    kind = source.get("type")
    if not isinstance(kind, str) or kind not in FILES | DUMPS:
        raise _invalid(f"{field}.type", f"must be one of {', '.join(sorted(FILES | DUMPS))}")
    if unknown := set(source) - _TAKES[kind] - {"type"}:
        raise _invalid(f"{field}.{min(unknown)}", f"is not known of the type {kind}")
    if kind == "path":
        source["path"] = a_path(f"{field}.path", source.get("path"))
    elif kind == "app":
        app = source.get("app")
        if not isinstance(app, str) or not all(manifests.is_name(part) for part in app.split("__")):
            raise _invalid(f"{field}.app", "is not the id of an app")
    elif kind == "volume":
        _match(_VOLUME, f"{field}.volume", source.get("volume"), "is not the name of a volume")
    else:
        source = {**source, "name": source.get("name", f"{kind}-{index}")}
        _match(_DUMP, f"{field}.name", source["name"], "must be letters, digits, '.', '_' and '-'")
        _check_dump(field, kind, source)
    return source


def _check_dump(field: str, kind: str, source: Mapping[str, Any]) -> None:
    if kind == "command":
        a_command(f"{field}.command", source.get("command"))
    if "host" in source:
        _match(_HOST, f"{field}.host", source["host"], "is not a host, nor the directory of a socket")
    if "port" in source and not (type(source["port"]) is int and 0 < source["port"] < 65536):
        raise _invalid(f"{field}.port", "must be a number from 1 to 65535")
    for name in ("user", "database", "container"):
        if name in source:
            _match(_WORD, f"{field}.{name}", source[name], "must be 1 to 128 characters, no hyphen first")
    if "password" in source and not _is_secret(source["password"]):
        raise _invalid(f"{field}.password", "must be 1 to 1024 characters on one line")


def _is_secret(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1024 and not re.search(r"[\0\r\n]", value)


def a_path(field: str, value: Any) -> str:
    """Return an absolute path without detours. Raises Invalid."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 4096:
        raise _invalid(field, "must be an absolute path")
    path = PurePosixPath(value)
    if ".." in path.parts:
        raise _invalid(field, "must not contain '..'")
    return "/" + str(path).lstrip("/")


def a_command(field: str, value: Any) -> str:
    """Return a command for a shell. Raises Invalid."""
    if not isinstance(value, str) or not value.strip() or "\0" in value or len(value) > 65_536:
        raise _invalid(field, "must be a command, at most 65536 characters")
    return value


def _match(pattern: re.Pattern[str], field: str, value: Any, problem: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _invalid(field, problem)


def _invalid(field: str, problem: str) -> Invalid:
    return Invalid(f"{field}: {problem}.", details={field: f"{problem}."})
