"""Recovery points: all that Redis durably holds, sealed in the object store, and coming back from one."""

from storage.recovery.points import PREFIX, Place, Point, RecoveryError, every, get, make, prune, verify
from storage.recovery.rebuilding import Rebuilt, rebuild
from storage.recovery.routine import LATE_PERIODS, MOST_SHARE, Standing, keep_up, standing

__all__ = [
    "LATE_PERIODS", "MOST_SHARE", "PREFIX", "Place", "Point", "Rebuilt", "RecoveryError", "Standing", "every", "get",
    "keep_up", "make", "prune", "rebuild", "standing", "verify",
]  # fmt: skip
