"""Runs figures: interleaves own measurements and anchors, and judges the ratios of each round by their median."""

import asyncio
import contextlib
import inspect
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.figure import Bench, Figure, Goal, Measure, Measurement, Missing


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one goal."""

    figure: str
    metric: str
    anchor: str | None
    goal: float
    at_most: bool
    stretch: float | None
    outcome: str  #: PASS, FAIL or SKIP
    value: float | None = None  #: the median ratio, or without an anchor the median itself
    low: float | None = None
    high: float | None = None
    own: float | None = None
    beside: float | None = None  #: the anchor's median
    unit: str = ""
    why: str = ""

    def line(self) -> str:
        """Return the verdict as one line."""
        words = [self.figure, *([self.metric] if self.metric else [])]
        limit = f"{'<=' if self.at_most else ''}{_short(self.goal)}"
        if self.outcome == "SKIP":
            return " ".join([*words, "goal", limit, *self._anchor(), "SKIP", self.why])
        spread = f"spread {_short(self.low or 0)}-{_short(self.high or 0)}"
        if self.anchor is None:
            words += [_amount(self.own, self.unit), "goal", f"{limit}{self.unit.strip()}", spread]
        else:
            words += ["ratio", _short(self.value or 0), "goal", limit, *self._anchor()]
            words += ["own", _amount(self.own, self.unit), spread]
        return " ".join([*words, self.outcome, *([self.why] if self.why else [])])

    def _anchor(self) -> list[str]:
        if self.anchor is None:
            return []
        return [
            "anchor",
            self.anchor,
            *([_amount(self.beside, self.unit)] if self.beside is not None else []),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the verdict for results.json."""
        return asdict(self)


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def _amount(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{_short(value) if value < 100 else format(value, '.0f')}{unit.strip()}"


def run(figure: Figure, *, quick: bool) -> list[Verdict]:
    """Measure a figure in rounds and return a verdict for each of its goals."""
    bench = Bench(quick=quick)
    missing: dict[str, str] = {}
    measures: dict[str, Measure] = {}
    rounds: list[dict[str, Measurement]] = []
    with _closed_beside(bench) if quick else contextlib.closing(bench), asyncio.Runner() as runner:
        try:
            for name, opens in {"own": figure.own, **figure.anchors}.items():
                try:
                    measures[name] = bench.enter(opens(bench))
                except Missing as error:
                    missing[name] = str(error)
                    if name == "own":
                        break
            if "own" not in missing:
                for number in range(figure.quick_rounds if quick else figure.rounds):
                    order = list(measures) if number % 2 == 0 else list(reversed(measures))
                    rounds.append({name: _measured(runner, measures[name]) for name in order})
                    _progress(figure, number, rounds[-1])
        except Exception as error:  # noqa: BLE001, RUF100  one figure that breaks must not hide the others
            return [
                _verdict(figure, goal, [], broken=f"{type(error).__name__}: {error}") for goal in figure.goals
            ]
    return [_verdict(figure, goal, rounds, missing=missing) for goal in figure.goals]


@contextlib.contextmanager
def _closed_beside(bench: Bench) -> Iterator[None]:
    """Have a figure's servers end while those of the next one start, which takes longer."""
    try:
        yield
    finally:
        threading.Thread(target=bench.close).start()


def _measured(runner: asyncio.Runner, measure: Measure) -> Measurement:
    answer = measure()
    if not inspect.isawaitable(answer):
        return answer

    async def awaited() -> Measurement:
        return await answer

    return runner.run(awaited())


def _progress(figure: Figure, number: int, measured: Mapping[str, Measurement]) -> None:
    print(f"  {figure.id} round {number + 1}: {measured}", file=sys.stderr, flush=True)


def _of(measurement: Measurement, metric: str) -> float:
    return measurement[metric or "value"] if isinstance(measurement, Mapping) else measurement


def _verdict(
    figure: Figure,
    goal: Goal,
    rounds: list[dict[str, Measurement]],
    *,
    missing: Mapping[str, str] | None = None,
    broken: str = "",
) -> Verdict:
    known: dict[str, Any] = {
        "figure": figure.id, "metric": goal.metric, "anchor": goal.anchor, "goal": goal.limit,
        "at_most": goal.at_most, "stretch": goal.stretch, "unit": goal.unit or figure.unit,
    }  # fmt: skip
    lacks = {**(missing or {})}
    reason = lacks.get("own") or lacks.get(goal.anchor or "")
    if reason:
        return Verdict(**known, outcome="SKIP", why=reason)
    if broken:
        return Verdict(**known, outcome="FAIL", why=broken, value=0, low=0, high=0)
    own = [_of(each["own"], goal.metric) for each in rounds]
    beside = [_of(each[goal.anchor], goal.metric) for each in rounds] if goal.anchor else [1.0] * len(own)
    ratios = [mine / other for mine, other in zip(own, beside, strict=True)]
    value = statistics.median(ratios)
    passed = goal.holds(value)
    return Verdict(
        **known,
        outcome="PASS" if passed else "FAIL",
        value=value,
        low=min(ratios),
        high=max(ratios),
        own=statistics.median(own),
        beside=statistics.median(beside) if goal.anchor else None,
        why="" if passed else " ".join(figure.notes),
    )
