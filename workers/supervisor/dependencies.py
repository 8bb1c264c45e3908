"""What an app's processes depend on: whether it is ready, and if not, whether it is worth waiting for."""

from typing import TYPE_CHECKING

from storage.manifests import Process
from workers.supervisor.instance import Obstacle
from workers.supervisor.life import State

if TYPE_CHECKING:
    from workers.supervisor.supervised import Supervised


def unready(app: "Supervised", name: str) -> Obstacle | None:
    """Return why the dependency `name`, a process of the app or another app, is not ready; None when it is."""
    own = app.wish.process(name)
    if own is not None:
        return None if app.is_ready(own) else _process(app, own)
    manifest = app.wish.manifest
    if manifest is not None and manifest.process(name) is not None:
        return Obstacle(f"It depends on {name!r}, which is not enabled.", hopeless=True)
    other = app.node.find(name)
    if other is None:
        return Obstacle(f"It waits for app {name!r}, which is not on this node.")
    if all(other.is_ready(each) for each in other.wish.processes):
        return None
    if _waits_for(other, app):
        circle = "for itself" if other is app else f"for {name!r}, which waits for it"
        return Obstacle(f"It would have to wait {circle}.", hopeless=True)
    return _whole(other)


def _process(app: "Supervised", process: Process) -> Obstacle:
    name = repr(process.name)
    if (why := _failed(app, process)) is not None:
        return Obstacle(f"It depends on {name}, which has failed: {why}", hopeless=True)
    stopped = not app.held and not app.wish.wanted(process).running
    return Obstacle(
        f"It waits for {name}{', which is stopped' if stopped else ''}.", under_way=_under_way(app, process)
    )


def _whole(app: "Supervised") -> Obstacle:
    name = f"app {app.app.instance_id!r}"
    for why in (_failed(app, each) for each in app.wish.processes):
        if why is not None:
            return Obstacle(f"It depends on {name}, which has failed: {why}", hopeless=True)
    stopped = app.wish.desired == "stopped"
    return Obstacle(
        f"It waits for {name}{', which is stopped' if stopped else ''}.",
        under_way=any(_under_way(app, each) for each in app.wish.processes),
    )


def _under_way(app: "Supervised", process: Process) -> bool:
    """Tell whether a process is a oneshot at work, or waits for one."""
    if process.type == "oneshot" and any(
        instance.life.alive for (name, _), instance in app.instances.items() if name == process.name
    ):
        return True
    found = [unready(app, each) for each in process.depends_on]
    return any(each is not None and each.under_way for each in found)


def _failed(app: "Supervised", process: Process) -> str | None:
    """Return in one line why a process that shall run has failed for good; None when it has not."""
    for (name, _), instance in app.instances.items():
        if name == process.name and instance.life.wanted and instance.life.state is State.FAILED:
            return next(iter(instance.life.message.splitlines()), "")
    return None


def _waits_for(app: "Supervised", other: "Supervised") -> bool:
    """Tell whether an app cannot be ready before another is, since it depends on it, or is it."""
    seen: set[str] = set()
    ahead = [app]
    while ahead:
        each = ahead.pop()
        if each is other:
            return True
        names = {name for process in each.wish.processes for name in process.depends_on}
        names -= {process.name for process in each.wish.processes} | seen
        seen |= names
        ahead += [found for name in names if (found := each.node.find(name)) is not None]
    return False
