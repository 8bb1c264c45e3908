"""The runs of an app's scheduled processes: which are due, which are under way, and how they ended."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from storage.apps import KEPT_RUNS, Run, ScheduleState, Wanted
from storage.errors import NotFound
from storage.manifests import Process
from workers.supervisor.instance import Instance
from workers.supervisor.life import State
from workers.supervisor.schedule import Timetable

#: An instance: the name of its process, and its number.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Begun:
    """A run of a schedule that is under way; `trigger` is the number under which it was asked for by hand, or 0."""

    at_ms: int
    trigger: int = 0


class Stage(Protocol):
    """What runs need of the app that they are runs of."""

    instances: dict[Key, Instance]

    @property
    def held(self) -> bool:
        """Tell whether nothing of it shall run for now."""

    def can_start(self) -> bool:
        """Tell whether there is a release to start."""

    def add(self, process: Process, index: int) -> Instance:
        """Make an instance."""

    def remove(self, key: Key) -> None:
        """Drop an instance that has ended."""

    def note(self, run: Run) -> None:
        """Keep a run that has ended."""

    def change(self) -> None:
        """Say that something has changed."""


class Runs:
    """All runs of the scheduled processes of one app."""

    def __init__(self, app_id: str, stage: Stage) -> None:
        self.timetables: dict[str, Timetable] = {}
        self.under_way: dict[Key, Begun] = {}
        self._app_id, self._stage = app_id, stage
        self._triggered: dict[Key, Run] = {}  # how runs ended that were asked for by hand, by their number

    # From one worker to the next

    def recall(self, processes: Iterable[Process], remembered: Mapping[str, dict[str, Any]]) -> None:
        """Go on with what an earlier worker knew of these processes."""
        for process in processes:
            if process.type == "scheduled":
                table = self.timetables.setdefault(process.name, Timetable(process))
                if process.name in remembered:
                    table.recall(remembered[process.name])

    def adopt(self, instance: Instance, begun_ms: int | None, trigger: int) -> None:
        """Take over a run that began under an earlier worker."""
        self.under_way[instance.process.name, instance.index] = Begun(begun_ms or _now_ms(), trigger)

    def remembered(self) -> dict[str, dict[str, Any]]:
        """Return what a later worker must know of each process."""
        return {name: table.remembered() for name, table in self.timetables.items()}

    def triggers(self) -> dict[str, int]:
        """Return under which number each run was asked for by hand that is under way, by its instance."""
        return {f"{name}-{index}": run.trigger for (name, index), run in self.under_way.items()}

    # What is wished

    def keep_only(self, names: Collection[str]) -> None:
        """Forget processes that there are no more."""
        for name in set(self.timetables) - set(names):
            del self.timetables[name]
            self.under_way = {key: run for key, run in self.under_way.items() if key[0] != name}

    def wish(self, process: Process, wanted: Wanted, *, known: bool) -> set[Key]:
        """Take up what is wished of a process; answers which of its instances go on.

        `known`: it was wished for before, so that runs asked for by hand since are due.
        """
        held = self._stage.held
        running = wanted.running and not held
        table = self.timetables.setdefault(process.name, Timetable(process))
        table.process, table.paused = process, wanted.paused
        table.arm(_now_ms(), armed=running and not wanted.paused)
        asked = table.ask(wanted.triggers, known=known)
        if not wanted.running:  # what is stopped does not run later, either
            table.pending = 0
        elif not held:
            table.pending += asked
        return {key for key in self.under_way if key[0] == process.name and running}

    # What happens

    def tick(self) -> None:
        """Begin the runs that are due, and note those that have ended."""
        for table in self.timetables.values():
            self._collect(table)
            if table.due(_now_ms()) and self._slots(table):
                self._begin(table, 0)
            while table.pending and self._slots(table) and not self._stage.held:
                table.pending -= 1
                self._begin(table, table.triggers - table.pending)

    def _slots(self, table: Timetable) -> list[int]:
        name = table.process.name
        return [index for index in range(table.most) if (name, index) not in self._stage.instances]

    def _begin(self, table: Timetable, trigger: int) -> None:
        if not self._stage.can_start():
            return
        index, now_ms = self._slots(table)[0], _now_ms()
        self.under_way[table.process.name, index] = Begun(now_ms, trigger)
        table.began(now_ms)
        self._stage.add(table.process, index).want(True)
        self._stage.change()

    def _collect(self, table: Timetable) -> None:
        for key in [each for each in self.under_way if each[0] == table.process.name]:
            instance = self._stage.instances.get(key)
            if instance is not None and (
                instance.lives or instance.life.state in {State.STARTING, State.CRASHED}
            ):
                continue
            begun = self.under_way.pop(key)
            if instance is None:
                continue
            life = instance.life
            table.ended(life.exit_code, succeeded=life.state is State.COMPLETED)
            run = Run(
                f"{self._app_id}/{key[0]}-{key[1]}/{begun.at_ms}", key[0], key[1], begun.at_ms, _now_ms(),
                life.exit_code, life.signal, "trigger" if begun.trigger else "schedule",
            )  # fmt: skip
            self._stage.note(run)
            if begun.trigger:
                self._triggered[key[0], begun.trigger] = run
                while len(self._triggered) > KEPT_RUNS:  # nobody waits for the oldest any more
                    del self._triggered[next(iter(self._triggered))]
            self._stage.remove(key)
            self._stage.change()

    # What is told

    def of(self, process: str, trigger: int) -> Run | None:
        """Return how the run ended that was asked for under this number; None while it has not.

        Raises NotFound when nobody here remembers it, since the worker was another one then.
        """
        if (run := self._triggered.pop((process, trigger), None)) is not None:
            return run
        table = self.timetables.get(process)
        waiting = table is not None and (table.triggers < trigger or trigger > table.triggers - table.pending)
        if waiting or any(
            each.trigger == trigger for key, each in self.under_way.items() if key[0] == process
        ):
            return None
        raise NotFound(f"How that run of {process!r} ended is in the history of its runs.")

    def shown(self) -> dict[str, ScheduleState]:
        """Return how the schedules do."""
        return {
            name: ScheduleState(
                executing=sum(1 for key in self.under_way if key[0] == name), next_ms=table.next_ms,
                last_ms=table.last_ms, run_count=table.run_count, success_rate=table.success_rate,
                last_exit_code=table.last_exit_code,
            )
            for name, table in self.timetables.items()
        }  # fmt: skip


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
