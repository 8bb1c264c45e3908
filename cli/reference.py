"""Every command with its options, written as a page of the manual (docs/cli-reference.md) and as a man page."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from cli.later import LaterGroup
from cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = {"docs/cli-reference.md": "markdown", "share/man/man1/hostler.1": "man"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: the words that call it, what it takes, what it says of itself."""

    words: str
    usage: str
    text: str
    options: tuple[tuple[str, str], ...]
    is_group: bool


def commands() -> Iterator[Entry]:
    """Yield every command there is, groups before their own, in the order of `hostler --help`."""
    root: Any = get_command(app)
    yield from _below(root, "hostler", None)


def _below(command: Any, words: str, parent: Any) -> Iterator[Entry]:
    context = typer.Context(command, info_name=words.rpartition(" ")[2], parent=parent)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    params = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [_metavar(each) for each in params if each.param_type_name == "argument"]
    pieces = ["[OPTIONS]", *(["COMMAND ..."] if names else []), *arguments]
    yield Entry(
        words=words,
        usage=" ".join((words, *pieces)),
        text=_paragraphs(command.help or ""),
        options=tuple((_spelled(each), _said(each)) for each in params if each.help),
        is_group=bool(names),
    )
    for name in names:
        found = command.loaded(name) if isinstance(command, LaterGroup) else command.commands[name]
        if not found.hidden:
            yield from _below(found, f"{words} {name}", context)


def _metavar(param: Any) -> str:
    shown = str(param.metavar or param.name.upper())
    return shown if param.required or shown.startswith("[") else f"[{shown}]"


def _spelled(param: Any) -> str:
    if param.param_type_name == "argument":
        return _metavar(param)
    names = ", ".join(sorted(param.opts, key=len)) + "".join(f" / {each}" for each in param.secondary_opts)
    return names if param.is_flag else f"{names} {param.metavar or param.name.upper()}"


def _said(param: Any) -> str:
    shown = param.default is not None and param.show_default and not getattr(param, "is_flag", False)
    default = f" Default: {param.default}." if shown and not callable(param.default) else ""
    return f"{' '.join(param.help.split())}{default}"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def markdown() -> str:
    """Return all commands as a page of Markdown."""
    parts = [
        "# Command reference",
        "Written by `make docs` from the commands; `hostler COMMAND --help` shows the same.",
    ]
    for entry in commands():
        parts.append(f"{'##' if entry.words.count(' ') < 2 else '###'} {entry.words}")
        parts.append(f"```\n{entry.usage}\n```")
        if entry.text:
            parts.append(entry.text.replace("<", "&lt;"))
        if entry.options:
            rows = (
                f"| `{_cell(name)}` | {_cell(said).replace('<', '&lt;')} |" for name, said in entry.options
            )
            parts.append("\n".join(("| option | |", "|---|---|", *rows)))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def man() -> str:
    """Return all commands as a man page, in the macros of man."""
    every = list(commands())
    lines = [
        '.TH HOSTLER 1 "" "Hostler" "User Commands"',
        ".SH NAME",
        "hostler \\- run commands on a fleet of machines, durably",
        ".SH SYNOPSIS",
        _roff(every[0].usage),
        ".SH DESCRIPTION",
        "Every command takes \\fB\\-\\-help\\fR. Those that show something take \\fB\\-\\-json\\fR, and then print "
        "one JSON value on standard output; what is no result goes to standard error.",
        ".SH COMMANDS",
    ]
    for entry in every[1:]:
        lines += [f".SS {_roff(entry.words)}", _roff(entry.usage)]
        for paragraph in entry.text.split("\n\n") if entry.text else []:
            lines += [".PP", _roff(paragraph)]
        for name, said in entry.options:
            lines += [".TP", f"\\fB{_roff(name)}\\fR", _roff(" ".join(said.split())) or "\\&"]
    lines += [".SH EXIT STATUS"]
    for code, meaning in EXITS:
        lines += [".TP", f"\\fB{code}\\fR", _roff(meaning)]
    lines += [".SH ENVIRONMENT"]
    for name, meaning in ENVIRONMENT:
        lines += [".TP", f"\\fB{name}\\fR", _roff(meaning)]
    return "\n".join(lines) + "\n"


EXITS = (
    ("0", "It succeeded; where a job is followed, the job did."),
    ("1", "It failed. The message says why, and which command to try next."),
    ("2", "The command line was not understood."),
    ("124, 125, 130", "A job that was followed ran out of time; was lost or could not start; was cancelled."),
    ("other", "A job that was followed ended with it."),
)
ENVIRONMENT = (
    ("HOSTLER_URL", "Address of the server."),
    ("HOSTLER_API_KEY", "API key to call it with; HOSTLER_TOKEN takes a session's token."),
    ("HOSTLER_CONTEXT", "Which of the servers that login saved to use."),
    ("HOSTLER_CONFIG", "The file in which login saves them."),
)


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


WRITERS: dict[str, Callable[[], str]] = {"markdown": markdown, "man": man}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with `--check` only say which are not what they should be."""
    stale = []
    for path, how in PAGES.items():
        text, file = WRITERS[how](), ROOT / path
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if "--check" not in arguments:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    if "--check" in arguments and stale:
        sys.stderr.write(f"Not up to date, run `make docs`: {', '.join(stale)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
