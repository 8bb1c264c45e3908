"""What apps have said and used: their newest lines, samples of their resources, and runs that have ended."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from storage.apps.reports import answered
from storage.attempts import Holder
from storage.calls import STREAM_ID, Call, command, script, text
from storage.errors import Invalid
from storage.records import understood
from storage.store import Store

#: How much is kept of each app. A line is cut by its node to LINE_LIMIT_BYTES.
KEPT_LINES, KEPT_SAMPLES, KEPT_RUNS = 2000, 720, 100
LINE_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of an instance: `stream` is stdout or stderr, `id` orders all lines of the app."""

    id: str
    at_ms: int
    process: str
    index: int
    stream: str
    level: str
    text: str

    @property
    def instance(self) -> str:
        """Return the id of the instance that wrote it."""
        return f"{self.process}-{self.index}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one instance used at a time (ms)."""

    at_ms: int
    process: str
    index: int
    cpu_percent: float
    memory_rss_bytes: int
    memory_percent: float
    restart_count: int = 0
    state: str = "running"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a scheduled or oneshot process that has ended; `cause` is schedule, trigger or start."""

    id: str
    process: str
    index: int
    started_ms: int
    ended_ms: int
    exit_code: int | None
    signal: int | None
    cause: str


def append(holder: Holder, instance_id: str, lines: Sequence[LogLine], *, batch: int = 0) -> Call[None]:
    """Keep lines that an app has written, and tell who follows.

    `batch` counts a registration's calls up from 1, so that one that is sent twice counts once; 0: it is not checked.
    The lines' own ids are not kept: each gets one. Raises Unregistered, NotFound.
    """
    given = [{**asdict(line), "id": "", "text": line.text[:LINE_LIMIT_BYTES]} for line in lines]
    return script(
        "app_log", holder.worker, holder.registration, instance_id, batch, KEPT_LINES, orjson.dumps(given),
        read=lambda reply: answered(holder, instance_id, reply),
    )  # fmt: skip


def published(data: bytes) -> list[LogLine]:
    """Return the lines of a message on the channel `h:applogs:<instanceId>`. Raises ValueError."""
    return [_line(each) for each in orjson.loads(data)]


def _line(fields: dict[str, Any]) -> LogLine:
    try:
        return LogLine(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from None


async def lines(
    store: Store,
    instance_id: str,
    *,
    limit: int = 100,
    after: str | None = None,
    process: str | None = None,
    index: int | None = None,
) -> list[LogLine]:
    """Return the newest `limit` lines in the order they were written, or the first ones after the id `after`.

    Raises Invalid when `after` is no line's id.
    """
    key = f"h:applog:{instance_id}"
    if after is not None:
        _check_id(after)
    narrowed = process is not None or index is not None
    count = KEPT_LINES * 2 if narrowed else limit
    if after is not None:
        entries = await store.call(command("XRANGE", key, f"({after}", "+", "COUNT", count))
    else:
        entries = list(reversed(await store.call(command("XREVRANGE", key, "+", "-", "COUNT", count))))
    found = [_line({**orjson.loads(fields[1]), "id": text(entry)}) for entry, fields in entries]
    if narrowed:
        found = [each for each in found if process in {None, each.process} and index in {None, each.index}]
    return found[:limit] if after is not None else found[-limit:]


async def keeps(store: Store, instance_id: str, line_id: str) -> bool:
    """Tell whether an app's log still has the line of that id. Raises Invalid when it is no line's id."""
    _check_id(line_id)
    return bool(await store.call(command("XRANGE", f"h:applog:{instance_id}", line_id, line_id)))


def _check_id(word: str) -> None:
    if not re.fullmatch(STREAM_ID, word):
        raise Invalid("after: not a line's id", details={"after": "not a line's id"})


def sample(holder: Holder, instance_id: str, samples: Sequence[Sample]) -> Call[None]:
    """Keep one round of samples. Raises Unregistered, NotFound."""
    return script(
        "app_sample", holder.worker, holder.registration, instance_id, KEPT_SAMPLES,
        orjson.dumps([asdict(each) for each in samples]), read=lambda reply: answered(holder, instance_id, reply),
    )  # fmt: skip


async def samples(
    store: Store,
    instance_id: str,
    *,
    since_ms: int = 0,
    limit: int = KEPT_SAMPLES,
    process: str | None = None,
    index: int | None = None,
) -> list[Sample]:
    """Return the newest `limit` samples since a time, oldest first."""
    entries = await store.call(command("XRANGE", f"h:appsamples:{instance_id}", max(0, since_ms), "+"))
    found = [understood(Sample, each) for _, fields in entries for each in orjson.loads(fields[1])]
    kept = [
        each
        for each in found
        if each.at_ms >= since_ms and process in {None, each.process} and index in {None, each.index}
    ]
    return kept[-limit:]


def ran(holder: Holder, instance_id: str, run: Run) -> Call[None]:
    """Keep a run that has ended. Safe to repeat. Raises Unregistered, NotFound."""
    return script(
        "app_run", holder.worker, holder.registration, instance_id, KEPT_RUNS, run.id, orjson.dumps(asdict(run)),
        read=lambda reply: answered(holder, instance_id, reply),
    )  # fmt: skip


async def runs(
    store: Store, instance_id: str, *, process: str | None = None, limit: int = KEPT_RUNS
) -> list[Run]:
    """Return the runs that ended last, newest first."""
    raws = await store.call(command("LRANGE", f"h:appruns:{instance_id}", 0, -1))
    found = [understood(Run, orjson.loads(raw)) for raw in raws]
    return [each for each in found if process in {None, each.process}][:limit]
