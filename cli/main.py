"""`hostler`: the command line, as `hostler --help` shows it."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cli.failures import Failed
from cli.later import Later, LaterGroup
from settings import BadSettings, __version__
from storage.errors import HostlerError

RUN, USE, CARE, ACCOUNT = "Run Hostler", "Use Hostler", "Look after Hostler", "Who you are"

COMMANDS = (
    Later("up", "cli.running", "Run everything on this machine.", RUN, single=True),
    Later("worker", "cli.running", "Run jobs on this machine, until SIGTERM.", RUN, single=True),
    Later("scheduler", "cli.running", "Do what is due: delayed, recurring and lost jobs.", RUN, single=True),
    Later("agent", "cli.running", "Run jobs on this machine over HTTPS alone.", RUN, single=True),
    Later("submit", "cli.submitting", "Run a command on the fleet.", USE, single=True),
    Later("jobs", "cli.jobs", "Look at jobs, follow them, end them, run them again.", USE),
    Later("schedules", "cli.schedules", "Look at the jobs that recur, and end them.", USE),
    Later("files", "cli.files", "Upload files, fetch them back, list them.", USE),
    Later("apps", "cli.apps", "Install products; start, watch, change and remove them.", USE),
    Later("products", "cli.products", "Publish what can be installed; list it, remove it.", USE),
    Later("overview", "cli.numbers", "Show the state of everything in numbers.", CARE, single=True),
    Later("queues", "cli.numbers", "Show what waits, and how many workers it needs.", CARE, single=True),
    Later("autoscale", "cli.autoscale", "Ask how many workers the fleet needs.", CARE),
    Later("nodes", "cli.nodes", "Look at the machines of the fleet and their apps.", CARE),
    Later("workers", "cli.workers", "Look at what runs jobs; drain it, forget it.", CARE),
    Later(
        "quarantine", "cli.quarantine", "Look at jobs that lost three workers; release or discard them.", CARE
    ),
    Later("users", "cli.users", "Look at users, make them, change them, delete them.", CARE),
    Later("keys", "cli.keys", "Look at API keys, make them, revoke them.", CARE),
    Later("audit", "cli.numbers", "List every change, with who made it.", CARE, single=True),
    Later("health", "cli.care", "Ask a server whether it and what it stands on is there.", CARE, single=True),
    Later("doctor", "cli.care", "Check all that Hostler needs, and say how to mend it.", CARE, single=True),
    Later("modules", "cli.numbers", "List the parts of a server that are switched on.", CARE, single=True),
    Later("backup", "cli.backups", "Back up nodes; verify, rehearse and restore what is kept.", CARE),
    Later("rebuild", "cli.recovery", "Bring Hostler back after the loss of Redis.", CARE, single=True),
    Later("recovery-kit", "cli.recovery", "Print what a rebuild would need.", CARE, single=True),
    Later("top", "cli.top", "Watch the fleet live in the terminal.", CARE, single=True),
    Later("demo-data", "cli.demo_data", "Fill a Hostler with things to look at.", CARE, single=True),
    Later("openapi", "cli.care", "Print the server's description of its API.", CARE, single=True),
    Later("version", "cli.care", "Print the version.", CARE, single=True),
    Later("login", "cli.account", "Log in, and let the other commands use that.", ACCOUNT, single=True),
    Later("logout", "cli.account", "End the session that login began.", ACCOUNT, single=True),
    Later("whoami", "cli.account", "Say which server is talked to, and as whom.", ACCOUNT, single=True),
    Later("setup", "cli.account", "Create the first admin of a new server.", ACCOUNT, single=True),
    Later("contexts", "cli.contexts_app", "Choose between the servers that login has saved.", ACCOUNT),
)

app = typer.Typer(
    name="hostler",
    cls=LaterGroup.of(*COMMANDS),
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they show variables, and with them secrets
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Run commands on a fleet of machines, durably.",
)


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
        _complain(str(error), hint=error.hint)
        return error.exit_code
    except BadSettings as error:
        _complain(str(error), hint="hostler doctor")
        return 1
    except (HostlerError, OSError) as error:
        _complain(str(error))
        return 1
    return 0


def _complain(sentence: str, *, hint: str = "") -> None:
    from cli import rendering  # noqa: PLC0415  what goes well need not wait for it

    rendering.say(f"hostler: {rendering.harmless(sentence)}", style="red")
    if hint:
        rendering.say(f"Try: {hint}")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit
