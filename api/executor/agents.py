"""What HTTP agents call about jobs: take one, say what it prints, keep what it leaves, end it."""

import asyncio
import hashlib
import logging
import re
import shlex
import time
from collections.abc import Mapping
from typing import Any

from falcon.asgi import Request, Response

from api import addresses, downloads
from api import body as bodies
from api.dialect import EXECUTOR
from api.endpoint import Context, Endpoint, Group, HTTPStatus, Role
from api.executor import agent_schemas
from api.realtime.hub import Ended
from api.times import in_step
from settings import MIB
from storage import artifacts, attempts, cause, files, fleet, jobs, logs, progress, queues, tasks
from storage.attempts import Claim, Holder
from storage.calls import Call, command, text
from storage.errors import Conflict, Denied, HostlerError, Invalid, NotFound, Stale, TooLarge, Unavailable
from storage.seal import Forged

log = logging.getLogger("hostler.api")

group = Group("Jobs, for agents", "/api/jobs", EXECUTOR)

#: A longer `wait` counts as this: proxies cut connections that stay silent for 30 s.
MOST_WAIT_S = 24.0
#: So many agents' tags are remembered.
_MOST_AGENTS = 10_000
OUTPUT_LIMIT_BYTES = 4 * MIB
RESULT_LIMIT_BYTES = 16 * MIB
PART_LIMIT_BYTES = 16 * MIB
#: What is kept of a result's stdout and stderr beside the log.
KEPT_BYTES = 64 * 1024
#: How much output goes to Redis in one step.
_PIECE_BYTES = 256 * 1024
#: What an agent may give as the reason of a failure.
_REASONS = {"exit_code", "timeout", "invalid", "integrity"}


def holder_of(context: Context, worker_id: str | None = None) -> Holder:
    """Return the agent that calls. Raises Denied when it speaks for another one."""
    caller = context.caller
    if worker_id is not None and worker_id != caller.id:
        raise Denied(f"The token is not that of worker {worker_id!r}.")
    return Holder(caller.id, caller.token_id)


# Taking a job


@group.endpoint(
    "GET /get-job",
    role=Role.WORKER,
    query=agent_schemas.NextJobQuery(),
    returns=agent_schemas.NextJobAnswer(),
    raises=(Invalid, Denied, Unavailable),
    carries=True,
)
async def get_job(context: Context, query: dict[str, Any]) -> dict[str, Any] | None:
    """Take the next job of the queues that the agent's tags cover; 204 when there is none.

    `?wait=30` waits for one, 24 s at most, or a little less. The attempt is the agent's for as long as it renews its
    lease: by a heartbeat or any other call, every 5 s; an agent that never sends a heartbeat has until the job's
    timeout + 30 s.
    """
    found = await next_job(context, query)
    return None if found is None else {"job": found}


async def next_job(context: Context, query: dict[str, Any]) -> dict[str, Any] | None:
    """Return the next job for the agent that calls, or None. Raises Denied, Unavailable."""
    holder = holder_of(context, query["worker_id"])
    if not query["wait"]:
        sets = await fleet.tag_sets(context.store)
        found = await _take(context, holder, sets, set(), calls=True)
        return next(iter(found), None)
    gone = downloads.left(context.request)
    try:
        return await _wait(context, holder, min(query["wait"], MOST_WAIT_S), gone)
    except (Ended, _Silent):  # this process stops, so that the agent asks the next one; or the agent is dead
        return None
    finally:
        gone.cancel()


async def _wait(
    context: Context, holder: Holder, wait_s: float, gone: "asyncio.Future[None]"
) -> dict[str, Any] | None:
    """Take a job as soon as there is one; nothing for a client that has left, which would never see it.

    That we wait for an agent is no sign of its life: nothing is renewed meanwhile, and one that has missed its
    heartbeats for a lease gets nothing, for a host that died silently leaves its connections open.
    """
    hub, deadline = context.request.context.hub, time.monotonic() + in_step(wait_s)
    served: set[str] = set()
    async with hub.wake_up(served) as waiter:
        gone.add_done_callback(lambda _: waiter.leave())
        calls = True
        try:
            while not gone.done():
                sets = await hub.tag_sets(context.store)
                if taken := await _take(context, holder, sets, served, calls=calls):
                    return taken[0]
                calls = False
                left_s = deadline - time.monotonic()
                if hub.watch is None or not await waiter.wait(left_s):  # raises Ended once the process stops
                    break
        except BaseException:
            waiter.wake()  # what it was woken for is still there: its leaving wakes the others
            raise
    return None


async def _take(
    context: Context, holder: Holder, sets: list[str], served: set[str], *, calls: bool, most: int = 1,
    startable: int = 1,
) -> list[dict[str, Any]]:  # fmt: skip
    """Take the next jobs of the queues that the agent serves, which `served` is told before. Raises _Silent."""
    store = context.store
    lease_s = store.settings.lease_s
    heard: Any = store.cache.setdefault("tags of agents", {})  # a claim says where they are others
    while True:
        words, tags = heard.get(holder.worker, ("", ()))
        lines = queues.served(sets, tags) if words else []
        served.update(lines)
        found = await store.call(
            attempts.poll(holder, lines, words, most=most, startable=startable, lease_s=lease_s, calls=calls)
        )
        calls = False
        if found.silent:
            raise _Silent
        if found.refused:
            log.error("a queue held what is no job of ours", extra={"refused": found.refused})
        if found.tags != words:
            if len(heard) >= _MOST_AGENTS:
                heard.clear()
            heard[holder.worker] = found.tags, queues.read_tags(found.tags)
            continue
        if found.drained:
            served.clear()  # it takes no turn from others who wait; everybody looks anew once it may take jobs again
        offers = []
        for number, claimed in enumerate(found.claims):
            if (spec := await _believed(context, holder, claimed)) is not None:
                lease = lease_s if found.beats else 0.0
                offers.append(await _offer(context, claimed, spec, lease, ahead=number >= startable))
        if offers or not found.claims:
            return offers


class _Silent(Exception):
    """The agent has missed its heartbeats for a lease."""


async def _believed(context: Context, holder: Holder, claimed: Claim) -> dict[str, Any] | None:
    """Return what shall be done, or None once a payload that is not ours has been ended as invalid."""
    try:
        spec = claimed.read_spec(context.store.seal)
        if spec.get("task") == tasks.COMMAND.name:
            return spec
        message = f"An agent cannot run the task {spec.get('task')!r}."
    except Forged as error:
        message = str(error)
    log.error("a job was refused", extra={"job": claimed.job_id, "reason": message})
    await context.store.call(
        attempts.settle(
            holder, claimed.job_id, claimed.attempt, "failed", "invalid", None, facts={"message": message}
        )
    )
    return None


async def _offer(
    context: Context, claimed: Claim, spec: dict[str, Any], lease_s: float, *, ahead: bool
) -> dict[str, Any]:
    argv, timeout_s = spec.get("argv"), int(spec["timeout_s"])
    return {
        "job_id": claimed.job_id,
        "command": spec.get("command") or shlex.join(argv or []),
        "argv": argv,
        "file_url": await _file_url(context, spec),
        "file_id": spec.get("file"),
        "retries": spec.get("retries", 0),
        "working_directory": spec.get("working_directory"),
        "timeout_s": timeout_s,
        "attempt": claimed.attempt,
        "env": {**cause.of_spec(spec).environment, **spec.get("env", {})},
        "artifacts": spec.get("artifacts", []),
        "priority": spec.get("priority", "normal"),
        "tags": spec.get("tags", []),
        "name": spec.get("name"),
        "lease_s": lease_s or timeout_s + 30.0,
        "lines": claimed.lines,
        "at_most_once": bool(spec.get("at_most_once")),
        "held_ahead": ahead,
    }


async def _file_url(context: Context, spec: dict[str, Any]) -> str | None:
    """Return where the agent finds the job's file: an absolute URL, ours to be read with its token."""
    if "file" not in spec:
        return spec.get("file_url")
    try:
        path = (await files.get(context.store, spec["file"])).url
    except NotFound:  # deleted meanwhile: the agent will be told so there
        path = f"/api/files/download/{spec['file']}"
    return addresses.base_url(context.request, context.store.settings) + path


# Several at once


@group.endpoint(
    "POST /exchange",
    role=Role.WORKER,
    body=agent_schemas.ExchangeBody(),
    returns=agent_schemas.ExchangeAnswer(),
    raises=(Invalid, Denied, Unavailable),
    carries=True,
)
async def exchange(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Say how several attempts ended, and take up to `most` jobs in return, without waiting for any.

    Each result counts as one of `POST /api/jobs/submit-result` does; one that is refused, such as with `STALE_ATTEMPT`,
    is told in its place and stops no other. Jobs beyond the first `startable` are `heldAhead`: they are the agent's,
    which says with `begun` that they have started, or hands them back soon (`released`). All of it may be repeated.
    """
    store, holder = context.store, holder_of(context, body["worker_id"])
    begun = [(each["job_id"], each["attempt"]) for each in body["begun"]]
    lost: list[str] = []
    steps: list[Call[Any]] = [
        _tried(_settling(holder, each, {}, begins=() if number else begun, begun=lost.extend))
        for number, each in enumerate(body["results"])
    ]
    if not steps:
        steps = [_begun(holder, *each, lost) for each in begun]
    hold = attempts.hold(holder, lease_s=store.settings.lease_s)
    *said, last = await store.calls(*steps, fleet.TAG_SETS if body["most"] else hold)
    offers = []
    if body["most"]:
        most, startable = body["most"], body["startable"]
        offers = await _take(context, holder, last, set(), calls=True, most=most, startable=startable)
    results = [_told(each, state) for each, state in zip(body["results"], said, strict=False)]
    return {"results": results, "lost": lost, "jobs": offers}


def _begun(holder: Holder, job_id: str, attempt: int, lost: list[str]) -> Call[None]:
    """Describe the start of a held job; `lost` gets it where it is not the agent's to start."""
    step = attempts.begin(holder, job_id, attempt)

    def read(reply: Any) -> None:
        if not step.read(reply):
            lost.append(job_id)

    return Call(step.words, read, step.script)


def _tried(call: Call[str]) -> Call[str | HostlerError]:
    """Describe a step whose refusal is an answer."""

    def read(reply: Any) -> str | HostlerError:
        try:
            return call.read(reply)
        except HostlerError as error:
            return error

    return Call(call.words, read, call.script)


def _told(body: dict[str, Any], state: str | HostlerError) -> dict[str, Any]:
    told = {"job_id": body["job_id"], "status": None, "error": None, "message": None}
    if isinstance(state, HostlerError):
        return told | {"error": state.code, "message": str(state)}
    return told | {"status": state}


# Running it


@group.endpoint(
    "POST /stream-output",
    role=Role.WORKER,
    body=agent_schemas.OutputBody(),
    returns=agent_schemas.OutputAnswer(),
    raises=(Invalid, NotFound, Stale, TooLarge, Unavailable),
    body_limit_bytes=OUTPUT_LIMIT_BYTES,
)
async def stream_output(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Say what a job prints, in pieces of whole lines, in their order.

    `lineCount` says how many lines end in a piece whose last line has no newline; without it newlines are counted.
    A line `HOSTLER_PROGRESS=45` or `::progress 45` sets its progress. `cancelRequested` asks the agent to end it.
    409 `STALE_ATTEMPT`: the attempt is over, or another worker's; the agent should end what it runs.
    """
    holder, data = holder_of(context), body["data"].encode()
    channel = "o" if body["type"] == "stdout" else "e"
    _, received = await context.store.calls(
        attempts.hold(holder, lease_s=context.store.settings.lease_s),
        _output(
            context,
            (body["job_id"], body["attempt"]),
            channel,
            data,
            first_line=body["first_line"],
            line_count=body["line_count"],
        ),
    )
    percent = progress.last(data) if channel == "o" else None
    if percent is not None:
        await context.store.call(attempts.progress(holder, body["job_id"], body["attempt"], percent))
    return {
        "received": True,
        "cancel_requested": received.cancel,
        "next_line": received.next_line,
        "full": received.full,
    }


group.alias("POST /jobs/stream-output", of=stream_output)


def _output(
    context: Context,
    job: tuple[str, int | None],
    channel: str,
    data: bytes,
    *,
    first_line: int | None = None,
    line_count: int | None = None,
) -> Any:
    """Describe appending output to a job's attempt, within the limits that are set."""
    settings = context.store.settings
    return attempts.output(
        holder_of(context), *job, channel, data, first_line=first_line,
        line_count=data.count(b"\n") if line_count is None else line_count,
        live_bytes=settings.job_log_live_bytes, limit_bytes=settings.job_log_limit_bytes,
    )  # fmt: skip


async def cancel_check(context: Context, job_id: str) -> dict[str, Any]:
    """Tell whether the agent shall end a job. Raises NotFound."""
    holder = holder_of(context)
    job, _ = await context.store.calls(
        jobs.fetch(job_id), attempts.hold(holder, lease_s=context.store.settings.lease_s)
    )
    mine = job.worker == holder.worker and job.state is jobs.State.RUNNING
    cancelled = job.cancel_requested or job.state is jobs.State.CANCELLED
    return {"job_id": job.id, "cancelled": cancelled, "cancel_requested": cancelled or not mine}


# Keeping what it leaves


@group.endpoint(
    "PUT /{id}/artifacts/{name:path}",
    role=Role.WORKER,
    query=agent_schemas.AttemptQuery(),
    returns=agent_schemas.KeptAnswer(),
    raises=(Invalid, NotFound, Stale, Conflict, TooLarge, Unavailable),
    raw=True,
    takes="application/octet-stream",
)
async def put_artifact(
    context: Context,
    req: Request,
    resp: Response,
    *,
    id: str,
    name: str,
    query: dict[str, Any],
) -> None:
    """Keep a file that a job left, under its path relative to the job's directory; the body is its content.

    `Content-Length` is required. Putting the same name again replaces it.
    """
    store, holder = context.store, holder_of(context)
    _check_name(name)
    attempt = await _attempt_held(context, holder, id, query["attempt"])
    if req.content_length is None:
        raise Invalid("Content-Length is required")
    if await store.call(command("HLEN", f"h:artifacts:{id}")) >= artifacts.MOST:
        raise Conflict(f"A job may leave {artifacts.MOST} artifacts, and this one has.")
    content_type = files.clean_content_type(req.content_type, name)
    key = artifacts.object_key(id, attempt, name)
    limit_bytes = store.settings.upload_limit_bytes
    body = bodies.Incoming(req, limit_bytes)
    stored = await store.objects.upload(
        key, body.read_into, content_type=content_type, limit_bytes=limit_bytes
    )
    record = {
        "name": name, "size": stored.size_bytes, "sha256": stored.sha256, "contentType": content_type,
        "key": key, "attempt": attempt,
    }  # fmt: skip
    await _attach(context, id, "artifacts", name, record)
    kept = {"job_id": id, "name": name, "size": stored.size_bytes, "sha256": stored.sha256}
    _declared(put_artifact).render(req, resp, kept)


@group.endpoint(
    "POST /{id}/log",
    role=Role.WORKER,
    query=agent_schemas.PartQuery(),
    returns=agent_schemas.KeptAnswer(),
    raises=(Invalid, NotFound, Stale, TooLarge, Unavailable),
    status=HTTPStatus.CREATED,
    raw=True,
    takes="application/octet-stream",
)
async def put_log(
    context: Context,
    req: Request,
    resp: Response,
    *,
    id: str,
    query: dict[str, Any],
) -> None:
    """Keep a part of a job's log whole: the lines from `first` up to, without, `next`, as frames.

    A frame is a line `<attempt> <line> <count> <o|e> <bytes>` and then that many bytes, in which `count` lines end.
    At most 16 MiB a part; the live log in Redis keeps only the newest output.
    """
    store, holder = context.store, holder_of(context)
    attempt = await _attempt_held(context, holder, id, query["attempt"])
    first, following = query["first"], query["next"]
    frames = await bodies.read(req, PART_LIMIT_BYTES)
    _check_frames(frames, attempt, first, following)
    key = f"logs/{id}/{attempt}/{first:012d}"
    packed, sha256 = await asyncio.to_thread(lambda: (logs.pack(frames), hashlib.sha256(frames).hexdigest()))
    await store.objects.put(key, packed)
    name = f"{attempt}:{first:012d}"
    record = {"attempt": attempt, "first": first, "next": following, "key": key, "size_bytes": len(frames)}
    await _attach(context, id, "logparts", name, record)
    kept = {"job_id": id, "name": name, "size": len(frames), "sha256": sha256}
    _declared(put_log).render(req, resp, kept)


async def _attempt_held(context: Context, holder: Holder, job_id: str, attempt: int | None) -> int:
    """Return the attempt that an upload is for; its lease is renewed. Raises NotFound, or Stale if not held."""
    job, _ = await context.store.calls(
        jobs.fetch(job_id), attempts.hold(holder, lease_s=context.store.settings.lease_s)
    )
    mine = job.worker == holder.worker and job.state is jobs.State.RUNNING
    if not mine or attempt not in {None, job.attempt}:
        raise Stale(f"Job {job_id!r} is not, or no longer, held by this worker.")
    return int(job.attempt)


async def _attach(context: Context, job_id: str, kind: str, name: str, record: dict[str, Any]) -> None:
    """Register an object that is stored; delete it if the attempt has ended meanwhile."""
    step = attempts.attach(holder_of(context), job_id, record["attempt"], kind, name, record)
    try:
        await context.store.call(step)
    except (Stale, NotFound):
        if not await context.store.call(command("HEXISTS", f"h:{kind}:{job_id}", name)):  # put twice: in use
            await context.store.objects.delete(record["key"])
        raise


def _check_name(name: str) -> None:
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and len(name.encode()) <= artifacts.NAME_LIMIT_BYTES
    if not plain or any(part in {"", ".", ".."} for part in parts):
        message = "An artifact's name is a relative path of at most 512 bytes, without '..'."
        raise Invalid(message, details={"name": message})


_FRAME = re.compile(rb"(\d{1,9}) (\d{1,12}) (\d{1,12}) ([oe]) (\d{1,9})\n")


def _check_frames(frames: bytes, attempt: int, first: int, following: int) -> None:
    """Raise Invalid unless `frames` are the lines of one attempt from `first` up to `following`, without a gap."""
    at, line = 0, first
    while at < len(frames):
        head = _FRAME.match(frames, at)
        if head is None or int(head[1]) != attempt or int(head[2]) != line:
            raise Invalid(f"Byte {at} of the log does not begin a frame of attempt {attempt}, line {line}.")
        line += int(head[3])
        at = head.end() + int(head[5])
    if at != len(frames) or line != following or not frames:
        raise Invalid(f"The log does not end with line {following}.")


def _declared(handler: Any) -> Endpoint:
    return next(endpoint for endpoint in group.endpoints if endpoint.handler is handler)


# Ending it


@group.endpoint(
    "POST /submit-result",
    role=Role.WORKER,
    body=agent_schemas.ResultBody(),
    returns=agent_schemas.ResultAnswer(),
    raises=(Invalid, Denied, NotFound, Stale, TooLarge, Unavailable),
    body_limit_bytes=RESULT_LIMIT_BYTES,
)
async def submit_result(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """End an attempt. A non-zero exit code is a failure; `status` may say `cancelled`, `reason` may say `timeout`.

    `stdout` and `stderr` become the job's log if nothing was streamed. May be repeated: the first answer counts.
    """
    return await end(context, body)


group.alias("POST /jobs/submit-result", of=submit_result)


async def end(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Settle an attempt as its agent says. Raises Denied, NotFound, Stale."""
    holder = holder_of(context, body["worker_id"])
    said = await _what_it_said(context, holder, body)
    state, _ = await context.store.calls(
        _settling(holder, body, said), attempts.hold(holder, lease_s=context.store.settings.lease_s)
    )
    return {"message": "Result saved", "job_id": body["job_id"], "status": state}


def _settling(holder: Holder, body: dict[str, Any], said: Mapping[str, str], **more: Any) -> Call[str]:
    """Describe ending an attempt as its agent says."""
    outcome, reason = _outcome(body)
    facts: dict[str, str | int] = {
        name: body[name] for name in ("cpu_ms", "max_rss_bytes", "signal") if body[name] is not None
    }
    if body["truncated"]:
        facts["truncated"] = 1
    if body["error"]:
        facts["message"] = body["error"][:2000]
    facts |= said
    return attempts.settle(
        holder, body["job_id"], body["attempt"], outcome, reason, body["exit_code"], facts, **more
    )


def _outcome(body: dict[str, Any]) -> tuple[str, str]:
    """Return how an attempt ended, and why if it failed; `released` hands it back for another worker to take."""
    said = (body["status"] or "").lower()
    if said == "released":
        return "released", "unstarted" if body["reason"] == "unstarted" else ""
    if said in {"cancelled", "canceled"}:
        return "cancelled", "cancelled"
    if body["reason"] in _REASONS:
        return "failed", body["reason"]
    if body["exit_code"] == 0 and not body["error"] and said not in {"failed", "error"}:
        return "completed", ""
    return "failed", "exit_code"


async def _what_it_said(context: Context, holder: Holder, body: dict[str, Any]) -> dict[str, str]:
    """Add a result's output to the log if nothing was streamed; return what else of it is worth keeping."""
    said = {"o": (body["stdout"] or "").encode(), "e": (body["stderr"] or "").encode()}
    job_id, attempt = body["job_id"], body["attempt"]
    if not any(said.values()) or not jobs.ID.fullmatch(job_id):
        return {}
    row = await context.store.call(
        command("HMGET", f"h:job:{job_id}", "state", "worker", "attempt", "bytes", "base")
    )
    state, worker, current, size, base = (text(value) for value in row)
    if state != "running" or worker != holder.worker or str(attempt or current) != current:
        return {}  # said before, or too late: settling decides
    if (size or "0") == (base or "0"):
        for channel, data in said.items():
            for piece in _pieces(data):
                await context.store.call(_output(context, (job_id, attempt), channel, piece))
        return {}
    streamed = await logs.tail(context.store, job_id, limit_bytes=2 * KEPT_BYTES)
    facts = {}
    for channel, name, fact in (("o", "stdout", "out"), ("e", "stderr", "err")):
        kept = said[channel][-KEPT_BYTES:]
        if kept and kept.rstrip() != str(streamed[name]).encode()[-KEPT_BYTES:].rstrip():
            facts[fact] = kept.decode("utf-8", "replace")
    return facts


def _pieces(data: bytes) -> list[bytes]:
    """Cut output into pieces that end with a line where they can."""
    pieces, at = [], 0
    while at < len(data):
        end = at + _PIECE_BYTES
        if end < len(data):
            end = data.rfind(b"\n", at, end) + 1 or end
        pieces.append(data[at:end])
        at = end
    return pieces
