"""A record handed out as an archive, by whichever node answers that can read it."""

from collections.abc import AsyncGenerator
from typing import Any

from storage import relay
from storage.backups import changes
from storage.backups.records import Backup, Record
from storage.errors import Unavailable
from storage.relay import Ask
from storage.store import Store

#: So many nodes are asked before it is told that none answers.
MOST_NODES = 3


async def opened(store: Store, backup: Backup, record: Record) -> AsyncGenerator[Any, None]:
    """Return the archive of a record, whose node has said that it comes; the backup's own node is asked first.

    Raises Conflict where no node has the engine, Unavailable where none answers, BadGateway, NotFound.
    """
    nodes = await changes.nodes_with_engine(store, backup.node)
    problem: Unavailable | None = None
    for node in nodes[:MOST_NODES]:
        parts = relay.stream(store, node, Ask(app=backup.id, kind="archive", path=record.id))
        try:
            await anext(parts)  # the head; what is wrong from the beginning is told by a status
        except Unavailable as error:  # it went away, and does not count as offline yet
            await parts.aclose()
            problem = problem or error
        except BaseException:
            await parts.aclose()
            raise
        else:
            return parts
    raise problem or Unavailable("No node answers.")
