"""The releases of one app on this node: where each lies, which are whole, and which one is current.

A release is built at its final path, since virtual environments and install steps write down where they are. It is
whole once the note beside it is there, which is the last thing that is written; whatever lacks one is rubbish.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import NotFound
from workers.supervisor.places import write_whole

#: So many releases of an app are kept, the current one among them.
KEPT = 5


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a whole release: `origin` tells which bytes it was made of."""

    version: str
    origin: str
    manifest: dict[str, Any] = field(default_factory=dict)


class Releases:
    """The releases below the directory of an app, and the link to the current one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder, self._notes = root / "releases", root / "notes"

    def path(self, name: str) -> Path:
        """Return where a release lies, or would."""
        return self._folder / name

    def note(self, name: str) -> Note | None:
        """Return what is known of a release; None unless it is whole."""
        try:
            data = json.loads(self._note(name).read_text())
            return Note(**data) if self.path(name).is_dir() else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def whole(self) -> dict[str, Note]:
        """Return the whole releases by the names of their directories."""
        found = ((path.stem, self.note(path.stem)) for path in sorted(self._notes.glob("*.json")))
        return {name: note for name, note in found if note is not None}

    def name_for(self, version: str, origin: str) -> str:
        """Return the name of the whole release that was made of `origin`, else one that no other has."""
        whole = self.whole()
        names = [version, *(f"{version}-{number}" for number in range(2, len(whole) + 3))]
        made = next((name for name in names if name in whole and whole[name].origin == origin), None)
        return made or next(name for name in names if name not in whole)

    def begin(self, name: str) -> Path:
        """Return an empty directory for a release that is to be built. Raises OSError."""
        self.discard(name)
        path = self.path(name)
        path.mkdir(parents=True)
        return path

    def finish(self, name: str, note: Note) -> None:
        """Declare a release whole. Raises OSError."""
        self._notes.mkdir(mode=0o700, exist_ok=True)  # what is installed here is no other app's business
        write_whole(self._note(name), json.dumps(asdict(note)).encode())

    def discard(self, name: str) -> None:
        """Remove a release, whole or not. Safe to repeat."""
        self._note(name).unlink(missing_ok=True)  # first: what is half removed is not whole
        remove_tree(self.path(name))

    def sweep(self) -> int:
        """Remove what an interrupted build left behind; answers how much that was."""
        if not self._folder.is_dir():
            return 0
        whole = self.whole()
        rubbish = [path for path in self._folder.iterdir() if path.name not in whole]
        for path in rubbish:
            remove_tree(path)
        return len(rubbish)

    def current(self) -> str | None:
        """Return the name of the current release; None when there is none that is whole."""
        try:
            name = Path(os.readlink(self.root / "current")).name
        except OSError:
            return None
        return name if self.note(name) is not None else None

    def switch(self, name: str) -> None:
        """Make a whole release the current one, in one step. Raises NotFound, OSError."""
        if self.note(name) is None:
            raise NotFound(f"There is no whole release {name!r} of {self.root.name!r} on this node.")
        beside = self.root / "current.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path("releases") / name)
        beside.replace(self.root / "current")

    def prune(self, keep: Iterable[str]) -> None:
        """Remove the releases that are neither current nor among `keep`."""
        kept = {*keep, self.current()}
        for name in self.whole():
            if name not in kept:
                self.discard(name)

    def _note(self, name: str) -> Path:
        return self._notes / f"{name}.json"


def remove_tree(path: Path) -> None:
    """Remove a file, link or folder, however its modes were set. Raises OSError where it cannot. Safe to repeat."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    def failed(function: Any, name: str, info: Any) -> None:
        if isinstance(info[1], FileNotFoundError):
            return
        with contextlib.suppress(
            OSError
        ):  # a folder that nobody may write or list, as npm and others leave them
            Path(name).parent.chmod(0o700)
            Path(name).chmod(0o700)
        if function in {os.unlink, os.rmdir}:
            function(name)
        else:
            shutil.rmtree(name)

    shutil.rmtree(path, onerror=failed)
