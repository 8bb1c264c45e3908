"""Scheduled processes: when the next run is due, and how the runs so far went."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from storage import schedules
from storage.manifests.parts import Process

#: Runs at once of a process that allows any number.
MOST_AT_ONCE = 100
#: So many runs count for the rate of success.
RATED_RUNS = 100


@dataclass(slots=True)
class Timetable:
    """The runs of one scheduled process. Times are milliseconds since the epoch.

    What was due while the node was away, or while as many runs as may be were under way, is left out, as cron(8) does.
    """

    process: Process
    next_ms: int | None = None
    last_ms: int | None = None
    run_count: int = 0
    last_exit_code: int | None = None
    paused: bool = False
    triggers: int = 0  # so many were asked for by hand, and acted upon
    pending: int = 0  # runs that are due and have not been started
    _results: deque[bool] = field(default_factory=lambda: deque(maxlen=RATED_RUNS))

    @property
    def most(self) -> int:
        """Return how many runs there may be at once."""
        return min(self.process.max_concurrent or MOST_AT_ONCE, MOST_AT_ONCE)

    @property
    def success_rate(self) -> float | None:
        """Return the share of the latest runs that succeeded, in per cent; None before the first."""
        return round(100 * sum(self._results) / len(self._results), 2) if self._results else None

    def arm(self, now_ms: int, *, armed: bool) -> None:
        """Say whether runs come due at all."""
        if not armed or self.process.schedule is None:
            self.next_ms = None
        elif self.next_ms is None:
            self.next_ms = schedules.following(self.process.schedule, self.process.timezone, now_ms)

    def due(self, now_ms: int) -> bool:
        """Tell whether a run is due, and look for the one after it."""
        if self.next_ms is None or now_ms < self.next_ms:
            return False
        self.next_ms = None
        self.arm(now_ms, armed=True)
        return True

    def ask(self, triggers: int, *, known: bool) -> int:
        """Return how many runs somebody asked for by hand since; the first time that is looked at, none."""
        asked = max(0, triggers - self.triggers) if known else 0
        self.triggers = triggers
        return asked

    def began(self, now_ms: int) -> None:
        """Count a run that begins."""
        self.last_ms, self.run_count = now_ms, self.run_count + 1

    def ended(self, exit_code: int | None, *, succeeded: bool) -> None:
        """Note how a run ended."""
        self.last_exit_code = exit_code
        self._results.append(succeeded)

    def remembered(self) -> dict[str, Any]:
        """Return what a later worker must know."""
        return {
            "last_ms": self.last_ms, "run_count": self.run_count, "last_exit_code": self.last_exit_code,
            "triggers": self.triggers, "pending": self.pending, "results": list(self._results),
        }  # fmt: skip

    def recall(self, what: dict[str, Any]) -> None:
        """Take up what an earlier worker remembered."""
        self.last_ms, self.run_count = what["last_ms"], int(what["run_count"])
        self.last_exit_code, self.triggers = what["last_exit_code"], int(what["triggers"])
        self.pending = int(what.get("pending", 0))
        self._results.extend(bool(each) for each in what["results"])
