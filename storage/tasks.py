"""Every task a worker can be asked to run: the contract between those who queue work and workers/."""

import json
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A kind of work; `function` is the dotted name under which RQ's tools show it.

    Workers choose what to run by `name` in this table alone and never import what a queue says (reliability.md, 1.3).
    """

    name: str
    function: str


COMMAND = Task("command", "workers.tasks.command")

TABLE: dict[str, Task] = {task.name: task for task in (COMMAND,)}


def rq_data(task: Task, job_id: str) -> bytes:
    """Return the `data` field of an RQ job hash: what rq.job.Job would store with the JSON serializer."""
    return zlib.compress(json.dumps([task.function, None, [job_id], {}]).encode())
