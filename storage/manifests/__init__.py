"""Manifests: what a product declares of itself, read from hostler.toml or from Squareberg's manifest."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marshmallow import ValidationError

from storage.errors import Invalid, NotFound
from storage.manifests import squareberg
from storage.manifests.parts import (
    Command,
    Components,
    Frontend,
    Health,
    Install,
    Links,
    Manifest,
    Process,
    Restart,
    Routes,
)
from storage.manifests.schemas import VERSION, ManifestForm, inside, is_name

OWN, SQUAREBERG = "hostler.toml", ".squareberg/manifest.toml"
LIMIT_BYTES = 256 * 1024

_FORM = ManifestForm()


def load(data: Mapping[str, Any]) -> Manifest:
    """Return the manifest that `data` describes. Raises Invalid, naming each field."""
    try:
        manifest: Manifest = _FORM.load(data)
    except ValidationError as error:
        details = dict(_flat(error.messages))
        field, problem = next(iter(details.items()))
        raise Invalid(f"The manifest's {field}: {problem}", details=dict(details)) from None
    return manifest


def _flat(messages: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(messages, dict):
        # marshmallow tells of a mapping's entries as {entry: {"value": problems}}
        names = (
            (name, path if name in {"_schema", "value", "key"} else f"{path}.{name}") for name in messages
        )
        return [each for name, where in names for each in _flat(messages[name], where)]
    problems = messages if isinstance(messages, list) else [messages]
    return [(path.lstrip(".") or "manifest", " ".join(map(str, problems)))]


def as_json(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as `load` reads it; what is as it is by default is left out."""
    data = _plain(asdict(manifest))
    processes = {each.pop("name"): each for each in data.pop("processes")}
    return {**data, "processes": processes}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def read(own: bytes | None, foreign: bytes | None) -> Manifest:
    """Return the manifest from the text of hostler.toml or, without one, of Squareberg's. Raises Invalid."""
    name, raw = (OWN, own) if own is not None else (SQUAREBERG, foreign)
    if raw is None:
        raise NotFound(f"There is neither {OWN} nor {SQUAREBERG}.")
    if len(raw) > LIMIT_BYTES:
        raise Invalid(f"{name} is larger than 256 KiB.")
    try:
        data = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise Invalid(f"{name} is no TOML: {error}") from None
    return load(data if own is not None else squareberg.translated(data))


def read_directory(path: Path) -> Manifest:
    """Return the manifest of an unpacked release. Raises Invalid, or NotFound where there is none."""
    return read(*(_content(path, path / name) for name in (OWN, SQUAREBERG)))


def _content(root: Path, file: Path) -> bytes | None:
    if not file.is_file():
        return None
    if not file.resolve().is_relative_to(root.resolve()):
        raise Invalid(f"{file.name} is a link that leads out of the release.")
    with file.open("rb") as opened:
        return opened.read(LIMIT_BYTES + 1)


__all__ = [
    "OWN", "SQUAREBERG", "VERSION", "Command", "Components", "Frontend", "Health", "Install", "Links", "Manifest",
    "Process", "Restart", "Routes", "as_json", "inside", "is_name", "load", "read", "read_directory",
]  # fmt: skip
