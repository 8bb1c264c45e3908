"""What runs where under `pytest -n`: who shares servers keeps to one process, and what takes longest begins first.

The marks and the scheduler that xdist has for this do nothing with pytest 9.2, which no longer reads the name that the
one gives to the other; so each test went to whoever was idle, and every module's servers were started everywhere.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

#: Beginnings of paths: all that lies there keeps to one process. What hurts processes has a patience of seconds, so
#: that no more than two such groups run at a time; they take about as long as each other, and as all the rest.
_TOGETHER = {
    "tests/chaos/": "faults",
    "tests/stack/": "processes", "tests/deploy/test_units.py": "processes", "tests/security/": "processes",
    "tests/workers/platforms/": "tests/workers/platforms/",  # one takes users that others would hold
    "tests/page/": "page", "tests/deploy/test_wheel.py": "packages", "tests/deploy/test_slug.py": "packages",
}  # fmt: skip
#: If these came last, one process would be busy while the others have nothing left.
_FIRST = (
    "faults", "processes", "page", "packages", "tests/test_demo.py", "tests/workers/", "tests/cli/", "tests/model/",
    "tests/api/executor/",
)  # fmt: skip


def group_of(nodeid: str) -> str:
    """Return the group of a test: a common name, or the file that it is in."""
    path = nodeid.partition("::")[0]
    return next((group for start, group in _TOGETHER.items() if path.startswith(start)), path)


def place_of(item: pytest.Item) -> int:
    """Return when a test's group begins, compared with others."""
    group = group_of(item.nodeid)
    return next((at for at, start in enumerate(_FIRST) if group.startswith(start)), len(_FIRST))


class Groups(LoadScopeScheduling):
    """Gives whole groups to processes, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)  # with -p no:xdist nobody knows of it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups | None:
    return Groups(config, log) if config.getvalue("dist") == "loadgroup" else None


def put_in_order(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have the groups that take longest come first, where xdist runs them; else leave the order that chance made."""
    if hasattr(config, "workerinput"):
        items.sort(key=place_of)
