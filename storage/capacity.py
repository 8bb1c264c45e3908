"""Capacity: how many workers a load needs, and how soon a queue is empty; what advises is what is simulated.

The rule, in slots: those that are busy now, which is what arrivals keep busy (Little's law: arrivals a second times
seconds a job), and beside them as many as work off what waits within the target (jobs times seconds a job, divided by
the target's seconds). It needs no rate of arrivals: where slots are too few, the queue grows, and
the second term with it.
"""

import math
from dataclasses import dataclass

#: Assumed of a job before any has ended.
UNKNOWN_RUN_S = 1.0
#: Assumed of a worker where none is known.
DEFAULT_SLOTS = 2
#: What is aimed at where nobody says otherwise: a job that waits starts within a minute.
TARGET_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What asks for slots: jobs that wait, jobs that run, and how long one runs on average."""

    waiting: int
    running: int
    mean_run_s: float = UNKNOWN_RUN_S


@dataclass(frozen=True, slots=True)
class Advice:
    """How many slots and workers meet the target."""

    slots: int
    workers: int


def advise(load: Load, *, slots_per_worker: float, target_s: float = TARGET_S) -> Advice:
    """Return what starts every job that waits within `target_s` seconds; nothing where nothing waits or runs."""
    backlog = load.waiting * load.mean_run_s / max(target_s, 0.001)
    # of what waits, no more can be worked on at once than there are jobs
    slots = load.running + min(load.waiting, math.ceil(backlog - 1e-9))
    if load.waiting:
        slots = max(slots, 1)
    return Advice(slots, math.ceil(slots / max(slots_per_worker, 1)))


def drain_s(load: Load, slots: int) -> float | None:
    """Return in how many seconds `slots` work off what waits, if nothing is added; None where there are no slots."""
    if not load.waiting:
        return 0.0
    if slots <= 0:
        return None
    return load.waiting * load.mean_run_s / slots
