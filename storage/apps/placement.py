"""Where an app goes: the node that was named, or the least loaded of those that have all the tags."""

from collections.abc import Collection

from storage import fleet
from storage.calls import command
from storage.errors import Conflict, Unprocessable
from storage.fleet import Worker
from storage.store import Store


def is_node(worker: Worker) -> bool:
    """Tell whether a worker is a machine of ours that can hold apps; agents that pull over HTTP cannot."""
    return worker.kind == "worker"


async def choose(store: Store, *, node: str | None = None, tags: Collection[str] = ()) -> str:
    """Return the id of the node for a new app.

    Raises Unprocessable where no node can ever serve the wish as it is, and Conflict where none can now.
    """
    nodes = [each for each in await fleet.workers(store) if is_node(each)]
    if node is not None:
        return _named(nodes, node, tags)
    fitting = [each for each in nodes if set(tags) <= set(each.tags)]
    if not nodes:
        raise Conflict("There is no node yet: start `hostler worker` on a machine.")
    if not fitting:
        raise Unprocessable(
            f"No node has all of the tags {', '.join(sorted(tags))}.", details={"tags": "no node has all"}
        )
    able = [each for each in fitting if each.status == "online" and not each.draining]
    if not able:
        raise Conflict("No node that could take it is online.")
    counts = await store.calls(*(command("SCARD", f"h:apps:node:{each.id}") for each in able))
    load = {each.id: (count, each.running / each.slots) for each, count in zip(able, counts, strict=True)}
    return min(load, key=lambda each: (*load[each], each))


def _named(nodes: list[Worker], node: str, tags: Collection[str]) -> str:
    worker = next((each for each in nodes if each.id == node), None)
    if worker is None:
        raise Unprocessable(f"There is no node {node!r}.", details={"node": "unknown"})
    if missing := set(tags) - set(worker.tags):
        message = f"Node {node!r} lacks the tags {', '.join(sorted(missing))}."
        raise Unprocessable(message, details={"tags": message})
    if worker.status != "online":
        raise Conflict(f"Node {node!r} is offline.")
    if worker.draining:
        raise Conflict(f"Node {node!r} is being drained.")
    return worker.id
