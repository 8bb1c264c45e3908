"""Backup jobs and records as people name them on the command line."""

import re
from typing import Annotated, Any

import typer

from cli import rendering
from cli.client import Client, segment
from cli.failures import Failed

BackupId = Annotated[str, typer.Argument(metavar="BACKUP", help="Id of the backup job, or its name.")]
RecordId = Annotated[
    str, typer.Argument(metavar="[RECORD]", help="Id of the record. Default: the newest good one.")
]
JOBS = "/api/backup-jobs"

_ID = re.compile(r"backup-[0-9a-z]{20}")
_PAGE = 100


def find(client: Client, wanted: str) -> dict[str, Any]:
    """Return a backup job by its id, or by its name where only one has it. Raises Failed."""
    if _ID.fullmatch(wanted):  # others may be called backup-of-the-shop
        return dict(client.get(f"{JOBS}/{segment(wanted)}"))
    found: list[dict[str, Any]] = []
    seen = 0
    while True:
        answer = client.get(JOBS, limit=_PAGE, offset=seen)
        seen += len(answer["backup_jobs"])
        found += [each for each in answer["backup_jobs"] if each["name"] == wanted]
        if not answer["has_more"]:
            break
    if len(found) != 1:
        what = "no backup job is" if not found else f"{len(found)} backup jobs are"
        raise Failed(
            f"{what.capitalize()} called {rendering.one_line(wanted)!r}.", hint="hostler backup list"
        )
    return found[0]


def newest(client: Client, backup: dict[str, Any]) -> str:
    """Return the id of the newest good record. Raises Failed."""
    answer = client.get(f"{JOBS}/{segment(backup['id'])}/records", limit=1000)
    for record in answer["records"]:
        if record["status"] == "completed":
            return str(record["id"])
    raise Failed(f"{backup['name']!r} has no good record.", hint=f"hostler backup records {backup['id']}")
