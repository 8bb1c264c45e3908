"""What the supervisor remembers of an app on its node: the last wish, and how far each instance had got.

Whether an instance lives is not remembered here: its record says so (processes.py), which no crash can falsify.
"""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from storage.apps.history import Run
from storage.apps.records import App, Phase, read_wish
from storage.seal import Forged, Seal
from workers.log import log
from workers.supervisor.places import write_whole


@dataclass(slots=True)
class Memory:
    """One app as it was left. `boot` tells whether the machine has been started anew since.

    `held_back` is the generation that was not started after a boot, since the app does not start by itself.
    """

    wish: bytes = b""
    phase: str = ""
    boot: str = ""
    held_back: int | None = None
    acted_on: dict[str, int] = field(default_factory=dict)  # restarts that were asked for, by process
    lives: dict[str, dict[str, Any]] = field(default_factory=dict)
    timetables: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggers: dict[str, int] = field(default_factory=dict)  # what scheduled runs are, by instance; see Begun
    untold: list[Run] = field(default_factory=list)  # that have ended, and that nobody has been told of yet

    def write(self, path: Path) -> None:
        """Keep it. Raises OSError."""
        fields: dict[str, Any] = {
            "wish": base64.b64encode(self.wish).decode(), "phase": self.phase, "boot": self.boot,
            "held_back": self.held_back, "acted_on": self.acted_on, "lives": self.lives,
            "timetables": self.timetables, "triggers": self.triggers,
        }  # fmt: skip
        if self.untold:  # else a version before, which does not know of it, reads what there is
            fields["untold"] = self.untold
        write_whole(path, orjson.dumps(fields), durable=False)  # after a loss of power Redis knows better

    def app(self, seal: Seal, instance_id: str) -> App | None:
        """Return the app that was last wished for, if its signature holds."""
        try:
            return replace(read_wish(seal, instance_id, self.wish), phase=Phase(self.phase))
        except (Forged, ValueError, KeyError, TypeError) as error:
            log.error(
                "what is remembered of an app is not believed", extra={"app": instance_id, "why": str(error)}
            )
            return None


def read(path: Path) -> Memory | None:
    """Return what was remembered; None when that is nothing, or cannot be read."""
    try:
        fields = orjson.loads(path.read_bytes())
        untold = list(_runs(path, fields.get("untold", ())))
        return Memory(**{**fields, "wish": base64.b64decode(fields["wish"]), "untold": untold})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error(
            "what was remembered of an app cannot be read", extra={"path": str(path), "why": str(error)}
        )
        return None


def _runs(path: Path, kept: Iterable[dict[str, Any]]) -> Iterator[Run]:
    """Yield the runs that this version can read; one that another version wrote costs no more than itself."""
    for run in kept:
        try:
            yield Run(**run)
        except TypeError as error:
            log.error("a run that ended cannot be read", extra={"path": str(path), "why": str(error)})
