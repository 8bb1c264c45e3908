"""CMD Executor's jobs as people and their programs use them: submit, look, cancel, retry."""

import dataclasses
from typing import Any

from api import addresses
from api.dialect import EXECUTOR
from api.endpoint import Accepting, Context, Group, HTTPStatus, Look, Role
from api.executor import schemas
from api.executor.schemas import detail_of, entry_of
from api.paging import envelope
from integrations import outbound
from storage import batches, bulk, files, jobs, logs, schedules, searching, why
from storage.errors import Conflict, Invalid, NotFound, Unavailable, Unprocessable
from storage.jobs import Backoff, Job, Order
from storage.schedules import Misfire, Recurrence

group = Group("Jobs", "/api/jobs", EXECUTOR)

#: How much of its newest output a job's status shows.
TAIL_BYTES = 64 * 1024

_ORDER_FIELDS = {each.name for each in dataclasses.fields(Order)}
#: Fields of a body that mean more than a job that may start at once, or need to know of the request that they came in.
_NOT_PLAIN = {"backoff", "file_url", "schedule", "webhook"}


def _plain_order(body: dict[str, Any]) -> Order | None:
    """Return the order that a valid body is, where the body alone says all."""
    given = {name: value for name, value in body.items() if value is not None}
    return None if given.keys() & _NOT_PLAIN or not given.keys() <= _ORDER_FIELDS else _order_of(given)


def _order_of(given: dict[str, Any]) -> Order:
    if not given.get("working_directory", ""):
        given.pop("working_directory", None)
    return Order(**given)


@group.endpoint(
    "POST /submit",
    role=Role.OPERATOR,
    body=schemas.OrderBody(),
    returns=schemas.SubmittedAnswer(),
    status=HTTPStatus.CREATED,
    raises=(Invalid, Unprocessable, Unavailable),
    carries=True,
    accepting=Accepting(_plain_order, schemas.promised),
)
async def submit(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Submit a command; it is queued durably before this answers.

    With the header `Idempotency-Key`, the same key and body are the same job and the same answer for 24 h; the same
    key with another body is 422. `schedule` makes the job recur; the answer is then its first occurrence.
    """
    return await accept(context, body)


async def accept(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Submit what a valid body asks for. Raises Invalid, Unprocessable."""
    key = _idempotency_key(context)
    order = _order(context, body)
    store, actor = context.store, context.caller.actor
    if (recurring := body.get("schedule")) is not None:
        recurrence = Recurrence(recurring["cron"], recurring["timezone"], Misfire(recurring["misfire"]))
        return schemas.promised(await schedules.create(store, actor, order, recurrence, idempotency_key=key))
    return schemas.promised(await jobs.submit(store, actor, order, idempotency_key=key))


@group.endpoint(
    "POST /submit-batch",
    role=Role.OPERATOR,
    body=schemas.BatchBody(),
    returns=schemas.BatchAnswer(),
    status=HTTPStatus.CREATED,
    raises=(Invalid, Unprocessable, Unavailable),
    body_limit_bytes=16 * 1024 * 1024,
    carries=True,
)
async def submit_batch(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Submit up to 1,000 commands at once: all are queued durably before this answers, or none ever is.

    What is wrong with one is told by its place, such as `jobs[17].command`, and refuses them all. The header
    `Idempotency-Key` counts for the whole batch, as it does for one job. None of them may recur.
    """
    key = _idempotency_key(context)
    orders = []
    for index, each in enumerate(body["jobs"]):
        try:
            orders.append(_order(context, each))
        except Invalid as error:
            place = f"jobs[{index}]."
            details = {place + name: problem for name, problem in (error.details or {}).items()}
            raise Invalid(place + str(error), details=details) from None
    digest = (key, jobs.digest_of(body["jobs"])) if key is not None else None
    batch = await batches.submit(context.store, context.caller.actor, orders, idempotency=digest)
    return {
        "id": batch.id,
        "created_ms": batch.created_ms,
        "job_ids": batch.job_ids,
        "total": len(batch.job_ids),
    }


def _idempotency_key(context: Context) -> str | None:
    key = context.request.get_header("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 200 and key.isascii() and key.isprintable()):
        message = "Idempotency-Key must be 1 to 200 printable characters."
        raise Invalid(message, details={"Idempotency-Key": message})
    return key


def _order(context: Context, body: dict[str, Any]) -> Order:
    """Return the order that a valid body is. Raises Invalid for addresses that must not be requested."""
    given = {name: value for name, value in body.items() if name in _ORDER_FIELDS and value is not None}
    if "backoff" in given:
        given["backoff"] = Backoff(**given["backoff"])
    if "webhook" in given:
        _check_url(context, "webhook", given["webhook"]["url"])
    if (file_url := given.pop("file_url", None)) is not None:
        settings, req = context.store.settings, context.request
        own = [addresses.base_url(req, settings), addresses.seen_url(req, settings)]
        try:
            given["file"] = files.resolve(file_url, own=own)
        except Invalid as error:
            raise _named("fileUrl", error) from None
        if given["file"] is None:
            _check_url(context, "fileUrl", file_url)
            given["file_url"] = file_url
    return _order_of(given)


def _check_url(context: Context, field: str, url: str) -> None:
    try:
        outbound.check_url(url, allow=context.store.settings.outbound_allow)
    except Invalid as error:
        raise _named(field, error) from None


def _named(field: str, error: Invalid) -> Invalid:
    return Invalid(f"{field}: {error}", details={field: str(error)})


def _shown_at_once(found: tuple[Job, logs.Tail | None]) -> dict[str, Any] | None:
    job, tail = found
    return None if tail is None else _detail(job, tail)


@group.endpoint(
    "GET /status",
    role=Role.VIEWER,
    query=schemas.JobQuery(),
    returns=schemas.JobAnswer(),
    raises=(Invalid, NotFound, Unavailable),
    carries=True,
    look=Look(
        lambda query: logs.with_packed_tail(query["job_id"], limit_bytes=TAIL_BYTES),
        _shown_at_once,
    ),
)
async def status(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """Show one job, with the newest 64 KiB of its output."""
    return _detail(*await logs.with_tail(context.store, query["job_id"], limit_bytes=TAIL_BYTES))


def _detail(job: Job, tail: logs.Tail) -> dict[str, Any]:
    if job.stdout is not None or job.stderr is not None:
        tail = {"stdout": job.stdout or "", "stderr": job.stderr or "", "truncated": False}
    truncated = tail["truncated"] or bool(job.facts.get("truncated"))
    return {"job": detail_of(job, tail["stdout"], tail["stderr"], truncated=truncated)}


@group.endpoint(
    "GET /list",
    role=Role.VIEWER,
    query=schemas.JobsQuery(),
    returns=schemas.JobsAnswer(),
    raises=(Invalid,),
    carries=True,
)
async def list_jobs(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List jobs, the newest first; `sort=completedAt` lists those that have ended.

    With `search`, the newest first whatever `sort` says, and `total` counts what was found.
    """
    if "search" in query:
        hits = await searching.search(
            context.store,
            query["search"],
            limit=query["limit"],
            offset=query["offset"],
            state=query.get("status"),
            worker=query.get("worker_id"),
            tags=query.get("tags", ()),
        )
        return envelope("jobs", [entry_of(job) for job in hits.jobs], hits.total, query)
    found, total = await jobs.page(
        context.store,
        limit=query["limit"],
        offset=query["offset"],
        state=query.get("status"),
        worker=query.get("worker_id"),
        tags=query.get("tags", ()),
        order_by=query["sort"].lstrip("-"),
        newest_first=query["sort"].startswith("-"),
    )
    return envelope("jobs", [entry_of(job) for job in found], total, query)


@group.endpoint(
    "POST /cancel",
    role=Role.OPERATOR,
    body=schemas.JobBody(),
    returns=schemas.CancelAnswer(),
    raises=(Invalid, NotFound, Conflict),
    carries=True,
)
async def cancel(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Cancel a job: at once while it waits; while it runs, its worker ends it within seconds. May be repeated."""
    state = await jobs.cancel(context.store, context.caller.actor, body["job_id"])
    running = state is jobs.State.RUNNING
    message = "Cancellation requested; the job is being ended" if running else "Job cancelled"
    return {"job_id": body["job_id"], "status": state.value, "message": message}


@group.endpoint(
    "POST /{id}/retry",
    role=Role.OPERATOR,
    returns=schemas.SubmittedAnswer(),
    status=HTTPStatus.CREATED,
    raises=(Invalid, NotFound, Conflict, Unavailable),
)
async def retry(context: Context, id: str) -> dict[str, Any]:
    """Run a finished job once more, as a new job with the same order."""
    return schemas.promised(await jobs.retry(context.store, context.caller.actor, id))


@group.endpoint(
    "POST /cancel-batch",
    role=Role.OPERATOR,
    body=schemas.JobsBody(),
    returns=schemas.OutcomesAnswer(),
    raises=(Invalid, Unavailable),
)
async def cancel_batch(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Cancel up to 1,000 jobs, each by itself: the answer says of each what became of it. May be repeated."""
    return schemas.outcomes(await bulk.cancel(context.store, context.caller.actor, body["job_ids"]))


@group.endpoint(
    "POST /retry-batch",
    role=Role.OPERATOR,
    body=schemas.JobsBody(),
    returns=schemas.OutcomesAnswer(),
    raises=(Invalid, Unavailable),
)
async def retry_batch(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Run up to 1,000 finished jobs once more, each by itself: the answer says of each what became of it.

    Under one `Idempotency-Key` no command is made twice, so that it may be asked for again where no answer came.
    """
    key = _idempotency_key(context)
    actor = context.caller.actor
    return schemas.outcomes(await bulk.retry(context.store, actor, body["job_ids"], idempotency_key=key))


@group.endpoint(
    "GET /{id}/why", role=Role.VIEWER, returns=schemas.WhyAnswer(), raises=(NotFound, Unavailable)
)
async def show_why(context: Context, id: str) -> dict[str, Any]:
    """Tell why a job is not running: its place in line, missing workers or tags, who holds its key, its time."""
    job = await jobs.get(context.store, id)
    reasons = [
        {
            {"jobId": "job_id", "notBeforeMs": "not_before_ms"}.get(name, name): value
            for name, value in each.items()
        }
        for each in await why.waiting(context.store, job)
    ]
    return {"job_id": job.id, "status": job.state.value, "waiting": bool(reasons), "reasons": reasons}


for _route, _handler in (
    ("GET /jobs/status", status),
    ("GET /jobs/list", list_jobs),
    ("POST /jobs/cancel", cancel),
):
    group.alias(_route, of=_handler)
