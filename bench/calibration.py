"""What one job costs the parts of Hostler that all jobs share, measured here, for the simulator to reckon with.

Redis is one thread that every job passes: what each step takes of its CPU is measured on a Valkey of its own. What the
web and a worker take is read from results.json, whose figures `make bench` measures on whole Hostlers.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis

from bench.figure import Bench
from bench.stack import valkey
from settings import Settings
from storage import attempts, fleet, jobs
from storage.attempts import Holder
from storage.jobs import Order
from storage.store import Store

HERE = Path(__file__).parent
KEPT = HERE / "calibration.json"
RESULTS = HERE / "results.json"
_SECRET = "calibration-" + "0123456789abcdef" * 4
#: Steps in one measurement, how many of them are on their way at once, and into how many rounds they are divided.
_STEPS, _AT_ONCE, _ROUNDS = 2000, 20, 10
_SUBSCRIBERS = 200


@dataclass(frozen=True)
class Costs:
    """Microseconds of Redis's CPU for each step; then what web and workers do, from results.json."""

    submit_us: float
    claim_us: float  #: one that brings a job
    output_us: float
    settle_us: float
    empty_claim_us: float
    beat_us: float  #: of a worker that holds two jobs
    wake_us: float  #: for each worker that listens, when a job is submitted
    web_submits_per_s: float  #: of one web process
    worker_overhead_s: float  #: of a slot, beside what the command itself takes
    start_s: float  #: from a submit to the command on an idle fleet
    measured: str = ""  #: when the first part was
    results: str = ""  #: when and how the second part was

    @property
    def job_us(self) -> float:
        """Return what Redis does for one job, but for waking workers."""
        return self.submit_us + self.claim_us + self.output_us + self.settle_us


def from_results(path: Path = RESULTS) -> dict[str, Any]:
    """Return what results.json says of web and workers. Raises KeyError for a figure that was never measured."""
    kept = json.loads(path.read_text())
    figures = kept["figures"]

    def own(name: str, metric: str = "") -> float:
        return float(next(each["own"] for each in figures[name]["verdicts"] if each["metric"] == metric))

    def stated(name: str) -> str:
        figure = figures[name]
        return (
            f"{name} at {figure['commit']}{' (quick)' if figure['quick'] else ''}, load {figure['load'][0]}"
        )

    how = ", ".join(stated(name) for name in ("P1", "P3", "P4"))
    return {
        "web_submits_per_s": own("P1") / 2,  # it runs two processes
        "worker_overhead_s": 2 / own("P3"),  # of two slots
        "start_s": own("P4", "p50") / 1000,
        "results": f"{how}; last run {kept['last_run']['at']} on {kept['last_run']['cores']} cores",
    }


def kept() -> Costs:
    """Return what was measured last, with what results.json says now."""
    known = {each.name for each in fields(Costs)}
    measured = {name: value for name, value in json.loads(KEPT.read_text()).items() if name in known}
    return Costs(**{**measured, **from_results()})


def measure() -> Costs:
    """Measure what Redis does for each step, and keep it. Raises Missing."""
    with closing(Bench()) as bench:
        found = asyncio.run(_measured(valkey(bench)))
    found["measured"] = datetime.now(UTC).isoformat(timespec="seconds")
    costs = Costs(**found, **from_results())
    KEPT.write_text(json.dumps(asdict(costs), indent=1) + "\n")
    return costs


async def _measured(url: str) -> dict[str, Any]:
    store = Store(Settings.from_env({"REDIS_URL": url, "HOSTLER_SECRET_KEY": _SECRET}))
    try:
        async with aioredis.Redis.from_url(url, max_connections=2 * _SUBSCRIBERS) as client:
            server = int((await client.info("server"))["process_id"])
            return await _steps(store, client, server)
    finally:
        await store.close()


async def _steps(store: Store, client: Any, server: int) -> dict[str, Any]:
    holder = Holder("w", "r")
    facts: dict[str, str | int] = {"kind": "worker", "hostname": "h", "tags": "[]", "slots": _STEPS}
    await store.call(fleet.register(holder, facts, silent_s=30))
    await store.call(fleet.register(Holder("idle", "r"), facts, silent_s=30))
    claimed: list[attempts.Claim] = []

    async def submit(_: int) -> None:
        await jobs.submit(store, "user:bench", Order(command="true"))

    async def claim(_: int) -> None:
        found, _refused = await store.call(attempts.claim(holder, [], (), most=1, startable=1, lease_s=3600))
        claimed.extend(found)

    async def output(number: int) -> None:
        job = claimed[number]
        await store.call(
            attempts.output(
                holder, job.job_id, job.attempt, "o", b"one line of output\n", first_line=1, line_count=1,
                live_bytes=1 << 20, limit_bytes=1 << 28,
            )
        )  # fmt: skip

    async def settle(number: int) -> None:
        job = claimed[number]
        await store.call(attempts.settle(holder, job.job_id, job.attempt, "completed", "", 0))

    async def beat(_: int) -> None:
        held = [(job.job_id, job.attempt) for job in claimed[:2]]
        status: dict[str, str | int] = {"running": 2, "current_job": ""}
        await store.call(attempts.beat(Holder("idle", "r"), held, lease_s=3600, rq_ttl_s=60, status=status))

    found = {}
    for name, step in (
        ("submit_us", submit), ("claim_us", claim), ("beat_us", beat), ("output_us", output),
        ("settle_us", settle), ("empty_claim_us", claim),
    ):  # fmt: skip
        found[name] = await _cost_us(server, step, _STEPS)
    found["wake_us"] = await _wake_us(client, server)
    return found


async def _wake_us(client: Any, server: int) -> float:
    async def publish(_: int) -> None:
        await client.publish("h:wake", "jobs.normal")

    alone = await _cost_us(server, publish, 600)
    listeners = [client.pubsub() for _ in range(_SUBSCRIBERS)]
    for each in listeners:
        await each.subscribe("h:wake")
    heard = await _cost_us(server, publish, 600)
    for each in listeners:
        await each.aclose()
    return max(0.0, heard - alone) / _SUBSCRIBERS


async def _cost_us(server: int, step: Callable[[int], Awaitable[None]], count: int) -> float:
    """Return what `step` takes of the server's CPU, in microseconds: the least of some rounds, as others use it too."""
    rounds, size = [], count // _ROUNDS
    for first in range(0, count, size):
        before = _cpu_ns(server)
        for start in range(first, first + size, _AT_ONCE):
            await asyncio.gather(*(step(number) for number in range(start, start + _AT_ONCE)))
        rounds.append((_cpu_ns(server) - before) / size / 1000)
    return round(min(rounds), 3)


def _cpu_ns(pid: int) -> int:
    """Return the CPU time of a process's threads: the kernel's own count, finer than its clock ticks."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    )
