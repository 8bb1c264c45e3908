"""The older spellings of CMD Executor's calls, for clients and agents written before its page."""

import math
from typing import Any

from falcon.asgi import Request, Response

from api.dialect import EXECUTOR
from api.endpoint import Context, Endpoint, Group, HTTPStatus, Role
from api.executor import agent_schemas, agents, jobs, schemas
from storage.errors import Conflict, Denied, Invalid, NotFound, Unavailable, Unprocessable

group = Group("Jobs, older spellings", "/jobs", EXECUTOR)


@group.endpoint(
    "POST /create",
    role=Role.OPERATOR,
    body=schemas.OlderOrderBody(),
    returns=schemas.SubmittedAnswer(),
    status=HTTPStatus.CREATED,
    raises=(Invalid, Unprocessable, Unavailable),
)
async def create(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Submit a job as the older client does: `timeoutMs` and `maxRetries` stand for `timeout` and `retries`."""
    given = dict(body)
    if (timeout_ms := given.pop("timeout_ms", None)) is not None:
        given["timeout_s"] = math.ceil(timeout_ms / 1000)
    if (retries := given.pop("max_retries", None)) is not None:
        given["retries"] = retries
    return await jobs.accept(context, given)


group.alias("POST /api/jobs/create", of=create)


@group.endpoint(
    "GET /get-job",
    role=Role.WORKER,
    query=agent_schemas.NextJobQuery(),
    returns=agent_schemas.NoJobAnswer(),
    otherwise=HTTPStatus.ACCEPTED,
    raises=(Invalid, Denied, Unavailable),
    raw=True,
)
async def get_job(context: Context, req: Request, resp: Response, query: dict[str, Any]) -> None:
    """Take the next job; 202 with `job: null` when there is none, as the older agent expects."""
    found = await agents.next_job(context, query)
    if found is None:
        resp.status = HTTPStatus.ACCEPTED.value
    _declared().render(req, resp, {"success": found is not None, "job": found})


def _declared() -> Endpoint:
    return next(endpoint for endpoint in group.endpoints if endpoint.handler is get_job)


@group.endpoint(
    "PUT /submit-result",
    role=Role.WORKER,
    body=agent_schemas.FailureBody(),
    returns=agent_schemas.ResultAnswer(),
    raises=(Invalid, Denied, NotFound, Conflict, Unavailable),
    body_limit_bytes=agents.RESULT_LIMIT_BYTES,
)
async def submit_failure(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Report that a job failed."""
    return await agents.end(context, {**body, "status": body["status"] or "failed"})


group.alias("PUT /api/jobs/submit-result", of=submit_failure)


@group.endpoint(
    "GET /check-cancel",
    role=Role.WORKER,
    query=schemas.JobQuery(),
    returns=agent_schemas.CancelCheckAnswer(),
    raises=(Invalid, NotFound),
)
async def look_for_cancel(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """Tell whether the agent shall end a job: it was cancelled, or is no longer the agent's."""
    return await agents.cancel_check(context, query["job_id"])


@group.endpoint(
    "POST /check-cancel",
    role=Role.WORKER,
    body=agent_schemas.CheckBody(),
    returns=agent_schemas.CancelCheckAnswer(),
    raises=(Invalid, NotFound),
)
async def ask_for_cancel(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Tell whether the agent shall end a job: it was cancelled, or is no longer the agent's."""
    return await agents.cancel_check(context, body["job_id"])


group.alias("GET /api/jobs/check-cancel", of=look_for_cancel)
group.alias("POST /api/jobs/check-cancel", of=ask_for_cancel)
