"""Capacity: how many workers a load needs, and how soon a queue is empty; what advises is what is simulated.

The rule, in slots, for `waiting` jobs beside `running` ones that take `run` seconds each on average, and a target:

    the greater of  running  and  (waiting + running) * run / (run + target)

With c slots, those that are free start a job at once and each starts one more every `run` seconds, so within the target
(c - running) + c * target / run jobs start; the second term is where these are all that wait. The first keeps what
arrivals keep busy (Little's law: arrivals a second times seconds a job). It needs no rate of arrivals: where slots are
too few, the queue grows, and with it the second term; it does not grow by itself while a queue is worked off.
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
    run_s = max(load.mean_run_s, 0.0)
    started = (load.waiting + load.running) * run_s / (run_s + max(target_s, 0.001))
    slots = max(load.running, math.ceil(started - 1e-9))
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
