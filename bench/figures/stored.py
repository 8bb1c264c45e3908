"""P9: what looking at jobs costs when a million of them are stored."""

import contextlib
import http.client
import json
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import redis

from bench.figure import Bench, Figure, Goal, Measure
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, Stack, stack

FEW, MANY, MANY_QUICK = 1_000, 1_000_000, 50_000
#: Writes copies of a finished job: every key that bears its id, and its place in every index.
#: ARGV: how many, number of the first, first time (ms), how many keys; {key's prefix, its DUMP}...; index...
#: Every tenth copy is `failed`. A tag is borne by the first fifty, so that a page of it is full however many are
#: stored, and by one in a thousand of the others.
_COPY = """
local many, first, start, keys = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
for n = first, first + many - 1 do
  local id = string.format('job-%020d', n)
  for k = 0, keys - 1 do
    redis.call('RESTORE', ARGV[5 + 2 * k] .. id, 0, ARGV[6 + 2 * k], 'REPLACE')
  end
  local at = string.format('%d', start + n)
  for k = 5 + 2 * keys, #ARGV do redis.call('ZADD', ARGV[k], at, id) end
  if n <= 50 or n % 1000 == 1 then redis.call('ZADD', 'h:jobs:tag:bench', at, id) end
  redis.call('HSET', 'h:job:' .. id, 'created', at, 'ended', at)
  if n % 10 == 0 then
    redis.call('ZREM', 'h:jobs:completed', id)
    redis.call('ZADD', 'h:jobs:failed', at, id)
    redis.call('HSET', 'h:job:' .. id, 'state', 'failed')
  end
end
"""


def _finished(up: Stack, client: redis.Redis) -> str:
    """Run one job, and return its id once RQ's own copy of it has expired, as it does after some minutes."""
    with up.client() as web:
        job = {"command": "echo hello world", "tags": []}
        job_id: str = web.post("/api/jobs/submit", json=job).json()["jobId"]
        while web.get("/api/jobs/status", params={"jobId": job_id}).json()["job"]["status"] != "completed":
            time.sleep(0.05)
    client.delete(f"rq:job:{job_id}", f"rq:results:{job_id}")
    return job_id


def _run_many(up: Stack, count: int) -> float:
    """Run `count` jobs, and return the bytes that each takes in Redis once RQ's own copies have expired."""
    with contextlib.closing(up.redis()) as client, up.client() as web:
        _finished(up, client)  # what comes with the first one is not counted
        before = client.info("memory")["used_memory"]
        jobs = [{"command": f"echo hello {number}"} for number in range(count)]
        web.post("/api/jobs/submit-batch", json={"jobs": jobs}).raise_for_status()
        while web.get("/api/jobs/list", params={"status": "completed", "limit": 1}).json()["total"] <= count:
            time.sleep(0.2)
        for name in (
            *client.scan_iter("rq:job:*"),
            *client.scan_iter("rq:results:*"),
            b"h:events",
            b"h:audit",
        ):
            client.unlink(name)
        time.sleep(1)
        return float(client.info("memory")["used_memory"] - before) / count


def _copy_many(up: Stack, count: int) -> None:
    """Store `count` copies of a finished job."""
    with contextlib.closing(up.redis()) as client:
        client.config_set("maxmemory", "4gb")
        template = _finished(up, client)
        words: list[str | bytes] = []
        indexes: list[str] = []
        for raw in client.scan_iter(count=1000):
            name = raw.decode()
            if template in name:
                words += [name.removesuffix(template), client.dump(name) or b""]
            elif client.type(name) == b"zset" and not name.startswith("rq:"):
                indexes += [] if client.zscore(name, template) is None else [name]
        copy, start_ms = client.register_script(_COPY), int(time.time() * 1000) - count
        for first in range(0, count, 500):
            copy(args=[500, first, start_ms, len(words) // 2, *words, *indexes])
        while client.info("persistence")["aof_rewrite_in_progress"]:  # of what was filled in just now
            time.sleep(0.2)
    _check(up, template)


def _check(up: Stack, template: str) -> None:
    """Make sure that Hostler takes a copy for what the original is."""
    with up.client() as web:
        found = [
            web.get("/api/jobs/status", params={"jobId": each}).json()["job"]
            for each in (template, "job-" + f"{1:020}")
        ]
    same = ("command", "status", "stdout", "stderr", "exitCode", "workerId", "priority", "attempt", "tags")
    if any(found[0][name] != found[1][name] for name in same):
        raise RuntimeError(f"A copy is not what the original is: {found}")


def _measure(bench: Bench, up: Stack) -> dict[str, float]:
    count = 200 if bench.quick else 1_000  # of which the tenth longest is the 99th percentile
    chance = random.Random(1)  # noqa: S311
    address = urlsplit(up.url)
    with contextlib.closing(
        http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    ) as line:

        def get(path: str) -> dict[str, Any]:
            line.request("GET", path, headers=up.headers)
            answer = line.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
            found: dict[str, Any] = json.loads(body)
            return found

        ids = [job["jobId"] for job in get("/api/jobs/list?limit=500&status=completed")["jobs"]]
        kinds = {
            "list": [f"/api/jobs/list?limit=20&offset={chance.randrange(500)}" for _ in range(count)],
            "status": [f"/api/jobs/status?jobId={chance.choice(ids)}" for _ in range(count)],
            "filter": ["/api/jobs/list?limit=20&status=completed"] * count,
            "filters": ["/api/jobs/list?limit=20&status=completed&sort=-completedAt"] * count,
            "tag": ["/api/jobs/list?limit=20&status=completed&tags=bench"] * count,
        }
        found = {}
        for kind, paths in kinds.items():
            times_ms = []
            for path in paths:
                began = time.perf_counter()
                get(path)
                times_ms.append((time.perf_counter() - began) * 1000)
            found[kind] = statistics.quantiles(times_ms, n=100)[98]
        return found


@contextlib.contextmanager
def many(bench: Bench) -> Iterator[Measure]:
    """Look at jobs with a million stored; and what each of a thousand that really ran takes."""
    up = stack(bench, workers=1, **NO_LIMIT, HOSTLER_FINISHED_KEEP_COUNT="2000000")
    bytes_each = _run_many(up, FEW)
    _copy_many(up, MANY_QUICK if bench.quick else MANY)
    yield lambda: {"bytes": bytes_each, **_measure(bench, up)}


@contextlib.contextmanager
def few(bench: Bench) -> Iterator[Measure]:
    """Look at jobs with a thousand stored."""
    up = stack(bench, workers=1, **NO_LIMIT)
    _copy_many(up, FEW)
    yield lambda: _measure(bench, up)


FIGURES = [
    Figure(
        id="P9",
        what="list, status, filter and filter by the time of the end with 1,000,000 jobs stored (quick: 50,000), p99",
        unit=" ms",
        own=many,
        anchors={"with-1000": few},
        goals=(
            *(
                Goal(limit=1.5, anchor="with-1000", metric=metric, at_most=True)
                for metric in ("list", "status", "filter", "filters", "tag")
            ),
            Goal(limit=1500, metric="bytes", at_most=True, unit=" B"),
        ),
        overrides=(
            NO_LIMIT_NOTE,
            "maxmemory of the embedded Valkey 4 GB instead of a quarter of the machine",
            "HOSTLER_FINISHED_KEEP_COUNT=2000000, so that nothing is archived meanwhile",
            "a rewrite of the append-only file that filling has set off is waited for; the first recovery point, which "
            "is due at the start, is under way meanwhile, over all that is stored",
            "the jobs that are looked at are copies of one that ran, of all its keys and index entries, checked "
            "through the API; the bytes are of 1,000 that ran, after RQ's own hashes were deleted, which expire",
        ),
    ),
]
