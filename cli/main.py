"""`hostler`: the command line, as `hostler --help` shows it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import apps, files, jobs, products, rendering
from cli.contexts import DEFAULT, Contexts, clean_url
from cli.failures import Failed
from cli.options import ApiKey, Json, Url, connect
from cli.submitting import SubmitCommand, submit
from settings import BadSettings, __version__, process_environment
from storage.errors import HostlerError

RUN, USE, CARE = "Run Hostler", "Use Hostler", "Look after Hostler"

app = typer.Typer(
    name="hostler",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they show variables, and with them secrets
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Run commands on a fleet of machines, durably.",
)
app.add_typer(jobs.app, name="jobs", rich_help_panel=USE)
app.add_typer(files.app, name="files", rich_help_panel=USE)
app.add_typer(apps.app, name="apps", rich_help_panel=USE)
app.add_typer(products.app, name="products", rich_help_panel=USE)
app.command("submit", cls=SubmitCommand, rich_help_panel=USE)(submit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 when it failed, 2 when it was not understood."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name in a list must not end the list
    try:
        app(arguments, prog_name="hostler")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except Failed as error:
        _complain(str(error))
        if error.hint:
            rendering.say(f"Try: {error.hint}")
        return error.exit_code
    except (HostlerError, BadSettings, OSError) as error:
        _complain(str(error))
        return 1
    return 0


def _complain(sentence: str) -> None:
    rendering.say(f"hostler: {rendering.harmless(sentence)}", style="red")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        rendering.stdout().print(__version__)
        raise typer.Exit


@app.command(rich_help_panel=RUN)
def up(
    *,
    port: Annotated[int, typer.Option("--port", "-p", help="Port to listen on; 0 takes a free one.")] = 8080,
    data: Annotated[Path, typer.Option("--data", "-d", help="Folder that keeps everything.")] = Path(
        "hostler-data"
    ),
    workers: Annotated[int, typer.Option("--workers", "-w", help="How many workers; 0 for none.", min=0)] = 1,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="DIALECT=HOST:PORT",
            help="Also speak cbox, squareberg or cuby alone on a port of its own; on 127.0.0.1 without credentials. "
            "May be repeated.",
        ),
    ] = None,
    keep_apps: Annotated[
        bool,
        typer.Option("--keep-apps", help="Leave apps running at the end, for the next `up` on the folder."),
    ] = False,
) -> None:
    """Run everything on this machine: web, workers, scheduler, and Redis and S3 where none are named.

    REDIS_URL and S3_ENDPOINT_URL name servers to use instead of the ones it brings along.
    """
    from cli.up import up as run  # noqa: PLC0415  other commands need not wait for what it imports

    ended = run(
        port=port, data=data, workers=workers, host=host, listen=listen or (), keep_apps=keep_apps,
        environ=process_environment(),
    )  # fmt: skip
    raise typer.Exit(ended)


@app.command(rich_help_panel=RUN)
def worker(
    slots: Annotated[int | None, typer.Option("--slots", help="Jobs at once.", min=1)] = None,
    tags: Annotated[str | None, typer.Option("--tags", help="What this worker has, e.g. linux,gpu.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name among the workers.")] = None,
    stop_apps: Annotated[
        bool,
        typer.Option("--stop-apps", help="Stop all apps of this machine, which outlive workers, and end."),
    ] = False,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="With --stop-apps: kill them without asking them first.")
    ] = False,
) -> None:
    """Run jobs on this machine, until SIGTERM. Needs REDIS_URL and HOSTLER_SECRET_KEY."""
    flags = [*(["--stop-apps"] if stop_apps else []), *(["--at-once"] if at_once else [])]
    _become("workers", {"--slots": slots, "--tags": tags, "--name": name}, *flags)


@app.command(rich_help_panel=RUN)
def scheduler() -> None:
    """Do what is due: requeue lost jobs, start delayed and recurring ones. Any number may run, one leads."""
    _become("scheduler", {})


@app.command(rich_help_panel=RUN)
def agent(
    *,
    url: Annotated[
        str | None, typer.Option("--url", help="Address of the server. Default: HOSTLER_URL.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name among the workers.")] = None,
    tags: Annotated[
        str | None, typer.Option("--tags", help="What this machine has, e.g. windows,msvc.")
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", help="Jobs at once.", min=1)] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", help="PEM file of an authority to trust beside the public ones."),
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Leave the list of workers at the end.")
    ] = False,
    work_dir: Annotated[Path | None, typer.Option("--work-dir", help="Folder for the files of jobs.")] = None,
) -> None:
    """Run jobs on this machine over HTTPS alone: it needs no open port and no Redis.

    Registers with HOSTLER_ENROLL_SECRET, or with an operator's HOSTLER_API_KEY.
    """
    options = {"--url": url, "--name": name, "--tags": tags, "--slots": slots, "--work-dir": work_dir}
    _become("workers.agent", options | {"--ca-file": ca_file}, *(["--ephemeral"] if ephemeral else []))


def _become(module: str, options: Mapping[str, object], *flags: str) -> None:
    """Turn this process into `python -m module`, so that signals and the exit code are the module's own."""
    # -P: a folder named like one of our packages, wherever the command was typed, must not take its place
    command = [sys.executable, "-P", "-m", module]
    command += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    command += flags
    if sys.platform == "win32":  # whose exec returns to the shell before the new process has ended
        raise typer.Exit(subprocess.call(command))  # noqa: S603  our own interpreter and module
    os.execv(sys.executable, command)  # noqa: S606  as above


@app.command(rich_help_panel=USE)
def login(
    *,
    url: Annotated[str | None, typer.Option("--url", help="Address of the server.")] = None,
    email: Annotated[str | None, typer.Option("--email", help="Email or user name.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Instead: take address and key from the folder of `hostler up`."),
    ] = None,
    context: Annotated[str, typer.Option("--context", help="Name to save it under.")] = DEFAULT,
    as_json: Json = False,
) -> None:
    """Log in, and let the other commands use that session.

    The session is saved in a file that only you may read, and renewed when it expires. HOSTLER_CONTEXT chooses
    between several.
    """
    from cli import signing_in  # noqa: PLC0415  only this command needs it

    environ = process_environment()
    if data is not None:
        who = signing_in.from_data(Contexts(environ), context, data)
    else:
        url = clean_url(url or environ.get("HOSTLER_URL") or typer.prompt("Address of the server", err=True))
        account = email or typer.prompt("Email", err=True)
        password = signing_in.password(from_stdin=password_stdin)
        who = signing_in.with_password(Contexts(environ), context, url, account, password)
    if as_json:
        rendering.write_json(who)
    else:
        rendering.say(f"Logged in to {who['url']} as {who['email']}.")


@app.command(rich_help_panel=USE)
def logout(
    context: Annotated[str | None, typer.Option("--context", help="Name it was saved under.")] = None,
    as_json: Json = False,
) -> None:
    """End the session that login began, here and on the server."""
    from cli import signing_in  # noqa: PLC0415  only this command needs it

    name, told = signing_in.out(Contexts(process_environment()), context)
    if as_json:
        rendering.write_json({"context": name, "serverTold": told})
    else:
        rendering.say("Logged out." if told else "Forgotten here; the server could not be told.")


@app.command(rich_help_panel=CARE)
def doctor(
    prepare: Annotated[
        bool, typer.Option("--prepare", help="First make the bucket and the first admin, as a release does.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Look at the `hostler up` that runs on this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check settings, Redis, S3, queues, workers and scheduler, and say how to mend what is wrong.

    Reads the same environment as the servers do. Exits 1 when something fails.
    """
    from cli.doctor import examine  # noqa: PLC0415  boto3 alone takes longer to import than other commands run

    raise typer.Exit(examine(process_environment(), data=data, prepare=prepare, as_json=as_json))


@app.command(rich_help_panel=CARE)
def openapi(url: Url = None, api_key: ApiKey = None) -> None:
    """Print the server's description of its API, as OpenAPI 3.1 in JSON."""
    with connect(url, api_key) as client:
        rendering.write_json(client.get("/api/openapi.json"))


@app.command(rich_help_panel=CARE)
def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        rendering.write_json({"version": __version__})
    else:
        rendering.stdout().print(__version__)
