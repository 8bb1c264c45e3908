"""Passwords are hashed with argon2id, off the event loop, and nobody's password takes as long as somebody's."""

import asyncio
import contextlib
from collections.abc import Iterator

import argon2
import pytest

from storage.passwords import Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    with contextlib.closing(Passwords()) as passwords:
        yield passwords


@pytest.fixture
def cheap() -> Iterator[Passwords]:
    with contextlib.closing(
        Passwords(argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    ) as cheap:
        yield cheap


async def test_a_hash_is_argon2id_in_the_low_memory_profile_of_rfc_9106(passwords: Passwords) -> None:
    encoded = await passwords.hash("correct horse")
    parameters = argon2.extract_parameters(encoded)
    assert encoded.startswith("$argon2id$")
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (65536, 3, 4)


async def test_only_the_password_itself_matches(cheap: Passwords) -> None:
    encoded = await cheap.hash("correct horse")
    assert await cheap.verify(encoded, "correct horse")
    assert not await cheap.verify(encoded, "correct horse ")
    assert not await cheap.verify("garbage", "correct horse")


async def test_the_same_password_is_hashed_differently_each_time(cheap: Passwords) -> None:
    assert await cheap.hash("correct horse") != await cheap.hash("correct horse")


async def test_an_account_that_does_not_exist_costs_a_verification_with_the_same_parameters(
    cheap: Passwords,
) -> None:
    real = await cheap.hash("correct horse")
    nobody = cheap._nobody()
    assert argon2.extract_parameters(nobody) == argon2.extract_parameters(real)
    assert not await cheap.verify(None, "correct horse")
    assert cheap.verified == 1


async def test_characters_typed_composed_or_not_are_the_same_password(cheap: Passwords) -> None:
    encoded = await cheap.hash("caf\u00e9 au lait")
    assert await cheap.verify(encoded, "cafe\u0301 au lait")


async def test_hashes_with_parameters_of_yesterday_are_outdated(
    cheap: Passwords, passwords: Passwords
) -> None:
    encoded = await cheap.hash("correct horse")
    assert passwords.outdated(encoded)
    assert not cheap.outdated(encoded)


async def test_the_event_loop_turns_while_a_password_is_hashed(passwords: Passwords) -> None:
    hashing = asyncio.create_task(passwords.hash("correct horse"))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 5
