"""A change of an app, asked for once and seen through to its end, with the next command where it is refused."""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli import following, rendering
from cli.client import Client, segment
from cli.completing import app_ids
from cli.failures import Failed
from cli.options import connect

AppId = Annotated[
    str,
    typer.Argument(
        metavar="APP", help="Instance id: `product`, or `product__alias`.", autocompletion=app_ids
    ),
]
OneProcess = Annotated[
    str | None, typer.Option("--process", "-p", help="This process alone.", show_default=False)
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the job; print its id.")]


def act(
    app_id: str, action: str, done: str, process: str | None, *, detach: bool, url: str | None, api_key: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Have an app, or one process of it, do something, and see that through. Raises Failed."""
    with connect(url, api_key) as client:
        body = {"process": process} if process else {}
        change(client, app_id, action, body, done=done, detach=detach, as_json=as_json)


def change(
    client: Client, app_id: str, action: str, body: dict[str, Any], *, done: str, detach: bool, as_json: bool
) -> None:
    """Ask for a change of an app and see it through. Raises Failed."""
    with hinting(app_id):
        answer = ask(client, "POST", f"/api/apps/{segment(app_id)}/{action}", body=body)
    process = body.get("process")
    see_through(client, answer, done, process=process, detach=detach, as_json=as_json)


def ask(client: Client, method: str, path: str, **how: Any) -> dict[str, Any]:
    """Ask for a change once, through losses of the connection."""
    headers = {"Idempotency-Key": secrets.token_hex(16)}
    return dict(client.call(method, path, headers=headers, repeatable=True, **how))


def fetch(client: Client, app_id: str) -> dict[str, Any]:
    """Return an app as the API describes it. Raises Failed."""
    with hinting(app_id):
        return dict(client.get(f"/api/apps/{segment(app_id)}"))


def see_through(
    client: Client,
    answer: dict[str, Any],
    done: str,
    *,
    process: str | None = None,
    detach: bool,
    as_json: bool,
) -> None:
    """Show the log of a job that was accepted until it ends, then what has become of its app. Raises Failed."""
    app_id, job_id = answer["instanceId"], answer["jobId"]
    if detach:
        if as_json:
            rendering.write_json(answer)
        else:
            rendering.stdout().print(job_id)
        return
    job = following.watch(client, job_id, quiet=as_json)
    try:
        shown = client.get(f"/api/apps/{segment(app_id)}")
    except Failed:  # it is gone, as was wished or because its install was cancelled
        shown = None
    if job["status"] != "completed":
        raise _failure(job, app_id, shown)
    if as_json:
        rendering.write_json(shown if shown is not None else job)
    elif shown is None:
        rendering.say(f"{app_id} is {done}.", style="green")
    elif shown["status"] == "needs_config":
        schema = client.get(f"/api/apps/{segment(app_id)}/config")["schema"] or {}
        keys = " ".join(f"{name}=…" for name in schema.get("required", [])) or "KEY=VALUE"
        rendering.say(
            f"{app_id} needs its configuration: hostler apps config {app_id} {keys}", style="yellow"
        )
    else:
        what, whose = (f"{process} of {app_id}", "the app's") if process else (app_id, "its")
        status = "" if shown["status"] == done else f"; {whose} status is {shown['status']}"
        rendering.say(f"{what} is {done}{status}.", style="green")


def _failure(job: dict[str, Any], app_id: str, shown: dict[str, Any] | None) -> Failed:
    code = following.CANCELLED if job["status"] == "cancelled" else 1
    ending = following.ENDINGS.get(job["status"], "failed")
    # what the app is said to lack may be of an earlier job, and is not why somebody cancelled this one
    of_the_app = "" if job["status"] == "cancelled" else (shown or {}).get("error")
    why = str(job.get("message") or of_the_app or "").rstrip(".")
    hint = (
        f"hostler apps logs {app_id}"
        if shown is not None and shown["releases"]
        else f"hostler jobs log {job['jobId']}"
    )
    return Failed(f"The job {ending}{': ' + why if why else ''}.", hint=hint, exit_code=code)


#: What a refusal says, and the command that helps.
_HINTS = (
    ("There is no app", "hostler apps list"),
    ("has no process", "hostler apps show {app}"),
    ("is installed already", "hostler apps update {app}"),
    ("needs its configuration", "hostler apps config {app} KEY=VALUE"),
    ("There is no product", "hostler products list"),
    ("no release", "hostler products list"),
    ("There is no node", "hostler worker"),
    ("while job", "hostler apps show {app}"),
    ("while it is", "hostler apps show {app}"),
)


@contextlib.contextmanager
def hinting(app_id: str) -> Iterator[None]:
    """Add to a refusal the command that helps."""
    try:
        yield
    except Failed as error:
        fitting = (hint.format(app=app_id) for words, hint in _HINTS if words in str(error))
        error.hint = next(fitting, error.hint)
        raise
