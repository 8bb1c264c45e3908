"""Passwords: argon2id in a thread pool of its own, so that logins never starve the event loop."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

T = TypeVar("T")

#: How many are hashed at once in one process; each takes 64 MiB while it runs.
AT_ONCE = 2
MIN_LENGTH, MAX_LENGTH = 8, 1024


class Passwords:
    """Hashes and verifies with argon2id, by default in RFC 9106's second profile (64 MiB, 3 passes)."""

    def __init__(self, hasher: argon2.PasswordHasher | None = None) -> None:
        self.hasher = hasher or argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argon2")
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.verified = 0  #: verifications so far: each answer to a login costs one, whoever asked

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a free thread. What limits guessing is asked inside: no guess overtakes the count."""
        async with self._turns:
            yield

    async def hash(self, password: str) -> str:
        """Return the hash of `password` with its parameters and a fresh salt, as argon2 encodes it."""
        return await self._run(lambda: self.hasher.hash(_normal(password)))

    async def verify(self, encoded: str | None, password: str) -> bool:
        """Tell whether `encoded` is the hash of `password`; no hash costs the same time and never matches."""
        return await self._run(lambda: self._verify(encoded, password))

    def outdated(self, encoded: str) -> bool:
        """Tell whether `encoded` was made with other parameters than those of today."""
        return self.hasher.check_needs_rehash(encoded)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False)

    def _verify(self, encoded: str | None, password: str) -> bool:
        self.verified += 1
        try:
            return self.hasher.verify(encoded or self._nobody(), _normal(password)) and encoded is not None
        except (VerificationError, InvalidHashError):
            return False

    def _nobody(self) -> str:
        """Return a hash of nothing known, that takes as long to verify as a real one."""
        at, salt, digest = self.hasher, "A" * 22, "A" * -(-self.hasher.hash_len * 4 // 3)
        return f"$argon2id$v=19$m={at.memory_cost},t={at.time_cost},p={at.parallelism}${salt}${digest}"

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _normal(password: str) -> str:
    # the same characters typed on two keyboards may arrive composed or not (RFC 8265, section 4.2)
    return unicodedata.normalize("NFC", password)
