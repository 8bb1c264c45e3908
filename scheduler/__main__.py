"""`python -m scheduler`: one scheduler, as `hostler scheduler` and `hostler up` start it."""

import asyncio
import signal
import sys

from integrations.logging import to_stderr
from scheduler.leader import Leader
from settings import BadSettings, Settings
from storage.store import Store


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    store = Store(settings)
    leader = Leader(store)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leader.stop)
    try:
        await leader.serve()
    finally:
        await store.close()


def main() -> int:
    """Run a scheduler until it is told to stop; answers the exit status."""
    try:
        settings = Settings.from_env()
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    if settings.secret_key is None:
        print(
            "HOSTLER_SECRET_KEY is not set; the scheduler needs the one that the web process has.",
            file=sys.stderr,
        )
        return 2
    to_stderr(form=settings.log_format, level=settings.log_level)
    asyncio.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
