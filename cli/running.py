"""`hostler up`, `worker`, `scheduler` and `agent`: the commands that run Hostler itself."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from settings import process_environment

app = typer.Typer()


@app.command()
def up(
    *,
    port: Annotated[
        int,
        typer.Option("--port", "-p", help="Port to listen on; 0 takes a free one.", min=0, max=65535),
    ] = 8080,
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


@app.command()
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


@app.command()
def scheduler() -> None:
    """Do what is due: requeue lost jobs, start delayed and recurring ones. Any number may run, one leads."""
    _become("scheduler", {})


@app.command()
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
