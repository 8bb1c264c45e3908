"""What looks after Hostler itself: `hostler health`, `doctor`, `openapi` and `version`."""

from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from cli import rendering
from cli.client import anonymous
from cli.contexts import Contexts
from cli.failures import Failed
from cli.options import ApiKey, Json, Url, connect
from settings import __version__, process_environment

app = typer.Typer()


@app.command()
def health(
    checks: Annotated[
        bool, typer.Option("--checks", help="Have the server run what doctor checks; for operators.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Ask a server whether it answers, and whether Redis, S3, a scheduler and workers are there.

    Needs no login, unless with --checks. Exits 1 when something is missing, for scripts and probes.
    """
    if checks:
        raise typer.Exit(_checks(url, api_key, as_json=as_json))
    address = Contexts(process_environment()).address(process_environment(), url=url)
    try:
        with anonymous(address) as http:
            about = http.get("/api/health").json()
            found = http.get("/api/health/ready").json()
    except httpx.TransportError:
        raise Failed(f"Nothing answers at {address}.", hint="hostler up") from None
    except ValueError:
        raise Failed(f"{address} did not answer as Hostler does.") from None
    if as_json:
        rendering.write_json({"url": address, "version": about.get("version"), **found})
    else:
        rendering.print_facts(
            (("server", address), ("version", about.get("version")), ("status", found["status"]))
        )
        rendering.print_table(
            ("CHECK", "STATUS", "TOOK", "MESSAGE"), (_check_row(each) for each in found["checks"]), empty=""
        )
    if found["status"] != "ok":
        raise typer.Exit(1)


def _checks(url: str | None, api_key: str | None, *, as_json: bool) -> int:
    from cli.doctor import show  # noqa: PLC0415  it imports what talks to Redis and S3

    with connect(url, api_key) as client:
        found = client.get("/api/health/checks")
    if as_json:
        rendering.write_json(found)
    else:
        for each in found["checks"]:
            show(each["name"], each["status"], each["message"], each["remedy"])
    return 1 if found["status"] == "fail" else 0


def _check_row(check: dict[str, Any]) -> tuple[Any, ...]:
    return check["name"], check["status"], f"{check['latencyMs']:.1f} ms", check["message"]


@app.command()
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


@app.command()
def openapi(url: Url = None, api_key: ApiKey = None) -> None:
    """Print the server's description of its API, as OpenAPI 3.1 in JSON."""
    with connect(url, api_key) as client:
        rendering.write_json(client.get("/api/openapi.json"))


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        rendering.write_json({"version": __version__})
    else:
        rendering.stdout().print(__version__)
