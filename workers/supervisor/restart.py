"""Restarts: whether an instance that ended is started again, when, and how often before it counts as failed."""

from dataclasses import dataclass
from enum import Enum, auto

from storage.manifests.parts import Restart


class Verdict(Enum):
    """What follows from an end."""

    AGAIN = auto()
    COMPLETED = auto()
    FAILED = auto()


@dataclass(slots=True)
class Budget:
    """The restarts that one instance has used of those its policy allows in a row."""

    rules: Restart
    runs_once: bool
    used: int = 0

    def judge(self, *, succeeded: bool, up_s: float) -> tuple[Verdict, float]:
        """Return what follows from an end after `up_s` seconds, and how many seconds to wait before a restart.

        Who has run for as long as the stability window has all attempts back; a negative window never gives any.
        """
        rules = self.rules
        if 0 <= rules.stability_s <= up_s:
            self.used = 0
        if succeeded and (self.runs_once or rules.policy == "on-failure"):
            return Verdict.COMPLETED, 0.0
        if rules.policy == "never" or self.used >= rules.attempts:
            return Verdict.FAILED, 0.0
        delay_s = rules.delay_s(self.used)
        self.used += 1
        return Verdict.AGAIN, delay_s
