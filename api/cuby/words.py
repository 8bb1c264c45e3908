"""How Cuby's clients are told of apps: the eight words for a product, the five for an install, and their shapes."""

from typing import Any

from api.times import iso
from storage.apps import App, Phase
from storage.apps.records import ALIVE, Instance, Status

#: The whole list of the API page; nothing else is ever said of a product.
PRODUCT_WORDS = (
    "running",
    "stopped",
    "crashed",
    "installing",
    "installed",
    "updating",
    "needs_config",
    "failed",
)
INSTALL_WORDS = ("installing", "needs_config", "installed", "failed", "updating")

_BY_PHASE = {
    Phase.INSTALLING: "installing",
    Phase.NEEDS_CONFIG: "needs_config",
    Phase.INSTALLED: "installed",
    Phase.UPDATING: "updating",
    Phase.REMOVING: "stopped",
    Phase.FAILED: "failed",
}
#: `crashed` is said of what will come back by itself: also of what runs on a node that is silent.
_BY_STATUS = {
    Status.RUNNING: "running",
    Status.STARTING: "running",
    Status.STOPPING: "running",
    Status.STOPPED: "stopped",
    Status.COMPLETED: "stopped",
    Status.CRASHED: "crashed",
    Status.UNKNOWN: "crashed",
    Status.FAILED: "failed",
}
_INSTALL_BY_PHASE = {
    Phase.INSTALLING: "installing",
    Phase.NEEDS_CONFIG: "needs_config",
    Phase.UPDATING: "updating",
    Phase.FAILED: "failed",
}


def status_of(app: App) -> str:
    """Return which of the eight words holds."""
    if app.phase is not Phase.READY:
        return _BY_PHASE[app.phase]
    return _BY_STATUS[Status(app.status)]


def _main(app: App) -> Instance | None:
    """Return the instance whose pid stands for the product: of the process that serves it, else of the first."""
    alive = [each for each in app.instances if each.state in ALIVE and each.pid]
    routes = app.manifest.routes if app.manifest is not None else None
    serving = [each for each in alive if routes is not None and each.process == routes.process]
    return next(iter(serving or alive), None)


def process_entry(app: App) -> dict[str, Any]:
    """Return what the page's `products/status` and the event `products:status` tell of one product."""
    main = _main(app)
    return {
        "status": status_of(app),
        "pid": main.pid if main else None,
        "startedAt": iso(main.started_ms) if main and main.started_ms else None,
        "restartCount": sum(each.restart_count for each in app.instances),
    }


def install_entry(app: App) -> dict[str, Any]:
    """Return what `install/status` tells; `error` is there only of an install that failed."""
    status = _INSTALL_BY_PHASE.get(app.phase, "installed")
    entry = {
        "productId": app.product,
        "instanceId": app.instance_id,
        "status": status,
        "progress": app.progress if status in {"installing", "updating", "failed"} else 100,
        "message": app.message,
    }
    return {**entry, "error": app.error or app.message} if status == "failed" else entry


def product_entry(app: App) -> dict[str, Any]:
    """Return a Product as Cuby's pages describe it."""
    npm = app.source.get("kind") == "npm"
    links = app.manifest.links if app.manifest is not None else None
    return {
        "instanceId": app.instance_id,
        "id": app.product,
        "alias": app.alias,
        "name": app.name,
        "npmPackage": app.source.get("package") if npm else None,
        "version": app.version,
        "url": links.engine_url if links is not None else None,
        "configured": app.configured,
        "installedAt": None if app.installed_ms is None else iso(app.installed_ms),
        "status": status_of(app),
        "node": app.node,
    }


def health_entry(app: App) -> dict[str, Any]:
    """Return how a product is: `healthy` when it runs and no check says otherwise."""
    told = {each.health for each in app.instances if each.state in ALIVE}
    status = status_of(app)
    health = "unhealthy" if "unhealthy" in told else "healthy" if "healthy" in told else "unknown"
    return {
        "instanceId": app.instance_id,
        "productId": app.product,
        "status": status,
        "health": health
        if status == "running"
        else "unhealthy"
        if status in {"crashed", "failed"}
        else "unknown",
        "healthy": status == "running" and health != "unhealthy",
        "message": app.error or next((each.message for each in app.instances if each.message), ""),
    }
