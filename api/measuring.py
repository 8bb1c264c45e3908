"""How long requests take, by method, route and status: measured by every web process, told by any of them.

The processes of one gunicorn count in files that they share (prometheus_client's multiprocess mode), in the private
directory of api/web_directory.py, so that any of them can tell of all. That mode keeps no exemplars; each process
therefore remembers the latest request of every series, and the one that is scraped tells of its own.
"""

import os
import re
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import prometheus_client.values
from prometheus_client import Histogram
from prometheus_client.core import Exemplar, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from api import web_directory

NAME = "hostler_http_request_seconds"
#: Few, since every route has a series for each.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_HELP = "How long requests took until their answer began, by route as it is declared."

Key = tuple[str, str, int]

#: Ids that are told: those that we made. A client may choose one of its own, and the page is public.
_OURS = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")

#: What is counted as it is named; anything else may be anything.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Allocated(MmapedDict):
    """A file that processes count in, whose room is taken from the disk before it is written to.

    The library makes files with holes and maps them into memory: on a full disk, the first write into a hole would end
    the process by SIGBUS. Here it is an OSError before anything is written.
    """

    _ROOM_BYTES = 1 << 16

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            with open(filename, "ab") as file:
                os.posix_fallocate(file.fileno(), 0, max(self._ROOM_BYTES, os.fstat(file.fileno()).st_size))
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + 32 > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, self._capacity * 2)
        super()._init_value(key)  # type: ignore[no-untyped-call]


if hasattr(os, "posix_fallocate"):
    prometheus_client.values.MmapedDict = _Allocated  # type: ignore[attr-defined]


class Requests:
    """Times of requests, kept for whoever scrapes."""

    def __init__(self) -> None:
        self._histogram = Histogram(
            NAME, _HELP, ("method", "route", "status"), buckets=BOUNDS_S, registry=None
        )
        self._series: dict[Key, Histogram] = {}
        self._latest: dict[Key, tuple[float, float, str, str]] = {}

    def observe(  # noqa: PLR0917  once a request: what is named takes longer
        self, method: str, route: str | None, status: int, seconds: float, request_id: str, trace_id: str
    ) -> None:
        """Count one request; `route` is None for a path that nobody declares."""
        key = (method, route or "", status)
        series = self._series.get(key)
        if series is None:
            key = (method if method in _METHODS else "other", key[1], status)
            try:
                series = self._series[key] = self._histogram.labels(key[0], key[1], str(status))
            except OSError:  # the disk is full: requests are answered all the same
                return
        series.observe(seconds)
        self._latest[key] = (seconds, time.time(), request_id, trace_id)

    def collect(self, shared: Path | None) -> Iterable[Metric]:
        """Return the histogram of all processes that count in the directory `shared`, or of this one alone."""
        of_all: Any = MultiProcessCollector  # untyped
        for metric in self._histogram.collect() if shared is None else of_all(None, str(shared)).collect():
            if metric.name == NAME:
                yield self._with_exemplars(metric)

    def _with_exemplars(self, metric: Metric) -> Metric:
        """Hang each series' latest request on the bucket that it fell into."""
        told = Metric(metric.name, metric.documentation, metric.type)
        named = {(method, route, str(status)): each for (method, route, status), each in self._latest.items()}
        for sample in metric.samples:
            labels = sample.labels
            latest = named.get((labels["method"], labels["route"], labels["status"]))
            if latest is None or "le" not in labels or _bucket(latest[0]) != float(labels["le"]):
                told.samples.append(sample)
                continue
            seconds, at_s, request_id, trace_id = latest
            about = {"trace_id": trace_id} if trace_id else {"request_id": request_id}
            ours = _OURS.fullmatch(trace_id or request_id)
            told.samples.append(sample._replace(exemplar=Exemplar(about, seconds, at_s)) if ours else sample)
        return told


def _bucket(seconds: float) -> float:
    return next((bound for bound in BOUNDS_S if seconds <= bound), float("inf"))


@cache
def requests() -> Requests:
    """Return this process's one record of requests; several applications in it share that."""
    return Requests()


def shared() -> Path | None:
    """Return the directory in which the processes of this server count, where its master made one."""
    return None if web_directory.path is None else directory(web_directory.path)


def directory(private: Path) -> Path:
    """Return where processes count, in their server's private directory."""
    return private / "metrics"
