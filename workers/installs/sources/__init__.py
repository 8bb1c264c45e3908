"""Where a release comes from: an archive in the object store, an npm package, a Python package.

Each source first says exactly what it would install (`resolve`), then puts it into an empty directory (`fetch`). The
registries' ordinary clients do the fetching, with the node's own configuration; they run as the worker and therefore
run nothing of what they fetch. What a package wants to run itself, it runs later and apart.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage import manifests
from storage.errors import HostlerError
from workers import archives
from workers.installs.programs import Ended, InstallFailed, Programs
from workers.installs.toolchains import Node
from workers.threads import until_told

#: How long one call of a client may take.
RESOLVE_TIMEOUT_S, FETCH_TIMEOUT_S = 120.0, 1800.0
#: Names of versions that stand for whatever is the newest.
NEWEST = frozenset({"", "latest", "newest"})


@dataclass(frozen=True, slots=True)
class Resolved:
    """Exactly what will be installed: its version, and what tells its bytes from all others."""

    version: str
    origin: str


@dataclass(frozen=True, slots=True)
class Workbench:
    """What a source works with. `shared`: whether apps are other users than the worker.

    `programs` run as the worker; `apart` makes those that run kept apart, for clients that might run what they fetch.
    """

    programs: Programs
    environment: Mapping[str, str]
    apps_dir: Path
    shared: bool
    cancelled: Callable[[], bool]
    node: Callable[[], Awaitable[Node]]
    apart: Callable[[], Programs]


class Source(Protocol):
    """Something that can be installed."""

    async def resolve(self, bench: Workbench) -> Resolved:
        """Say what would be installed. Raises NotFound, Unavailable, InstallFailed."""

    async def fetch(self, resolved: Resolved, into: Path, bench: Workbench) -> None:
        """Put it into the empty directory `into`. Raises HostlerError, OSError, InterruptedError."""


async def unpack(packed: Path, into: Path, bench: Workbench) -> None:
    """Unpack into `into`; a single folder that holds everything (as npm and git make them) is taken off."""
    opened = packed.with_name("unpacked")
    await until_told(
        lambda told: archives.extract(packed, opened, cancelled=lambda: told() or bench.cancelled())
    )
    within = list(opened.iterdir())
    root = opened
    if len(within) == 1 and within[0].is_dir() and not within[0].is_symlink():
        known = (opened / name for name in (manifests.OWN, manifests.SQUAREBERG))
        root = opened if any(each.exists() for each in known) else within[0]
    for path in root.iterdir():
        path.rename(into / path.name)


#: What a client complains about: a pattern, the error it stands for, and the sentence about it.
Complaints = Sequence[tuple[str, type[HostlerError], str]]

DISK_FULL: Complaints = (
    (
        r"No space left on device|ENOSPC|Errno 28|Errno 122|EDQUOT",
        InstallFailed,
        "the disk of this node is full",
    ),
)


def refusal(ended: Ended, client: str, package: str, complaints: Complaints) -> HostlerError:
    """Return why a client could not do its work, as an error of ours."""
    if ended.timed_out:
        return InstallFailed(f"{package!r} cannot be installed: {client} took too long.")
    for pattern, kind, sentence in (*DISK_FULL, *complaints):
        if re.search(pattern, ended.tail):
            return kind(f"{package!r} cannot be installed: {sentence}.")
    return InstallFailed(f"{package!r} cannot be installed: {client} {ended.how}: {last_line(ended.tail)}")


def last_line(tail: str) -> str:
    """Return the last line that holds something."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return (lines[-1] if lines else "it said nothing.")[:300]
