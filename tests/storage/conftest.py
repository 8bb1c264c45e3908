"""Fixtures for what Hostler remembers: a store on the test's own Valkey, whose passwords cost next to nothing."""

from collections.abc import AsyncIterator

import argon2
import pytest

from settings import Settings
from storage.passwords import Passwords
from storage.store import Store


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """A store whose password hashes are cheap; what they cost in production has tests of its own."""
    store = Store(settings)
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    yield store
    await store.close()
