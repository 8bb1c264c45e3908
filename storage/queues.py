"""Queues: where a job waits by its priority, its tags or its node, and which of them a worker serves in what order."""

from collections.abc import Iterable, Sequence
from enum import StrEnum

import orjson

RQ_PREFIX = "rq:queue:"
#: A node's own queue: what only it can do, and does beside its command slots.
NODE_PREFIX = "node."
#: The queues of commands, which any worker with their tags may take.
COMMAND_PREFIX = "jobs."


class Priority(StrEnum):
    """How soon a job is taken; higher ones always first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def tag_set(tags: Iterable[str]) -> str:
    """Return the canonical name of a set of tags, e.g. `gpu+linux`; empty for none."""
    return "+".join(sorted(set(tags))) if tags else ""


def read_tags(words: str | bytes) -> tuple[str, ...]:
    """Read the tags that a worker's record has (JSON); a record that somebody else wrote has none."""
    try:
        tags = orjson.loads(words)
    except orjson.JSONDecodeError:
        return ()
    return tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()


def of_job(priority: str, tags: Iterable[str]) -> str:
    """Return the queue for a job: `jobs.high`, or `jobs.gpu+linux.high` for one that asks for tags."""
    wanted = tag_set(tags)
    return f"{COMMAND_PREFIX}{wanted}.{priority}" if wanted else COMMAND_PREFIX + priority


def of_node(node: str) -> str:
    """Return the queue of what must happen on one node."""
    return NODE_PREFIX + node


def node_of(queue: str) -> str | None:
    """Return the node whose own queue this is; None for a queue of anybody's."""
    return queue.removeprefix(NODE_PREFIX) if queue.startswith(NODE_PREFIX) else None


def served(tag_sets: Iterable[str], tags: Sequence[str]) -> list[str]:
    """Return the queues that a worker with `tags` serves, best first.

    `tag_sets` are those that jobs have asked for. Within a priority the most demanding set comes first, since the
    fewest workers serve it.
    """
    mine = set(tags)
    covered = [names for names in tag_sets if names and set(names.split("+")) <= mine]
    covered.sort(key=lambda names: (-names.count("+"), names))
    return [
        f"{COMMAND_PREFIX}{names}.{level}" if names else COMMAND_PREFIX + level
        for level in Priority
        for names in [*covered, ""]
    ]


def key(queue: str) -> str:
    """Return the Redis list in which RQ keeps `queue`."""
    return RQ_PREFIX + queue


def news(message: bytes) -> tuple[str, int]:
    """Return what a word on `h:wake` or `h:queued` says: the queue that got work, or `tagsets`, and how many jobs."""
    queue, _, many = message.decode("utf-8", "replace").partition(" ")
    return queue, int(many) if many.isdecimal() and len(many) < 6 else 1


def tags_of(queue: str) -> frozenset[str]:
    """Return the tags that a worker needs to serve `queue`."""
    if node_of(queue) is not None:
        return frozenset()
    wanted = queue.removeprefix(COMMAND_PREFIX).rpartition(".")[0]  # a tag may hold dots
    return frozenset(wanted.split("+")) if wanted else frozenset()
