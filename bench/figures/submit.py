"""P1: what accepting a job costs the web."""

import contextlib
from collections.abc import Iterator

from bench.anchors import web
from bench.figure import Bench, Figure, Goal, Measure
from bench.load import load, require
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, NO_WORKERS_NOTE, stack


@contextlib.contextmanager
def submit(bench: Bench) -> Iterator[Measure]:
    """Submit jobs one a request."""
    require()
    up = stack(bench, workers=0, **NO_LIMIT)

    def measure() -> dict[str, float]:
        return load(
            bench.directory,
            f"{up.url}/api/jobs/submit",
            seconds=web.seconds(bench),
            method="POST",
            body=web.BODY,
            headers=up.headers,
        )

    yield measure


FIGURES = [
    Figure(
        id="P1",
        what="POST /api/jobs/submit with an API key, wrk with 32 connections, 2 web workers",
        unit="/s",
        own=submit,
        anchors={"falcon-lpush": web.floor_push, "fastapi-arq": web.arq_push},
        goals=(Goal(limit=0.60, stretch=0.75, anchor="falcon-lpush"), Goal(limit=1.8, anchor="fastapi-arq")),
        overrides=(NO_LIMIT_NOTE, NO_WORKERS_NOTE),
    )
]
