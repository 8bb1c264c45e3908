"""Every task a worker can be asked to run: the contract between those who queue work and workers/."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A kind of work; `function` is the dotted name under which RQ's tools show it.

    Workers choose what to run by `name` in this table alone and never import what a queue says (reliability.md, 1.3).
    """

    name: str
    function: str


COMMAND = Task("command", "workers.tasks.command")

#: What is done with an app, each on its own node: those that change its files, then those that change what runs.
INSTALL = Task("app.install", "workers.tasks.app_install")
UPDATE = Task("app.update", "workers.tasks.app_update")
ROLLBACK = Task("app.rollback", "workers.tasks.app_rollback")
CONFIGURE = Task("app.configure", "workers.tasks.app_configure")
UNINSTALL = Task("app.uninstall", "workers.tasks.app_uninstall")
START = Task("app.start", "workers.tasks.app_start")
STOP = Task("app.stop", "workers.tasks.app_stop")
RESTART = Task("app.restart", "workers.tasks.app_restart")
SCALE = Task("app.scale", "workers.tasks.app_scale")
SCHEDULE = Task("app.schedule", "workers.tasks.app_schedule")
TRIGGER = Task("app.trigger", "workers.tasks.app_trigger")

OF_APPS = (
    INSTALL, UPDATE, ROLLBACK, CONFIGURE, UNINSTALL, START, STOP, RESTART, SCALE, SCHEDULE, TRIGGER,
)  # fmt: skip

#: What is done with a backup: on the node whose data it keeps, or on the one that gets them.
BACKUP_RUN = Task("backup.run", "workers.tasks.backup_run")
BACKUP_RESTORE = Task("backup.restore", "workers.tasks.backup_restore")
BACKUP_VERIFY = Task("backup.verify", "workers.tasks.backup_verify")
BACKUP_DRILL = Task("backup.drill", "workers.tasks.backup_drill")

OF_BACKUPS = (BACKUP_RUN, BACKUP_RESTORE, BACKUP_VERIFY, BACKUP_DRILL)

TABLE: dict[str, Task] = {task.name: task for task in (COMMAND, *OF_APPS, *OF_BACKUPS)}
