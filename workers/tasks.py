"""The names that RQ's tools show for Hostler's jobs; only `hostler worker` can carry them out."""

from typing import NoReturn


class NotAStockWorker(RuntimeError):
    """A stock `rq worker` was pointed at Hostler's queues."""


def command(job_id: str) -> NoReturn:
    """Refuse to run outside Hostler's own worker, which never calls this; the reaper puts the job back.

    Raises NotAStockWorker.
    """
    raise NotAStockWorker(
        f"Job {job_id} is run by `hostler worker`; its record in Hostler decides, not RQ's."
    )


app_install = app_update = app_rollback = app_configure = app_uninstall = command
app_start = app_stop = app_restart = app_scale = app_schedule = app_trigger = command
