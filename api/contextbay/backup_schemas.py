"""What backup jobs and their records look like in requests and answers."""

from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from api.times import Time
from storage import backups
from storage.backups import Backup, Record
from storage.jobs import Submitted
from storage.schedules import Misfire

_STATES = [each.value for each in backups.RecordState]
_MISFIRES = [each.value for each in Misfire]


def _always(value: bool) -> None:
    if not value:
        raise ValidationError("Backups are always encrypted; a download is plain all the same.")


def _truth(**more: Any) -> fields.Boolean:
    return fields.Boolean(truthy={True}, falsy={False}, **more)


def _whole(low: int, high: int, **more: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(low, high), **more)


# What is asked


class RetentionBody(Schema):
    """How many records are kept: the newest ones, and the newest of so many days, weeks and months."""

    last = _whole(0, 10_000)
    daily = _whole(0, 10_000)
    weekly = _whole(0, 10_000)
    monthly = _whole(0, 10_000)


class HooksBody(Schema):
    """Commands that the node runs before a backup and after it; the second one also when the first has failed."""

    pre = fields.String(allow_none=True)
    post = fields.String(allow_none=True)


class DrillBody(Schema):
    """When a restore is rehearsed, of which share of the files, what checks it, and when a proof is too old."""

    schedule = fields.String(allow_none=True, load_default=None)
    command = fields.String(allow_none=True, load_default=None, validate=validate.Length(1, 65_536))
    sample = fields.Float(load_default=1.0, validate=validate.Range(0, 1, min_inclusive=False))
    max_age_days = fields.Float(load_default=35.0, validate=validate.Range(0, 36_500, min_inclusive=False))


class BackupChanges(Schema):
    """The fields of a backup job that are to change."""

    name = fields.String(validate=validate.Length(1, 100))
    node_id = fields.String(attribute="node", validate=validate.Length(1, 64))
    volumes = fields.List(
        fields.Raw(),
        validate=validate.Length(1, 64),
        metadata={
            "description": "Paths, `app:<id>`, names of volumes, or dumps such as {type: postgresql, database: shop}."
        },
    )
    schedule = fields.String(
        allow_none=True, metadata={"description": "Cron, five fields; null: by hand alone."}
    )
    timezone = fields.String(metadata={"description": "An IANA name; default UTC."})
    jitter_s = _whole(0, 86_400)
    misfire = fields.String(validate=validate.OneOf(_MISFIRES))
    retention_count = _whole(1, 10_000, metadata={"description": "The newest so many are kept; default 7."})
    retention = fields.Nested(RetentionBody())
    dest_path = fields.String(
        validate=validate.Length(0, 200),
        metadata={"description": "Where below `backups/` in the object store."},
    )
    encrypted = _truth(validate=_always)
    enabled = _truth(
        metadata={"description": "Whether its schedule counts; it can be run by hand either way."}
    )
    bandwidth_limit = _whole(1024, 10**12, allow_none=True, metadata={"description": "Bytes a second."})
    excludes = fields.List(
        fields.String(validate=[validate.Length(1, 1024), validate.Regexp(r"[^\x00\r\n]+\Z")]),
        validate=validate.Length(0, 200),
    )
    hooks = fields.Nested(HooksBody(), allow_none=True)
    timeout_s = _whole(10, 7 * 86_400)
    tags = fields.List(fields.String(validate=validate.Length(1, 64)), validate=validate.Length(0, 32))
    drill = fields.Nested(DrillBody(), allow_none=True)


class NewBackup(BackupChanges):
    """A backup job: what of which node is kept, when, and for how long."""

    name = fields.String(required=True, validate=validate.Length(1, 100))
    node_id = fields.String(required=True, attribute="node", validate=validate.Length(1, 64))
    volumes = fields.List(fields.Raw(), required=True, validate=validate.Length(1, 64))


class RestoreBody(Schema):
    """Where a record is restored to, and which part of it."""

    target = fields.String(
        metadata={"description": "A directory that gets everything; default: each source where it was."}
    )
    node_id = fields.String(attribute="node", validate=validate.Length(1, 64))
    include = fields.List(
        fields.String(validate=validate.Length(1, 4096)), load_default=list, validate=validate.Length(0, 1000)
    )
    dry_run = _truth(
        load_default=False, metadata={"description": "Only list what would be restored, in the log."}
    )


class VerifyBody(Schema):
    """How much is read: all of it, or a share of all the data."""

    share = fields.Float(load_default=1.0, validate=validate.Range(0, 1, min_inclusive=False))


class RemovalQuery(Schema):
    """What becomes of the data."""

    keep_data = fields.Boolean(
        load_default=False,
        metadata={"description": f"Else they are deleted after {backups.DATA_STAY_DAYS} days."},
    )


class RowsQuery(Schema):
    """Which part of a list."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, 1000))
    offset = fields.Integer(load_default=0, validate=validate.Range(0, 10**9))


# What is answered


class RetentionEntry(Schema):
    """How many records are kept."""

    last = fields.Integer(required=True)
    daily = fields.Integer(required=True)
    weekly = fields.Integer(required=True)
    monthly = fields.Integer(required=True)


class DrillEntry(Schema):
    """The rehearsal of a restore."""

    schedule = fields.String(required=True, allow_none=True)
    command = fields.String(required=True, allow_none=True)
    sample = fields.Float(required=True)
    max_age_days = fields.Float(required=True)
    next_at = Time(required=True, allow_none=True)


class ProgressEntry(Schema):
    """How far the job that works on it is; zeros before it has begun."""

    job_id = fields.String(required=True)
    percent = fields.Integer(required=True)
    bytes_done = fields.Integer(required=True)
    bytes_total = fields.Integer(required=True)
    bytes_per_s = fields.Integer(required=True)
    eta_s = fields.Integer(required=True, allow_none=True)


class BackupEntry(Schema):
    """A backup job, and what has come of it."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    node_id = fields.String(required=True)
    volumes = fields.List(fields.Raw(), required=True)
    schedule = fields.String(required=True, allow_none=True)
    timezone = fields.String(required=True)
    jitter_s = fields.Integer(required=True)
    misfire = fields.String(required=True, validate=validate.OneOf(_MISFIRES))
    retention_count = fields.Integer(required=True)
    retention = fields.Nested(RetentionEntry(), required=True)
    dest_path = fields.String(required=True)
    encrypted = fields.Boolean(required=True)
    enabled = fields.Boolean(required=True)
    bandwidth_limit = fields.Integer(required=True, allow_none=True)
    excludes = fields.List(fields.String(), required=True)
    hooks = fields.Nested(HooksBody(), required=True, allow_none=True)
    timeout_s = fields.Integer(required=True)
    tags = fields.List(fields.String(), required=True)
    drill = fields.Nested(DrillEntry(), required=True, allow_none=True)
    created_by = fields.String(required=True)
    created_at = Time(required=True)
    updated_at = Time(required=True)
    next_run_at = Time(required=True, allow_none=True)
    last_run_at = Time(required=True, allow_none=True)
    last_status = fields.String(required=True, allow_none=True)
    last_error = fields.String(required=True, allow_none=True)
    last_success_at = Time(required=True, allow_none=True)
    last_proven_at = Time(required=True, allow_none=True)
    running = fields.Nested(ProgressEntry(), required=True, allow_none=True)


class BackupList(Schema):
    """A page of backup jobs, the oldest first."""

    backup_jobs = fields.List(fields.Nested(BackupEntry()), required=True)
    data = fields.List(fields.Nested(BackupEntry()), required=True)
    total = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)
    has_more = fields.Boolean(required=True)


class RecordEntry(Schema):
    """What one run has left. Sizes in bytes; `sha256` is the digest over the content and what describes it."""

    id = fields.String(required=True)
    backup_job_id = fields.String(required=True)
    job_id = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(_STATES))
    started_at = Time(required=True)
    ended_at = Time(required=True)
    duration_s = fields.Float(required=True)
    size_bytes = fields.Integer(required=True)
    added_bytes = fields.Integer(required=True)
    files = fields.Integer(required=True)
    snapshot_id = fields.String(required=True, allow_none=True)
    sha256 = fields.String(required=True, allow_none=True)
    node_id = fields.String(required=True, allow_none=True)
    engine = fields.String(required=True, allow_none=True)
    volumes = fields.List(fields.String(), required=True)
    verified_at = Time(required=True, allow_none=True)
    verified_share = fields.Float(required=True, allow_none=True)
    proven_at = Time(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)


class RecordList(Schema):
    """A page of records, the newest first."""

    records = fields.List(fields.Nested(RecordEntry()), required=True)
    data = fields.List(fields.Nested(RecordEntry()), required=True)
    total = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)
    has_more = fields.Boolean(required=True)


class WorkAnswer(Schema):
    """The job that does what was asked; `/api/jobs/status` and its log tell how far it is."""

    backup_job_id = fields.String(required=True)
    job_id = fields.String(required=True)
    record_id = fields.String(required=True, allow_none=True)
    status = fields.String(required=True, validate=validate.Equal("queued"))


def entry_of(backup: Backup, hooks: dict[str, Any] | None) -> dict[str, Any]:
    """Return a backup job as answers show it; `hooks` in clear, and commands at all, for those who may see them."""
    shown = {
        name: getattr(backup, name)
        for name in (
            "id", "name", "schedule", "timezone", "jitter_s", "misfire", "retention", "dest_path", "enabled",
            "bandwidth_limit", "excludes", "timeout_s", "tags", "created_by",
        )
    }  # fmt: skip
    drill = None
    if backup.drill is not None:
        names = ("schedule", "command", "sample", "max_age_days")
        drill = {name: getattr(backup.drill, name) for name in names} | {"next_at": backup.drill_next_ms}
        drill["command"] = None if hooks is None else backup.drill.command
    said = {"pre": (hooks or {}).get("pre"), "post": (hooks or {}).get("post")}
    running = None
    if backup.job is not None:
        zeros = {"percent": 0, "bytes_done": 0, "bytes_total": 0, "bytes_per_s": 0, "eta_s": None}
        running = {"job_id": backup.job, **zeros, **backup.progress}
    return {
        **shown,
        "dest_path": backup.prefix,
        "node_id": backup.node,
        "volumes": [_source_of(each, commands=hooks is not None) for each in backup.volumes],
        "retention_count": backup.retention.last,
        "encrypted": True,
        "hooks": said if backup.has_hooks else None,
        "drill": drill,
        "created_at": backup.created_ms,
        "updated_at": backup.updated_ms,
        "next_run_at": backup.next_ms,
        "last_run_at": backup.ended_ms,
        "last_status": backup.last_state,
        "last_error": backup.error,
        "last_success_at": backup.succeeded_ms,
        "last_proven_at": backup.proven_ms,
        "running": running,
    }


def _source_of(source: Mapping[str, Any], *, commands: bool) -> str | dict[str, Any]:
    shown = backups.shown_source(source)
    if not commands and isinstance(shown, dict):
        shown.pop("command", None)
    return shown


def record_of(record: Record) -> dict[str, Any]:
    """Return a record as answers show it."""
    proof = record.proof
    return {
        "id": record.id,
        "backup_job_id": record.backup,
        "job_id": record.id,
        "status": record.state.value,
        "started_at": record.started_ms,
        "ended_at": record.ended_ms,
        "duration_s": max(0, record.ended_ms - record.started_ms) / 1000,
        "size_bytes": proof.get("size_bytes", 0),
        "added_bytes": proof.get("added_bytes", 0),
        "files": proof.get("files", 0),
        "snapshot_id": proof.get("snapshot"),
        "sha256": proof.get("digest"),
        "node_id": proof.get("node"),
        "engine": proof.get("engine"),
        "volumes": [each["name"] for each in proof.get("sources", ())],
        "verified_at": record.verified_ms,
        "verified_share": record.verified_share,
        "proven_at": record.proven_ms,
        "error": record.error,
    }


def promised(backup_id: str, submitted: Submitted, record_id: str | None) -> dict[str, Any]:
    """Return what is answered when work is accepted."""
    return {
        "backup_job_id": backup_id, "job_id": submitted.id, "record_id": record_id, "status": "queued",
    }  # fmt: skip
