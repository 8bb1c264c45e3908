"""What a figure is: a measurement of Hostler, the anchors beside it, and what their ratio shall be."""

import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: One round's result: a number, or several by name (`p50`, `p99`).
Measurement = float | Mapping[str, float]
#: Measures one round.
Measure = Callable[[], Measurement | Awaitable[Measurement]]


class Missing(Exception):
    """This machine lacks what a measurement needs; the text says what, and how to get it."""


class Bench:
    """One run of one figure: how thorough it is, and what ends with it."""

    def __init__(self, *, quick: bool = False, long: bool = False) -> None:
        self.quick = quick
        self.long = long
        self._held = contextlib.ExitStack()
        self._shared: dict[str, object] = {}
        self.directory = Path(self.enter(tempfile.TemporaryDirectory(prefix="hostler-bench-")))
        self.directory.chmod(0o711)  # jobs run as other users and pass through

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter `context` until the figure is done."""
        return self._held.enter_context(context)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` made when `name` was first asked for, so that a figure's parts can share a server."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]  # type: ignore[return-value]  # what one name stands for has one type

    def close(self) -> None:
        """End whatever was entered, the last first."""
        self._held.close()


#: Sets a measurement up, yields what measures one round, and tears it down. May raise Missing.
Open = Callable[[Bench], AbstractContextManager[Measure]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What shall hold of the median over all rounds: of own to anchor, or without an anchor of own alone."""

    limit: float
    anchor: str | None = None
    metric: str = ""  #: which one, where a measurement has several
    at_most: bool = False  #: the limit is one from above
    stretch: float | None = None
    unit: str = ""  #: default: the figure's

    def holds(self, value: float) -> bool:
        """Tell whether `value` is within the limit."""
        return value <= self.limit if self.at_most else value >= self.limit


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line (or one a goal) of the table."""

    id: str
    what: str
    unit: str  #: as printed behind a number: `/s`, ` ms`, ` %`
    own: Open
    goals: tuple[Goal, ...]
    anchors: Mapping[str, Open] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()  #: what differs from production's defaults, and why
    rounds: int = 5
    quick_rounds: int = 2
    notes: tuple[str, ...] = ()  #: what a reader must know, such as the reason of a miss
