"""What the whole fleet does, in numbers: `hostler overview`, `queues`, `modules`, `audit`."""

from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.client import Client
from cli.options import ApiKey, Json, Url, Watch, connect

app = typer.Typer()
_PAGE = 500


@app.command("overview")
def overview(*, watch: Watch = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show the state of everything in numbers: jobs, the last hour, workers and apps."""
    watching.show(
        url, api_key, lambda client: client.get("/api/overview"), _draw_overview, as_json=as_json, watch=watch
    )


def _draw_overview(found: dict[str, Any]) -> None:
    jobs, latency, workers = found["jobs"], found["latency"], found["workers"]
    hour = {
        name: sum(each or 0 for each in found["minutes"][name]) for name in ("submitted", "ended", "failed")
    }
    apps = ", ".join(f"{count} {status}" for status, count in sorted(found["apps"].items()))
    rendering.print_facts(
        (
            ("queued", f"{jobs['queued']}, of which {jobs['waiting']} wait for something stated"),
            ("running", jobs["running"]),
            (
                "ended",
                f"{jobs['completed']} completed, {jobs['failed']} failed, {jobs['cancelled']} cancelled",
            ),
            ("quarantine", jobs["quarantined"]),
            ("last hour", f"{hour['submitted']} submitted, {hour['ended']} ended, {hour['failed']} failed"),
            ("waited", _middle(latency["waitedP50"], latency["waitedP95"])),
            ("ran", _middle(latency["ranP50"], latency["ranP95"])),
            ("workers", f"{workers['online']} of {workers['total']} online, {workers['draining']} draining"),
            ("slots", f"{workers['running']} of {workers['slots']} busy"),
            ("apps", apps or "none"),
        )
    )


def _middle(p50_ms: int | None, p95_ms: int | None) -> str | None:
    if p50_ms is None or p95_ms is None:
        return None
    return f"{rendering.duration(p50_ms / 1000)} the middle one, {rendering.duration(p95_ms / 1000)} at most of 95 %"


@app.command("queues")
def queues(
    *,
    target: Annotated[
        float | None,
        typer.Option("--target", help="Seconds within which what waits shall have started.", min=0.1),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", help="Only jobs that ask for exactly these.")
    ] = None,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show what waits and runs for each set of tags, since when, and how many workers would meet a target."""
    query = {"targetSeconds": target, "tags": ",".join(tag) if tag else None}
    watching.show(
        url,
        api_key,
        lambda client: client.get("/api/queues", **query),
        _draw_queues,
        as_json=as_json,
        watch=watch,
    )


def _draw_queues(found: dict[str, Any]) -> None:
    rendering.print_table(
        ("TAGS", "WAITING", "RUNNING", "OLDEST", "DRAINED IN", "WORKERS", "SLOTS", "NEEDED"),
        (
            (
                ", ".join(each["tags"]) or "(none)", each["depth"], each["running"],
                rendering.duration(each["oldestAgeSeconds"]) if each["depth"] else "", _drained(each),
                each["workers"], each["slots"], each["workersNeeded"],
            )
            for each in found["pools"]
        ),
        empty="Nothing waits and nothing runs. Submit a job with: hostler submit 'echo hello' --follow",
    )  # fmt: skip


def _drained(pool: dict[str, Any]) -> str:
    if pool["estimatedDrainSeconds"] is None:
        return "never" if pool["depth"] else ""
    return rendering.duration(pool["estimatedDrainSeconds"])


@app.command("modules")
def modules(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the parts of this Hostler, and which of them are switched on."""
    with connect(url, api_key) as client:
        found = client.get("/api/modules")
    if as_json:
        rendering.write_json(found)
        return
    rendering.print_table(
        ("MODULE", "SWITCHED"),
        ((name, "on" if on else "off") for name, on in found["modules"].items()),
        empty="It has no modules.",
    )


@app.command("audit")
def audit(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1, max=10_000)] = 50,
    actor: Annotated[str | None, typer.Option("--actor", help="Only what they did, e.g. user:ID.")] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only such changes, e.g. job. or user.update.")
    ] = None,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List every change that was accepted, the newest first, with who made it; for admins."""

    def ask(client: Client) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        before: str | None = None
        while True:
            answer = client.get("/api/audit", limit=_PAGE, before=before)
            found += [
                each
                for each in answer["entries"]
                if actor in {None, each["actor"]} and each["action"].startswith(action or "")
            ]
            before = answer["next"]
            if before is None or len(found) >= limit:
                return {"entries": found[:limit]}

    def draw(answer: dict[str, Any]) -> None:
        rendering.print_table(
            ("WHEN", "WHO", "DID", "TO"),
            ((each["at"], each["actor"], each["action"], each["subject"]) for each in answer["entries"]),
            empty="No such change is in the log.",
        )

    watching.show(url, api_key, ask, draw, as_json=as_json, watch=watch)
