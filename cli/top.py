"""`hostler top`: the fleet in a terminal, live."""

import importlib.util
import sys

import typer

from cli.failures import Failed
from cli.options import ApiKey, Url, connect

app = typer.Typer()


@app.command("top")
def top(url: Url = None, api_key: ApiKey = None) -> None:
    """Watch jobs, queues, nodes and apps live in the terminal; `?` shows the keys.

    Needs the extra `top`, and a terminal.
    """
    if importlib.util.find_spec("textual") is None:
        raise Failed(
            "hostler top draws with textual, which is not installed.", hint="pip install 'hostler[top]'"
        )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # what textual reads from, and paints on
        raise Failed(
            "There is no terminal to show it on.", hint="hostler overview, or hostler jobs list --watch"
        )
    from cli.top_screen import Top  # noqa: PLC0415  without the extra there is none

    with connect(url, api_key) as client:
        client.get("/api/auth/me")  # who is not admitted learns it before the screen is taken
        client.on_silence = None  # the screen says itself what does not come
        failure = Top(client).run()
    if failure is not None:
        raise failure
