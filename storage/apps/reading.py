"""Reading apps: one, a page of all, those of a node."""

from typing import Any

from storage.apps.records import FIELDS, App, readable
from storage.calls import Call, script
from storage.errors import NotFound
from storage.store import Store

_FIELDS = " ".join(FIELDS)


def _rows(*which: str | int) -> Call[tuple[int, list[Any]]]:
    return script("app_page", _FIELDS, *which, read=lambda reply: (int(reply[0]), reply[1]))


async def get(store: Store, instance_id: str) -> App:
    """Return one app. Raises NotFound, also for a record that Hostler did not write."""
    _, rows = await store.call(_rows("ids", instance_id))
    for app in readable(store.seal, rows):
        return app
    raise NotFound(f"There is no app {instance_id!r}.")


async def page(store: Store, *, limit: int, offset: int, newest_first: bool = True) -> tuple[list[App], int]:
    """Return up to `limit` apps by their creation, and how many there are in all."""
    total, rows = await store.call(_rows("all", offset, limit, "1" if newest_first else ""))
    return readable(store.seal, rows), total


async def every(store: Store) -> list[App]:
    """Return all apps, oldest first."""
    return (await page(store, limit=1_000_000, offset=0, newest_first=False))[0]


async def of_node(store: Store, node: str) -> list[App]:
    """Return the apps that a node has, or shall have, in the order of their ids."""
    return readable(store.seal, (await store.call(_rows("node", node)))[1])
