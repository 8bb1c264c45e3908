"""`python -m workers`: one worker process, as `hostler worker` and `hostler up` start it."""

import argparse
import os
import secrets
import socket
import sys

from integrations.logging import to_stderr
from settings import BadSettings, Settings
from storage.errors import HostlerError
from workers import startup
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
    host = socket.gethostname()[:40]
    parser.add_argument("--name", default=f"{host}-{os.getpid()}-{secrets.token_hex(2)}")
    options = parser.parse_args()
    if options.slots < 1:
        parser.error("--slots must be 1 or more")
    if problem := startup.problem_with_name(options.name):
        parser.error(problem)
    if settings.secret_key is None:
        print(
            "HOSTLER_SECRET_KEY is not set; workers need the one that the web process has.", file=sys.stderr
        )
        return 2
    to_stderr()
    tags = tuple(sorted({tag.strip() for tag in options.tags.split(",") if tag.strip()}))
    try:
        Worker(settings, name=options.name, slots=options.slots, tags=tags).work()
    except HostlerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
