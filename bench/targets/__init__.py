"""The load targets, a module a family; each module names its own in `TARGETS`."""

import importlib
import pkgutil

from bench.target import Target


def all_targets() -> list[Target]:
    """Return every target by its id. Raises ValueError for an id that two of them bear."""
    names = [each.name for each in pkgutil.iter_modules(__path__) if each.name != "__main__"]
    targets = [target for name in names for target in importlib.import_module(f"{__name__}.{name}").TARGETS]
    if len({target.id for target in targets}) != len(targets):
        raise ValueError("Two targets bear the same id.")
    return sorted(targets, key=lambda target: target.id)
