"""Times in answers: ISO 8601 in UTC, e.g. 2026-01-25T10:30:00Z; and when clients shall come back."""

import random
import time
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


def in_step(pause_s: float) -> float:
    """Return a pause of up to a tenth less, which ends when those of others do: at one of a few instants.

    A processor that has slept takes several times as long for the first request as for those right behind it. Which
    instant is left to chance, so that those who once came all at the same time do not go on doing so.
    """
    now_s = time.time()
    end_s = now_s + pause_s * random.uniform(0.94, 1)  # noqa: S311  jitter
    return end_s - end_s % (pause_s / 25) - now_s


class Time(fields.DateTime):
    """A field whose attribute is in milliseconds since the epoch; None stays null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else iso(int(value))
