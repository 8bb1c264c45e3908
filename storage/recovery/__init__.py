"""Recovery points: all that Redis durably holds, sealed in the object store, and coming back from one."""

from storage.recovery.points import Place, Point, RecoveryError, every, make, prune, verify
from storage.recovery.rebuilding import Rebuilt, rebuild
from storage.recovery.routine import Standing, keep_up, standing

__all__ = [
    "Place", "Point", "Rebuilt", "RecoveryError", "Standing", "every", "keep_up", "make", "prune", "rebuild",
    "standing", "verify",
]  # fmt: skip
