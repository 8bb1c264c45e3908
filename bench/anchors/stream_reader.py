"""Reads lines from a Redis stream as they come: how late each was, and how long all of them took."""

import statistics
import sys
import time
from typing import Any

import orjson
import redis


def main(url: str, count: int) -> None:
    """Read `count` lines and print what was found as JSON."""
    client: Any = redis.Redis.from_url(url)
    delays: list[float] = []
    last = b"0"
    first_ns = heard_ns = 0
    print("ready", flush=True)
    while len(delays) < count:
        found = client.xread({"log": last}, count=1000, block=5000)
        heard_ns = time.time_ns()
        if not found:
            sys.exit("no lines came")
        for entry, fields in found[0][1]:
            last = entry
            written = [int(line.split()[1]) for line in fields[b"l"].splitlines()]
            first_ns = first_ns or written[0]
            delays += [(heard_ns - each) / 1e6 for each in written]
    quantiles = statistics.quantiles(delays, n=100, method="inclusive")
    told = {"p50": quantiles[49], "p99": quantiles[98], "seconds": (heard_ns - first_ns) / 1e9}
    print(orjson.dumps(told).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
