"""Backups: what is kept of which node and when, the records that prove it, and the work on them."""

from storage.backups import archives, reports, retention
from storage.backups.changes import (
    DATA_STAY_DAYS,
    ENGINE,
    again,
    change,
    create,
    delete,
    drill,
    restorable,
    restore,
    run,
    verify,
)
from storage.backups.firing import fire_due, look_after, recover, sweep
from storage.backups.records import (
    Backup,
    Drill,
    Record,
    RecordState,
    Retention,
    every,
    get,
    newest_good,
    page,
    record,
    records,
)
from storage.backups.sources import shown as shown_source
from storage.backups.times import overdue, unproven

__all__ = [
    "DATA_STAY_DAYS", "ENGINE", "Backup", "Drill", "Record", "RecordState", "Retention", "again",
    "archives", "change", "create", "delete", "drill", "every", "fire_due", "get", "look_after",
    "newest_good", "overdue", "page", "record", "records", "recover", "reports", "restorable", "restore", "retention",
    "run", "shown_source", "sweep", "unproven", "verify",
]  # fmt: skip
