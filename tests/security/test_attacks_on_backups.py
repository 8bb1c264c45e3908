"""A26, A28, A31: backups that shall read elsewhere, restores that shall write there, imports that shall overwrite."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine
import orjson
import pytest
import redis
import zstandard
from target import Target

sys.path.insert(
    0, str(Path(__file__).parents[1] / "workers" / "backups")
)  # where a node is driven step by step

from nodes_of_backups import Node

from settings import Settings
from storage import backups, recovery, users
from storage.records import signed
from storage.recovery import Place, RecoveryError, points
from storage.seal import Seal
from storage.store import Store
from workers.backups import unlinked

needs_restic = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")


@pytest.fixture
async def node(settings_with_s3: Settings, s3: Any, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that has the engine, with an object store of its own."""
    store = Store(settings_with_s3)
    holder = await engine.register(store, metadata='{"backupEngine": "restic"}')
    yield Node(store, holder, s3, tmp_path)
    await store.close()


@contextmanager
def swapping(directory: Path, link_to: Path) -> Iterator[list[int]]:
    """Have a directory be exchanged with a link all the time, as the code of an app may do with what is its own."""
    aside, link, stop, count = (
        directory.with_name("aside"),
        directory.with_name("link"),
        threading.Event(),
        [0],
    )
    link.symlink_to(link_to)

    def swap() -> None:
        while not stop.is_set():
            with suppress(OSError):
                directory.rename(aside)
                link.rename(directory)
                directory.rename(link)
                aside.rename(directory)
            count[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()
        for name in (directory, link):
            if name.is_symlink():
                name.unlink()
        if aside.exists() and not directory.exists():
            aside.rename(directory)


def words_below(directory: Path) -> str:
    """Return all that the files below a directory hold; no link is followed."""
    return "".join(
        path.read_text(errors="replace")
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


@needs_restic
@pytest.mark.proves("A28")
async def test_a_link_in_an_apps_data_is_kept_as_a_link(
    node: Node, tmp_path: Path, evidence: list[str]
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("SECRET-OF-THE-SERVICE")
    data = node.supervisor.places("shop").data
    data.mkdir(parents=True)
    (data / "to-a-file").symlink_to(secret / "key")
    (data / "to-a-directory").symlink_to(secret)
    backup = await node.backup(volumes=["app:shop"])
    record = await node.ran(backup)
    ending, context = await node.restored(backup, record, target=str(tmp_path / "out"))
    assert ending.outcome == "completed", context.said
    assert os.readlink(tmp_path / "out" / "to-a-file") == str(secret / "key")
    assert (tmp_path / "out" / "to-a-directory").is_symlink()
    assert "SECRET" not in words_below(tmp_path / "out")
    evidence += ["links of an app's data are backed up as links, what they lead to is not"]


def without_links(directory: Path, *program: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a program as the engine is run on a directory."""
    argv = [sys.executable, "-I", unlinked.__file__, str(directory), "--", *program]
    return subprocess.run(argv, capture_output=True, check=False, timeout=30)


@pytest.fixture
def private_mounts(tmp_path: Path) -> None:
    """Skip where the system gives no mounts without links."""
    said = without_links(tmp_path, "/bin/true").stderr
    if os.geteuid() != 0 or b"might be followed" in said:
        pytest.skip(f"no mounts of its own: {said.decode() or 'needs root'}")


@pytest.mark.proves("A28")
def test_what_reads_for_a_backup_can_follow_no_link(private_mounts: None, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("plain")
    (tmp_path / "link").symlink_to("real")
    assert without_links(tmp_path, "/bin/cat", f"{tmp_path}/real/file").stdout == b"plain"
    assert without_links(tmp_path, "/bin/readlink", f"{tmp_path}/link").stdout == b"real\n"
    refused = without_links(tmp_path, "/bin/cat", f"{tmp_path}/link/file")
    assert (refused.stdout, refused.returncode) == (b"", 1)
    assert (tmp_path / "link" / "file").read_text() == "plain"  # for everybody else nothing has changed


def test_the_directories_of_the_system_keep_their_links(private_mounts: None, tmp_path: Path) -> None:
    for directory in ("/etc", "/etc/ssl", "/usr/share", "/"):
        assert unlinked.of_the_system(directory)
    for directory in ("/etcetera", "/var/lib", "/home", "/srv", str(tmp_path)):
        assert not unlinked.of_the_system(directory)
    link = next(
        each
        for each in Path("/etc").iterdir()
        if each.is_symlink() and each.is_file()  # os-release, localtime
    )
    assert without_links(Path("/etc"), "/bin/cat", str(link)).stdout == link.read_bytes()
    (tmp_path / "program").symlink_to("/bin/echo")  # an engine that was installed with a link
    assert without_links(tmp_path, f"{tmp_path}/program", "runs").stdout == b"runs\n"


@needs_restic
@pytest.mark.proves("A28")
async def test_a_directory_exchanged_for_a_link_during_a_backup_leaks_nothing(
    private_mounts: None, node: Node, tmp_path: Path, evidence: list[str]
) -> None:
    secret, data = tmp_path / "secret", node.supervisor.places("shop").data
    for directory, word in ((secret, "SECRET"), (data / "d", "plain")):
        directory.mkdir(parents=True)
        for number in range(150):
            (directory / f"f{number}").write_text(word)
    backup = await node.backup(volumes=["app:shop"])
    with swapping(data / "d", secret) as swaps:
        await backups.run(node.store, "user:u", backup.id)
        await node.carry_out()
    found, _ = await backups.records(node.store, backup.id)
    for record in (each for each in found if each.state == "completed"):
        await node.restored(backup, record, target=str(tmp_path / "out"))
        assert "SECRET" not in words_below(tmp_path / "out")
    evidence += [
        f"{swaps[0]} exchanges of a directory for a link while an app was backed up: nothing of elsewhere"
    ]


@needs_restic
@pytest.mark.proves("A26")
async def test_a_restore_does_not_write_through_a_link_that_an_app_has_made(
    node: Node, tmp_path: Path, evidence: list[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = node.supervisor.places("shop").data
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "job").write_text("* * * * * root id")
    backup = await node.backup(volumes=["app:shop"])
    record = await node.ran(backup)
    for include in ([str(data / "sub" / "job")], []):
        shutil.rmtree(data / "sub", ignore_errors=True)
        (data / "sub").symlink_to(outside)
        await node.restored(backup, record, include=include)
        assert list(outside.iterdir()) == [], f"restoring {include or 'everything'} wrote through the link"
        with suppress(OSError):
            (data / "sub").unlink()
    evidence += [
        "a restore of one file, and of all, into an app's directory that has become a link: nothing outside"
    ]


@pytest.mark.proves("A31")
def test_only_those_who_may_change_things_restore_and_import(target: Target, evidence: list[str]) -> None:
    admin, operator, viewer = (target.client(who) for who in ("admin", "operator", "viewer"))
    body = {"name": "etc", "node_id": "worker", "volumes": ["/etc"]}
    made = admin.post("/api/backup-jobs", json=body)
    path = (
        f"/api/backup-jobs/{made.json()['id']}" if made.is_success else "/api/backup-jobs/backup-" + "0" * 20
    )
    record = f"{path}/records/job-{'0' * 20}"
    asked = (
        ("POST", "/api/backup-jobs", body), ("PUT", path, {"volumes": ["/root"]}), ("DELETE", path, None),
        ("POST", f"{path}/run", {}), ("POST", f"{record}/restore", {}), ("POST", f"{record}/verify", {}),
        ("POST", "/api/apps/import/cbox", {}),
    )  # fmt: skip
    for method, where, given in asked:
        assert viewer.request(method, where, json=given).status_code == 403, where
        assert target.client().request(method, where, json=given).status_code == 401, where
    assert operator.post("/api/backup-jobs", json=body).status_code == 403  # paths of a node are an admin's
    if made.is_success:
        assert operator.put(path, json={"volumes": ["/root"]}).status_code == 403
        assert admin.get(path).json()["volumes"] == ["/etc"]
        assert admin.delete(path).is_success
    routes = admin.get("/api/openapi.json").json()["paths"]
    assert not [route for route in routes if "rebuild" in route or "recovery" in route]
    evidence += [
        f"{len(asked)} ways to restore and import are a viewer's none; a rebuild is no request at all"
    ]


@pytest.mark.proves("A31")
def test_tags_of_yaml_make_nothing_happen(target: Target, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for payload in (
        f"processes:\n  a: !!python/object/apply:os.system ['touch {touched}']\n",
        f"!!python/object/new:subprocess.check_output [['touch', '{touched}']]\n",
        "processes: &a\n  x: *a\n",
    ):
        answer = target.client("admin").post(
            "/api/apps/import/cbox", content=payload, headers={"Content-Type": "application/yaml"}
        )
        assert answer.status_code in {400, 415}, answer.text
    assert not touched.exists()


@pytest.mark.proves("A31")
async def test_a_forged_recovery_point_is_believed_by_nobody(
    settings_with_s3: Settings, redis_client: redis.Redis, evidence: list[str]
) -> None:
    store = Store(settings_with_s3)
    place = Place.of(store)
    await users.create(store, actor="t", username="ada", email="a@b.org", password="pass word", role="a")
    genuine = await recovery.make(store)
    # whoever may write into the bucket, but has no key of ours, makes an admin of their own
    mallory = Store(replace(settings_with_s3, secret_key="a-key-of-mallory's-own-0123456789-abcdef"))
    redis_client.flushall()
    await users.create(mallory, actor="t", username="eve", email="e@b.org", password="pass word", role="a")
    forged = await recovery.make(mallory)
    redis_client.flushall()
    claims = replace(forged, fingerprint=genuine.fingerprint)
    record = signed(
        mallory.seal, "recovery record", forged.id, {n: getattr(claims, n) for n in claims.__slots__}
    )
    await place.objects.put(place.record(forged.id), record.encode())
    assert [each.id for each in await recovery.every(place)] == [genuine.id]
    with pytest.raises(RecoveryError, match="signature does not fit"):
        await recovery.get(place, forged.id)
    for name in ("index", "part-000000"):  # what was sealed by others, under a record of ours
        theirs = await place.objects.get(place.key(forged.id, name), limit_bytes=1 << 24)
        ours = await place.objects.get(place.key(genuine.id, name), limit_bytes=1 << 24)
        await place.objects.put(place.key(genuine.id, name), theirs)
        with pytest.raises(RecoveryError, match="was altered"):
            await recovery.rebuild(settings_with_s3, place, genuine)
        await place.objects.put(place.key(genuine.id, name), ours)
    assert redis_client.info("keyspace") == {}
    await recovery.rebuild(settings_with_s3, place, genuine)
    assert await users.named(store, "eve") is None
    assert await users.named(store, "ada") is not None
    await mallory.close()
    await store.close()
    evidence += [
        "a recovery point with an admin of somebody else's: not listed, not read, not loaded in parts"
    ]


@pytest.mark.proves("A31")
async def test_a_rebuild_overwrites_no_user_role_or_secret(
    settings_with_s3: Settings, redis_client: redis.Redis
) -> None:
    store = Store(settings_with_s3)
    user = await users.create(
        store, actor="t", username="ada", email="a@b.org", password="pass word", role="a"
    )
    old = await recovery.make(store)
    await users.create(store, actor="t", username="bob", email="b@b.org", password="pass word", role="a")
    await users.update(store, user.id, actor="t", changes={"role": "r"})
    with pytest.raises(RecoveryError, match="not empty"):
        await recovery.rebuild(settings_with_s3, Place.of(store), old)
    assert (await users.get(store, user.id)).role == "r"
    await store.close()


@pytest.mark.proves("A27")
async def test_a_part_that_unpacks_to_more_than_it_says_is_refused(
    settings_with_s3: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(settings_with_s3)
    place = Place.of(store)
    await users.create(store, actor="t", username="ada", email="a@b.org", password="pass word", role="a")
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (1 << 26))

    class Bomber:
        def __init__(self, level: int) -> None:
            pass

        def compress(self, plain: bytes) -> bytes:
            return bomb

    monkeypatch.setattr(points.zstandard, "ZstdCompressor", Bomber)
    point = await recovery.make(store)
    monkeypatch.undo()
    with pytest.raises(RecoveryError, match="of another size"):
        await recovery.verify(place, point)
    await store.close()


def test_what_is_kept_of_a_point_cannot_be_read_without_the_key() -> None:
    seal = Seal("a-key-of-mallory's-own-0123456789-abcdef")
    assert seal.fingerprint not in orjson.dumps({"key": seal.key("recovery point").hex()}).decode()
