"""`hostler nodes`: the machines of the fleet with what each has, does, and which apps it runs."""

from typing import Any

import typer

from cli import rendering, watching
from cli.client import segment
from cli.options import ApiKey, Json, Url, Watch, connect
from cli.workers import WorkerId

app = typer.Typer(no_args_is_help=True, help="Look at the machines of the fleet and their apps.")


@app.command("list")
def list_nodes(
    *, watch: Watch = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List nodes, the oldest first: each worker and each agent is one."""
    watching.show(url, api_key, lambda client: client.get("/api/nodes"), _draw, as_json=as_json, watch=watch)


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("NODE", "STATUS", "BUSY", "CPUS", "MEMORY", "APPS", "SEEN", "TAGS", "BECAUSE"),
        (
            (
                node["id"],
                "draining" if node["draining"] and node["status"] == "online" else node["status"],
                f"{node['load']['running']}/{node['capacity']['slots']}",
                node["capacity"]["cpu_count"],
                _memory(node),
                node["apps"]["total"] or "",
                rendering.ago(node["last_seen"]),
                ", ".join(node["tags"]),
                node["status_reason"],
            )
            for node in answer["nodes"]
        ),
        empty="There are no nodes. Start one with: hostler worker, or from outside: hostler agent --url ADDRESS",
    )


def _memory(node: dict[str, Any]) -> str:
    megabytes = node["capacity"]["memory_mb"]
    return "" if megabytes is None else rendering.size(megabytes * 1024 * 1024)


@app.command("show")
def show(node_id: WorkerId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one node, and the apps that it has."""
    with connect(url, api_key) as client:
        node = client.get(f"/api/nodes/{segment(node_id)}")
    if as_json:
        rendering.write_json(node)
        return
    load, capacity = node["load"], node["capacity"]
    rendering.print_facts(
        (
            ("node", node["id"]),
            ("status", node["status"]),
            ("because", node["status_reason"]),
            ("draining", "yes" if node["draining"] else None),
            ("kind", node["kind"]),
            ("host", node["hostname"]),
            ("version", node["version"]),
            ("slots", f"{load['running']} of {capacity['slots']} busy"),
            ("job", load["current_job_id"]),
            ("jobs so far", load["jobs_completed"]),
            ("tags", ", ".join(node["tags"])),
            ("CPUs", capacity["cpu_count"]),
            ("memory", _memory(node)),
            ("isolation", node["isolation"]),
            ("registered", rendering.ago(node["registered_at"])),
            ("seen", rendering.ago(node["last_seen"])),
        )
    )
    if node["installed"]:
        rendering.print_table(
            ("APP", "STATUS", "VERSION", "PRODUCT"),
            ((each["id"], each["status"], each["version"], each["product"]) for each in node["installed"]),
            empty="",
        )
