"""`hostler quarantine`: the jobs that lost three workers, looked at, released or discarded."""

from typing import Any

import typer

from cli import rendering, watching
from cli.client import segment
from cli.options import ApiKey, JobId, Json, Limit, Offset, Url, Watch, connect

app = typer.Typer(no_args_is_help=True, help="Look at jobs that lost three workers; release or discard them.")


@app.command("list")
def list_quarantine(
    *,
    limit: Limit = 20,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the quarantine, the latest first, each with its workers and the last that it said."""
    watching.show(
        url, api_key, lambda client: client.get("/api/jobs/quarantine", limit=limit, offset=offset), _draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("JOB", "CREATED", "LOST", "COMMAND", "LAST SAID"),
        (
            (
                job["jobId"],
                rendering.ago(job["createdAt"]),
                ", ".join(_death(each) for each in job["deaths"]),
                rendering.one_line(job.get("name") or job.get("command") or " ".join(job.get("argv") or [])),
                rendering.one_line((job["lastLines"].strip().splitlines() or [""])[-1]),
            )
            for job in answer["jobs"]
        ),
        empty="The quarantine is empty: no job has lost three workers.",
    )
    rendering.tell_more(answer)


def _death(death: dict[str, Any]) -> str:
    by_signal = f" (signal {death['exitSignal']})" if death.get("exitSignal") else ""
    return f"{death['workerId']}{by_signal}"


@app.command("release")
def release(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Let a job's command run again, as a new job, and print that one's id."""
    with connect(url, api_key) as client:
        answer = client.call("POST", f"/api/jobs/quarantine/{segment(job_id)}/release")
    rendering.tell(answer, str(answer["jobId"]), as_json=as_json)


@app.command("discard")
def discard(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Take a job out of the quarantine; it stays failed."""
    with connect(url, api_key) as client:
        answer = client.call("DELETE", f"/api/jobs/quarantine/{segment(job_id)}")
    rendering.tell(answer, f"Job {job_id} has left the quarantine, and stays failed.", as_json=as_json)
