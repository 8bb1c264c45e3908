"""`hostler jobs rerun`: what a job was submitted with, changed, and submitted anew."""

import json
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import following, rendering
from cli.client import segment
from cli.failures import Failed
from cli.options import ApiKey, JobId, Json, Url, connect
from cli.submitting import send, variables
from settings import process_environment

app = typer.Typer()


@app.command("rerun")
def rerun(
    job_id: JobId,
    *,
    command: Annotated[str | None, typer.Option("--command", "-c", help="Another command line.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="Variable to set. May be repeated."),
    ] = None,
    without_env: Annotated[
        bool, typer.Option("--without-env", help="Leave out the variables that --env does not name.")
    ] = False,
    timeout: Annotated[int | None, typer.Option("--timeout", help="Seconds it may run.", min=1)] = None,
    priority: Annotated[str | None, typer.Option("--priority", help="high, normal or low.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", help="Tags that its worker must have, instead.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    retries: Annotated[int | None, typer.Option("--retries", help="Attempts after a failure.", min=0)] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Change all of it in $EDITOR first.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the log, and exit as the job does.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Submit a job's command again with changes, as a new job, and print the new one's id.

    The server keeps the values of a job's variables to itself: give them anew, or leave them out. `jobs retry` runs
    the job as it was, with all of them.
    """
    with connect(url, api_key) as client:
        known = client.get(f"/api/jobs/{segment(job_id)}/order")
        order = dict(known["order"])
        if command is not None:
            order.pop("argv", None)
        given = {
            "command": command, "timeout": timeout, "priority": priority, "tags": tag, "name": name,
            "retries": retries, "env": variables(env or []) or None,
        }  # fmt: skip
        order |= {label: value for label, value in given.items() if value is not None}
        if edit:
            order = _edited(order)
        missing = [each for each in known["envNames"] if each not in order.get("env", {})]
        if missing and not without_env:
            words = " ".join(f"--env {each}=…" for each in missing)
            raise Failed(
                f"The job was run with {', '.join(missing)}, whose values are secret.",
                hint=f"hostler jobs rerun {job_id} {words}, or --without-env",
            )
        made = send(client, order)
        if follow:
            rendering.say(f"Job {made['jobId']} is {made['status']}.")
            raise typer.Exit(following.follow(client, str(made["jobId"]), as_json=as_json))
    rendering.tell(made, str(made["jobId"]), as_json=as_json)


def _edited(order: dict[str, Any]) -> dict[str, Any]:
    """Return an order as somebody left it in their editor. Raises Failed."""
    environ = process_environment()
    editor = shlex.split(environ.get("VISUAL") or environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="hostler-") as directory:
        draft = Path(directory, "order.json")
        draft.write_text(json.dumps(order, indent=2) + "\n", encoding="utf-8")
        try:
            ended = subprocess.run([*editor, str(draft)], check=False)  # noqa: S603  the editor that they chose
        except OSError as error:
            raise Failed(
                f"The editor {editor[0]} cannot be started: {error.strerror}.", hint="EDITOR=nano"
            ) from None
        if ended.returncode:
            raise Failed("The editor failed, so nothing was submitted.")
        text = draft.read_text(encoding="utf-8")
    try:
        changed = json.loads(text)
    except ValueError as error:
        raise Failed(f"That is not JSON: {error}.") from None
    if not isinstance(changed, dict):
        raise Failed("That is not a JSON object.")
    return changed
