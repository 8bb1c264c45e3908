"""Apps: install them, start and stop them, look at them, change and remove them."""

from typing import Any

from falcon.asgi import Request, Response

from api.apps import schemas
from api.apps.schemas import promised
from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, HTTPStatus, Role
from api.paging import cut, envelope
from storage import apps, manifests, relay
from storage.apps import App
from storage.errors import (
    BadGateway,
    Conflict,
    GatewayTimeout,
    Invalid,
    NotFound,
    Unavailable,
    Unprocessable,
)
from storage.store import Store

group = Group("Apps", "/api/apps", CONTEXTBAY)

_CHANGES = (Invalid, NotFound, Conflict, Unprocessable, Unavailable)


def _key(context: Context) -> str | None:
    """Return the caller's Idempotency-Key. Raises Invalid."""
    key = context.request.get_header("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 200 and key.isprintable() and " " not in key):
        raise Invalid("Idempotency-Key: must be 1 to 200 printable characters without spaces")
    return key


async def _change(context: Context, id: str, action: str, **how: Any) -> dict[str, Any]:
    actor = context.caller.actor
    submitted = await apps.change(context.store, actor, id, action, idempotency_key=_key(context), **how)
    return promised(id, submitted)


async def _shown(context: Context, id: str) -> dict[str, Any]:
    found = await apps.get(context.store, id)
    return schemas.detail_of(found, context.store.now_ms(), secrets=context.caller.role in {"w", "a"})


@group.endpoint("GET", role=Role.VIEWER, query=schemas.AppsQuery(), returns=schemas.AppsAnswer())
async def list_apps(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the apps of the fleet, what is wished of each and what it does."""
    newest_first = query["sort"].startswith("-")
    found, total = await _page(context.store, query, newest_first=newest_first)
    now_ms = context.store.now_ms()
    return envelope("apps", [schemas.entry_of(each, now_ms) for each in found], total, query)


async def _page(store: Store, query: dict[str, Any], *, newest_first: bool) -> tuple[list[App], int]:
    if "node" not in query and "product" not in query:
        return await apps.page(store, limit=query["limit"], offset=query["offset"], newest_first=newest_first)
    found = await apps.of_node(store, query["node"]) if "node" in query else await apps.every(store)
    if "product" in query:
        found = [each for each in found if each.product == query["product"]]
    found.sort(key=lambda app: app.created_ms, reverse=newest_first)
    return cut(found, query), len(found)


@group.endpoint(
    "POST",
    role=Role.OPERATOR,
    body=schemas.NewApp(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def install(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Install a product on a node, as a job: fetch, verify, unpack, install, then start, or wait for configuration.

    Several instances of one product live side by side under an `alias` each. With the header `Idempotency-Key`, the
    same key and body are the same install for 24 h.
    """
    given = dict(body)
    manifest = given.pop("manifest", None)
    app, submitted = await apps.install(
        context.store,
        context.caller.actor,
        inline=None if manifest is None else manifests.load(manifest),
        idempotency_key=_key(context),
        **given,
    )
    return promised(app.instance_id, submitted)


@group.endpoint("GET /{id}", role=Role.VIEWER, returns=schemas.AppDetail(), raises=(NotFound,))
async def app(context: Context, id: str) -> dict[str, Any]:
    """Show one app: what is wished, what there is, its releases and its manifest.

    The values of its environment are shown to those who may change it.
    """
    return await _shown(context, id)


@group.endpoint(
    "POST /{id}/start",
    role=Role.OPERATOR,
    body=schemas.AppProcess(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def start(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Start an app, or one process of it; spent restarts are given back. The job ends once it runs."""
    return await _change(context, id, "start", **body)


@group.endpoint(
    "POST /{id}/stop",
    role=Role.OPERATOR,
    body=schemas.AppProcess(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def stop(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Stop an app, or one process of it, with all that it has started. The job ends once it is gone."""
    return await _change(context, id, "stop", **body)


@group.endpoint(
    "POST /{id}/restart",
    role=Role.OPERATOR,
    body=schemas.AppProcess(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def restart(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Stop an app, or one process of it, and start it again."""
    return await _change(context, id, "restart", **body)


@group.endpoint(
    "POST /{id}/scale",
    role=Role.OPERATOR,
    body=schemas.AppScale(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def scale(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Say how many instances of a process there shall be; none stops it, and any starts it."""
    return await _change(context, id, "scale", **body)


@group.endpoint(
    "POST /{id}/trigger",
    role=Role.OPERATOR,
    body=schemas.AppProcess(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def trigger(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Run a scheduled or oneshot process now. The job ends once the run has."""
    return await _change(context, id, "trigger", **body)


@group.endpoint(
    "POST /{id}/pause",
    role=Role.OPERATOR,
    body=schemas.AppProcess(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def pause(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Let scheduled processes miss their times until they are resumed."""
    return await _change(context, id, "pause", **body)


@group.endpoint(
    "POST /{id}/resume",
    role=Role.OPERATOR,
    body=schemas.AppProcess(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def resume(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Let scheduled processes run at their times again."""
    return await _change(context, id, "resume", **body)


@group.endpoint(
    "POST /{id}/update",
    role=Role.OPERATOR,
    body=schemas.AppUpdate(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def update(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Update an app: install beside, start, wait for health, switch; it goes back by itself when that fails."""
    given = dict(body)
    manifest = given.pop("manifest", None)
    inline = None if manifest is None else manifests.load(manifest)
    return await _change(context, id, "update", inline=inline, **given)


@group.endpoint(
    "POST /{id}/rollback",
    role=Role.OPERATOR,
    body=schemas.AppRollback(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def rollback(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Go back to a release that the node has kept."""
    return await _change(context, id, "rollback", **body)


@group.endpoint(
    "POST /{id}/install",
    role=Role.OPERATOR,
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def reinstall(context: Context, id: str) -> dict[str, Any]:
    """Try a failed install again."""
    return await _change(context, id, "install")


@group.endpoint(
    "PUT /{id}/autostart",
    role=Role.OPERATOR,
    body=schemas.AutostartBody(),
    returns=schemas.AppDetail(),
    raises=(Invalid, NotFound, Conflict),
)
async def autostart(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Say whether an app comes back after its node was rebooted."""
    await apps.set_autostart(context.store, context.caller.actor, id, body["autostart"])
    return await _shown(context, id)


@group.endpoint("GET /{id}/config", role=Role.VIEWER, returns=schemas.AppConfigAnswer(), raises=(NotFound,))
async def config(context: Context, id: str) -> dict[str, Any]:
    """Show an app's configuration and its JSON Schema; secrets are `********`."""
    found = await apps.get(context.store, id)
    return {
        "instanceId": id,
        "configured": found.configured,
        "config": found.masked_config(context.store.seal),
        "schema": found.config_schema,
    }


@group.endpoint(
    "PUT /{id}/config",
    role=Role.OPERATOR,
    body=schemas.AppConfig(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def configure(context: Context, id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Configure an app, as a job: what runs is restarted with it, and what waited for it starts."""
    return await _change(context, id, "configure", config=body["config"])


@group.endpoint(
    "DELETE /{id}",
    role=Role.OPERATOR,
    query=schemas.AppUninstallQuery(),
    returns=schemas.ChangeAnswer(),
    status=HTTPStatus.ACCEPTED,
    raises=_CHANGES,
)
async def uninstall(context: Context, id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Uninstall an app: stop it and remove it from its node; its data stays there only if asked.

    An install or update that is under way is cancelled first.
    """
    if query["abandon"]:
        await apps.abandon(context.store, context.caller.actor, id)
        return {"instanceId": id, "jobId": "", "status": "abandoned"}
    return await _change(context, id, "uninstall", keep_data=query["keep_data"])


@group.endpoint(
    "GET /{id}/logs",
    role=Role.VIEWER,
    query=schemas.AppLinesQuery(),
    returns=schemas.AppLines(),
    raises=(Invalid, NotFound),
)
async def logs(context: Context, id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Show the newest lines of an app, or the next ones after a line's `id`; some 2,000 are kept."""
    await apps.get(context.store, id)
    return {"instanceId": id, "lines": await apps.lines(context.store, id, **query)}


@group.endpoint(
    "GET /{id}/logfile",
    role=Role.VIEWER,
    query=schemas.LogFileQuery(),
    raw=True,
    media_type="text/plain",
    raises=(Invalid, NotFound, Unavailable, BadGateway, GatewayTimeout),
)
async def logfile(context: Context, req: Request, resp: Response, id: str, query: dict[str, Any]) -> None:
    """Show the end of an instance's log file, fetched from its node."""
    found = await apps.get(context.store, id)
    process = query.get("process") or next((each.name for each in found.processes), None)
    if process is None or found.process(process) is None:
        raise NotFound(f"App {id!r} has no process {process or ''!r}.")
    ask = relay.Ask(app=id, kind="log", process=process, index=query["index"], lines=query["lines"])
    answer = await relay.request(context.store, found.node, ask)
    resp.content_type = "text/plain; charset=utf-8"
    resp.data = answer.body


@group.endpoint(
    "GET /{id}/samples",
    role=Role.VIEWER,
    query=schemas.SamplesQuery(),
    returns=schemas.SamplesAnswer(),
    raises=(Invalid, NotFound),
)
async def samples(context: Context, id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Show what an app's instances have used: the last hour, every five seconds."""
    await apps.get(context.store, id)
    return {"instanceId": id, "samples": await apps.samples(context.store, id, **query)}


@group.endpoint(
    "GET /{id}/runs",
    role=Role.VIEWER,
    query=schemas.RunsQuery(),
    returns=schemas.RunsAnswer(),
    raises=(Invalid, NotFound),
)
async def runs(context: Context, id: str, query: dict[str, Any]) -> dict[str, Any]:
    """Show the last hundred runs of an app's scheduled and oneshot processes, newest first."""
    await apps.get(context.store, id)
    return {"instanceId": id, "runs": await apps.runs(context.store, id, **query)}
