"""`hostler submit`: pack, upload, submit, and follow if asked to."""

import shlex
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cli import batching, following, rendering
from cli.artifacts import download_all
from cli.client import Client
from cli.options import ApiKey, Json, Url, connect
from cli.packing import pack

app = typer.Typer()


class SubmitCommand(TyperCommand):
    """A command whose words after `--` are a command line of their own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what follows `--` for the command, and parse the rest."""
        if "--" in args:
            cut = args.index("--")
            ctx.meta["hostler.argv"] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)


@app.command("submit", cls=SubmitCommand)
def submit(
    *,
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="'COMMAND'", help="A command line for the shell, in quotes.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-F", help="Folder, archive or file that the job starts with.", exists=True),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the log, and exit as the job does.")
    ] = False,
    download: Annotated[
        Path | None, typer.Option("--download", help="Follow, then save the artifacts in this folder.")
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="Files to keep, e.g. 'reports/**'. May be repeated."),
    ] = None,
    cwd: Annotated[
        str | None, typer.Option("--cwd", help="Folder of the upload to start the command in.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="Variable to set. May be repeated."),
    ] = None,
    timeout: Annotated[int | None, typer.Option("--timeout", help="Seconds it may run.", min=1)] = None,
    priority: Annotated[str | None, typer.Option("--priority", help="high, normal or low.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Tag that its worker must have. May be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it in lists.")] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", help="Further attempts after a failure.", min=0)
    ] = None,
    delay: Annotated[
        float | None, typer.Option("--delay", help="Seconds to wait before it may start.", min=0)
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", help="Run it again and again, e.g. '0 3 * * *'.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Time zone of --cron, e.g. Europe/Paris.")
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option("--after", metavar="JOB", help="Job to wait for. May be repeated.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Of the jobs with one key, one runs at a time.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Never run it again when its worker is lost.")] = False,
    webhook: Annotated[
        str | None, typer.Option("--webhook", help="https address to tell when it ends.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="Submitting again under one key makes no second job."),
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            "--batch",
            metavar="FILE",
            help='Submit a job for each line of JSON, e.g. {"command": "make"}; \'-\' reads standard input.',
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Run a command on the fleet, e.g. hostler submit 'npm test' --file . --follow.

    The job starts in a copy of what --file names, or in an empty folder. After `--` come the words of a program
    that is run without a shell: hostler submit -- python3 -c 'print(1)'

    Prints the job's id. With --follow the exit code is the job's own; 124 when it ran out of time, 130 when it was
    cancelled, and 125 when it was lost or could not start.

    --batch submits many jobs, up to 1,000 of them all or none. A line holds what the API takes; the other options count
    for each job that does not say otherwise. Prints an id a line.
    """
    argv = ctx.meta.get("hostler.argv")
    if batch is not None and (words or argv or follow or download or cron):
        raise typer.BadParameter(
            "takes its commands from a file: no other command, and no --follow, --download or --cron.",
            param_hint="--batch",
        )
    orders = {} if batch is None else batching.read(batch)
    order = {} if batch is not None else _command(words or [], argv)
    order |= {
        "workingDirectory": cwd,
        "timeout": timeout,
        "priority": priority,
        "env": variables(env or []),
        "tags": tag,
        "artifacts": artifact,
        "name": name,
        "retries": retries,
        "delay": delay,
        "dependsOn": after,
        "concurrencyKey": key,
        "atMostOnce": once or None,
        "schedule": _schedule(cron, timezone),
        "webhook": {"url": webhook} if webhook else None,
    }
    follow = follow or download is not None
    if follow and cron:
        raise typer.BadParameter("a job that recurs has no end to follow to.", param_hint="--follow")
    with connect(url, api_key) as client:
        if file is not None:
            order["fileUrl"] = upload(client, file)["url"]
        order = {label: value for label, value in order.items() if value not in (None, {}, [])}
        if batch is not None:
            batching.submit(client, orders, common=order, idempotency_key=idempotency_key, as_json=as_json)
            return
        submitted = send(client, order, idempotency_key)
        job_id = str(submitted["jobId"])
        if not follow:
            _tell(submitted, as_json=as_json)
            return
        rendering.say(f"Job {job_id} is {submitted['status']}.")
        code = following.follow(client, job_id, as_json=as_json)
        if download is not None:
            download_all(client, job_id, download)
    raise typer.Exit(code)


def send(client: Client, order: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
    """Submit an order once, however often that has to be tried, and return what the server says of the job."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return dict(client.call("POST", "/api/jobs/submit", body=order, headers=headers, repeatable=True))


def upload(client: Client, path: Path, *, direct: bool = False) -> dict[str, Any]:
    """Upload a file, or a folder as a zip, and return what the server says of it. Raises Invalid, Failed.

    With `direct` it is put to the object store itself, which has to be within reach.
    """
    if not path.is_dir():
        return _upload(client, path, path.name, direct=direct)
    with tempfile.TemporaryDirectory(prefix="hostler-") as directory:
        name = f"{path.resolve().name or 'files'}.zip"
        packed = Path(directory, "packed.zip")
        with rendering.progress(f"Packing {path}") as advance:
            done = 0

            def on_file(_name: str, size_bytes: int) -> None:
                nonlocal done
                done += size_bytes
                advance(done, 0)

            contents = pack(path, packed, on_file=on_file)
        rendering.say(
            f"Packed {rendering.count(contents.files, 'file')}, {rendering.size(contents.size_bytes)},"
            f" from {path.resolve()}."
        )
        return _upload(client, packed, name, direct=direct)


def _upload(client: Client, path: Path, name: str, *, direct: bool) -> dict[str, Any]:
    size_bytes = path.stat().st_size
    put = client.put_directly if direct else client.upload
    with rendering.progress(f"Uploading {name}") as advance:
        answer = put(path, filename=name, on_progress=lambda done: advance(done, size_bytes))
    rendering.say(f"Uploaded {rendering.one_line(name)}, {rendering.size(size_bytes)}.")
    return answer


def _command(words: list[str], argv: list[str] | None) -> dict[str, Any]:
    if argv is not None:
        if words:
            raise typer.BadParameter(
                "give a command in quotes or words after --, not both.", param_hint="COMMAND"
            )
        if not argv:
            raise typer.BadParameter("no words follow --.", param_hint="COMMAND")
        return {"argv": argv}
    if not words:
        raise typer.BadParameter(
            "give a command, e.g. hostler submit 'make test' --file .", param_hint="COMMAND"
        )
    if len(words) > 1:
        quoted = shlex.quote(shlex.join(words))
        raise typer.BadParameter(
            f"{len(words)} words; put the command in quotes ({quoted}) or after --.", param_hint="COMMAND"
        )
    return {"command": words[0]}


def variables(pairs: list[str]) -> dict[str, str]:
    """Return what is given as NAME=VALUE. Raises typer.BadParameter."""
    for pair in pairs:
        if "=" not in pair[1:]:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE.", param_hint="--env")
    return dict(pair.split("=", 1) for pair in pairs)


def _schedule(cron: str | None, timezone: str | None) -> dict[str, str] | None:
    if cron is None:
        if timezone is not None:
            raise typer.BadParameter("only --cron has a time zone.", param_hint="--timezone")
        return None
    return {"cron": cron, **({"timezone": timezone} if timezone else {})}


def _tell(submitted: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        rendering.write_json(submitted)
        return
    rendering.stdout().print(submitted["jobId"])
    if sys.stdout.isatty():
        wait = submitted.get("estimatedWaitTime")
        expected = f" It starts in about {rendering.duration(wait)}." if wait else ""
        rendering.say(f"Queued.{expected} Watch it with: hostler jobs log -f {submitted['jobId']}")
