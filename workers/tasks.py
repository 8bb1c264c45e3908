"""The tasks: what carries out a node's own jobs, by name, and the names that RQ's tools show for all jobs.

Only `hostler worker` can carry jobs out.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # RQ's tools need the names alone
    from workers.lane import Task


class NotAStockWorker(RuntimeError):
    """A stock `rq worker` was pointed at Hostler's queues."""


def command(job_id: str) -> NoReturn:
    """Refuse to run outside Hostler's own worker, which never calls this; the reaper puts the job back.

    Raises NotAStockWorker.
    """
    raise NotAStockWorker(
        f"Job {job_id} is run by `hostler worker`; its record in Hostler decides, not RQ's."
    )


def of_apps() -> "Mapping[str, Task]":
    """Return what carries out each task of a node's own queue, by its name in storage.tasks."""
    from workers.backups import tasks as backups  # noqa: PLC0415  as above
    from workers.installs import tasks as installs  # noqa: PLC0415  as above
    from workers.supervisor import tasks as lifecycle  # noqa: PLC0415  as above

    return {**backups.TASKS, **installs.TASKS, **lifecycle.TASKS}


app_install = app_update = app_rollback = app_configure = app_uninstall = command
backup_run = backup_restore = backup_verify = backup_drill = command
app_start = app_stop = app_restart = app_scale = app_schedule = app_trigger = command
