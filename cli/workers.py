"""`hostler workers`: what runs jobs, seen, drained and forgotten."""

from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.client import segment
from cli.completing import worker_ids
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, Yes, connect

app = typer.Typer(no_args_is_help=True, help="Look at what runs jobs; drain it, forget it.")
WorkerId = Annotated[
    str, typer.Argument(metavar="WORKER", help="Its name among the workers.", autocompletion=worker_ids)
]


@app.command("list")
def list_workers(
    *,
    status: Annotated[str | None, typer.Option("--status", "-s", help="online, offline or error.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="Only those that have it.")] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", help="e.g. hostname or freeSlots; a minus turns it around.")
    ] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List workers, the oldest first, with what each is doing."""
    query = {
        "status": status,
        "tags": ",".join(tag) if tag else None,
        "sort": sort,
        "limit": limit,
        "offset": offset,
    }
    watching.show(
        url,
        api_key,
        lambda client: client.get("/api/workers/list", **query),
        _draw,
        as_json=as_json,
        watch=watch,
    )


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("WORKER", "STATUS", "BUSY", "JOBS", "KIND", "CPUS", "MEMORY", "SEEN", "TAGS", "JOB"),
        (
            (
                each["workerId"],
                "draining" if each["draining"] and each["status"] == "online" else each["status"],
                f"{each['running']}/{each['slots']}",
                each["jobsCompleted"],
                each["kind"],
                each["cpuCount"],
                memory_of(each),
                rendering.ago(each["lastHeartbeat"]),
                ", ".join(each["tags"]),
                each["currentJobId"],
            )
            for each in answer["workers"]
        ),
        empty="There are no workers. Start one with: hostler worker, or from outside: hostler agent --url ADDRESS",
    )
    rendering.tell_more(answer)


def memory_of(worker: dict[str, Any]) -> str:
    """Return a worker's memory for people; empty where it is not known."""
    megabytes = worker.get("totalMemoryMb")
    return "" if megabytes is None else rendering.size(megabytes * 1024 * 1024)


@app.command("show")
def show(worker_id: WorkerId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one worker: what it has, what it runs, how it keeps jobs apart."""
    with connect(url, api_key) as client:
        worker = client.get(f"/api/workers/{segment(worker_id)}")["worker"]
    if as_json:
        rendering.write_json(worker)
        return
    rendering.print_facts(
        (
            ("worker", worker["workerId"]),
            ("status", worker["status"]),
            ("draining", "yes" if worker["draining"] else None),
            ("offline", worker["offlineReason"]),
            ("since", worker["offlineSince"]),
            ("kind", worker["kind"]),
            ("host", worker["hostname"]),
            ("version", worker["version"]),
            ("slots", f"{worker['running']} of {worker['slots']} busy"),
            ("job", worker["currentJobId"]),
            ("jobs so far", worker["jobsCompleted"]),
            ("tags", ", ".join(worker["tags"])),
            ("CPUs", worker["cpuCount"]),
            ("memory", memory_of(worker)),
            ("isolation", worker["isolation"]),
            ("registered", rendering.ago(worker["registeredAt"])),
            ("seen", rendering.ago(worker["lastHeartbeat"])),
            *(sorted(worker["metadata"].items())),
        )
    )


@app.command("drain")
def drain(
    worker_id: WorkerId,
    *,
    off: Annotated[bool, typer.Option("--off", help="Let it take jobs again.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let a worker take no more jobs; what it runs, and its apps, go on. It stays so over restarts."""
    with connect(url, api_key) as client:
        answer = client.call(
            "PUT", f"/api/workers/{segment(worker_id)}/draining", body={"draining": not off}, repeatable=True
        )
    said = "takes jobs again" if off else "takes no more jobs"
    rendering.tell(answer, f"Worker {worker_id} {said}.", as_json=as_json)


@app.command("forget")
def forget(
    worker_id: WorkerId, yes: Yes = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Forget a worker: its token ends, and what it holds goes back into its queue."""
    rendering.ask(f"Forget {worker_id}, and give what it runs to others?", yes=yes)
    with connect(url, api_key) as client:
        answer = client.call("DELETE", f"/api/workers/{segment(worker_id)}")
    rendering.tell(answer, f"Worker {worker_id} is forgotten.", as_json=as_json)
