"""Replacing one release by another: stop, copy the data, switch, start, wait for health, or take it all back.

The old release stops before the new one starts, always: both would use the same data and, mostly, the same port. How
far an update is lies in a journal on the disk, so that whoever comes after a crash goes on from there.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from storage.apps import App, Instance, Phase
from storage.manifests import Manifest, Process
from workers.installs import snapshots
from workers.installs.releases import Releases, remove_tree
from workers.supervisor.places import Places, write_whole
from workers.threads import to_the_end

#: Stages of an update, in order; after `trying` it is either over or goes `back`.
STOPPING, SWITCHING, TRYING, BACK = "stopping", "switching", "trying", "back"
#: At least so long is waited for health; longer where the manifest's own times add up to more.
PATIENCE_S = 30.0
#: What has no health check has to stay up for so long.
STEADY_S = 1.0


@dataclass(frozen=True, slots=True)
class Journal:
    """What an update is about: from which release to which, how far it is, and for whose job."""

    job: str
    origin: str
    target: str
    stage: str
    built: bool  # whether `target` was made for this update alone
    why: str = ""


class JournalFile:
    """The journal of an app, which is there from the first change until the last."""

    def __init__(self, places: Places) -> None:
        self.path = places.root / "update.json"

    def read(self) -> Journal | None:
        """Return the journal; None when no update is under way."""
        try:
            return Journal(**json.loads(self.path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, journal: Journal) -> Journal:
        """Note how far the update is, and answer that. Raises OSError."""
        write_whole(self.path, json.dumps(asdict(journal)).encode())
        return journal

    def remove(self) -> None:
        """Note that the update is over. Safe to repeat."""
        self.path.unlink(missing_ok=True)


class Data:
    """The data of an app, and the copy that an update keeps of it."""

    def __init__(self, places: Places) -> None:
        self._data, self._copy = places.data, places.root / "snapshot"

    async def keep(self, cancelled: Callable[[], bool]) -> None:
        """Copy the data. Raises InterruptedError, OSError."""
        await to_the_end(snapshots.take, self._data, self._copy, cancelled=cancelled)

    async def put_back(self) -> None:
        """Make the data what they were, if a copy was kept. Safe to repeat. Raises OSError."""
        if self._copy.is_dir():
            await to_the_end(snapshots.restore, self._copy, self._data)

    async def drop(self) -> None:
        """Remove the copy. Safe to repeat."""
        await to_the_end(remove_tree, self._copy)


def patience_s(manifest: Manifest) -> float:
    """Return how long the processes of a manifest may take until they are well, in seconds."""
    longest = 0.0
    for each in manifest.processes:
        if each.health is not None:
            check = each.health.period_s + each.health.timeout_s
            longest = max(
                longest, each.health.delay_s + (each.health.failures + each.health.successes) * check
            )
    return max(PATIENCE_S, longest + 10)


def why_not_well(app: App, instances: Sequence[Instance]) -> str | None:
    """Return why an app is not well and will not be by itself, "" once it is well, and None while that is open."""
    manifest = app.manifest
    open_still = False
    for process in manifest.processes if manifest is not None else ():
        wanted = app.wanted(process)
        if not process.enabled or not wanted.running or process.type == "scheduled":
            continue
        own = [each for each in instances if each.process == process.name]
        for each in own:
            if each.state in {"crashed", "failed"} or each.health == "unhealthy":
                return _why(process, each)
        up = [each for each in own if each.state in {"running", "completed"}]
        open_still = open_still or len(up) < wanted.scale
    return None if open_still else ""


def under_way(manifest: Manifest, instances: Sequence[Instance]) -> bool:
    """Tell whether a oneshot process, such as a migration, is at work that others wait for: that takes its time."""
    awaited = {name for each in manifest.processes for name in each.depends_on}
    once = {each.name for each in manifest.processes if each.type == "oneshot"} & awaited
    return any(each.process in once and each.state == "running" for each in instances)


def why_late(instances: Sequence[Instance]) -> str:
    """Return what is said when it is not well in time: what one of its instances waits for, where one does."""
    for each in instances:
        if each.state == "starting" and each.message:
            return f"{each.process!r} did not get well in time: {each.message}"
    return "it did not get well in time."


def _why(process: Process, instance: Instance) -> str:
    ending = instance.message or (
        "it is not healthy"
        if instance.health == "unhealthy"
        else f"it ended with exit code {instance.exit_code}"
        if instance.exit_code is not None
        else f"it was ended by signal {instance.signal}"
    )
    return f"{process.name!r} did not get well: {ending.rstrip('.')}."


def runs(app: App) -> bool:
    """Tell whether anything of an app shall run for longer, so that one can wait for its health."""
    as_ready = replace(app, phase=Phase.READY)
    return any(as_ready.wanted(each).running and each.type != "scheduled" for each in as_ready.processes)


def converge(places: Places, wished: str) -> None:
    """Bring an update to an end whose job was given up: to the release `wished`, which the record says runs.

    Nothing of the app may run meanwhile. Safe to repeat. Raises NotFound, OSError.
    """
    journal, releases = JournalFile(places).read(), Releases(places.root)
    if journal is not None:
        copy = places.root / "snapshot"
        if journal.stage != STOPPING and wished == journal.origin and copy.is_dir():
            snapshots.restore(copy, places.data)
        if releases.current() != wished:
            releases.switch(wished)
    clear_up(releases, places)


def clear_up(releases: Releases, places: Places) -> None:
    """Remove what an update that is over may have left."""
    JournalFile(places).remove()
    remove_tree(places.root / "snapshot")
    with contextlib.suppress(FileNotFoundError):
        Path(releases.root / "current.new").unlink()
