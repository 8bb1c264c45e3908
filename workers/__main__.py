"""`python -m workers`: one worker process, as `hostler worker` and `hostler up` start it."""

import argparse
import asyncio
import logging
import sys

from integrations.logging import to_stderr
from settings import BadSettings, Settings
from storage import cause
from storage.errors import HostlerError
from workers import startup
from workers.supervisor.ending import stop_all
from workers.worker import Worker


def main() -> int:
    """Run a worker until it is told to stop; answers the exit status."""
    try:
        settings = Settings.from_env()
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="hostler worker", description="Run jobs from the queues.")
    parser.add_argument(
        "--slots", type=int, default=settings.slots, help="jobs at once (default: %(default)s)"
    )
    parser.add_argument(
        "--tags", default=",".join(settings.tags), help="what this worker has, comma-separated"
    )
    parser.add_argument("--name", help="default: this machine's, and the same again after a restart")
    parser.add_argument(
        "--stop-apps",
        action="store_true",
        help="stop all apps of this machine, which outlive workers, and end",
    )
    parser.add_argument(
        "--at-once", action="store_true", help="with --stop-apps: kill them without asking them first"
    )
    options = parser.parse_args()
    if options.stop_apps:
        return _stop_apps(settings, at_once=options.at_once)
    if options.at_once:
        parser.error("--at-once belongs to --stop-apps")
    try:
        startup.make_work_dir(settings.work_dir)
    except HostlerError as error:
        print(error, file=sys.stderr)
        return 2
    if options.name is None:
        options.name, _lasting = startup.name_of_this_machine(settings.work_dir)
    if options.slots < 1:
        parser.error("--slots must be 1 or more")
    if problem := startup.problem_with_name(options.name):
        parser.error(problem)
    if settings.secret_key is None:
        print(
            "HOSTLER_SECRET_KEY is not set; workers need the one that the web process has.", file=sys.stderr
        )
        return 2
    to_stderr(form=settings.log_format, level=settings.log_level, about=cause.for_log)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for each request
    tags = tuple(sorted({tag.strip() for tag in options.tags.split(",") if tag.strip()}))
    try:
        Worker(settings, name=options.name, slots=options.slots, tags=tags).work()
    except HostlerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _stop_apps(settings: Settings, *, at_once: bool) -> int:
    """Stop the apps that workers of this machine have left running; answers the exit status."""
    to_stderr(form=settings.log_format, level=settings.log_level)
    try:
        count = asyncio.run(stop_all(settings.apps_dir, at_once=at_once))
    except HostlerError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Stopped {count} instances of apps." if count != 1 else "Stopped one instance of an app.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
