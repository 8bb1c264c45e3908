"""Events alone, each told once: what has happened since a client was last here, then what happens."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from api.realtime.hub import Hub
from api.realtime.messages import Cursor, Message
from storage import watch
from storage.watch import Event


async def happenings(
    hub: Hub,
    after: str | None,
    told: Callable[[Event], Message | None],
    *,
    begins: Callable[[str], Message] | None = None,
    missed: Callable[[str], Message] | None = None,
) -> AsyncGenerator[Message, None]:
    """Yield what `told` makes of each event from now on; first, of those since `after`.

    Who is too slow hears the rest from the stream of events. `begins` makes the first message of the position that all
    begins at; `missed` that which says that events up to a position are kept no longer, and without it nobody asks.
    Raises Invalid, Unavailable.
    """
    cursor = Cursor.parse(after)
    async with hub.follow(output=False) as feed:
        position = cursor.event_id if cursor else await watch.newest_event(hub.store)
        yield Message("", position, "")
        if begins is not None:
            yield begins(position)
        behind = cursor is not None
        while True:
            if behind:
                feed.start_anew()
                if missed is not None and await watch.is_forgotten(hub.store, position):
                    position = await watch.newest_event(hub.store)
                    yield missed(position)
                async with aclosing(watch.events_after(hub.store, position)) as pages:
                    async for events in pages:
                        for event in events:
                            position = event.id
                            if (message := told(event)) is not None:
                                yield message
            while (items := await feed.take()) is not None:
                for item in items:
                    if isinstance(item, Event) and watch.moment(item.id) > watch.moment(position):
                        position = item.id
                        if (message := told(item)) is not None:
                            yield message
            behind = True
