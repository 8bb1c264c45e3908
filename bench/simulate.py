"""`make simulate`: replays arrivals of jobs against a model of Hostler, to plan fleets that this machine cannot run.

A discrete-event simulation. Web processes and Redis serve one request after another at the costs that were measured
(calibration.py); slots take the longest-waiting job; the autoscaler is storage/capacity.py itself, asked at intervals,
as KEDA or `hostler autoscale advise` would. What is assumed beyond that is printed with every result.
"""

import argparse
import csv
import heapq
import itertools
import json
import math
import random
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench import calibration
from bench.calibration import Costs
from storage import capacity
from storage.capacity import Load

HERE = Path(__file__).parent
#: How often a worker beats, and looks for work that it was not told of (HOSTLER_HEARTBEAT_S, executor.POLL_S).
HEARTBEAT_S, POLL_S = 5.0, 2.0
#: A part that is busier than this has no room for what comes unevenly.
TOO_BUSY = 0.7

ASSUMPTIONS = (
    "Redis and each web process serve one request after another, each at the mean cost that was measured. There is one "
    "Redis: clusters are not supported.",
    "Every worker beats every 5 s and looks for work every 2 s while it has a free slot. A job that has to wait while "
    "no other one does wakes all workers (PUBLISH h:wake), which costs Redis the more the more workers there are; one "
    "that finds a free slot is handed over at once.",
    "Jobs are alike but for how long their command takes, of one priority, without files, and print one piece of "
    "output. Their times are exponential about the mean unless a trace gives them.",
    "A slot is lost to a job for what starting and settling took on the machine of the measurement, on two cores; "
    "workers have cores enough for their slots.",
    "Workers are alike and never fail. A new one is ready after the start delay; one too many leaves as its slots "
    "become free, and only after fewer were advised for the whole cooldown.",
    "The network costs nothing beyond what the measurement on loopback holds.",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    name: str
    trace: str = "steady"  #: steady, diurnal, burst, or the path of a CSV
    rate_per_s: float = 100.0  #: mean of steady and diurnal, ground load of burst
    duration_s: float = 600.0
    run_s: float = 2.0  #: mean of what commands take
    burst_jobs: int = 0  #: that come at once, at a third of the duration
    swing: float = 0.8  #: diurnal: how far the rate goes up and down, as a share of the mean
    workers: int | None = None  #: fixed; None lets the autoscaler decide
    least_workers: int = 0
    most_workers: int = 10_000
    slots: int = 2  #: of each worker
    target_s: float = capacity.TARGET_S
    interval_s: float = 15.0  #: how often the autoscaler asks
    start_delay_s: float = 30.0  #: until a new worker is ready
    cooldown_s: float = 300.0
    web_processes: int = 8
    seed: int = 1


@dataclass
class Outcome:
    """What came of a plan."""

    plan: Plan
    jobs: int = 0
    wait_p50_s: float = 0.0
    wait_p95_s: float = 0.0
    wait_p99_s: float = 0.0
    wait_max_s: float = 0.0
    within_target: float = 0.0
    peak_queue: int = 0
    mean_workers: float = 0.0
    peak_workers: int = 0
    worker_hours: float = 0.0
    slot_use: float = 0.0
    redis_busy: float = 0.0
    redis_busy_peak: float = 0.0  #: of any ten seconds
    web_busy: float = 0.0
    emptied_s: float = 0.0  #: when the last job ended
    problems: list[str] = field(default_factory=list)


def arrivals(plan: Plan, chance: random.Random) -> Iterator[tuple[float, float]]:
    """Return when jobs come and how long each takes, in seconds, in order. Raises OSError, ValueError for a bad CSV."""
    if plan.trace not in {"steady", "diurnal", "burst"}:
        yield from _from_csv(Path(plan.trace), plan.run_s, chance)
        return
    peak = plan.rate_per_s * (1 + plan.swing if plan.trace == "diurnal" else 1)
    burst_at = plan.duration_s / 3
    burst = plan.burst_jobs if plan.trace == "burst" else 0
    now = 0.0
    while True:
        now += chance.expovariate(peak) if peak else math.inf
        if burst and now >= burst_at:
            yield from ((burst_at, chance.expovariate(1 / plan.run_s)) for _ in range(burst))
            burst = 0
        if now >= plan.duration_s:
            return
        if plan.trace == "diurnal":  # one day, pressed into the duration; thinned from its peak
            rate = plan.rate_per_s * (1 - plan.swing * math.cos(2 * math.pi * now / plan.duration_s))
            if chance.random() * peak > rate:
                continue
        yield now, chance.expovariate(1 / plan.run_s)


def _from_csv(path: Path, run_s: float, chance: random.Random) -> Iterator[tuple[float, float]]:
    """Read `at_s` and, where it is given, `run_s` of each job."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if "at_s" not in (rows.fieldnames or ()):
            raise ValueError(f"{path} has no column at_s.")
        before = 0.0
        for number, row in enumerate(rows, 2):
            try:
                at_s = float(row["at_s"])
                took_s = float(row["run_s"]) if row.get("run_s") else chance.expovariate(1 / run_s)
            except ValueError:
                raise ValueError(f"{path}, line {number}: at_s and run_s are numbers of seconds.") from None
            if at_s < before or took_s < 0:
                raise ValueError(f"{path}, line {number}: times go up, and none is below zero.")
            before = at_s
            yield at_s, took_s


class _Line:
    """One who serves requests one after another; or several, who share what comes."""

    def __init__(self, count: int = 1) -> None:
        self._free_at = [0.0] * count
        self.busy_s = 0.0

    def serve(self, now: float, cost_s: float) -> float:
        """Return when a request that comes now and costs so much is done."""
        done = max(now, heapq.heappop(self._free_at)) + cost_s
        heapq.heappush(self._free_at, done)
        self.busy_s += cost_s
        return done


#: What happens: a job has been accepted, a job has ended, the autoscaler is asked, workers are ready.
_ACCEPTED, _ENDED, _ASKED, _READY = range(4)


class Simulation:
    """One run of a plan."""

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self.plan, self.costs = plan, costs
        self._chance = random.Random(plan.seed)  # noqa: S311  the same plan shall give the same answer
        self._events: list[tuple[float, int, int, float, float]] = []
        self._numbers = itertools.count()
        self._web, self._redis = _Line(plan.web_processes), _Line()
        self._queue: deque[tuple[float, float]] = deque()
        self.workers = plan.workers if plan.workers is not None else plan.least_workers
        self._coming = 0  # workers that start
        self._running = 0
        self._advised: deque[tuple[float, int]] = deque()
        self._recent: deque[float] = deque(maxlen=200)
        self._waits: list[float] = []
        self._ran_s = 0.0
        self._worker_s = 0.0
        self._since = 0.0
        self._window = (0.0, 0.0)  # when ten seconds began, and how busy Redis had been by then
        self.outcome = Outcome(plan)

    def run(self) -> Outcome:
        """Simulate until the last job has ended."""
        coming = arrivals(self.plan, self._chance)
        following = next(coming, None)
        if self.plan.workers is None:
            self._later(0.0, _ASKED)
        now = 0.0
        while following is not None or self._queue or self._running or self._busy_events():
            if following is not None and (not self._events or following[0] <= self._events[0][0]):
                now = following[0]
                self._arrive(*following)
                following = next(coming, None)
                continue
            if not self._events:
                self.outcome.problems.append(f"{len(self._queue)} jobs wait for ever: there are no workers.")
                break
            now, _, kind, first, second = heapq.heappop(self._events)
            self._account(now)
            if kind == _ACCEPTED:
                self._accepted(now, first, second)
            elif kind == _ENDED:
                self._ended(now, first)
            elif kind == _READY:
                self._coming -= int(first)
                self.workers += int(first)
                self._fill(now)
            elif now > 100 * self.plan.duration_s + 86_400:
                self.outcome.problems.append("It would never end.")
                break
            else:
                self._ask(now)
                self._later(now + self.plan.interval_s, _ASKED)
        return self._told(now)

    def _busy_events(self) -> bool:
        return any(kind in {_ACCEPTED, _ENDED} for _, _, kind, _, _ in self._events[:3])

    def _later(self, at_s: float, kind: int, first: float = 0.0, second: float = 0.0) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), kind, first, second))

    @property
    def _slots(self) -> int:
        return self.workers * self.plan.slots

    def _redis_s(self, cost_us: float) -> float:
        """Return how long Redis takes for something, beside what all workers ask of it all the time."""
        idle = max(0, self._slots - self._running) / self.plan.slots
        standing = (
            self.workers * self.costs.beat_us / HEARTBEAT_S + idle * self.costs.empty_claim_us / POLL_S
        ) / 1e6
        return cost_us / 1e6 / max(0.02, 1 - standing)

    def _account(self, now: float) -> None:
        self._worker_s += (now - self._since) * self.workers
        self._since = now
        began, busy_s = self._window
        if now - began >= 10:
            share = min(1.0, (self._redis.busy_s - busy_s) / (now - began))
            self.outcome.redis_busy_peak = max(self.outcome.redis_busy_peak, share)
            self._window = (now, self._redis.busy_s)

    def _arrive(self, now: float, run_s: float) -> None:
        self._account(now)
        served = self._web.serve(now, 1 / self.costs.web_submits_per_s)
        is_news = not self._queue and self._running >= self._slots
        wakes_us = self.workers * self.costs.wake_us if is_news else 0.0
        accepted = self._redis.serve(served, self._redis_s(self.costs.submit_us + wakes_us))
        self._later(accepted, _ACCEPTED, run_s, now)

    def _accepted(self, now: float, run_s: float, came_s: float) -> None:
        self._queue.append((came_s, run_s))
        self.outcome.peak_queue = max(self.outcome.peak_queue, len(self._queue))
        self._fill(now)

    def _fill(self, now: float) -> None:
        while self._queue and self._running < self._slots:
            came_s, run_s = self._queue.popleft()
            self._running += 1
            claimed = self._redis.serve(now, self._redis_s(self.costs.claim_us))
            begins = max(claimed, came_s + self.costs.start_s)
            self._waits.append(begins - came_s)
            self._ran_s += run_s
            self._later(begins + run_s + self.costs.worker_overhead_s, _ENDED, run_s)

    def _ended(self, now: float, run_s: float) -> None:
        self._redis.serve(now, self._redis_s(self.costs.output_us + self.costs.settle_us))
        self._running -= 1
        self._recent.append(run_s)
        self._fill(now)

    def _ask(self, now: float) -> None:
        """Do what the rule advises: at once where it wants more, after the cooldown where it wants fewer."""
        plan = self.plan
        mean = sum(self._recent) / len(self._recent) if self._recent else capacity.UNKNOWN_RUN_S
        load = Load(len(self._queue), self._running, mean)
        wanted = capacity.advise(load, slots_per_worker=plan.slots, target_s=plan.target_s).workers
        wanted = min(plan.most_workers, max(plan.least_workers, wanted))
        self._advised.append((now, wanted))
        while self._advised[0][0] < now - plan.cooldown_s:
            self._advised.popleft()
        have = self.workers + self._coming
        if wanted > have:
            self._coming += wanted - have
            self._later(now + plan.start_delay_s, _READY, wanted - have)
        elif now >= plan.cooldown_s:
            enough = max(each for _, each in self._advised)
            least = math.ceil(self._running / plan.slots)  # who runs something stays until it has ended
            self.workers = max(least, min(self.workers, enough))
        self.outcome.peak_workers = max(self.outcome.peak_workers, self.workers + self._coming)

    def _told(self, now: float) -> Outcome:
        self._account(now)
        outcome, waits = self.outcome, sorted(self._waits)
        outcome.jobs, outcome.emptied_s = len(waits), now
        if waits and now > 0:
            outcome.wait_p50_s, outcome.wait_p95_s, outcome.wait_p99_s = (
                waits[min(len(waits) - 1, int(share * len(waits)))] for share in (0.5, 0.95, 0.99)
            )
            outcome.wait_max_s = waits[-1]
            outcome.within_target = sum(wait <= self.plan.target_s for wait in waits) / len(waits)
            outcome.mean_workers, outcome.worker_hours = self._worker_s / now, self._worker_s / 3600
            slots_s = self._worker_s * self.plan.slots
            outcome.slot_use = self._ran_s / slots_s if slots_s else 0.0
            standing = outcome.mean_workers * self.costs.beat_us / HEARTBEAT_S / 1e6
            outcome.redis_busy = min(1.0, self._redis.busy_s / now + standing)
            outcome.web_busy = min(1.0, self._web.busy_s / now / self.plan.web_processes)
        outcome.peak_workers = max(outcome.peak_workers, self.workers)
        self._judge()
        return outcome

    def _judge(self) -> None:
        outcome = self.outcome
        if outcome.redis_busy_peak > TOO_BUSY:
            outcome.problems.append(f"Redis is busy for {outcome.redis_busy_peak:.0%} of some ten seconds.")
        if outcome.web_busy > TOO_BUSY:
            outcome.problems.append(f"The web is busy for {outcome.web_busy:.0%}: more processes are needed.")
        plan = self.plan
        lag_s = plan.start_delay_s + plan.interval_s if plan.workers is None else 0.0
        if outcome.wait_p99_s > plan.target_s + lag_s:
            late = f" and the {lag_s:g} s until new workers are ready" if lag_s else ""
            outcome.problems.append(f"One job in a hundred waits longer than {plan.target_s:g} s{late}.")


#: What `make simulate` shows.
PLANS = (
    Plan("steady", rate_per_s=100, run_s=2, duration_s=1800, least_workers=50),
    Plan("a day in half an hour", trace="diurnal", rate_per_s=300, run_s=4, duration_s=1800, cooldown_s=120,
         least_workers=100),
    Plan("burst", trace="burst", rate_per_s=10, run_s=2, burst_jobs=20_000, duration_s=1800),
    Plan("burst, target 10 s", trace="burst", rate_per_s=10, run_s=2, burst_jobs=20_000, duration_s=1800, target_s=10),
    Plan("from zero: rare jobs on costly nodes", rate_per_s=0.005, run_s=120, duration_s=86_400, slots=1,
         start_delay_s=180, target_s=600, cooldown_s=600),
    Plan("1,000 jobs/s, 1,000 workers", rate_per_s=1000, run_s=1.6, duration_s=300, workers=1000),
    Plan("200 jobs/s, 10,000 workers", rate_per_s=200, run_s=80, duration_s=600, workers=10_000, web_processes=16),
    Plan("1,000 jobs/s, 10,000 workers", rate_per_s=1000, run_s=16, duration_s=300, workers=10_000, web_processes=16),
    Plan("1,000 jobs/s, 10,000 workers, full", rate_per_s=1000, run_s=22, duration_s=120, workers=10_000,
         web_processes=16),
)  # fmt: skip


def simulate(plan: Plan, costs: Costs) -> Outcome:
    """Return what comes of a plan at these costs."""
    return Simulation(plan, costs).run()


def table(outcomes: list[Outcome]) -> str:
    """Return outcomes as a table in Markdown."""
    lines = [
        "| plan | jobs | wait p50 | p99 | longest | within target | queue | workers mean / peak | worker hours "
        "| slots used | Redis mean / peak | web | |",
        "|" + "---|" * 13,
    ]
    for each in outcomes:
        verdict = "; ".join(each.problems) or "holds"
        lines.append(
            f"| {each.plan.name} | {each.jobs:,} | {each.wait_p50_s:.2f} s | {each.wait_p99_s:.2f} s "
            f"| {each.wait_max_s:.1f} s | {each.within_target:.1%} of {each.plan.target_s:g} s | {each.peak_queue:,} "
            f"| {each.mean_workers:,.0f} / {each.peak_workers:,} | {each.worker_hours:,.1f} | {each.slot_use:.0%} "
            f"| {each.redis_busy:.0%} / {each.redis_busy_peak:.0%} | {each.web_busy:.0%} | {verdict} |"
        )
    return "\n".join(lines)


def report(outcomes: list[Outcome], costs: Costs) -> str:
    """Return what was simulated, on which costs and assumptions it rests, and what came of it."""
    plans = [
        f"- **{each.plan.name}**: {each.plan.trace}, {each.plan.rate_per_s:g} jobs/s for {each.plan.duration_s:g} s"
        + (f" and {each.plan.burst_jobs:,} at once" if each.plan.burst_jobs else "")
        + f", {each.plan.run_s:g} s a job; "
        + (
            f"{each.plan.workers:,} workers"
            if each.plan.workers is not None
            else f"workers as advised every {each.plan.interval_s:g} s, ready {each.plan.start_delay_s:g} s later, "
            f"fewer after {each.plan.cooldown_s:g} s"
        )
        + f", {each.plan.slots} slots each; {each.plan.web_processes} web processes."
        for each in outcomes
    ]
    return "\n".join([
        "# Simulated fleets", "",
        "Written by `make simulate`. Nothing here was measured on fleets of this size: it follows from what one job "
        "was measured to cost, and from what is assumed.", "",
        table(outcomes), "", "## Plans", "", *plans, "", "## Costs", "",
        f"Redis, microseconds of CPU, measured {costs.measured}: submit {costs.submit_us:g}, claim "
        f"{costs.claim_us:g}, output {costs.output_us:g}, settle {costs.settle_us:g}; a claim that brings nothing "
        f"{costs.empty_claim_us:g}, a heartbeat {costs.beat_us:g}, waking each worker {costs.wake_us:.2g}. One web "
        f"process accepts {costs.web_submits_per_s:,.0f} jobs/s; a job costs its slot "
        f"{costs.worker_overhead_s * 1000:.1f} ms beside its command, and starts {costs.start_s * 1000:.1f} ms after "
        f"it was asked for ({costs.results}).", "",
        "## Assumptions", "", *(f"- {each}" for each in ASSUMPTIONS), "",
    ])  # fmt: skip


def main() -> int:
    """Simulate the plans of `make simulate`, or one of one's own; answers 1 where that does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("--calibrate", action="store_true", help="measure first what Redis does for a job")
    parser.add_argument("--trace", help="steady, diurnal, burst, or a CSV with columns at_s and run_s")
    parser.add_argument("--json", action="store_true", help="print outcomes as JSON, and write nothing")
    for name, kind in (
        ("rate_per_s", float), ("duration_s", float), ("run_s", float), ("burst_jobs", int), ("workers", int),
        ("least_workers", int), ("most_workers", int), ("slots", int), ("target_s", float), ("interval_s", float),
        ("start_delay_s", float), ("cooldown_s", float), ("web_processes", int), ("seed", int),
    ):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    options = vars(parser.parse_args())
    as_json, anew = options.pop("json"), options.pop("calibrate")
    chosen = {name: value for name, value in options.items() if value is not None}
    costs = calibration.measure() if anew else calibration.kept()
    plans = (replace(Plan("yours"), **chosen),) if chosen else PLANS
    try:
        outcomes = [simulate(plan, costs) for plan in plans]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if as_json:
        json.dump({"costs": asdict(costs), "assumptions": ASSUMPTIONS, "outcomes": [asdict(each) for each in outcomes]},
                  sys.stdout, indent=1)  # fmt: skip
        print()
    else:
        text = report(outcomes, costs)
        print(text)
        if not chosen:
            (HERE / "SIMULATED.md").write_text(text)
    return 1 if chosen and any(each.problems for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
