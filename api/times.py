"""Times in answers: ISO 8601 in UTC, e.g. 2026-01-25T10:30:00Z."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from marshmallow import fields


def iso(at_ms: int) -> str:
    """Return a time in milliseconds since the epoch as answers spell it, to the second."""
    return _iso(at_ms // 1000)


@lru_cache(maxsize=4096)
def _iso(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()[:19] + "Z"  # a tenth of what strftime takes


class Time(fields.DateTime):
    """A field whose attribute is in milliseconds since the epoch; None stays null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else iso(int(value))
