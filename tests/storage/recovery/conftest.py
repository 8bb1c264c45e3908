"""A store with a bucket of its own, beneath tests of recovery points."""

from collections.abc import AsyncIterator

import argon2
import pytest

from settings import Settings
from storage.passwords import Passwords
from storage.recovery import Place
from storage.store import Store


@pytest.fixture
async def store(settings_with_s3: Settings) -> AsyncIterator[Store]:
    """A store on an empty Valkey and an empty bucket."""
    store = Store(settings_with_s3)
    store.passwords.close()
    store.passwords = Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    yield store
    await store.close()


@pytest.fixture
def place(store: Store) -> Place:
    """Where the store's recovery points lie."""
    return Place.of(store)
