"""Samples: how much processor and memory the process trees of instances use."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """What one tree uses: 100 per cent is one processor; memory per cent is of this machine's."""

    cpu_percent: float
    memory_rss_bytes: int
    memory_percent: float


class Sampler:
    """Takes samples of several trees in one pass over the process table. Not for several threads at once."""

    def __init__(self) -> None:
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._taken_s = 0.0
        self._memory_bytes = psutil.virtual_memory().total

    def take(self, roots: Mapping[str, int]) -> dict[str, Usage]:
        """Return what the tree below each of `roots` (names to process ids) uses; trees that are gone are left out.

        Processor time is that since the last pass, and 0 for processes that were not there then.
        """
        now = time.monotonic()
        passed_s, self._taken_s = now - self._taken_s, now
        children: dict[int, list[int]] = {}
        for process in psutil.process_iter(["ppid"]):
            children.setdefault(process.info["ppid"], []).append(process.pid)
        spent: dict[tuple[int, float], float] = {}
        found: dict[str, Usage] = {}
        for name, root in roots.items():
            cpu_s, rss_bytes, alive = 0.0, 0, False
            for pid in _tree(root, children):
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    with process.oneshot():
                        times, key = process.cpu_times(), (pid, process.create_time())
                        rss_bytes += process.memory_info().rss
                    spent[key] = times.user + times.system
                    cpu_s += spent[key] - self._cpu_s.get(key, spent[key])
                    alive = True
            if alive:
                found[name] = Usage(
                    round(100 * max(0.0, cpu_s) / passed_s, 2),
                    rss_bytes,
                    round(100 * rss_bytes / self._memory_bytes, 3),
                )
        self._cpu_s = spent
        return found


def _tree(root: int, children: Mapping[int, list[int]]) -> list[int]:
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found
