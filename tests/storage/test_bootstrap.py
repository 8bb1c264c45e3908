"""The first start creates one admin, whoever else starts at the same time."""

import asyncio
from dataclasses import replace

import pytest

from settings import Settings
from storage import bootstrap, logins, users
from storage.admission import Presented, admit
from storage.seal import Forged
from storage.store import Store


async def test_an_empty_installation_gets_an_admin_who_can_log_in_and_whose_key_works(store: Store) -> None:
    admin = await bootstrap.first_admin(store)
    assert admin is not None
    assert (admin.email, admin.username) == ("admin@localhost", "admin")
    assert len(admin.password) >= 20
    user = await logins.login(store, admin.email, admin.password, "192.0.2.1")
    assert user.role == "a"
    identity = (await admit(store, Presented("key", admin.api_key), "192.0.2.1")).identity
    assert identity is not None
    assert (identity.role, identity.name, identity.user_id) == ("a", "hostler up", user.id)


async def test_the_settings_name_the_admin(store: Store) -> None:
    store.settings = replace(store.settings, admin_email="root@example.org", admin_password="chosen by hand")
    admin = await bootstrap.first_admin(store)
    assert admin is not None
    assert (admin.email, admin.password) == ("root@example.org", "chosen by hand")
    await logins.login(store, "root@example.org", "chosen by hand", "192.0.2.1")


async def test_an_installation_with_users_is_left_alone(store: Store) -> None:
    assert await bootstrap.first_admin(store) is not None
    assert await bootstrap.first_admin(store) is None
    assert (await users.page(store, 10, 0))[1] == 1


async def test_of_many_first_starts_at_once_one_creates_the_admin(store: Store) -> None:
    admins = await asyncio.gather(*(bootstrap.first_admin(store) for _ in range(10)))
    assert sum(admin is not None for admin in admins) == 1
    assert (await users.page(store, 10, 0))[1] == 1


async def test_data_of_another_secret_key_is_refused(store: Store, settings: Settings) -> None:
    await bootstrap.first_admin(store)
    stranger = Store(replace(settings, secret_key="another secret key, also long enough"))
    with pytest.raises(Forged):
        await bootstrap.first_admin(stranger)
    await stranger.close()


async def test_preparing_twice_leaves_a_bucket_and_one_admin(settings_with_s3: Settings) -> None:
    settings = replace(settings_with_s3, s3_bucket=f"{settings_with_s3.s3_bucket}-new")
    admins = [await bootstrap.prepare(settings) for _ in range(2)]
    assert admins[0] is not None
    assert admins[1] is None
    store = Store(settings)
    await store.objects.put("hello", b"there")  # raises where there is no bucket
    assert (await users.page(store, 10, 0))[1] == 1
    await store.close()
