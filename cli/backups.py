"""`hostler backup`: what is kept of which node, run, verified, rehearsed and restored; and Hostler itself."""

import re
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from cli import following, rendering, watching
from cli.artifacts import save
from cli.client import Client, segment
from cli.failures import Failed
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, Yes, connect
from cli.recovery import back_up_self

app = typer.Typer(no_args_is_help=True, help="Back up nodes; verify, rehearse and restore what is kept.")
app.command("self")(back_up_self)

BackupId = Annotated[str, typer.Argument(metavar="BACKUP", help="Id of the backup job, or its name.")]
RecordId = Annotated[
    str, typer.Argument(metavar="[RECORD]", help="Id of the record. Default: the newest good one.")
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the job; print its id.")]

_ID = re.compile(r"backup-[0-9a-z]{20}")
_PAGE = 100
_JOBS = "/api/backup-jobs"


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Paths of the node, app:ID, names of Docker volumes; or a dump as JSON, such as "
            '{"type": "postgresql", "database": "shop"}.',
        ),
    ],
    *,
    node: Annotated[str, typer.Option("--node", help="Node whose data they are.")],
    cron: Annotated[
        str | None, typer.Option("--cron", help="When, such as '0 3 * * *'. Default: by hand.")
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of the schedules.")] = "UTC",
    jitter_s: Annotated[int, typer.Option("--jitter", help="Spread runs over so many seconds.", min=0)] = 0,
    keep: Annotated[int, typer.Option("--keep", help="Newest records that are kept.", min=1)] = 7,
    daily: Annotated[int, typer.Option("--daily", help="And the newest of so many days.", min=0)] = 0,
    weekly: Annotated[int, typer.Option("--weekly", help="And of so many weeks.", min=0)] = 0,
    monthly: Annotated[int, typer.Option("--monthly", help="And of so many months.", min=0)] = 0,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Pattern to leave out.")] = None,
    limit_rate: Annotated[int | None, typer.Option("--limit-rate", help="Bytes a second.", min=1024)] = None,
    pre: Annotated[str | None, typer.Option("--pre", help="Command of the node before.")] = None,
    post: Annotated[str | None, typer.Option("--post", help="Command of the node after.")] = None,
    drill_cron: Annotated[
        str | None, typer.Option("--drill-cron", help="When to rehearse a restore.")
    ] = None,
    drill_check: Annotated[
        str | None, typer.Option("--drill-check", help="Command that checks a rehearsed restore.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Create a backup job; paths, dumps and commands need an admin."""
    body: dict[str, Any] = {
        "name": name, "node_id": node, "volumes": [_source(each) for each in volumes], "schedule": cron,
        "timezone": timezone, "jitter_s": jitter_s, "excludes": exclude or [], "bandwidth_limit": limit_rate,
        "retention": {"last": keep, "daily": daily, "weekly": weekly, "monthly": monthly},
    }  # fmt: skip
    if pre or post:
        body["hooks"] = {"pre": pre, "post": post}
    if drill_cron or drill_check:
        body["drill"] = {"schedule": drill_cron, "command": drill_check}
    with connect(url, api_key) as client:
        made = client.call("POST", _JOBS, body=body)
    rendering.tell(
        made, f"Made {made['id']}. Run it now with: hostler backup run {made['id']}", as_json=as_json
    )


def _source(word: str) -> Any:
    if not word.startswith("{"):
        return word
    try:
        return orjson.loads(word)
    except ValueError:
        raise Failed(f"{rendering.one_line(word)} is no JSON.") from None


@app.command("list")
def list_backups(
    *,
    limit: Limit = 100,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List backup jobs, the oldest first."""

    def draw(answer: dict[str, Any]) -> None:
        rendering.print_table(
            ("BACKUP", "NAME", "NODE", "LAST", "STATUS", "PROVEN", "NEXT"),
            (
                (
                    each["id"],
                    rendering.one_line(each["name"]),
                    each["node_id"],
                    rendering.ago(each["last_success_at"]),
                    _status(each),
                    rendering.ago(each["last_proven_at"]),
                    rendering.until(each["next_run_at"]) if each["next_run_at"] else "by hand",
                )
                for each in answer["backup_jobs"]
            ),
            empty="There are no backup jobs. Make one with: hostler backup create NAME /PATH --node NODE",
        )

    watching.show(
        url, api_key, lambda client: client.get(_JOBS, limit=limit, offset=offset), draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


def _status(backup: dict[str, Any]) -> str:
    if backup["running"]:
        return f"at work, {backup['running']['percent']} %"
    return str(backup["last_status"] or "never run")


@app.command("show")
def show(backup_id: BackupId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one backup job, and what has come of it."""
    with connect(url, api_key) as client:
        backup = _find(client, backup_id)
    if as_json:
        rendering.write_json(backup)
        return
    retention = backup["retention"]
    rendering.print_facts(
        (
            ("backup", backup["id"]),
            ("name", backup["name"]),
            ("node", backup["node_id"]),
            ("sources", ", ".join(str(each) for each in backup["volumes"])),
            ("schedule", f"{backup['schedule'] or 'by hand'} ({backup['timezone']})"),
            ("next", rendering.until(backup["next_run_at"]) if backup["next_run_at"] else None),
            ("keeps", ", ".join(f"{count} {name}" for name, count in retention.items() if count)),
            ("status", _status(backup)),
            ("error", backup["last_error"] or None),
            ("succeeded", rendering.ago(backup["last_success_at"])),
            ("proven", rendering.ago(backup["last_proven_at"])),
            ("data", backup["dest_path"]),
        )
    )


@app.command("records")
def records(
    backup_id: BackupId,
    *,
    limit: Limit = 20,
    offset: Offset = 0,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the records of a backup job, the newest first."""
    with connect(url, api_key) as client:
        backup = _find(client, backup_id)
        answer = client.get(f"{_JOBS}/{segment(backup['id'])}/records", limit=limit, offset=offset)
    if as_json:
        rendering.write_json(answer)
        return
    rendering.print_table(
        ("RECORD", "WHEN", "STATUS", "SIZE", "NEW", "FILES", "VERIFIED", "PROVEN"),
        (
            (
                each["id"],
                rendering.ago(each["started_at"]),
                each["status"],
                rendering.size(each["size_bytes"]),
                rendering.size(each["added_bytes"]),
                each["files"],
                rendering.ago(each["verified_at"]),
                rendering.ago(each["proven_at"]),
            )
            for each in answer["records"]
        ),
        empty=f"There are no records yet. Make one with: hostler backup run {backup['id']}",
    )


@app.command("run")
def run(
    backup_id: BackupId,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make a backup now, and show its log until it ends."""
    _act(backup_id, "run", None, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("drill")
def drill(
    backup_id: BackupId,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Rehearse a restore of the newest good record now."""
    _act(backup_id, "drill", None, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("verify")
def verify(
    backup_id: BackupId,
    record_id: RecordId = "",
    *,
    share: Annotated[
        float, typer.Option("--share", help="Read this share of all the data.", min=0.0001, max=1)
    ] = 1.0,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Read a record back from the object store, decrypt and hash it."""
    _act(
        backup_id, "verify", {"share": share}, record_id=record_id, detach=detach, url=url, api_key=api_key,
        as_json=as_json,
    )  # fmt: skip


@app.command("restore")
def restore(
    backup_id: BackupId,
    record_id: RecordId = "",
    *,
    target: Annotated[
        str | None, typer.Option("--to", help="Directory of the node; default: where it was.")
    ] = None,
    node: Annotated[str | None, typer.Option("--node", help="Another node.")] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="This file or directory alone.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be restored.")] = False,
    yes: Yes = False,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Restore a record, all of it or nothing; what is there now is replaced."""
    if not dry_run and target is None:
        rendering.ask("What is there now is replaced by what the record has. Go on?", yes=yes)
    body: dict[str, Any] = {"dry_run": dry_run, "include": include or []}
    body |= {"target": target} if target else {}
    body |= {"node_id": node} if node else {}
    _act(
        backup_id,
        "restore",
        body,
        record_id=record_id,
        detach=detach,
        url=url,
        api_key=api_key,
        as_json=as_json,
    )


@app.command("download")
def download(
    backup_id: BackupId,
    record_id: RecordId = "",
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: RECORD.tar.zst, here.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Download a record as a tar archive in zstd."""
    with connect(url, api_key) as client:
        backup = _find(client, backup_id)
        record = record_id or _newest(client, backup)
        target = output or Path(f"{record}.tar.zst")
        save(client, f"{_JOBS}/{segment(backup['id'])}/records/{segment(record)}/download", target)
    rendering.say(f"Saved {target}.")


@app.command("delete")
def delete(
    backup_id: BackupId,
    *,
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Else they go after a week.")] = False,
    yes: Yes = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Delete a backup job and its records."""
    with connect(url, api_key) as client:
        backup = _find(client, backup_id)
        rendering.ask(f"Delete {backup['name']!r} and all its records?", yes=yes)
        query = "?keep_data=true" if keep_data else ""
        answer = client.call("DELETE", f"{_JOBS}/{segment(backup['id'])}{query}")
    rendering.tell(answer, f"Deleted {backup['id']}.", as_json=as_json)


def _find(client: Client, wanted: str) -> dict[str, Any]:
    """Return a backup job by its id, or by its name where only one has it. Raises Failed."""
    if _ID.fullmatch(wanted):  # others may be called backup-of-the-shop
        return dict(client.get(f"{_JOBS}/{segment(wanted)}"))
    found: list[dict[str, Any]] = []
    seen = 0
    while True:
        answer = client.get(_JOBS, limit=_PAGE, offset=seen)
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


def _newest(client: Client, backup: dict[str, Any]) -> str:
    answer = client.get(f"{_JOBS}/{segment(backup['id'])}/records", limit=1000)
    for record in answer["records"]:
        if record["status"] == "completed":
            return str(record["id"])
    raise Failed(f"{backup['name']!r} has no good record.", hint=f"hostler backup records {backup['id']}")


def _act(
    backup_id: str, action: str, body: dict[str, Any] | None, *, record_id: str | None = None, detach: bool,
    url: str | None, api_key: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Ask for work on a backup and see it through."""
    with connect(url, api_key) as client:
        backup = _find(client, backup_id)
        path = f"{_JOBS}/{segment(backup['id'])}"
        if record_id is not None:
            path += f"/records/{segment(record_id or _newest(client, backup))}"
        answer = client.call("POST", f"{path}/{action}", body=body)
        if detach:
            rendering.tell(answer, f"Job {answer['job_id']} does it.", as_json=as_json)
            return
        raise typer.Exit(following.follow(client, answer["job_id"], as_json=as_json))
