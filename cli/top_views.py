"""What `hostler top` shows in each of its tables: where it is asked for, its columns, and a row of each thing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli import rendering


@dataclass(frozen=True, slots=True)
class View:
    """One table: the key that opens it, its title, where its rows come from, and which events change them."""

    name: str
    title: str
    path: str
    columns: tuple[str, ...]
    rows: Callable[[Any], Sequence[tuple[str, tuple[Any, ...]]]]
    events: tuple[str, ...]
    query: Mapping[str, Any]
    empty: str


def _job(job: dict[str, Any]) -> tuple[Any, ...]:
    ran = job.get("ranMs")
    lasted = rendering.ago(job["startedAt"]).removesuffix(" ago") if job["status"] == "running" else ""
    what = job.get("name") or job.get("command") or " ".join(job.get("argv") or [])
    return (
        job["status"],
        rendering.ago(job["createdAt"]),
        lasted if ran is None else rendering.duration(ran / 1000),
        job.get("workerId") or job.get("wait") or "",
        rendering.one_line(what, 60),
    )


def _jobs(answer: dict[str, Any]) -> Sequence[tuple[str, tuple[Any, ...]]]:
    return [(job["jobId"], _job(job)) for job in answer["jobs"]]


def _queues(answer: dict[str, Any]) -> Sequence[tuple[str, tuple[Any, ...]]]:
    return [
        (
            ",".join(each["tags"]),
            (
                ", ".join(each["tags"]) or "(no tags)",
                each["depth"],
                each["running"],
                rendering.duration(each["oldestAgeSeconds"]) if each["depth"] else "",
                f"{each['workers']} of {each['workersNeeded']}",
                each["slots"],
            ),
        )
        for each in answer["pools"]
    ]


def _nodes(answer: dict[str, Any]) -> Sequence[tuple[str, tuple[Any, ...]]]:
    return [
        (
            each["id"],
            (
                each["id"],
                "draining" if each["draining"] and each["status"] == "online" else each["status"],
                f"{each['load']['running']}/{each['capacity']['slots']}",
                each["apps"]["total"] or "",
                rendering.ago(each["last_seen"]),
                ", ".join(each["tags"]),
            ),
        )
        for each in answer["nodes"]
    ]


def _apps(answer: dict[str, Any]) -> Sequence[tuple[str, tuple[Any, ...]]]:
    rows = []
    for each in answer["apps"]:
        instances = [one for process in each["processes"] for one in process["instances"]]
        cpu = sum(one["cpuPercent"] or 0 for one in instances)
        memory = sum(one["memoryBytes"] or 0 for one in instances)
        up = [one["uptime"] for one in instances if one["uptime"] is not None]
        cells = (
            each["instanceId"],
            each["status"],
            each["version"],
            each["node"],
            len(instances),
            f"{cpu:.0f} %" if instances else "",
            rendering.size(memory) if instances else "",
            rendering.duration(min(up)) if up else "",
        )
        rows.append((each["instanceId"], cells))
    return rows


VIEWS = (
    View(
        "jobs", "Jobs", "/api/jobs/list", ("STATUS", "CREATED", "RAN", "WORKER", "COMMAND"), _jobs, ("job",),
        {"limit": 200}, "No jobs. Submit one: hostler submit 'echo hello'",
    ),
    View(
        "queues", "Queues", "/api/queues", ("TAGS", "WAITING", "RUNNING", "OLDEST", "WORKERS", "SLOTS"), _queues,
        ("job", "worker"), {}, "Nothing waits, nothing runs.",
    ),
    View(
        "nodes", "Nodes", "/api/nodes", ("NODE", "STATUS", "BUSY", "APPS", "SEEN", "TAGS"), _nodes,
        ("worker", "job"), {}, "No nodes. Start one: hostler worker",
    ),
    View(
        "apps", "Apps", "/api/apps", ("APP", "STATUS", "VERSION", "NODE", "N", "CPU", "MEMORY", "UP"), _apps, ("app",),
        {"limit": 500}, "No apps. Install one: hostler apps install PRODUCT",
    ),
)  # fmt: skip
