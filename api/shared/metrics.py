"""`GET /metrics`: what Prometheus scrapes, of the fleet from Redis and of HTTP from this server's processes.

What is said of the fleet is the same whichever web process is asked, so it is never added up over several of them
(docs/observability.md); what is said of HTTP is this server's own, and is.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from falcon.asgi import Request, Response
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from api import measuring
from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from settings import __version__
from storage import census, findings, queues
from storage.census import Census, Outlook, Times
from storage.errors import HostlerError
from storage.store import Store

group = Group("Metrics", "/metrics", CONTEXTBAY)

#: Whoever scrapes within this hears the same.
_FRESH_S = 1.0
#: Redis has so long to answer; a scrape without its numbers still tells that they are missing.
_PATIENCE_S = 3.0
#: What tags are called that are not named: who asks for a job makes them up, and this page is public.
_OTHERS = "others"
#: Why a job failed or went back into its queue; what else a record may say is not for labels.
_REASONS = frozenset({
    "", "exit_code", "timeout", "lost", "quarantined", "invalid", "integrity", "cancelled", "dependency", "misfire",
    "handed back", "worker lost", "worker lost before the start",
})  # fmt: skip
_STATES = frozenset({"completed", "failed", "cancelled"})
_WAITS = frozenset({"high", "normal", "low", "node"})
_WORKERS = frozenset({"online", "draining", "offline", "error"})
#: What the census counts under one name, and what that is.
_COUNTED = {
    "hostler_jobs_parked": ("parked", "Queued jobs that wait for a time, other jobs or a concurrency key."),
    "hostler_jobs_quarantined": ("quarantined", "Jobs in quarantine: each lost three workers."),
    "hostler_leases": ("leases", "Leases that workers hold."),
    "hostler_leases_expired": ("expired", "Leases that have run out and were not yet taken back."),
    "hostler_webhooks_pending": ("webhooks", "Webhooks that have still to be told."),
    "hostler_batches_pending": ("batches", "Accepted batches that are not whole yet."),
    "hostler_schedules": ("schedules", "Schedules."),
    "hostler_schedules_overdue": ("overdue", "Schedules that should have fired more than 60 s ago."),
    "hostler_files": ("files", "Uploads."),
}


@group.endpoint("GET ", role=Role.PUBLIC, raw=True, media_type="text/plain", counted=False)
async def metrics(context: Context, req: Request, resp: Response) -> None:
    """Tell Prometheus of queues, jobs, workers, apps and HTTP requests. No user, file, host or command is named.

    OpenMetrics, with exemplars, where `Accept` asks for it; else Prometheus's text format. At most a second old.
    """
    encode, content_type = choose_encoder(req.get_header("Accept") or "")
    page = _page(context.store)
    resp.content_type = content_type
    resp.data = await page.text(context.store, content_type, encode)


@dataclass
class _Page:
    """What was answered last, by content type, with when; one scrape at a time makes it anew."""

    said: dict[str, tuple[float, bytes]] = field(default_factory=dict)
    making: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def text(self, store: Store, content_type: str, encode: Any) -> bytes:
        async with self.making:
            at, said = self.said.get(content_type, (-_FRESH_S, b""))
            if time.monotonic() - at < _FRESH_S:
                return said
            began = time.perf_counter()
            found = await _found(store)
            named = _named(store, found)
            # of many processes and routes this reads a lot, beside which requests shall go on
            said = await asyncio.to_thread(_rendered, encode, found, named, began)
            self.said[content_type] = (time.monotonic(), said)
            return said


def _page(store: Store) -> _Page:
    page = store.cache.get("metrics")
    if not isinstance(page, _Page):
        page = store.cache["metrics"] = _Page()
    return page


async def _found(store: Store) -> Outlook | None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await census.outlook(store)
    except (HostlerError, TimeoutError):
        return None


@dataclass(frozen=True)
class _Registry:
    """As much of a registry as an exposition asks for."""

    metrics: list[Metric]

    def collect(self) -> list[Metric]:
        return self.metrics


def _rendered(encode: Any, found: Outlook | None, named: frozenset[frozenset[str]], began: float) -> bytes:
    told = [
        _one(Gauge, "hostler_info", "Which version answers.", {(("version", __version__),): 1}),
        _one(Gauge, "hostler_redis_up", "Whether Redis answered this web server.", float(found is not None)),
        *(_of_fleet(found, named) if found is not None else ()),
        *measuring.requests().collect(measuring.shared()),
    ]  # fmt: skip
    took = time.perf_counter() - began
    told.append(_one(Gauge, "hostler_scrape_seconds", "How long it took to make this page.", took))
    text: bytes = encode(_Registry(told))
    return text


def _named(store: Store, found: Outlook | None) -> frozenset[frozenset[str]]:
    """Return the sets of tags that are named: of words that operators gave to workers, or to this server."""
    if found is None:
        return frozenset()
    words = frozenset(tag for group in found.census.groups for tag in group.tags)
    given = {frozenset(each.split("+")) for each in store.settings.metrics_tags}
    return frozenset(given | {pool.tags for pool in found.pools if pool.tags <= words})


Labels = tuple[tuple[str, str], ...]


def _one(kind: Any, name: str, told: str, values: float | Mapping[Any, float]) -> Metric:
    """Return one metric with one value, or one for each of some label sets, which have the names of the first."""
    by_labels = values if isinstance(values, Mapping) else {(): values}
    first: Labels = next(iter(by_labels), ())
    names = [label for label, _ in first]
    family: Any = kind(name, told, labels=names)
    for labels, value in by_labels.items():
        family.add_metric([text for _, text in labels], value)
    return cast("Metric", family)


def _summed(pairs: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """Add up what has the same labels."""
    total: dict[Any, float] = {}
    for labels, value in pairs:
        total[labels] = total.get(labels, 0) + value
    return total


def _of_fleet(found: Outlook, named: frozenset[frozenset[str]]) -> Iterator[Metric]:
    taken = found.census
    yield from _of_queues(found, named)
    yield from _of_jobs(taken)
    yield from _of_workers(taken)
    yield from _of_care(taken)
    yield from _of_what_was_noted(taken)


def _tags(tags: frozenset[str], named: frozenset[frozenset[str]]) -> str:
    return queues.tag_set(tags) if not tags or tags in named else _OTHERS


def _of_queues(found: Outlook, named: frozenset[frozenset[str]]) -> Iterator[Metric]:
    rows: dict[Labels, tuple[int, int, float]] = {
        (("tags", ""), ("priority", each.value)): (0, 0, 0.0) for each in queues.Priority
    }
    for queue in (*found.census.queues, found.census.nodes):
        labels = (("tags", _tags(queue.tags, named)), ("priority", queue.priority))
        depth, running, oldest_s = rows.get(labels, (0, 0, 0.0))
        rows[labels] = (depth + queue.depth, running + queue.running, max(oldest_s, queue.oldest_s))
    told = "by the tags that jobs ask for and their priority; `node` are changes of apps"
    for name, what, place in (
        ("hostler_queue_jobs", f"Jobs that wait in a queue, {told}.", 0),
        ("hostler_queue_running_jobs", f"Jobs of a queue that run, {told}.", 1),
        ("hostler_queue_oldest_seconds", f"How long the oldest job has waited, {told}.", 2),
    ):
        yield _one(Gauge, name, what, {labels: float(row[place]) for labels, row in rows.items()})
    pools = [((("tags", _tags(pool.tags, named)),), pool) for pool in found.pools]
    workers = _summed((labels, pool.advice.workers) for labels, pool in pools)
    yield _one(
        Gauge, "hostler_workers_needed", "Workers that would start what waits within 60 s, by tags.", workers
    )
    slots = _summed((labels, pool.advice.slots) for labels, pool in pools)
    yield _one(Gauge, "hostler_slots_needed", "Slots that would, by tags.", slots)
    serving: dict[Labels, float] = {}
    for of_pool, pool in pools:
        serving[of_pool] = max(serving.get(of_pool, 0.0), float(pool.slots))
    told = "Slots online that serve jobs with these tags; one may serve several."
    yield _one(Gauge, "hostler_slots_serving", told, serving)


def _of_jobs(taken: Census) -> Iterator[Metric]:
    states = {((("state", name)),): float(count) for name, count in taken.states.items()}
    yield _one(Gauge, "hostler_jobs", "Jobs that Redis knows, by state.", states)
    for name, (count, what) in _COUNTED.items():
        yield _one(Gauge, name, what, float(taken.counts[count]))
    archived = float(taken.counts["archived"])
    yield _one(
        Counter, "hostler_jobs_archived", "Finished jobs that left Redis for the object store.", archived
    )
    ended = _summed(
        ((("state", state), ("reason", _reason(reason))), float(count))
        for (state, reason), count in taken.ended.items()
        if state in _STATES
    )
    yield _one(
        Counter, "hostler_jobs_ended", "Jobs that ended, by state and reason.",
        ended or {(("state", "completed"), ("reason", "")): 0.0},
    )  # fmt: skip
    again = _summed((((("why", _reason(why))),), float(count)) for why, count in taken.again.items())
    yield _one(
        Counter, "hostler_jobs_requeued", "Attempts after which a job went back into its queue, by why.",
        again or {(("why", "worker lost"),): 0.0},
    )  # fmt: skip
    missed = sum(count for (_, how), count in taken.schedules.items() if how == "missed")
    fired = sum(taken.schedules.values())
    yield _one(Counter, "hostler_schedules_fired", "Occurrences of schedules that came.", float(fired))
    yield _one(
        Counter, "hostler_schedules_missed", "Of these, those more than 60 s late; they run or not by their policy.",
        float(missed),
    )  # fmt: skip
    yield _histogram(
        "hostler_job_waiting_seconds",
        "How long jobs waited in a queue, by priority.",
        "priority",
        taken.waited,
        _WAITS,
    )
    yield _histogram(
        "hostler_job_running_seconds", "How long the last attempt of jobs took, by the state they ended in.", "state",
        taken.ran, _STATES,
    )  # fmt: skip


def _reason(reason: str) -> str:
    return reason if reason in _REASONS else _OTHERS


def _histogram(name: str, told: str, label: str, times: dict[str, Times], known: frozenset[str]) -> Metric:
    make: Any = HistogramMetricFamily  # untyped
    family = make(name, told, labels=[label])
    nothing = Times((0,) * (len(census.BOUNDS_S) + 1), 0.0)
    for each in sorted(known):
        found = times.get(each, nothing)
        family.add_metric([each], found.cumulative, found.sum_s)
    return cast("Metric", family)


def _of_workers(taken: Census) -> Iterator[Metric]:
    def status(said: str) -> str:
        return said if said in _WORKERS else _OTHERS

    none = {
        (("kind", kind), ("status", each)): 0.0
        for kind in ("worker", "agent")
        for each in ("online", "offline")
    }
    kinds = [(group, "worker" if group.kind == "worker" else "agent") for group in taken.groups]
    workers = _summed(
        ((("kind", kind), ("status", status(group.status))), float(group.count)) for group, kind in kinds
    )
    yield _one(Gauge, "hostler_workers", "Workers and agents, by status.", {**none, **workers})
    online = [group for group in taken.groups if group.serves]
    slots = float(sum(group.slots * group.count for group in online))
    busy = float(sum(group.running for group in online))
    yield _one(Gauge, "hostler_slots", "Slots of workers and agents online.", slots)
    yield _one(Gauge, "hostler_slots_busy", "Of these, those that run a job, as workers last said.", busy)


def _of_care(taken: Census) -> Iterator[Metric]:
    yield _one(Gauge, "hostler_leader_up", "Whether a scheduler leads.", float(taken.led))
    term = float(taken.counts["term"])
    yield _one(Counter, "hostler_leader_terms", "How often the lead was taken.", term)
    if taken.reaped_s is not None:
        yield _one(
            Gauge,
            "hostler_reaper_age_seconds",
            "Since the reaper last looked for lost jobs.",
            taken.reaped_s,
        )
    yield _one(
        Gauge,
        "hostler_reaper_hold_seconds",
        "How long the reaper still waits after an outage.",
        taken.hold_s,
    )
    if taken.memory_bytes is not None:
        used = float(taken.memory_bytes)
        yield _one(Gauge, "hostler_redis_memory_bytes", "Memory that Redis uses.", used)
        limit = float(taken.memory_limit_bytes or 0)
        yield _one(
            Gauge, "hostler_redis_memory_limit_bytes", "Memory that Redis may use; 0 for no limit.", limit
        )


def _of_what_was_noted(taken: Census) -> Iterator[Metric]:
    """Tell what the leader finds from time to time; storage/findings.py says what."""
    found = findings.read(taken.noted)
    if found is None:
        return
    age_s = max(0.0, (taken.at_ms - found.at_ms) / 1000)
    yield _one(Gauge, "hostler_findings_age_seconds", "Since the leader found what follows.", age_s)
    yield _one(Gauge, "hostler_s3_up", "Whether the object store answered the leader.", float(found.s3_up))
    yield _one(Gauge, "hostler_s3_check_seconds", "How long it took to answer.", found.s3_s)
    apps = {((("status", status)),): float(count) for status, count in found.apps.items()}
    yield _one(Gauge, "hostler_apps", "Apps, by status.", {(("status", "running"),): 0.0, **apps})
    yield _one(
        Gauge, "hostler_backups", "Backups that are enabled, and of these those overdue, unproven or failed.",
        {((("state", name)),): float(found.backups.get(name, 0)) for name in findings.BACKUPS},
    )  # fmt: skip
    for name, what, since_ms in (
        ("hostler_backup_good_age_seconds", "Since the last success of the backup worst off.", found.good_ms),
        (
            "hostler_backup_proven_age_seconds",
            "Since a restore of the backup worst off was proven.",
            found.proven_ms,
        ),
        ("hostler_recovery_point_age_seconds", "Since the newest recovery point was made.", found.point_ms),
    ):
        if since_ms:
            yield _one(Gauge, name, what, max(0.0, (taken.at_ms - since_ms) / 1000))
    failing = float(found.point_failed)
    yield _one(
        Gauge, "hostler_recovery_point_failing", "Whether the last attempt to make one failed.", failing
    )
