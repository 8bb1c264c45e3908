"""`hostler jobs`: look at jobs, follow them, end them, run them again."""

import bisect
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import following, job_choosing, rendering, rerunning, watching
from cli.artifacts import artifacts, download_all, find, show
from cli.client import Client, segment
from cli.failures import Failed
from cli.job_choosing import Ids, Search, Status, Tags, Worker
from cli.options import ApiKey, JobId, Json, Limit, Offset, Url, Watch, Yes, connect

app = typer.Typer(no_args_is_help=True, help="Look at jobs, follow them, end them, run them again.")
app.add_typer(rerunning.app)


@app.command("list")
def list_jobs(
    *,
    status: Status = None,
    worker: Worker = None,
    tag: Tags = None,
    search: Search = None,
    sort: Annotated[
        str, typer.Option("--sort", help="createdAt or completedAt; a minus puts the newest first.")
    ] = "-createdAt",
    limit: Limit = 20,
    offset: Offset = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids alone.")] = False,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    query = job_choosing.query(status, worker, tag, search) | {"limit": limit, "offset": offset, "sort": sort}
    watching.show(
        url, api_key, lambda client: client.get("/api/jobs/list", **query), _draw_ids if quiet else _draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


def _draw_ids(answer: dict[str, Any]) -> None:
    for job in answer["jobs"]:
        rendering.stdout().print(job["jobId"])


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("JOB", "STATUS", "EXIT", "CREATED", "RAN", "COMMAND"),
        (_row(job) for job in answer["jobs"]),
        empty="There are no such jobs. Submit one with: hostler submit 'echo hello' --follow",
    )
    rendering.tell_more(answer)


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
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, and exit as it does.")
    ] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="When each line came, as far as that is still known.")
    ] = False,
    search: Annotated[str | None, typer.Option("--search", help="Only lines that hold this.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Print what a job has printed, stdout to stdout and stderr to stderr."""
    if follow and (timestamps or search):
        raise Failed("A log that is followed is shown whole.", hint=f"hostler jobs log {job_id}", exit_code=2)
    with connect(url, api_key) as client:
        if follow:
            raise typer.Exit(following.follow(client, job_id, as_json=as_json))
        times = client.get(f"/api/jobs/{segment(job_id)}/log/times")["times"] if timestamps else []
        _print_log(client, job_id, times, search, as_json=as_json)


def _print_log(
    client: Client, job_id: str, times: list[list[int]], search: str | None, *, as_json: bool
) -> None:
    path, after, lines = f"/api/jobs/{segment(job_id)}/log", 0, list[dict[str, Any]]()
    starts = [first for first, _ in times]
    while True:
        page = client.get(path, after=after, limit=10_000)
        for line in page["lines"]:
            if search is not None and search.casefold() not in line["text"].casefold():
                continue
            at = bisect.bisect_right(starts, line["seq"]) - 1
            stamp = times[at][1] if at >= 0 else None
            if as_json:
                lines.append(line | ({"atMs": stamp} if times else {}))
            else:
                stream = sys.stderr if line.get("stream") == "stderr" else sys.stdout
                rendering.write_output(_stamped(stamp, times) + line["text"] + "\n", stream)
        if page.get("gap") and not as_json:
            following.tell_gap(page["gap"])
        if page["next"] == after or not page["more"]:
            break
        after = page["next"]
    if as_json:
        rendering.write_json({"jobId": job_id, "lines": lines})


def _stamped(stamp_ms: int | None, times: list[list[int]]) -> str:
    if not times:
        return ""
    width = len("2026-01-25 10:30:00.000 ")
    if stamp_ms is None:
        return " " * width
    at = datetime.fromtimestamp(stamp_ms / 1000, UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " "


@app.command("cancel")
def cancel(
    job_ids: Ids = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that the other options choose.")] = False,
    status: Status = None,
    worker: Worker = None,
    tag: Tags = None,
    search: Search = None,
    yes: Yes = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Cancel jobs: one that waits never starts, one that runs is ended with everything it started.

    --all without --status means those that wait and those that run.
    """
    choice = job_choosing.query(status, worker, tag, search)
    with connect(url, api_key) as client:
        ids = job_choosing.chosen(
            client, job_ids or [], every, choice, among=("queued", "running"), verb="cancel", yes=yes
        )
        if len(ids) == 1:
            answer = client.call("POST", "/api/jobs/cancel", body={"jobId": ids[0]}, repeatable=True)
            rendering.tell(answer, _cancelled(answer), as_json=as_json)
        else:
            job_choosing.for_each(client, ids, "/api/jobs/cancel-batch", _cancelled, as_json=as_json)


def _cancelled(job: dict[str, Any]) -> str:
    told = "is being ended" if job["status"] == "running" else f"is {job['status']}"
    return f"Job {job['jobId']} {told}."


@app.command("retry")
def retry(
    job_ids: Ids = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that the other options choose.")] = False,
    status: Status = None,
    worker: Worker = None,
    tag: Tags = None,
    search: Search = None,
    yes: Yes = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the log, and exit as the job does.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Submit finished jobs again, as new ones, and print the new ones' ids.

    --all without --status means those that failed.
    """
    choice = job_choosing.query(status, worker, tag, search)
    with connect(url, api_key) as client:
        ids = job_choosing.chosen(
            client, job_ids or [], every, choice, among=("failed",), verb="retry", yes=yes
        )
        if len(ids) != 1:
            if follow:
                raise Failed(
                    "One job can be followed, not several.", hint="the same without --follow", exit_code=2
                )
            job_choosing.for_each(
                client, ids, "/api/jobs/retry-batch", lambda job: str(job["newJobId"]), as_json=as_json
            )
            return
        answer = client.call("POST", f"/api/jobs/{segment(ids[0])}/retry")
        if follow:
            rendering.say(f"Job {answer['jobId']} is {answer['status']}.")
            raise typer.Exit(following.follow(client, answer["jobId"], as_json=as_json))
        rendering.tell(answer, str(answer["jobId"]), as_json=as_json)


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


@app.command("attempts")
def attempts(
    job_id: JobId, watch: Watch = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List the attempts of a job: who ran each, from when on, for how long, and how it ended."""
    path = f"/api/jobs/{segment(job_id)}/attempts"
    watching.show(
        url, api_key, lambda client: client.get(path),
        lambda answer: rendering.print_table(
            ("ATTEMPT", "WORKER", "STARTED", "RAN", "EXIT", "OUTCOME"),
            (
                (
                    each["attempt"], each["workerId"], each["startedAt"],
                    "" if each["ranMs"] is None else rendering.duration(each["ranMs"] / 1000),
                    each["exitCode"], each["outcome"],
                )
                for each in answer["attempts"]
            ),
            empty=f"It was not attempted yet. See why with: hostler jobs why {job_id}",
        ),
        as_json=as_json, watch=watch,
    )  # fmt: skip


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
