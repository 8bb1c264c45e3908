"""When a backup runs, when its restore is rehearsed, and when somebody has to be told that it did not."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from storage import schedules
from storage.backups.records import Backup
from storage.errors import Invalid

#: A run that is not there so long after its time, and after the time it may take, is overdue.
GRACE_MS = 15 * 60_000


@dataclass(frozen=True, slots=True)
class Due:
    """When a run and a drill are due (ms); "" is never."""

    run: int | str
    drill: int | str


def check(backup: Backup) -> None:
    """Raise Invalid unless its schedules make sense."""
    named = [("schedule", backup.schedule)]
    named += [("drill.schedule", backup.drill.schedule if backup.drill else None)]
    for field, cron in named:
        if cron is None:
            continue
        try:
            schedules.check(cron, backup.timezone)
            schedules.following(cron, backup.timezone, backup.created_ms)
        except Invalid as error:
            place = "timezone" if "schedule.timezone" in error.details else field
            raise Invalid(f"{place}: {error}", details={place: str(error)}) from None


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def told(backup: Backup) -> tuple[object, ...]:
    """Return all that says when a backup and its drill are due."""
    drill = backup.drill.schedule if backup.drill else None
    return backup.schedule, drill, backup.timezone, backup.jitter_s, backup.enabled


def first(backup: Backup, now_ms: int) -> Due:
    """Return when a backup is due next, from now on."""
    drill = backup.drill.schedule if backup.drill else None
    return Due(after(backup, backup.schedule, now_ms), after(backup, drill, now_ms))


def after(backup: Backup, cron: str | None, now_ms: int) -> int | str:
    """Return the first time after `now_ms` at which `cron` is due, with its jitter; "" for never."""
    if cron is None or not backup.enabled:
        return ""
    return jittered(backup, schedules.following(cron, backup.timezone, now_ms))


def jittered(backup: Backup, due_ms: int) -> int:
    """Return an occurrence moved by its own share of the jitter, which is always the same for it."""
    if not backup.jitter_s:
        return due_ms
    digest = hashlib.sha256(f"{backup.id} {due_ms}".encode()).digest()
    return due_ms + int.from_bytes(digest[:4], "big") % (backup.jitter_s * 1000 + 1)


def overdue(backup: Backup, now_ms: int) -> str | None:
    """Return a sentence when a run should have succeeded by now and has not."""
    if backup.schedule is None or not backup.enabled:
        return None
    since = max(backup.succeeded_ms or 0, backup.updated_ms)
    expected = schedules.following(backup.schedule, backup.timezone, since)
    late = expected + backup.jitter_s * 1000 + min(backup.timeout_s * 1000, 3_600_000) + GRACE_MS
    if now_ms <= late:
        return None
    last = _utc(backup.succeeded_ms) if backup.succeeded_ms else "never"
    return f"A backup was due at {_utc(expected)}, and the last one that succeeded: {last}."


def unproven(backup: Backup, now_ms: int) -> str | None:
    """Return a sentence when its restore was last proven longer ago than its limit."""
    if backup.drill is None or not backup.enabled:
        return None
    since = backup.proven_ms or backup.created_ms
    if now_ms - since <= backup.drill.max_age_days * 86_400_000:
        return None
    last = _utc(backup.proven_ms) if backup.proven_ms else "never"
    return f"A restore was last proven: {last}; the limit is {backup.drill.max_age_days:g} days."
