"""Products: a release is published once, signed, and stays with its bytes for as long as anything needs it."""

import io
import tarfile
from collections.abc import AsyncIterator

import pytest
import redis
from nodes import Node, manifest

from settings import Settings
from storage import apps, files, products
from storage.errors import Conflict, Invalid, NotFound
from storage.files import DAY_MS
from storage.read_into import Pieces
from storage.seal import Forged
from storage.store import Store

pytestmark = pytest.mark.stack

TOML = b'id = "hello"\nversion = "1.0"\n[processes.web]\ncommand = ["serve"]\n'


@pytest.fixture
async def store(settings_with_s3: Settings) -> AsyncIterator[Store]:
    store = Store(settings_with_s3)
    yield store
    await store.close()


async def upload(store: Store, toml: bytes | None = TOML) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        if toml is not None:
            member = tarfile.TarInfo("hostler.toml")
            member.size = len(toml)
            archive.addfile(member, io.BytesIO(toml))

    async def chunks() -> AsyncIterator[bytes]:
        yield packed.getvalue()

    file = await files.accept(
        store, Pieces(chunks()).read_into, filename="hello.tgz", content_type=None, actor="user:u"
    )
    return file.id


async def publish(store: Store, file_id: str) -> products.Release:
    found = await products.packed_manifest(store, file_id)
    return await products.publish(store, "user:u", file_id, found)


async def test_a_release_refers_to_its_upload_which_stays_for_as_long(store: Store) -> None:
    file_id = await upload(store)
    release = await publish(store, file_id)
    file = await files.get(store, file_id)
    assert release.source == {
        "kind": "archive", "key": file.key, "sha256": file.sha256, "size_bytes": file.size_bytes, "file": file_id,
    }  # fmt: skip
    with pytest.raises(Conflict, match="or by a release"):
        await files.delete(store, file_id, actor="user:u")
    later = file.expires_ms + 1
    assert await files.expire_due(store, later) == 0
    assert (await files.get(store, file_id)).expires_ms == later + DAY_MS
    await products.remove(store, "user:u", "hello", "1.0")
    with pytest.raises(NotFound):
        await products.newest(store, "hello")
    await files.delete(store, file_id, actor="user:u")


async def test_an_archive_without_a_manifest_is_no_release(store: Store) -> None:
    file_id = await upload(store, None)
    with pytest.raises(Invalid, match=r"neither hostler\.toml"):
        await products.packed_manifest(store, file_id)
    with pytest.raises(NotFound, match="File"):
        await products.packed_manifest(store, "file-nothing")


async def test_a_release_that_is_installed_or_about_to_be_is_not_removed(store: Store) -> None:
    node = await Node.online(store)
    await publish(store, await upload(store))
    _, submitted = await apps.install(store, "user:u", product="hello")
    with pytest.raises(Conflict, match="installed as 'hello'"):
        await products.remove(store, "user:u", "hello", "1.0")
    claimed = await node.claim()
    assert claimed.job_id == submitted.id
    await node.release(claimed, manifest())
    await node.settle(claimed)
    await publish(store, await upload(store, TOML.replace(b"1.0", b"2.0")))
    await apps.change(store, "user:u", "hello", "update")
    with pytest.raises(Conflict, match="installed as 'hello'"):
        await products.remove(store, "user:u", "hello", "2.0")


async def test_the_newest_version_is_installed_unless_one_is_named(store: Store) -> None:
    await Node.online(store)
    for version in ("1.9.0", "1.10.0", "1.10.1-rc.1", "nightly"):
        await products.name(
            store, "user:u", "tool", {"kind": "npm", "package": "@a/tool", "version": version}
        )
    assert [each.version for each in await products.releases(store, "tool")] == [
        "1.10.1-rc.1", "1.10.0", "1.9.0", "nightly",
    ]  # fmt: skip
    app, _ = await apps.install(store, "user:u", product="tool", version="1.9.0")
    assert (app.version, app.source["package"], app.manifest) == ("1.9.0", "@a/tool", None)
    with pytest.raises(NotFound):
        await apps.install(store, "user:u", product="tool", alias="b", version="3")
    with pytest.raises(NotFound, match="no product 'nothing'"):
        await apps.install(store, "user:u", product="nothing")


async def test_an_update_to_the_release_that_is_there_is_refused(store: Store) -> None:
    node = await Node.online(store)
    await products.name(store, "user:u", "hello", {"kind": "pypi", "package": "hello", "version": "1.0"},
                        manifest=manifest())  # fmt: skip
    await apps.install(store, "user:u", product="hello")
    claimed = await node.claim()
    await node.release(claimed, manifest())
    await node.settle(claimed)
    with pytest.raises(Conflict, match=r"release 1\.0 already"):
        await apps.change(store, "user:u", "hello", "update")


async def test_one_version_has_one_content(store: Store) -> None:
    first = await publish(store, await upload(store))
    second = await upload(store)
    file = await files.get(store, second)
    if (
        file.sha256 == first.source["sha256"]
    ):  # gzip writes the time: within one second the bytes are the same
        assert (await publish(store, second)).published_ms == first.published_ms
    with pytest.raises(Conflict, match="has been published already"):
        await publish(store, await upload(store, TOML + b'[processes.more]\ncommand = "x"\n'))


@pytest.mark.parametrize(
    ("product", "source", "field"),
    [
        ("two words", {"kind": "npm", "package": "x"}, "product"),
        ("x", {"kind": "git", "package": "x"}, "source.kind"),
        ("x", {"kind": "npm", "package": "--registry=http://evil"}, "source.package"),
        ("x", {"kind": "npm", "package": "x; rm -rf /"}, "source.package"),
        ("x", {"kind": "pypi", "package": "git+https://evil/x"}, "source.package"),
        ("x", {"kind": "pypi", "package": "../x"}, "source.package"),
        ("x", {"kind": "npm", "package": "x", "version": "1 || 2"}, "source.version"),
    ],
)
async def test_a_package_is_named_by_its_name_and_nothing_else(
    store: Store, product: str, source: dict[str, str], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await products.name(store, "user:u", product, source)
    assert list(refused.value.details) == [field]


async def test_a_release_that_hostler_did_not_sign_is_none(store: Store, redis_client: redis.Redis) -> None:
    await products.name(store, "user:u", "tool", {"kind": "npm", "package": "tool", "version": "1"})
    raw = redis_client.get("h:release:tool:1")
    assert isinstance(raw, bytes)
    redis_client.set("h:release:tool:1", raw.replace(b'"package":"tool"', b'"package":"evil"'))
    with pytest.raises(Forged):
        await products.get(store, "tool", "1")
    with pytest.raises(NotFound):
        await products.newest(store, "tool")


async def test_products_are_listed_with_their_releases(store: Store) -> None:
    for product in ("b", "a", "c"):
        await products.name(store, "user:u", product, {"kind": "npm", "package": product})
    found, total = await products.page(store, limit=2, offset=1)
    assert ([each[0].product for each in found], total) == (["b", "c"], 3)
