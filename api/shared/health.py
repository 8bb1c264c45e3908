"""Whether this process runs, and whether what it stands on is there."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from falcon.asgi import Request, Response
from marshmallow import Schema, fields, validate

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Endpoint, Group, Role
from api.times import Time
from settings import __version__
from storage import checks, fleet
from storage.calls import command
from storage.errors import Denied, HostlerError, Unauthenticated, Unavailable
from storage.store import Store

group = Group("Health", "/api/health", CONTEXTBAY)

#: A dependency that takes longer to answer counts as away.
_PATIENCE_S = 2.5
#: Checks write to the object store, so they are not repeated more often than this.
_CHECKED_S = 5


class HealthAnswer(Schema):
    """The process runs."""

    status = fields.String(required=True, validate=validate.Equal("ok"))
    timestamp = Time(required=True)
    version = fields.String(required=True)


class CheckEntry(Schema):
    """One thing that Hostler stands on."""

    name = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(("ok", "failed")))
    latency_ms = fields.Float(required=True, data_key="latencyMs")
    message = fields.String(required=True, allow_none=True)


class ReadyAnswer(Schema):
    """What Hostler stands on, and whether all of it is there."""

    status = fields.String(required=True, validate=validate.OneOf(("ok", "degraded", "unavailable")))
    checks = fields.List(fields.Nested(CheckEntry), required=True)


class FoundCheck(Schema):
    """What one check found, and how to mend it."""

    name = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf((checks.OK, checks.WARN, checks.FAIL)))
    message = fields.String(required=True)
    remedy = fields.String(required=True, allow_none=True)


class FoundAnswer(Schema):
    """What all checks found, and the worst of it."""

    status = fields.String(required=True, validate=validate.OneOf((checks.OK, checks.WARN, checks.FAIL)))
    checks = fields.List(fields.Nested(FoundCheck), required=True)
    checked_ms = Time(required=True, data_key="checkedAt")


@group.endpoint("GET ", role=Role.PUBLIC, returns=HealthAnswer(), counted=False)
async def health(context: Context) -> dict[str, Any]:
    """Say that the process answers, and which version it is."""
    return {"status": "ok", "timestamp": context.store.now_ms(), "version": __version__}


@group.endpoint("GET /live", role=Role.PUBLIC, returns=HealthAnswer(), counted=False)
async def live(context: Context) -> dict[str, Any]:
    """Say that the process runs, whatever it stands on; restart it when it does not say so."""
    return await health(context)


@group.endpoint("GET /ready", role=Role.PUBLIC, returns=ReadyAnswer(), raises=(Unavailable,), raw=True)
async def ready(context: Context, req: Request, resp: Response) -> None:
    """Check what Hostler stands on. 503 only when Redis is away; without anything else it is `degraded`.

    Jobs are accepted without S3, scheduler and workers, and go on when these are back.
    """
    probed = await asyncio.gather(*(_check(name, probe, context.store) for name, probe in _PROBES.items()))
    away = {check["name"] for check in probed if check["status"] != "ok"}
    status = "unavailable" if "redis" in away else "degraded" if away else "ok"
    if status == "unavailable":
        resp.status = HTTPStatus.SERVICE_UNAVAILABLE.value
        resp.set_header("X-Error-Code", Unavailable.code)
    _declared().render(req, resp, {"status": status, "checks": probed})


@group.endpoint(
    "GET /checks", role=Role.OPERATOR, returns=FoundAnswer(), raises=(Unauthenticated, Denied, Unavailable)
)
async def examine(context: Context) -> dict[str, Any]:
    """Run the checks of `hostler doctor`: what each found, and how to mend it. The answer may be 5 s old."""
    kept = context.store.cache.get("checks")
    if not (isinstance(kept, dict) and context.store.now_ms() - kept["checked_ms"] < _CHECKED_S * 1000):
        found = await checks.everything(context.store)
        worst = [
            status for status in (checks.FAIL, checks.WARN) if any(each.status == status for each in found)
        ]
        kept = {
            "status": worst[0] if worst else checks.OK,
            "checks": [checks.as_json(each) for each in found],
            "checked_ms": context.store.now_ms(),
        }
        context.store.cache["checks"] = kept
    return kept


def _declared() -> Endpoint:
    return next(endpoint for endpoint in group.endpoints if endpoint.handler is ready)


async def _redis(store: Store) -> None:
    await store.call(command("PING"))


async def _object_store(store: Store) -> None:
    await store.objects.check()


async def _scheduler(store: Store) -> None:
    if not await store.call(command("EXISTS", "h:leader")):
        raise Unavailable("No scheduler leads: delayed jobs do not start, and dead workers go unnoticed.")


async def _workers(store: Store) -> None:
    if not any(worker.status == "online" for worker in await fleet.workers(store)):
        raise Unavailable("No worker is online: jobs wait.")


_PROBES: dict[str, Callable[[Store], Awaitable[None]]] = {
    "redis": _redis,
    "objectStore": _object_store,
    "scheduler": _scheduler,
    "workers": _workers,
}


async def _check(name: str, probe: Callable[[Store], Awaitable[None]], store: Store) -> dict[str, Any]:
    began, message = time.perf_counter(), None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await probe(store)
    except TimeoutError:
        message = f"It did not answer within {_PATIENCE_S} s."
    except HostlerError as error:
        message = str(error)
    latency_ms = round((time.perf_counter() - began) * 1000, 2)
    return {
        "name": name,
        "status": "failed" if message else "ok",
        "latency_ms": latency_ms,
        "message": message,
    }
