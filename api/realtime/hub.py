"""What happens, handed to those who watch: one reader of Redis for each process, any number of clients."""

from storage.store import Store


class Hub:
    """The fan-out of one process. Reads nothing from Redis while nobody watches."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def start(self) -> None:
        """Be ready for those who watch. Safe to run twice."""

    async def stop(self) -> None:
        """End every watch. Safe to run twice."""
