"""What a load target is: figures of one load, each with its limit, judged in one line."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figure import Bench, Goal, Missing

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Found:
    """What one load came to: figures by the name that limits use, and what else there is to say of it."""

    figures: Mapping[str, float]
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table."""

    id: str
    what: str
    limits: tuple[Goal, ...]  #: without anchors
    measure: Callable[[Bench], Found | Awaitable[Found]]  #: may raise Missing
    overrides: tuple[str, ...] = ()  #: what differs from production's defaults, and why
    notes: tuple[str, ...] = ()  #: what a reader must know
    reason: str = ""  #: why it is missed where it is


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one target."""

    target: Target
    outcome: str  #: PASS, FAIL or SKIP
    found: Found = field(default_factory=lambda: Found({}))
    why: str = ""

    def line(self) -> str:
        """Return the verdict as one line."""
        words = [self.target.id, ", ".join([*self.amounts(), *self.found.said]), self.outcome, self.why]
        return " ".join(word for word in words if word)

    def amounts(self) -> list[str]:
        """Return each figure beside its limit."""
        known = self.found.figures
        return [_beside(known[each.metric], each) for each in self.target.limits if each.metric in known]

    def as_json(self) -> dict[str, Any]:
        """Return the verdict for load.json."""
        return {
            "what": self.target.what,
            "outcome": self.outcome,
            "why": self.why,
            "figures": dict(self.found.figures),
            "limits": {
                each.metric: {
                    "at_most" if each.at_most else "at_least": each.limit,
                    "unit": each.unit.strip(),
                }
                for each in self.target.limits
            },
            "amounts": self.amounts(),
            "said": list(self.found.said),
            "overrides": list(self.target.overrides),
            "notes": list(self.target.notes),
        }


def at_most(metric: str, limit: float, unit: str = "") -> Goal:
    """Return a limit from above."""
    return Goal(limit=limit, metric=metric, unit=unit, at_most=True)


def at_least(metric: str, limit: float, unit: str = "") -> Goal:
    """Return a limit from below."""
    return Goal(limit=limit, metric=metric, unit=unit)


def shown(value: float) -> str:
    """Return a number with three digits that count, and whole ones as they are."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _beside(value: float, goal: Goal) -> str:
    sign, unit = "<=" if goal.at_most else ">=", goal.unit.strip()
    return f"{goal.metric} {shown(value)}{unit} {sign}{shown(goal.limit)}{unit}"


def run(target: Target, *, long: bool = False) -> Verdict:
    """Measure a target once and judge it."""
    with closing(Bench(long=long)) as bench:
        try:
            found = _measured(target, bench)
        except Missing as error:
            return Verdict(target=target, outcome="SKIP", why=str(error))
        except Exception as error:  # noqa: BLE001, RUF100  one that breaks must not hide the others
            return Verdict(target=target, outcome="FAIL", why=f"{type(error).__name__}: {error}")
    missed = [each.metric for each in target.limits if not each.holds(found.figures[each.metric])]
    why = f"({', '.join(missed)}) {target.reason}".strip() if missed else ""
    return Verdict(target=target, outcome="FAIL" if missed else "PASS", found=found, why=why)


def _measured(target: Target, bench: Bench) -> Found:
    answer = target.measure(bench)
    if not inspect.isawaitable(answer):
        return answer

    async def awaited() -> Found:
        return await answer

    return asyncio.run(awaited())


def write(
    verdict: Verdict, before: dict[str, Any], after: dict[str, Any], *, long: bool, folder: Path = HERE
) -> None:
    """Write LOAD.md and load.json into `folder`; targets that were not run keep what an earlier run found."""
    path = folder / "load.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    entries: dict[str, Any] = known.get("targets", {})
    circumstances = {"long": long, "commit": after["commit"], "load": [before["load"][0], after["load"][0]]}
    entries[verdict.target.id] = {**verdict.as_json(), **circumstances}
    entries = dict(sorted(entries.items()))
    path.write_text(json.dumps({"last_run": after, "targets": entries}, indent=1) + "\n")
    (folder / "LOAD.md").write_text(_markdown(after, entries))


def _markdown(run: dict[str, Any], entries: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in run["packages"].items())
    lines = [
        "# Load targets",
        "",
        "Written by `make load`; see README.md for how it measures.",
        "",
        f"Last run: {run['at']}, {run['cores']} cores, commit {run['commit']}, Python {run['python']}, kernel "
        f"{run['kernel']}, {packages}.",
        "",
        "| target | load | measured, and the limit | besides | |",
        "|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        outcome = f"{entry['outcome']}{': ' + entry['why'] if entry['why'] else ''}"
        cells = [name, entry["what"], "; ".join(entry["amounts"]), "; ".join(entry["said"]), outcome]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    lines += ["", "## What differs from production's defaults, and what to know", ""]
    for name, entry in entries.items():
        setting = ", the long setting" if entry["long"] else ""
        lines.append(
            f"- {name} (commit {entry['commit']}, load {entry['load'][0]} to {entry['load'][1]}{setting})"
        )
        lines += [f"  - {text}" for text in [*entry["overrides"], *entry["notes"]]]
    return "\n".join(lines) + "\n"
