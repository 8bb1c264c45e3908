"""Which jobs a command is about: named one by one, or all that a filter finds."""

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
    client: Client,
    ids: Sequence[str],
    act: Callable[[Client, str], tuple[dict[str, Any], str]],
    *,
    as_json: bool,
) -> None:
    """Do something with each job, telling of each; of several, a failure does not keep the others.

    Raises Failed in the end when one failed.
    """
    answers, failures = [], []
    for job_id in ids:
        try:
            answer, sentence = act(client, job_id)
        except Failed as error:
            if len(ids) == 1:
                raise
            failures.append({"jobId": job_id, "error": str(error)})
            rendering.say(f"{job_id}: {rendering.harmless(str(error))}", style="red")
            continue
        answers.append(answer)
        if not as_json:
            rendering.stdout().print(rendering.harmless(sentence))
    if as_json:
        rendering.write_json(answers[0] if len(ids) == 1 else {"jobs": answers, "failed": failures})
    if failures:
        raise Failed(f"{len(failures)} of {len(ids)} jobs did not take it.")
