"""What figures of latency share: how many are taken at what rate, and how they are summed up."""

import statistics
from collections.abc import Sequence

from bench.figure import Bench

#: So many jobs a second does an idle fleet get.
RATE_HZ = 20


def count(bench: Bench) -> int:
    """Return how many are taken in a round."""
    return 40 if bench.quick else 200


def quantiles(taken_ms: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99."""
    cuts = statistics.quantiles(taken_ms, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}
