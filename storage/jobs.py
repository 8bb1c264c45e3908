"""Jobs: what was asked, how far it is, how it ended, and which changes are allowed.

`queued` -> `running` -> `completed` | `failed` | `cancelled`. A job that waits for a time, for other jobs or for its
concurrency key is `queued` with a stated reason (`wait`). A failed job says why in `reason`: exit_code, timeout, lost,
quarantined, invalid, integrity. Terminal states never change; a retry on request is a new job with the old one's spec.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from storage import cause, queues, tasks
from storage.attempts import rq_time
from storage.calls import Call, command, script, text
from storage.errors import Conflict, Invalid, NotFound, Unprocessable
from storage.store import Store

if TYPE_CHECKING:
    from storage.fleet import Outlook

log = logging.getLogger("hostler.storage")


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

ID = re.compile(r"job-[0-9a-z]{20}(-[0-9]{1,14})?")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a failed job is tried again: delay_s * factor ** failures, at most max_s, +-20 %."""

    delay_s: float = 1.0
    factor: float = 2.0
    max_s: float = 300.0


@dataclass(kw_only=True, slots=True)
class Order:
    """What somebody asks for, already validated in form. Either `command` (for a shell) or `argv` (for none).

    Nobody changes one; that it could be makes it in a third of the time, and a batch has a thousand.
    """

    command: str | None = None
    argv: list[str] | None = None
    file: str | None = None  # the id of an upload
    file_url: str | None = None  # an https address outside, fetched by the worker
    working_directory: str | None = None
    timeout_s: int = 600
    priority: str = "normal"
    env: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    retries: int = 0
    backoff: Backoff = Backoff()
    artifacts: list[str] = field(default_factory=list)
    depends_on: list[str] = field(default_factory=list)
    not_before_ms: int | None = None
    delay_s: float | None = None
    concurrency_key: str | None = None
    at_most_once: bool = False
    webhook: dict[str, str] | None = None
    name: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


#: The parts of an order that the worker needs, and that its signature covers.
_SPEC = (
    "command", "argv", "file", "file_url", "working_directory", "timeout_s", "priority", "env", "tags",
    "artifacts", "name", "metadata", "retries", "concurrency_key", "depends_on", "at_most_once",
)  # fmt: skip
_of_spec = attrgetter(*_SPEC)


#: Those of which the script that accepts the order needs to know nothing more.
_PLAIN = frozenset({
    "command", "argv", "file_url", "working_directory", "timeout_s", "priority", "env", "artifacts", "name", "metadata",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a submit promises: the same for every repetition under one idempotency key."""

    id: str
    created_ms: int
    estimated_wait_s: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """What a job does that is no command: a task, on one node, with the change that comes with it.

    `hidden` are arguments that may hold secrets. `change` is what _app.lua takes, or _backup.lua, as `about` says;
    `refusal` makes an error of its reason and detail when the change is refused.
    """

    task: tasks.Task
    node: str
    arguments: Mapping[str, Any]
    hidden: Mapping[str, Any]
    change: Mapping[str, Any]
    refusal: Callable[[str, str], Exception]
    about: Literal["app", "backup"] = "app"


@dataclass(frozen=True, slots=True)
class Job:
    """A job's record, read. Times are milliseconds since the epoch; what has not happened yet is None."""

    id: str
    state: State
    spec: dict[str, Any]
    actor: str
    queue: str
    attempt: int
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    worker: str | None
    exit_code: int | None
    reason: str | None
    progress: int | None
    wait: str | None
    not_before_ms: int | None
    cancel_requested: bool
    failures: int
    deaths: int
    schedule: str | None
    retry_of: str | None
    estimated_wait_s: int | None
    lines: int
    stdout: str | None
    stderr: str | None
    sealed_webhook: str | None
    facts: dict[str, str]

    @property
    def finished(self) -> bool:
        """Whether the job has come to its end."""
        return self.state in FINISHED


_FIELDS = (
    "state", "spec", "actor", "queue", "attempt", "created", "started", "ended", "worker", "exit", "reason",
    "progress", "wait", "due", "cancel", "failures", "deaths", "schedule", "origin", "estimate", "lines", "out",
    "err", "webhook", "cpu_ms", "max_rss_bytes", "signal", "message", "truncated",
)  # fmt: skip
_NAMES = {name.encode(): name for name in _FIELDS}
_STATES = {state.value.encode(): state for state in State}
_FACTS = ("cpu_ms", "max_rss_bytes", "signal", "message", "truncated")


def _read(job_id: str, values: Iterable[tuple[str | None, bytes | None]]) -> Job:
    """Read a record: its fields by name, None for one of another's. Raises ValueError for one that is not Hostler's."""
    row = {name: value for name, value in values if value and name}

    def number(name: str) -> int | None:
        return int(row[name]) if name in row else None

    def word(name: str) -> str | None:
        return row[name].decode("utf-8", "replace") if name in row else None

    spec = orjson.loads(row.get("spec", b"{}"))
    if not isinstance(spec, dict):
        raise ValueError("Its spec is no object.")
    return Job(
        id=job_id,
        state=_STATES[row["state"]] if row.get("state") in _STATES else State(word("state") or ""),
        spec=spec,
        actor=word("actor") or "",
        queue=word("queue") or "",
        attempt=number("attempt") or 0,
        created_ms=number("created") or 0,
        started_ms=number("started"),
        ended_ms=number("ended"),
        worker=word("worker"),
        exit_code=number("exit"),
        reason=word("reason"),
        progress=number("progress"),
        wait=word("wait"),
        not_before_ms=number("due"),
        cancel_requested="cancel" in row,
        failures=number("failures") or 0,
        deaths=number("deaths") or 0,
        schedule=word("schedule"),
        retry_of=word("origin"),
        estimated_wait_s=number("estimate"),
        lines=number("lines") or 0,
        stdout=word("out"),
        stderr=word("err"),
        sealed_webhook=word("webhook"),
        facts={name: text(row[name]) for name in _FACTS if name in row},
    )


def submission(
    store: Store,
    actor: str,
    order: Order,
    *,
    job_id: str,
    idempotency: tuple[str, str] | None = None,
    schedule: str | None = None,
    schedule_record: str | None = None,
    retry_of: str | None = None,
    outlook: "Outlook | None" = None,
    work: Work | None = None,
) -> Call[Submitted]:
    """Describe the one step that accepts `order`: record, queue entry, event and audit entry together.

    `idempotency` is the caller's key and the digest of the body it came with. Raises Unprocessable when the key was
    used with another body, Invalid when a job it depends on is unknown or has failed, or its file is not there.
    With `work` the job is that instead of a command, and raises what its change is refused with. How long it will wait
    is estimated from the `outlook`.
    """
    words = described(
        store, order, job_id=job_id, idempotency=idempotency, schedule=schedule, schedule_record=schedule_record,
        retry_of=retry_of, work=work,
    )  # fmt: skip

    def read(reply: list[bytes]) -> Submitted:
        outcome = text(reply[0])
        if outcome == "conflict":
            raise Unprocessable("This Idempotency-Key was used before, with another body.")
        if outcome == "parent":
            parent, state = text(reply[1]), text(reply[2])
            message = f"Job {parent!r}, which dependsOn names, is {state}."
            raise Invalid(message, details={"dependsOn": message})
        if outcome == "file":
            raise Invalid("fileUrl: File not found", details={"fileUrl": "File not found"})
        if outcome == "app" and work is not None:
            raise work.refusal(text(reply[1]), text(reply[2]))
        return Submitted(text(reply[1]), int(reply[2]), int(reply[3]) if reply[3] else None)

    return script(
        "submit", job_id, actor, words.queue, words.spec, words.signature, words.task.function, rq_time(),
        words.timeout_s, words.description, words.packed_options,
        *(outlook.words() if outlook is not None else ()), read=read,
    )  # fmt: skip


class Described(NamedTuple):
    """A job in the words that the scripts make one of."""

    queue: str
    spec: bytes
    signature: str
    task: tasks.Task
    timeout_s: int
    description: str
    options: Mapping[str, Any]

    @property
    def packed_options(self) -> bytes:
        """Return what the scripts read of `options`, which most orders have none of."""
        return orjson.dumps(self.options) if self.options else b""


def described(
    store: Store,
    order: Order,
    *,
    job_id: str,
    idempotency: tuple[str, str] | None = None,
    schedule: str | None = None,
    schedule_record: str | None = None,
    retry_of: str | None = None,
    work: Work | None = None,
    request_id: str = "",
) -> Described:
    """Return what is written of a job, its payload signed; the arguments are those of `submission`.

    `request_id` is that of the request that it comes from, where that has no task of its own.
    """
    given_spec = {name: value for name, value in zip(_SPEC, _of_spec(order), strict=True) if value}
    if order.retries:
        given_spec["backoff"] = asdict(order.backoff)
    if order.env:  # it may hold secrets, which neither Redis nor its backups should
        given_spec["env"] = store.seal.encrypt_json("environment", order.env, bound_to=job_id)
    task = tasks.COMMAND if work is None else work.task
    if work is not None:
        given_spec |= work.arguments
        if work.hidden:
            given_spec["hidden"] = store.seal.encrypt_json("arguments", dict(work.hidden), bound_to=job_id)
    because = request_id or cause.for_spec()
    said = {"task": task.name, **given_spec}
    if because:
        said["cause"] = because
    spec = orjson.dumps(said)
    queue = queues.of_job(order.priority, order.tags) if work is None else queues.of_node(work.node)
    extra: dict[str, Any] = {}
    if schedule is not None:
        extra["schedule"] = schedule
    if schedule_record is not None:
        extra["schedule_record"] = schedule_record
    if retry_of is not None:
        extra["retry_of"] = retry_of
    if work is not None:
        extra[work.about] = dict(work.change)
    if idempotency is not None:
        extra["idempotency_key"], extra["body_hash"] = idempotency
    waits = order.not_before_ms is not None or order.delay_s is not None
    if waits or order.webhook is not None or not given_spec.keys() <= _PLAIN:
        extra |= _options(store, job_id, order)
    called = order.name or order.command or " ".join(order.argv or [])
    signature = store.seal.signature("job", job_id, spec)
    return Described(queue, spec, signature, task, order.timeout_s, called[:200], extra)


def _options(store: Store, job_id: str, order: Order) -> dict[str, Any]:
    """Return what the script must know of an order beyond its spec: where it has to wait, and what it is kept by."""
    backoff = order.backoff
    options: dict[str, Any] = {
        "retries": order.retries and str(order.retries),
        "key": order.concurrency_key,
        "at_most_once": order.at_most_once,
        "webhook": order.webhook is not None,
        "tags": order.tags,
        "tag_set": queues.tag_set(order.tags),
        "file": order.file,
        "depends_on": list(dict.fromkeys(order.depends_on)),
        "not_before": order.not_before_ms,
        "delay_ms": int(order.delay_s * 1000) if order.delay_s else None,
        "sealed": _sealed_webhook(store, job_id, order.webhook),
    }
    if order.retries:
        options["backoff"] = f"{int(backoff.delay_s * 1000)} {backoff.factor} {int(backoff.max_s * 1000)}"
    return {name: value for name, value in options.items() if value not in (None, "", [], False, 0)}


def _sealed_webhook(store: Store, job_id: str, webhook: Mapping[str, str] | None) -> str | None:
    if webhook is None:
        return None
    return store.seal.encrypt_json("webhook", dict(webhook), bound_to=job_id)


def digest_of(asked: Any) -> str:
    """Return what an idempotency key is remembered with: a digest of what was asked for under it."""
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def submit(
    store: Store, actor: str, order: Order, *, idempotency_key: str | None = None, retry_of: str | None = None
) -> Submitted:
    """Accept `order` durably and answer its id. Raises Unprocessable, Invalid."""
    from storage import fleet  # noqa: PLC0415  fleet stands on jobs

    idempotency = None if idempotency_key is None else (idempotency_key, digest_of(asdict(order)))
    outlook = None  # when a job starts that waits for something else is not for the queue to say
    if not (order.delay_s or order.not_before_ms or order.depends_on):
        outlook = await fleet.outlook(store, order.priority, order.tags)
    return await store.call(
        submission(
            store, actor, order,
            job_id=store.new_id("job"), idempotency=idempotency, retry_of=retry_of, outlook=outlook,
        )
    )  # fmt: skip


def known(job_id: str) -> str:
    """Return `job_id` if it can be one at all. Raises NotFound."""
    if not ID.fullmatch(job_id):
        raise NotFound("Job not found")
    return job_id


def fetch(job_id: str) -> Call[Job]:
    """Describe reading one job. Raises NotFound."""
    # whole: of so small a hash, one walk through it is cheaper than a search for each field
    return command("HGETALL", f"h:job:{known(job_id)}", read=lambda reply: read(job_id, reply))


def read(job_id: str, reply: Sequence[bytes]) -> Job:
    """Read a record as HGETALL answers it. Raises NotFound where there is none."""
    if not reply:
        raise NotFound("Job not found")
    return _read(job_id, zip(map(_NAMES.get, reply[::2]), reply[1::2], strict=True))


async def get(store: Store, job_id: str) -> Job:
    """Return one job, also when it has left Redis for the object store. Raises NotFound."""
    from storage import archive  # noqa: PLC0415  archive reads jobs

    try:
        return await store.call(fetch(job_id))
    except NotFound:
        if not await store.call(command("EXISTS", "h:archived")):  # nothing has left Redis yet
            raise
        return archived_job(await archive.get(store, job_id))


def archived_job(record: Mapping[str, str]) -> Job:
    """Read a record that was archived as the hash it was."""
    return _read(record["id"], [(name, record[name].encode()) for name in _FIELDS if name in record])


#: What a list may be ordered by, and the index that is in that order.
ORDERS = {"createdAt": "h:jobs", "completedAt": "h:ended"}


async def page(
    store: Store,
    *,
    limit: int,
    offset: int,
    state: str | None = None,
    worker: str | None = None,
    tags: Sequence[str] = (),
    order_by: str = "createdAt",
    newest_first: bool = True,
) -> tuple[list[Job], int]:
    """Return up to `limit` jobs that match every filter, and how many match in all."""
    indexes = [f"h:jobs:{state}"] if state else []
    indexes += [f"h:jobs:worker:{worker}"] if worker else []
    indexes += [f"h:jobs:tag:{tag}" for tag in tags]
    if order_by != "createdAt" or not indexes:
        indexes.insert(0, ORDERS[order_by])

    def read(reply: list[Any]) -> tuple[list[Job], int]:
        found = []
        for job, values in reply[1]:
            try:
                found += [] if values[0] is None else [_read(text(job), zip(_FIELDS, values, strict=True))]
            except ValueError as error:  # one that somebody else wrote must not hide all others
                log.error("a job's record cannot be read", extra={"job": text(job), "why": str(error)})
        return found, reply[0]

    newest = "1" if newest_first else ""
    return await store.call(script("select", offset, limit, newest, *_FIELDS, keys=indexes, read=read))


async def cancel(store: Store, actor: str, job_id: str) -> State:
    """Ask for a job's end; answers `cancelled`, or `running` while its worker still has to kill it.

    Safe to repeat. Raises NotFound, or Conflict when the job has already completed or failed.
    """

    def read(reply: list[bytes]) -> State:
        outcome = text(reply[0])
        if outcome == "unknown":
            raise NotFound("Job not found")
        if outcome in {State.COMPLETED, State.FAILED}:
            raise Conflict(f"Job {job_id!r} is already {outcome}.")
        return State.RUNNING if outcome == "requested" else State.CANCELLED

    return await store.call(script("cancel", known(job_id), actor, rq_time(), read=read))


def order_of(store: Store, job: Job) -> Order:
    """Return the order that `job` was made from, without its times and its dependencies. Raises Forged."""
    known = {name: job.spec[name] for name in _SPEC if name in job.spec and name not in {"depends_on"}}
    if "backoff" in job.spec:
        known["backoff"] = Backoff(**job.spec["backoff"])
    if "env" in job.spec:
        known["env"] = store.seal.decrypt_json("environment", job.spec["env"], bound_to=job.id)
    if job.sealed_webhook is not None:
        known["webhook"] = store.seal.decrypt_json("webhook", job.sealed_webhook, bound_to=job.id)
    return Order(**known)


async def retry(store: Store, actor: str, job_id: str, *, idempotency_key: str | None = None) -> Submitted:
    """Submit what a finished job did again, as a new job; a command once for each key.

    Raises NotFound, or Conflict while it is not finished.
    """
    from storage import apps, backups  # noqa: PLC0415  they submit jobs

    job = await get(store, job_id)
    if not job.finished:
        raise Conflict(f"Job {job_id!r} is {job.state}; only a finished job can be retried.")
    if job.spec.get("task", tasks.COMMAND.name) != tasks.COMMAND.name:
        if "backup" in job.spec:
            return await backups.again(store, actor, job)
        return await apps.again(store, actor, job)
    return await submit(store, actor, order_of(store, job), retry_of=job_id, idempotency_key=idempotency_key)
