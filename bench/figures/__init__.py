"""The figures, a module a family; each module names its own in `FIGURES`."""

import importlib
import pkgutil

from bench.figure import Figure


def all_figures() -> list[Figure]:
    """Return every figure by the number in its id. Raises ValueError for an id that two of them bear."""
    modules = [importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    figures = [figure for module in modules for figure in module.FIGURES]
    if len({figure.id for figure in figures}) != len(figures):
        raise ValueError("Two figures bear the same id.")
    return sorted(figures, key=lambda figure: int(figure.id.lstrip("P")))
