"""Options that the commands which talk to a server share, and how those commands reach it."""

from typing import Annotated

import typer

from cli.client import Client
from cli.completing import job_ids
from cli.contexts import Contexts
from cli.rendering import say
from settings import process_environment

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Address of the server. Default: HOSTLER_URL, then what login saved.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="API key. Better in HOSTLER_API_KEY, which other users of this machine cannot see.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, for programs.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every 2 s, until Ctrl+C.")]
Limit = Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1, max=1000)]
Offset = Annotated[int, typer.Option("--offset", help="How many to skip.", min=0)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", autocompletion=job_ids)]


def connect(url: str | None, api_key: str | None) -> Client:
    """Return a client for the server that the options, the environment or `login` name. Raises Failed."""
    environ = process_environment()
    contexts = Contexts(environ)
    return Client(contexts.server(environ, url=url, api_key=api_key), contexts, on_silence=say)
