"""Ending the apps of a machine: what `hostler worker --stop-apps` does, with no worker at work."""

import asyncio
from pathlib import Path

from storage.errors import Conflict
from workers.log import log
from workers.supervisor import processes, state
from workers.supervisor.processes import Kept, NotStarted, Processes
from workers.supervisor.supervisor import Lock


async def stop_all(apps_dir: Path, *, at_once: bool = False) -> int:
    """Stop every instance below `apps_dir`, whoever started it; answers how many there were.

    Each gets its own stop signal, and the time that it has before it is killed; with `at_once` it is killed. The next
    worker starts what shall run.
    Raises Conflict while a worker looks after them, which would start them again.
    """
    locks = [Lock(path) for path in sorted(apps_dir.glob(".*.lock"))]
    try:
        for lock in locks:
            if not lock.taken():
                name = lock.path.name.removeprefix(".").removesuffix(".lock")
                raise Conflict(
                    f"Worker {name!r} looks after these apps and would start them again; end it first."
                )
        return await _stop_all(apps_dir, at_once=at_once)
    finally:
        for lock in locks:
            lock.close()


async def _stop_all(apps_dir: Path, *, at_once: bool) -> int:
    starter = Processes("none")
    kept: list[Kept] = []
    for directory in sorted(apps_dir.glob("*/records")):
        for record in processes.live(directory):
            try:
                adopted = await starter.adopt(record)
            except NotStarted as error:
                log.warning("cannot stop an instance", extra={"record": str(record), "why": str(error)})
                continue
            kept += [adopted] if adopted is not None else []
    for each in kept:
        if at_once:
            each.kill()
        else:
            each.stop()
    await asyncio.gather(*(each.ended for each in kept))
    for path in apps_dir.glob("*/state.json"):
        memory = state.read(path)
        if memory is not None:
            memory.lives = {}  # else the next worker would take this for crashes
            try:
                memory.write(path)
            except OSError as error:
                log.warning(
                    "cannot note that an app was stopped", extra={"path": str(path), "why": str(error)}
                )
    return len(kept)
