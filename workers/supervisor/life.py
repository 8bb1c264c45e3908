"""The life of one instance: which state it is in, what follows from what happens to it, and what to do next.

Nothing here waits or touches a process: what happens is told with the time it happened, in seconds of a clock that only
goes forward, and `next` says what to do. So every rule can be tested without one.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from workers.supervisor.restart import Budget, Verdict


class State(StrEnum):
    """How an instance is."""

    STARTING = "starting"  #: it shall run, and does not yet, or is not ready yet
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"  #: it ended, and will be started again
    FAILED = "failed"  #: it ended, and will not, until somebody asks
    COMPLETED = "completed"


class Blocked(StrEnum):
    """Why an instance has failed without having ended: it is not to blame, and is taken up again by itself."""

    NO = ""
    HOPELESS = "hopeless"  #: what it depends on cannot become ready, until somebody sees to that
    LATE = "late"  #: what it depends on has not become ready in time


class Step(Enum):
    """What to do now."""

    START = auto()
    STOP = auto()


#: The states in which there is a process, or may be one.
ALIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
#: Those of a process that has ended by itself, or will not be started.
ENDED = frozenset({State.CRASHED, State.FAILED, State.COMPLETED})


@dataclass(slots=True)
class Life:
    """One instance from its first start on; `alive` tells whether there is a process."""

    budget: Budget
    wanted: bool = False
    alive: bool = False
    state: State = State.STOPPED
    message: str = ""
    restart_count: int = 0
    exit_code: int | None = None
    signal: int | None = None
    due: float | None = None  # when a crashed one is started again
    blocked: Blocked = Blocked.NO
    _began: float = 0.0
    _stopping: bool = False
    _anew: bool = field(default=False)  # it is stopped in order to be started again

    def want(self, wanted: bool) -> None:
        """Say whether it shall run. Who is stopped by hand while waiting for a restart is stopped."""
        if wanted == self.wanted:
            return
        self.wanted = wanted
        if wanted:
            self.renew()
        elif not self.alive and self.state not in {State.FAILED, State.COMPLETED}:
            self._rest(State.STOPPED)

    def renew(self) -> None:
        """Forget failures and what has been used of the budget: somebody asked for a start."""
        self.budget.used, self.due, self.blocked = 0, None, Blocked.NO
        if self.alive:
            return
        self.message, self.exit_code, self.signal = "", None, None
        self.state = State.STARTING if self.wanted else State.STOPPED

    def replace(self) -> None:
        """Have it stopped and started again, if it shall run; that is no crash."""
        if not self.wanted:
            return
        if self.alive:
            self._anew = True
        else:
            self.renew()

    def next(self, now: float) -> Step | None:
        """Return what to do at the time `now`, if anything."""
        if self.alive:
            return Step.STOP if (self._anew or not self.wanted) and not self._stopping else None
        if not self.wanted or self.state in {State.FAILED, State.COMPLETED}:
            return None
        return Step.START if self.due is None or now >= self.due else None

    def wait(self, why: str) -> None:
        """Say what keeps it from being started, unless it shall not run any more."""
        if not self.wanted:
            return
        self.message = why
        if self.state is not State.CRASHED:
            self.state = State.STARTING

    def began(self, now: float, *, adopted: bool = False) -> None:
        """Note that there is a process."""
        self.alive, self._began, self.due, self.blocked = True, now, None, Blocked.NO
        if not adopted and self.state is State.CRASHED:
            self.restart_count += 1
        self.state, self.message = State.STARTING, ""
        self.exit_code = self.signal = None

    def ready(self) -> None:
        """Note that it is ready to serve."""
        if self.state is State.STARTING and self.alive:
            self.state = State.RUNNING

    def stops(self) -> None:
        """Note that it has been told to stop."""
        self._stopping, self.state = True, State.STOPPING

    def ended(self, now: float, exit_code: int | None, signal: int | None, why: str = "") -> None:
        """Note that its process is gone; `why` is the reason where the exit code is not."""
        told, again = self._stopping, self._anew
        self.alive = self._stopping = self._anew = False
        self.exit_code, self.signal = exit_code, signal
        if told and not why:
            if again and self.wanted:
                self.renew()
            else:
                self._rest(State.STARTING if self.wanted else State.STOPPED)
            return
        succeeded = exit_code == 0 and not why
        verdict, delay_s = self.budget.judge(succeeded=succeeded, up_s=now - self._began)
        how = why or _how(exit_code, signal)
        if verdict is Verdict.COMPLETED:
            self._rest(State.COMPLETED, "")
        elif not self.wanted:
            self._rest(State.STOPPED, how)
        elif verdict is Verdict.FAILED:
            self._rest(State.FAILED, how)
        else:
            self.state, self.message, self.due = State.CRASHED, how, now + delay_s

    def unable(self, now: float, why: str) -> None:
        """Note that it could not be started at all, which counts as an end."""
        self.alive, self._began = True, now
        self.ended(now, None, None, why)

    def give_up(self, why: str, blocked: Blocked) -> None:
        """Have it failed, for the sake of what it depends on, until `take_up`."""
        self._rest(State.FAILED, why)
        self.blocked = blocked

    def take_up(self) -> None:
        """Have it tried again after all, if it was blocked."""
        if self.blocked and self.wanted:
            self.renew()

    def _rest(self, state: State, message: str | None = None) -> None:
        self.state, self.due = state, None
        if message is not None:
            self.message = message

    def remembered(self, now: float) -> dict[str, Any]:
        """Return what a later worker must know of it."""
        return {
            "state": self.state, "alive": self.alive, "message": self.message, "restart_count": self.restart_count,
            "exit_code": self.exit_code, "signal": self.signal, "used": self.budget.used,
            "blocked": self.blocked.value, "due_in_s": None if self.due is None else max(0.0, self.due - now),
        }  # fmt: skip

    def recall(self, what: dict[str, Any], now: float) -> None:
        """Take up what an earlier worker remembered; a process it may have had is told of by `began`."""
        self.state, self.message = State(what["state"]), str(what["message"])
        self.restart_count, self.budget.used = int(what["restart_count"]), int(what["used"])
        self.exit_code, self.signal = what["exit_code"], what["signal"]
        self.wanted = self.state is not State.STOPPED
        self.blocked = Blocked(what.get("blocked", ""))
        due_in_s = what["due_in_s"]
        self.due = None if due_in_s is None else now + float(due_in_s)


def _how(exit_code: int | None, signal: int | None) -> str:
    if signal is not None:
        return f"It was ended by signal {signal}."
    return f"It ended with exit code {exit_code}."
