"""What people and programs see: results on stdout, progress and remarks on stderr, nothing that drives a terminal."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from cli.failures import Failed

# What a terminal obeys (ECMA-48): control sequences, control strings, other escapes, then lone control characters.
_OBEYED = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
#: Characters that reverse what is read after them.
_REVERSING = re.compile("[\u202a-\u202e\u2066-\u2069]")

STATUS_STYLES: Mapping[str, str] = {
    "queued": "yellow", "running": "cyan", "completed": "green", "failed": "red", "cancelled": "magenta",
    "online": "green", "offline": "red", "ok": "green", "warn": "yellow", "fail": "bold red",
    "draining": "yellow", "degraded": "yellow", "unavailable": "bold red", "error": "red", "crashed": "red",
    "stopped": "dim", "starting": "cyan",
}  # fmt: skip
ROLES: Mapping[str, str] = {"r": "viewer", "w": "operator", "a": "admin"}


def stdout() -> Console:
    """Return the console for results."""
    return Console(file=sys.stdout, highlight=False, emoji=False, markup=False, soft_wrap=True)


def stderr() -> Console:
    """Return the console for everything that is not the result."""
    return Console(file=sys.stderr, highlight=False, emoji=False, markup=False, soft_wrap=True)


def harmless(text: str, *, colours: bool = False) -> str:
    """Return text that somebody else wrote without what a terminal would obey; `colours` may stay."""

    def keep(match: re.Match[str]) -> str:
        return match.group(0) if colours and match.group("colour") else ""

    return _REVERSING.sub("", _OBEYED.sub(keep, text))


def one_line(text: object, limit: int = 60) -> str:
    """Return somebody else's text as one line of at most `limit` characters."""
    line = " ".join(harmless(str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def write_output(text: str, stream: TextIO) -> None:
    """Write what a job printed: as it is to a file or a pipe, without what drives it to a terminal."""
    stream.write(harmless(text, colours=True) if stream.isatty() else text)
    stream.flush()


def write_json(value: Any) -> None:
    """Write one JSON value, for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


def say(text: str, style: str = "") -> None:
    """Tell people something that is not the result."""
    stderr().print(Text(text, style=style))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows, or `empty` when there are none. A cell that is a status word gets its colour."""
    from rich.table import Table  # noqa: PLC0415  not every command has a table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        cells = [one_line(cell if cell is not None else "", 80) for cell in row]
        table.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, ""), overflow="fold") for cell in cells))
    if not table.row_count:
        say(empty)
        return
    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge
    console.print(table)


def tell(answer: Any, sentence: str, *, as_json: bool) -> None:
    """Print what was done: the server's answer as JSON, or a sentence."""
    if as_json:
        write_json(answer)
    else:
        stdout().print(harmless(sentence))


def tell_more(answer: Mapping[str, Any]) -> None:
    """Say on stderr that a page is not the last one, and how to see the next."""
    if answer.get("hasMore"):
        following = answer["offset"] + answer["limit"]
        say(f"{answer['total']} in all; --offset {following} shows the next ones.", style="dim")


def ask(question: str, *, yes: bool) -> None:
    """Have somebody at a terminal agree first, unless `yes`; a program that calls us is not asked.

    Raises Failed when they do not.
    """
    if yes or not sys.stdin.isatty():
        return
    stderr().print(f"{harmless(question)} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failed("Nothing was done.")


def print_facts(facts: Iterable[tuple[str, Any]], *, to: Console | None = None) -> None:
    """Print pairs of a label and a value, leaving out what is not known."""
    known = [(label, str(value)) for label, value in facts if value not in (None, "", [], {})]
    width = max((len(label) for label, _ in known), default=0)
    for label, value in known:
        text = Text(f"{label:<{width}}  ", style="dim")
        text.append(harmless(value), style=STATUS_STYLES.get(value, "not dim"))
        (to or stdout()).print(text)


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yields what takes the bytes done and the bytes in all."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    from rich.progress import (  # noqa: PLC0415  takes longer to import than most commands run
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )  # fmt: skip

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(one_line(label, 40), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def count(number: int, noun: str) -> str:
    """Return a number of things: 1 file, 2 files."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(number_bytes: int) -> str:
    """Return a size for people: 999 B, 1.2 MB."""
    amount = float(number_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration(seconds: float) -> str:
    """Return a duration for people: 3.4 s, 2 min 5 s, 1 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def time_of(iso: str | None) -> datetime | None:
    """Read a time as the API spells it."""
    return datetime.fromisoformat(iso) if iso else None


def until(iso: str | None) -> str:
    """Return how long it is until a time, e.g. `in 3 min`."""
    at = time_of(iso)
    return "" if at is None else f"in {_roughly(max(0.0, (at - datetime.now(UTC)).total_seconds()))}"


def role(letter: str) -> str:
    """Return the word for a role's letter."""
    return ROLES.get(letter, letter)


def ago(iso: str | None) -> str:
    """Return how long ago a time was, e.g. `3 min ago`."""
    at = time_of(iso)
    if at is None:
        return ""
    return f"{_roughly((datetime.now(UTC) - at).total_seconds())} ago"


def _roughly(seconds: float) -> str:
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // unit))} {name}"
    return f"{int(seconds // 86_400)} d"
