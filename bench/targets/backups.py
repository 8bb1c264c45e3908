"""L14: backups, which there are not yet."""

from bench.figure import Bench, Missing
from bench.target import Found, Target


def backup(bench: Bench) -> Found:
    """Raise Missing."""
    raise Missing("there are no backups yet")


TARGETS = [Target(id="L14", what="backup and restore of 10,000 files, 1 GB", limits=(), measure=backup)]
