"""`hostler jobs`: look at jobs, follow them, end them, run them again."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import following, rendering
from cli.artifacts import artifacts, download_all, find, show
from cli.client import Client, segment
from cli.options import ApiKey, JobId, Json, Url, connect

app = typer.Typer(no_args_is_help=True, help="Look at jobs, follow them, end them, run them again.")


@app.command("list")
def list_jobs(
    *,
    status: Annotated[
        str | None, typer.Option("--status", "-s", help="queued, running, completed, failed or cancelled.")
    ] = None,
    worker: Annotated[str | None, typer.Option("--worker", help="Only jobs of this worker.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1, max=1000)] = 20,
    offset: Annotated[int, typer.Option("--offset", help="How many to skip.", min=0)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids alone.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    with connect(url, api_key) as client:
        answer = client.get(
            "/api/jobs/list", status=status, workerId=worker, limit=limit, offset=offset, sort="-createdAt"
        )
    if as_json:
        rendering.write_json(answer)
    elif quiet:
        for job in answer["jobs"]:
            rendering.stdout().print(job["jobId"])
    else:
        rendering.print_table(
            ("JOB", "STATUS", "EXIT", "CREATED", "RAN", "COMMAND"),
            (_row(job) for job in answer["jobs"]),
            empty="There are no such jobs. Submit one with: hostler submit 'echo hello' --follow",
        )
        if answer.get("hasMore"):
            rendering.say(
                f"{answer['total']} in all; --offset {offset + limit} shows the next ones.", style="dim"
            )


def _row(job: dict[str, Any]) -> tuple[Any, ...]:
    _, ran = following.durations(job)
    exited = "" if job.get("exitCode") is None else job["exitCode"]
    lasted = "" if ran is None else rendering.duration(ran)
    title = rendering.one_line(job.get("name") or _command(job), 60)
    return job["jobId"], job["status"], exited, rendering.ago(job.get("createdAt")), lasted, title


def _command(job: dict[str, Any]) -> str:
    return str(job.get("command") or " ".join(job.get("argv") or []))


@app.command("show")
def show_job(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one job: what was asked, how far it is, how it ended."""
    with connect(url, api_key) as client:
        job = following.fetch(client, job_id)
    if as_json:
        rendering.write_json(job)
        return
    waited, ran = following.durations(job)
    rendering.print_facts(
        (
            ("job", job["jobId"]),
            ("name", job.get("name")),
            ("status", job["status"]),
            ("reason", job.get("reason")),
            ("message", job.get("message")),
            ("exit code", job.get("exitCode")),
            ("command", _command(job)),
            ("folder", job.get("workingDirectory")),
            ("worker", job.get("workerId")),
            ("tags", ", ".join(job.get("tags") or [])),
            ("priority", job.get("priority")),
            ("attempt", job.get("attempt")),
            ("progress", None if job.get("progress") is None else f"{job['progress']} %"),
            ("created", job.get("createdAt")),
            ("not before", job.get("notBefore")),
            ("waits for", job.get("wait") if job["status"] == "queued" else None),
            ("waited", None if waited is None else rendering.duration(waited)),
            ("ran", None if ran is None else rendering.duration(ran)),
            ("CPU time", None if job.get("cpuMs") is None else rendering.duration(job["cpuMs"] / 1000)),
            ("memory", None if job.get("maxRssBytes") is None else rendering.size(job["maxRssBytes"])),
            ("completed", job.get("completedAt")),
            ("submitted by", job.get("submittedBy")),
            ("retry of", job.get("retryOf")),
        )
    )


@app.command("log")
def log(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, and exit as it does.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Print what a job has printed, stdout to stdout and stderr to stderr."""
    with connect(url, api_key) as client:
        if follow:
            raise typer.Exit(following.follow(client, job_id, as_json=as_json))
        _print_log(client, job_id, as_json=as_json)


def _print_log(client: Client, job_id: str, *, as_json: bool) -> None:
    path, after, lines = f"/api/jobs/{segment(job_id)}/log", 0, list[dict[str, Any]]()
    while True:
        page = client.get(path, after=after, limit=10_000)
        for line in page["lines"]:
            if as_json:
                lines.append(line)
            else:
                stream = sys.stderr if line.get("stream") == "stderr" else sys.stdout
                rendering.write_output(line["text"] + "\n", stream)
        if page.get("gap") and not as_json:
            following.tell_gap(page["gap"])
        if page["next"] == after or not page["more"]:
            break
        after = page["next"]
    if as_json:
        rendering.write_json({"jobId": job_id, "lines": lines})


@app.command("cancel")
def cancel(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Cancel a job: one that waits never starts, one that runs is ended with everything it started."""
    with connect(url, api_key) as client:
        answer = client.call("POST", "/api/jobs/cancel", body={"jobId": job_id}, repeatable=True)
    _tell(answer, f"Job {job_id} is {answer.get('status', 'being cancelled')}.", as_json=as_json)


@app.command("retry")
def retry(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the log, and exit as the job does.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Submit a finished job again, as a new one, and print the new one's id."""
    with connect(url, api_key) as client:
        answer = client.call("POST", f"/api/jobs/{segment(job_id)}/retry")
        if follow:
            rendering.say(f"Job {answer['jobId']} is {answer['status']}.")
            raise typer.Exit(following.follow(client, answer["jobId"], as_json=as_json))
    _tell(answer, answer["jobId"], as_json=as_json)


@app.command("why")
def why(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Say why a job is waiting."""
    with connect(url, api_key) as client:
        answer = client.get(f"/api/jobs/{segment(job_id)}/why")
    if as_json:
        rendering.write_json(answer)
        return
    reasons = [rendering.harmless(reason["message"]) for reason in answer.get("reasons", [])]
    status = answer.get("status")
    fallback = f"Job {job_id} is not waiting; it is {status}." if status else f"Job {job_id} is not waiting."
    for reason in reasons or [fallback]:
        rendering.stdout().print(reason)


@app.command("artifacts")
def job_artifacts(
    *,
    job_id: JobId,
    name: Annotated[str | None, typer.Argument(help="Print this one.", show_default=False)] = None,
    download: Annotated[
        Path | None, typer.Option("--download", "-d", help="Save them, or the named one, below this folder.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List what a job left behind, print one of its files, or save them all."""
    with connect(url, api_key) as client:
        if name is not None and download is None:
            show(client, find(client, job_id, name)["url"], name)
        elif download is not None:
            saved = download_all(client, job_id, download, only=name)
            if as_json:
                rendering.write_json({"jobId": job_id, "saved": [str(path) for path in saved]})
        else:
            found = artifacts(client, job_id)
            if as_json:
                rendering.write_json({"jobId": job_id, "artifacts": found})
                return
            rendering.print_table(
                ("NAME", "SIZE"),
                ((each["name"], rendering.size(each.get("size", 0))) for each in found),
                empty="The job left no artifacts. Name them when submitting: --artifact 'reports/**'",
            )


def _tell(answer: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    if as_json:
        rendering.write_json(answer)
    else:
        rendering.stdout().print(rendering.harmless(sentence))
