"""Backup jobs and their records: make them, run them, verify, restore and download what they keep."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from falcon.asgi import Request, Response

from api import downloads
from api.contextbay import backup_schemas as schemas
from api.contextbay.backup_schemas import promised
from api.dialect import CONTEXTBAY_ROWS
from api.endpoint import Context, Group, HTTPStatus, Role
from storage import backups
from storage.backups import Backup
from storage.errors import BadGateway, Conflict, Denied, Invalid, NotFound, Unavailable

group = Group("Backups", "/api/backup-jobs", CONTEXTBAY_ROWS, module="backups")

_CHANGES = (Invalid, Denied, NotFound, Conflict, Unavailable)


def _admin(context: Context) -> bool:
    return context.caller.role == "a"


def _shown(context: Context, backup: Backup) -> dict[str, Any]:
    may_see = context.caller.role in {"w", "a"}
    return schemas.entry_of(backup, backup.hooks(context.store.seal) if may_see else None)


def _page(key: str, entries: list[dict[str, Any]], total: int, query: dict[str, Any]) -> dict[str, Any]:
    more = query["offset"] + len(entries) < total
    return {key: entries, "data": entries, "total": total, **query, "has_more": more}


@group.endpoint("GET", role=Role.VIEWER, query=schemas.RowsQuery(), returns=schemas.BackupList())
async def list_backup_jobs(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the backup jobs, the oldest first, each with what has come of it."""
    found, total = await backups.page(context.store, **query)
    return _page("backup_jobs", [_shown(context, each) for each in found], total, query)


@group.endpoint(
    "POST",
    role=Role.OPERATOR,
    body=schemas.NewBackup(),
    returns=schemas.BackupEntry(),
    status=HTTPStatus.CREATED,
    raises=_CHANGES,
)
async def create_backup_job(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Create a backup job of a node that has restic.

    Operators back up the data of apps and named volumes; paths of the node, dumps and hooks need an admin, since
    whoever has them has the node.
    """
    given = {name: each for name, each in body.items() if name != "encrypted"}
    return _shown(
        context, await backups.create(context.store, context.caller.actor, given, admin=_admin(context))
    )


@group.endpoint("GET /{id}", role=Role.VIEWER, returns=schemas.BackupEntry(), raises=(NotFound,))
async def get_backup_job(context: Context, id: str) -> dict[str, Any]:
    """Get one backup job; `running` tells how far the job is that works on it."""
    return _shown(context, await backups.get(context.store, id))


@group.endpoint(
    "PUT /{id}",
    role=Role.OPERATOR,
    body=schemas.BackupChanges(),
    returns=schemas.BackupEntry(),
    raises=_CHANGES,
)
async def update_backup_job(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Update the fields that the body names; a run that is under way goes on as it began."""
    given = {name: each for name, each in body.items() if name != "encrypted"}
    changed = await backups.change(context.store, context.caller.actor, id, given, admin=_admin(context))
    return _shown(context, changed)


@group.endpoint(
    "DELETE /{id}",
    role=Role.OPERATOR,
    query=schemas.RemovalQuery(),
    status=HTTPStatus.NO_CONTENT,
    raises=(NotFound, Conflict),
)
async def delete_backup_job(context: Context, id: str, query: dict[str, Any]) -> None:
    """Delete a backup job and its records. Its data are deleted a week later, or never with `keep_data`."""
    await backups.delete(context.store, context.caller.actor, id, keep_data=query["keep_data"])


@group.endpoint(
    "POST /{id}/run",
    role=Role.OPERATOR,
    returns=schemas.WorkAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def run_backup_job(context: Context, id: str) -> dict[str, Any]:
    """Run a backup now, as a job of its node. The record it makes has the job's id; until it is whole there is none."""
    submitted = await backups.run(context.store, context.caller.actor, id)
    return promised(id, submitted, submitted.id)


@group.endpoint(
    "POST /{id}/drill",
    role=Role.OPERATOR,
    returns=schemas.WorkAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def rehearse_restore(context: Context, id: str) -> dict[str, Any]:
    """Rehearse a restore of the newest good record now: into a scratch directory, compared, checked by the command."""
    return promised(id, await backups.drill(context.store, context.caller.actor, id), None)


@group.endpoint(
    "GET /{id}/records",
    role=Role.VIEWER,
    query=schemas.RowsQuery(),
    returns=schemas.RecordList(),
    raises=(NotFound,),
)
async def list_backup_records(context: Context, id: str, query: dict[str, Any]) -> dict[str, Any]:
    """List the records of a backup job, the newest first: sizes, times, and what has been proven of each."""
    await backups.get(context.store, id)
    found, total = await backups.records(context.store, id, **query)
    return _page("records", [schemas.record_of(each) for each in found], total, query)


@group.endpoint(
    "POST /{id}/records/{rid}/restore",
    role=Role.OPERATOR,
    body=schemas.RestoreBody(),
    returns=schemas.WorkAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def restore_backup_record(context: Context, id: str, rid: str, body: dict[str, Any]) -> dict[str, Any]:
    """Restore a record, all of it or nothing: where it was, or below `target`, on its node or another one.

    `include` narrows it to files and directories as the record has them. `dry_run` lists them in the job's log. Paths
    of a node and other places than the original need an admin. A record that is known to be corrupt is refused.
    """
    submitted = await backups.restore(
        context.store, context.caller.actor, id, rid, admin=_admin(context), **body
    )
    return promised(id, submitted, rid)


@group.endpoint(
    "POST /{id}/records/{rid}/verify",
    role=Role.OPERATOR,
    body=schemas.VerifyBody(),
    returns=schemas.WorkAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def verify_backup_record(context: Context, id: str, rid: str, body: dict[str, Any]) -> dict[str, Any]:
    """Verify a record: re-read it from the object store, decrypt and hash all of it, or a share of all the data."""
    submitted = await backups.verify(context.store, context.caller.actor, id, rid, share=body["share"])
    return promised(id, submitted, rid)


@group.endpoint(
    "GET /{id}/records/{rid}/download",
    role=Role.VIEWER,
    raises=(NotFound, Conflict, Unavailable, BadGateway),
    raw=True,
    media_type="application/zstd",
)
async def download_backup_record(
    context: Context,
    req: Request,
    resp: Response,
    *,
    id: str,
    rid: str,
) -> None:
    """Download a record as one ordinary archive, tar in zstd, made as it is read by any node that has restic.

    Should something go wrong in the midst of it, the connection is cut off, so that no part passes for the whole. A
    record that is known to be corrupt is refused.
    """
    store = context.store
    backup = await backups.get(store, id)
    record = await backups.restorable(store, id, rid)
    parts = await backups.archives.opened(store, backup, record)
    resp.content_type = "application/zstd"
    resp.downloadable_as = f"{backup.id}-{record.id}.tar.zst"
    resp.stream = _while_wanted(parts, req)


async def _while_wanted(parts: AsyncGenerator[Any, None], req: Request) -> AsyncGenerator[bytes, None]:
    gone = downloads.left(req)
    try:
        async with aclosing(parts):
            async for part in parts:
                if gone.done():
                    return
                yield part
    finally:
        gone.cancel()
