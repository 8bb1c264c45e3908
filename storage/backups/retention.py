"""Which records are kept: a pure rule over their times."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from storage.backups.records import Record, RecordState, Retention

#: The newest failures are kept to be looked at, however many runs fail.
FAILURES_KEPT = 20


def _day(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month, moment.day


def _week(moment: datetime) -> tuple[int, ...]:
    monday = moment.date() - timedelta(days=moment.weekday())
    return monday.year, monday.month, monday.day


def _month(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month


_PERIODS: tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...] = (
    ("daily", _day), ("weekly", _week), ("monthly", _month),
)  # fmt: skip


def expired(records: Sequence[Record], rule: Retention, timezone: str = "UTC") -> list[Record]:
    """Return the records that are kept no longer, of those of one backup, in any order.

    The newest `last` good ones stay, and the newest good one of each of the latest so many days, weeks and months that
    have any, by the backup's time zone. The newest good one always stays. Corrupt records are not counted and never
    take the place of a good one; they go once a good one is newer than they are. Of failures the newest few stay.
    """
    newest_first = sorted(records, key=lambda each: (each.started_ms, each.id), reverse=True)
    good = [each for each in newest_first if each.good]
    kept = {each.id for each in good[: max(1, rule.last)]}
    zone = ZoneInfo(timezone)
    for name, period in _PERIODS:
        seen: set[tuple[int, ...]] = set()
        for each in good:
            key = period(datetime.fromtimestamp(each.started_ms / 1000, zone))
            if key not in seen and len(seen) < getattr(rule, name):
                seen.add(key)
                kept.add(each.id)
    newest_good_ms = good[0].started_ms if good else None
    failed = [each for each in newest_first if each.state is RecordState.FAILED]
    kept |= {each.id for each in failed[:FAILURES_KEPT]}
    kept |= {
        each.id
        for each in newest_first
        if each.state is RecordState.CORRUPT and (newest_good_ms is None or each.started_ms > newest_good_ms)
    }
    return [each for each in newest_first if each.id not in kept]
