"""The rules for single fields of what CMD Executor's clients send; each raises ValidationError."""

import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import orjson
from marshmallow import ValidationError, fields, validate

_KIB = 1024
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:|\\")


def plain_text(value: str) -> None:
    """Refuse what no command line, environment or file name can hold."""
    if "\0" in value:
        raise ValidationError("Must not contain NUL.")


def size(limit_bytes: int) -> Any:
    """Return a rule: at most so many bytes of UTF-8."""

    def check(value: str) -> None:
        if len(value.encode("utf-8", "surrogatepass")) > limit_bytes:
            raise ValidationError(f"Must be at most {limit_bytes} bytes.")

    return check


def not_blank(value: str) -> None:
    """Refuse nothing but spaces."""
    if not value.strip():
        raise ValidationError("Must not be empty.")


def inside(value: str) -> None:
    """Refuse a path that leads out of the job's directory."""
    plain_text(value)
    if not value.strip() or _WINDOWS_ROOT.match(value) or PurePosixPath(value).is_absolute():
        raise ValidationError("Must be a relative path.")
    if ".." in re.split(r"[/\\]", value):
        raise ValidationError("Must not contain '..'.")


def tag(value: str) -> None:
    """Refuse what is no tag of a worker."""
    if not _TAG.fullmatch(value):
        raise ValidationError("Must be 1 to 64 letters, digits, dots, underscores or hyphens.")


def environment(value: dict[str, str]) -> None:
    """Refuse names and contents that no command may be started with."""
    if len(value) > 200:
        raise ValidationError("At most 200 names are accepted.")
    for name, content in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValidationError(f"{name[:80]!r} is not a name of letters, digits and underscores.")
        if name.startswith("HOSTLER_"):
            raise ValidationError(f"{name!r}: names that start with HOSTLER_ are Hostler's own.")
        plain_text(content)
        size(32 * _KIB)(content)


#: JSON is written and read up to some 250 levels, and answers put metadata a few levels further down.
_MOST_LEVELS = 100


def _nests(value: Any, levels: int) -> bool:
    """Tell whether there is more of a JSON value than so many levels of objects and lists."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nests(each, levels - 1) for each in inner)


def metadata(value: dict[str, Any]) -> None:
    """Refuse metadata that is too large, or nested too deeply to be answered."""
    if _nests(value, _MOST_LEVELS):
        raise ValidationError(f"Must not be nested deeper than {_MOST_LEVELS} levels.")
    if len(orjson.dumps(value)) > 16 * _KIB:
        raise ValidationError("Must be at most 16 KiB as JSON.")


def text_field(most: int, **more: Any) -> fields.String:
    """Return a field for a text of 1 to `most` characters."""
    return fields.String(validate=[validate.Length(1, most), plain_text], **more)


class Moment(fields.AwareDateTime):
    """A time with its offset, read as milliseconds since the epoch."""

    default_error_messages = {  # noqa: RUF012  as marshmallow reads it
        "invalid_awareness": "Must be ISO 8601 with an offset, such as 2026-01-25T10:30:00Z.",
        "invalid": "Must be ISO 8601 with an offset, such as 2026-01-25T10:30:00Z.",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        moment: datetime = super()._deserialize(value, attr, data, **kwargs)
        try:
            return int(moment.astimezone(UTC).timestamp() * 1000)
        except (OverflowError, ValueError):
            raise self.make_error("invalid", input=value) from None
