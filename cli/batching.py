"""`hostler submit --batch`: many jobs from a file of JSON lines."""

import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cli import rendering
from cli.client import Client
from cli.failures import Failed

#: What one request takes; it is accepted whole or not at all.
MOST_JOBS = 1000
#: How the API names one of them.
_JOB = re.compile(r"jobs\[(\d{1,3})\](\.?)")

#: Orders of one request, each with its line in the file.
Part = list[tuple[int, dict[str, Any]]]


def read(path: Path) -> dict[int, dict[str, Any]]:
    """Return the orders in a file by their lines, as POST /api/jobs/submit takes them; `-` is standard input.

    Raises typer.BadParameter naming the first line that is none.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.", param_hint="--batch") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{path} is no text in UTF-8.", param_hint="--batch") from None
    orders = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            order = json.loads(line)
        except ValueError:
            order = None
        if not isinstance(order, dict):
            raise typer.BadParameter(f"line {number} of {path} is no JSON object.", param_hint="--batch")
        orders[number] = order
    if not orders:
        raise typer.BadParameter(f"{path} holds no jobs.", param_hint="--batch")
    return orders


def submit(
    client: Client,
    orders: dict[int, dict[str, Any]],
    *,
    common: dict[str, Any],
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Submit the orders, with what `common` says where one does not say otherwise, and print their ids in order.

    A thousand at a time, each thousand whole or not at all. Raises Invalid, or Failed, which names jobs by their lines.
    """
    key = idempotency_key or uuid.uuid4().hex
    ids: list[str] = []
    for number, part in enumerate(_parts(orders)):
        try:
            answer = client.call(
                "POST",
                "/api/jobs/submit-batch",
                body={"jobs": [{**common, **order} for _, order in part]},
                headers={"Idempotency-Key": f"{key}.{number}" if number else key},
                repeatable=True,
            )
        except Exception as error:
            if ids:
                rendering.say(
                    f"The first {len(ids)} jobs are submitted; the ones after them are not, as far as is known."
                )
            if not isinstance(error, Failed):
                raise
            raise Failed(_by_line(str(error), part), hint=error.hint, exit_code=error.exit_code) from error
        ids += answer["jobIds"]
        if not as_json:
            for job_id in answer["jobIds"]:
                rendering.stdout().print(job_id)
    if as_json:
        rendering.write_json({"jobIds": ids, "total": len(ids)})


def _parts(orders: dict[int, dict[str, Any]]) -> Iterator[Part]:
    numbered = list(orders.items())
    for start in range(0, len(numbered), MOST_JOBS):
        yield numbered[start : start + MOST_JOBS]


def _by_line(told: str, part: Part) -> str:
    """Return what the API said of jobs by their number in a request, said of their lines in the file."""

    def line(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"line {part[number][0]}{', ' if found[2] else ''}" if number < len(part) else found[0]

    return _JOB.sub(line, told)
