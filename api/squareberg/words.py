"""How Squareberg's clients see apps: nine fields, three words for what an app does."""

from typing import Any

from marshmallow import Schema, fields, validate

from settings import Settings
from storage import apps, relay
from storage.apps import App, Phase, Status
from storage.errors import BadGateway, GatewayTimeout, HostlerError, NotFound, Unavailable
from storage.manifests import OWN, SQUAREBERG, Process
from storage.relay import Ask
from storage.store import Store

STATUSES = ("stopped", "running", "error")
#: The start page of a frontend, and how long a node is asked for it while apps are listed.
INDEX, ASK_S = "index.html", 2.0
#: So many frontends are remembered.
MOST_KNOWN = 5000
_ERRORS = frozenset({Status.FAILED, Status.CRASHED, Status.UNKNOWN})


class StartFailed(HostlerError):
    """The app's process ended at once, or did not open its socket in time."""

    code = "APP_START_FAILED"


class StopFailed(HostlerError):
    """The app's process could not be ended."""

    code = "APP_STOP_FAILED"


class RegisteredApp(Schema):
    """An app as the hub registers it; what it has none of is null."""

    name = fields.String(required=True)
    display_name = fields.String(required=True)
    description = fields.String(required=True)
    version = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    socket_path = fields.String(required=True, allow_none=True)
    frontend_dist_path = fields.String(required=True, allow_none=True)
    manifest_path = fields.String(required=True, allow_none=True)
    backend_module = fields.String(required=True, allow_none=True)


async def find(store: Store, name: str) -> App:
    """Return an app. Raises NotFound in the hub's words."""
    try:
        return await apps.get(store, name)
    except NotFound:
        raise NotFound(f"App '{name}' not found.") from None


def status(app: App) -> str:
    """Return what an app does: `error` is one that ended unexpectedly, or does not come up."""
    if app.phase is Phase.FAILED:
        return "error"
    if app.phase not in {Phase.READY, Phase.UPDATING}:
        return "stopped"
    known = app.ready_status if app.online else Status.UNKNOWN
    if known in _ERRORS:
        return "error" if app.desired == "running" else "stopped"
    return "running" if known is Status.RUNNING else "stopped"


def backend(app: App) -> Process | None:
    """Return the process that answers requests to an app: the one its routes lead to, else one on a socket."""
    manifest = app.manifest
    if manifest is None:
        return None
    if manifest.routes is not None:
        return manifest.process(manifest.routes.process)
    return next((each for each in app.processes if each.socket), None)


def frontend_directory(app: App) -> str | None:
    """Return the directory of an app's active frontend in its release, None where it has none."""
    manifest = app.manifest
    if manifest is None:
        return None
    active = next((name for name in manifest.active_frontends if name in manifest.frontends), None)
    return manifest.frontends[active].path if active is not None else None


async def frontend_path(store: Store, app: App) -> str | None:
    """Return where in its release an app's frontend lies: its `dist` where it was built, else the directory itself.

    The node is asked once for each release; while it is silent, a build is assumed.
    """
    directory = frontend_directory(app)
    if directory is None:
        return None
    release = app.releases[0].dir if app.releases else ""
    key = f"{app.instance_id} {app.created_ms} {release}"
    known = _known(store)
    if key not in known:
        ask = Ask(app=app.instance_id, kind="file", within=f"{directory}/dist", path=INDEX, timeout_s=ASK_S)
        try:
            await relay.request(store, app.node, ask)
        except NotFound:
            known[key] = directory
        except (Unavailable, GatewayTimeout):
            return f"{directory}/dist"
        except BadGateway:  # it is there, and too large to be handed over
            known[key] = f"{directory}/dist"
        else:
            known[key] = f"{directory}/dist"
    return known[key]


def _known(store: Store) -> dict[str, str]:
    """Return what nodes have said of frontends; releases come and go, so it is begun anew now and then."""
    known = store.cache.get("frontends")
    if not isinstance(known, dict) or len(known) > MOST_KNOWN:
        known = store.cache["frontends"] = {}
    return known


def app_answer(settings: Settings, app: App, frontend: str | None) -> dict[str, Any]:
    """Return what RegisteredApp shows; paths are those on the app's own node, `frontend` is below its release."""
    process = backend(app)
    instances = app.instances_of(process.name) if process is not None else ()
    module = process.env.get("HOSTLER_MODULE") if process is not None and app.kind == "squareberg" else None
    current = settings.apps_dir / app.instance_id / "current"
    return {
        "name": app.instance_id,
        "display_name": app.name,
        "description": app.manifest.description if app.manifest is not None else "",
        "version": app.version,
        "status": status(app),
        "socket_path": next((each.socket for each in instances if each.socket), None),
        "frontend_dist_path": None if frontend is None else str(current / frontend),
        "manifest_path": str(current / (SQUAREBERG if app.kind == "squareberg" else OWN))
        if app.releases and app.source.get("kind") != "inline"
        else None,
        "backend_module": module,
    }
