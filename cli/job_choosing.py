"""Which jobs a command is about: named one by one, or all that a filter finds."""

import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from cli import rendering
from cli.client import Client
from cli.completing import job_ids
from cli.failures import Failed

Status = Annotated[
    str | None, typer.Option("--status", "-s", help="queued, running, completed, failed or cancelled.")
]
Worker = Annotated[str | None, typer.Option("--worker", help="Only jobs of this worker.")]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", "-t", help="Only jobs that ask for this tag. May be repeated.")
]
Search = Annotated[
    str | None, typer.Option("--search", help="Only jobs with these words in id, name or command.")
]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[JOB]...", help="Ids of jobs.", show_default=False, autocompletion=job_ids),
]

_PAGE = 1000


def query(
    status: str | None, worker: str | None, tag: list[str] | None, search: str | None
) -> dict[str, Any]:
    """Return what the list of jobs is asked for."""
    return {"status": status, "workerId": worker, "tags": ",".join(tag) if tag else None, "search": search}


def chosen(
    client: Client,
    named: Sequence[str],
    every: bool,
    choice: dict[str, Any],
    *,
    among: Sequence[str],
    verb: str,
    yes: bool,
) -> list[str]:
    """Return the jobs that are named, or, with `every`, all that `choice` finds, of states `among` unless it says one.

    Somebody at a terminal agrees to the number first. Raises Failed when neither or both are given.
    """
    if bool(named) == every:
        hint = f"hostler jobs {verb} JOB, or hostler jobs {verb} --all --tag TAG"
        raise Failed("Name jobs, or say --all with a filter.", hint=hint, exit_code=2)
    if not every:
        if any(value is not None for value in choice.values()):
            raise Failed("A filter goes with --all, and not with names.", exit_code=2)
        return list(named)
    states = [choice["status"]] if choice["status"] else among
    found = [job_id for state in states for job_id in _every(client, choice | {"status": state})]
    if found:
        rendering.ask(f"{verb.capitalize()} {rendering.count(len(found), 'job')}?", yes=yes)
    else:
        rendering.say("There are no such jobs.")
    return found


def _every(client: Client, choice: dict[str, Any]) -> list[str]:
    found: list[str] = []
    while True:
        answer = client.get("/api/jobs/list", **choice, limit=_PAGE, offset=len(found))
        found += [job["jobId"] for job in answer["jobs"]]
        if not answer["hasMore"] or not answer["jobs"]:
            return found


def for_each(
    client: Client, ids: Sequence[str], path: str, words: Callable[[dict[str, Any]], str], *, as_json: bool
) -> None:
    """Ask for the same of many jobs and tell of each; a failure of one does not keep the others.

    Raises Failed in the end when one failed.
    """
    results: list[dict[str, Any]] = []
    for start in range(0, len(ids), _PAGE):
        # the key lets the same be asked for again where no answer came, and nothing be made twice
        answer = client.call(
            "POST", path, body={"jobIds": ids[start : start + _PAGE]},
            headers={"Idempotency-Key": uuid.uuid4().hex}, repeatable=True,
        )  # fmt: skip
        for each in answer["results"]:
            if not each["ok"]:
                rendering.say(f"{each['jobId']}: {rendering.harmless(each['error'])}", style="red")
            elif not as_json:
                rendering.stdout().print(rendering.harmless(words(each)))
        results += answer["results"]
    failures = [each for each in results if not each["ok"]]
    if as_json:
        rendering.write_json({"jobs": [each for each in results if each["ok"]], "failed": failures})
    if failures:
        raise Failed(f"{len(failures)} of {len(results)} jobs did not take it.")
