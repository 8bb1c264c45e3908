"""`hostler autoscale`: how many workers would start what waits within a target."""

from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.options import ApiKey, Json, Url, Watch

app = typer.Typer(no_args_is_help=True, help="Ask how many workers the fleet needs.")


@app.callback()
def _group() -> None:
    """Keep this a group, also while it has but one command."""


@app.command()
def advise(
    *,
    target: Annotated[
        float,
        typer.Option(
            "--target", "-t", help="Seconds within which what waits shall start.", min=0.1, max=86_400
        ),
    ] = 60.0,
    tags: Annotated[
        str | None,
        typer.Option("--tags", help="Only jobs that ask for exactly these, e.g. linux,gpu; '' for none."),
    ] = None,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Say how many workers would start what waits within the target, for each set of tags that jobs ask for.

    The rule keeps the slots that are busy, and wants as many as start all that waits within the target, given how long
    jobs of these tags took lately. Workers of several rows add up. Nothing is started or stopped.
    """
    watching.show(
        url,
        api_key,
        lambda client: client.get("/api/queues", targetSeconds=target, tags=tags),
        _draw,
        as_json=as_json,
        watch=watch,
    )


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        (
            "TAGS",
            "WAITING",
            "RUNNING",
            "OLDEST",
            "A JOB TAKES",
            "SERVED BY",
            "SLOTS",
            "EMPTY IN",
            "WORKERS NEEDED",
        ),
        (
            (
                "+".join(each["tags"]) or "(none)",
                each["depth"],
                each["running"],
                rendering.duration(each["oldestAgeSeconds"]) if each["depth"] else "",
                "" if each["meanRunSeconds"] is None else rendering.duration(each["meanRunSeconds"]),
                rendering.count(each["workers"], "worker"),
                each["slots"],
                _drained(each),
                each["workersNeeded"],
            )
            for each in answer["pools"]
        ),
        empty="Nothing waits, and there are no workers.",
    )
    target, needed = rendering.duration(answer["targetSeconds"]), answer["workersNeeded"]
    rendering.say(
        f"{rendering.count(needed, 'worker')} would start what waits within {target}."
        if answer["depth"]
        else f"Nothing waits; {rendering.count(needed, 'worker')} would keep up with what runs."
    )


def _drained(pool: dict[str, Any]) -> str:
    if not pool["depth"]:
        return ""
    seconds = pool["estimatedDrainSeconds"]
    return "never: nobody serves these" if seconds is None else rendering.duration(seconds)
