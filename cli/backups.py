"""`hostler backup`: what is kept of which node, run, verified, rehearsed and restored; and Hostler itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from cli import following, rendering, watching
from cli.artifacts import save
from cli.backup_finding import JOBS, BackupId, RecordId, find, newest
from cli.backup_jobs import create, update
from cli.client import segment
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, Yes, connect
from cli.recovery import back_up_self

app = typer.Typer(no_args_is_help=True, help="Back up nodes; verify, rehearse and restore what is kept.")
app.command("create")(create)
app.command("update")(update)

Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the job; print its id.")]


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
        url, api_key, lambda client: client.get(JOBS, limit=limit, offset=offset), draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


def _source(source: str | dict[str, Any]) -> str:
    """Return a source as `--source` takes it."""
    return source if isinstance(source, str) else orjson.dumps(source).decode()


def _status(backup: dict[str, Any]) -> str:
    if backup["running"]:
        return f"at work, {backup['running']['percent']} %"
    return str(backup["last_status"] or "never run")


@app.command("show")
def show(backup_id: BackupId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one backup job, and what has come of it."""
    with connect(url, api_key) as client:
        backup = find(client, backup_id)
    if as_json:
        rendering.write_json(backup)
        return
    rendering.print_facts(_facts(backup))


def _facts(backup: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    hooks, drill, limit = backup["hooks"] or {}, backup["drill"] or {}, backup["bandwidth_limit"]
    yield "backup", backup["id"]
    yield "name", backup["name"]
    yield "node", backup["node_id"]
    yield "sources", ", ".join(_source(each) for each in backup["volumes"])
    yield "excludes", ", ".join(backup["excludes"])
    yield "tags", ", ".join(backup["tags"])
    yield "schedule", f"{backup['schedule'] or 'by hand'} ({backup['timezone']})"
    yield "jitter", rendering.duration(backup["jitter_s"]) if backup["jitter_s"] else None
    yield "missed runs", backup["misfire"] if backup["schedule"] else None
    yield "enabled", None if backup["enabled"] else "no"
    yield "next", rendering.until(backup["next_run_at"]) if backup["next_run_at"] else None
    yield "timeout", rendering.duration(backup["timeout_s"])
    yield "limit", f"{rendering.size(limit)}/s" if limit else None
    yield "keeps", ", ".join(f"{count} {name}" for name, count in backup["retention"].items() if count)
    yield "before", hooks.get("pre")
    yield "after", hooks.get("post")
    if drill:
        share = "" if drill["sample"] == 1 else f", {drill['sample']:.0%} of the files"
        yield (
            "drill",
            f"{drill['schedule'] or 'by hand'}{share}, proof good for {drill['max_age_days']:g} days",
        )
        yield "drill check", drill["command"]
    yield "status", _status(backup)
    yield "error", backup["last_error"] or None
    yield "succeeded", rendering.ago(backup["last_success_at"])
    yield "proven", rendering.ago(backup["last_proven_at"])
    yield "data", backup["dest_path"]


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
        backup = find(client, backup_id)
        answer = client.get(f"{JOBS}/{segment(backup['id'])}/records", limit=limit, offset=offset)
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
        backup = find(client, backup_id)
        record = record_id or newest(client, backup)
        target = output or Path(f"{record}.tar.zst")
        save(client, f"{JOBS}/{segment(backup['id'])}/records/{segment(record)}/download", target)
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
        backup = find(client, backup_id)
        rendering.ask(f"Delete {backup['name']!r} and all its records?", yes=yes)
        query = "?keep_data=true" if keep_data else ""
        answer = client.call("DELETE", f"{JOBS}/{segment(backup['id'])}{query}")
    rendering.tell(answer, f"Deleted {backup['id']}.", as_json=as_json)


def _act(
    backup_id: str, action: str, body: dict[str, Any] | None, *, record_id: str | None = None, detach: bool,
    url: str | None, api_key: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Ask for work on a backup and see it through."""
    with connect(url, api_key) as client:
        backup = find(client, backup_id)
        path = f"{JOBS}/{segment(backup['id'])}"
        if record_id is not None:
            path += f"/records/{segment(record_id or newest(client, backup))}"
        answer = client.call("POST", f"{path}/{action}", body=body)
        if detach:
            rendering.tell(answer, f"Job {answer['job_id']} does it.", as_json=as_json)
            return
        raise typer.Exit(following.follow(client, answer["job_id"], as_json=as_json))


app.command("self")(back_up_self)
