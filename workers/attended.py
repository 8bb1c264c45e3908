"""External programs of one job on its node, one at a time: started, their end heard of, what is left of them killed.

They die with the worker, whatever that dies of, and with all that they have started.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from workers import platforms
from workers.platforms import Child, Command, Platform


class Attended:
    """Starts programs for the job `job_id`, kept apart as `isolation` says. Close it."""

    def __init__(self, isolation: str, job_id: str, *, readable: Iterable[Path] = ()) -> None:
        self._job_id = job_id
        self._platform: Platform = platforms.choose(isolation, slots=1, readable=readable)
        self._running: tuple[Child, Callable[[], None]] | None = None
        asyncio.get_running_loop().add_reader(self._platform.fileno(), self._pump)

    def close(self) -> None:
        """End what runs and let go of everything. Safe to run twice."""
        with contextlib.suppress(ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self._platform.fileno())
        self._platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sweep(self) -> int:
        """Kill what an earlier attempt of the same job left running; answers how many processes."""
        return self._platform.sweep(self._job_id)

    def _spawn(self, argv: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Child:
        """Start a program; `_attend` says who hears of its end. Raises HostlerError."""
        given = {**environment, "HOSTLER_JOB_ID": self._job_id}
        return self._platform.spawn(Command(list(argv), given, directory, slot=0, job_id=self._job_id))

    def _attend(self, child: Child, exited: Callable[[], None]) -> None:
        """Have `exited` called, perhaps more than once, when a program has ended and all it wrote can be read."""
        self._running = (child, exited)

    def _leave(self) -> None:
        self._running = None

    def _pump(self) -> None:
        ended = self._platform.pump()
        if self._running is not None and self._running[0] in ended:
            self._running[1]()
