"""Files: the rules of an upload's life, on a real Valkey and an object store in memory."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from storage import files, grants
from storage.errors import Conflict, Invalid, NotFound, TooLarge, Unavailable, Unprocessable
from storage.files import DAY_MS, InvalidFile
from storage.objects import ObjectInfo, Uploaded
from storage.read_into import Pieces, ReadInto, whole_of
from storage.store import Store


class MemoryObjects:
    """An object store in memory that can be away."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.away = False

    def _tag(self, key: str) -> str:
        if self.away:
            raise Unavailable("The object store cannot be reached.")
        if key not in self.stored:
            raise NotFound(f"There is no object {key}.")
        return hashlib.md5(self.stored[key]).hexdigest()  # noqa: S324

    async def upload(self, key: str, read_into: ReadInto, *, limit_bytes: int, **_: Any) -> Uploaded:
        data = await whole_of(read_into)
        if self.away:
            raise Unavailable("The object store cannot be reached.")
        if len(data) > limit_bytes:
            raise TooLarge("too large")
        self.stored[key] = data
        return Uploaded(len(data), hashlib.sha256(data).hexdigest(), self._tag(key))

    async def head(self, key: str) -> ObjectInfo:
        tag = self._tag(key)
        return ObjectInfo(len(self.stored[key]), tag, "application/octet-stream")

    async def sha256(self, key: str, *, etag: str) -> str:
        if self._tag(key) != etag:
            raise Conflict("replaced")
        return hashlib.sha256(self.stored[key]).hexdigest()

    async def presign_put(self, key: str, **_: Any) -> str:
        return f"https://s3.example/{key}"

    async def delete(self, key: str) -> None:
        if self.away:
            raise Unavailable("The object store cannot be reached.")
        self.stored.pop(key, None)

    def close(self) -> None:
        pass


@pytest.fixture
def memory(store: Store) -> MemoryObjects:
    store.objects.close()
    store.objects = MemoryObjects()  # type: ignore[assignment]
    return store.objects  # type: ignore[return-value]


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def uploaded(store: Store, name: str = "project.zip", data: bytes = b"data") -> files.File:
    return await files.accept(
        store, Pieces(chunks(data)).read_into, filename=name, content_type=None, actor="user:u1"
    )


def keys(client: Redis) -> set[bytes]:
    return set(client.keys("h:file*"))


async def test_an_accepted_file_is_listed_for_31_days_and_its_name_is_no_key(store, memory):
    file = await uploaded(store)
    assert file == await files.get(store, file.id)
    assert (file.filename, file.size_bytes, file.content_type) == ("project.zip", 4, "application/zip")
    assert file.sha256 == hashlib.sha256(b"data").hexdigest()
    assert file.url == f"/uploads/{file.id}/project.zip"
    assert file.expires_ms - file.uploaded_ms == 31 * DAY_MS
    assert memory.stored == {f"uploads/{file.id}": b"data"}


async def test_an_upload_and_a_deletion_are_told_and_audited(store, memory, redis_client):
    file = await uploaded(store)
    await files.delete(store, file.id, actor="user:u2")
    told = [(fields[b"e"], fields[b"id"]) for _, fields in redis_client.xrange("h:events")]
    assert told == [(b"file.uploaded", file.id.encode()), (b"file.deleted", file.id.encode())]
    lines = [fields[b"line"] for _, fields in redis_client.xrange("h:audit")]
    assert [b"file.upload" in lines[0], b"file.delete" in lines[1]] == [True, True]


async def test_an_upload_that_fails_leaves_no_trace(store, memory, redis_client):
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise Invalid("The body ends before the form does.")

    with pytest.raises(Invalid):
        await files.accept(
            store, Pieces(broken()).read_into, filename="a", content_type=None, actor="user:u1"
        )
    assert memory.stored == {}
    assert keys(redis_client) == set()


async def test_a_file_beyond_the_limit_is_refused_in_the_pages_words(store, memory, redis_client):
    store.settings = replace(store.settings, upload_limit_bytes=3)
    with pytest.raises(InvalidFile):
        await uploaded(store)
    store.settings = replace(store.settings, upload_limit_bytes=500 * 1024 * 1024)
    assert str(files.too_large(store)) == "File size exceeds 500MB limit"
    assert keys(redis_client) == set()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("project.zip", "project.zip"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("C:\\fakepath\\a.zip", "a.zip"),
        ("/etc/shadow", "shadow"),
        ("a\x00b\r\nX-Evil: 1.zip", "abX-Evil: 1.zip"),
        ("exe\u202egpj.zip", "exegpj.zip"),
        ("  spaced name .zip ", "spaced name .zip"),
        ("é" * 300 + ".tar.gz", "é" * 126 + ".gz"),
        ('quo"te;.zip', 'quo"te;.zip'),
        ("a%2fb 100%.zip", "a_2fb 100%.zip"),
    ],
)
def test_a_filename_is_cut_down_to_its_last_part(given, kept):
    assert files.clean_filename(given) == kept
    assert len(kept.encode()) <= 255


@pytest.mark.parametrize("given", ["", None, ".", "..", "/", "a/", "\x00", "\u200b", " . "])
def test_a_name_with_nothing_in_it_is_refused(given):
    with pytest.raises(InvalidFile):
        files.clean_filename(given)


@pytest.mark.parametrize(
    ("declared", "filename", "kept"),
    [
        ("text/html; charset=utf-8", "a.zip", "text/html"),
        (None, "a.zip", "application/zip"),
        ("application/octet-stream", "a.tar.gz", "application/gzip"),
        ("not a type", "a.unknown", "application/octet-stream"),
        ("x/" + "y" * 500, "a", "application/octet-stream"),
    ],
)
def test_a_content_type_is_the_declared_one_or_a_guess(declared, filename, kept):
    assert files.clean_content_type(declared, filename) == kept


ID = "file-06f2abc"


@pytest.mark.parametrize(
    "file_url",
    [
        f"/uploads/{ID}/project.zip",
        f"/uploads/{ID}",
        f"/api/files/download/{ID}",
        f"https://hostler.example/uploads/{ID}/project.zip",
        f"https://hostler.example/api/files/download/{ID}",
        f"http://127.0.0.1:8080/uploads/{ID}/a%20b%C3%A9.zip",
    ],
)
def test_our_own_file_urls_name_their_file(file_url):
    assert files.resolve(file_url, own=["https://hostler.example", "http://127.0.0.1:8080"]) == ID


def test_an_absolute_url_elsewhere_is_not_ours():
    assert files.resolve(f"https://other.example/uploads/{ID}/a.zip", own=["https://hostler.example"]) is None
    assert files.resolve(f"https://hostler.example/uploads/{ID}/a.zip") is None


@pytest.mark.parametrize(
    "file_url",
    [
        "",
        "project.zip",
        "/uploads/",
        "/uploads/../../etc/passwd",
        f"/uploads/{ID}/..",
        f"/uploads/{ID}/../x",
        f"/uploads/{ID}/..%2f..%2fetc%2fpasswd",
        f"/uploads/{ID}/%252e%252e",
        f"/uploads/{ID}/..\\x",
        f"/uploads/{ID}/..%5cx",
        f"/uploads/{ID}/%00",
        f"/uploads/{ID}/a\x00b",
        f"/uploads/{ID}/%c0%ae%c0%ae",
        f"/uploads/{ID}/a.zip?x=1",
        f"/uploads/{ID}/a.zip#x",
        f"/uploads/{ID}/a/b",
        f"/uploads/{ID.upper()}/a.zip",
        "/uploads/job-123/a.zip",
        f"/api/files/{ID}",
        f"//evil.example/uploads/{ID}",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://h/x",
        "gopher://h/x",
        "http:///x",
        "http://[bad/x",
        "http://h:port/x",
        f"https://user:pw@hostler.example/uploads/{ID}",
        "https://hostler.example",
        "https://hostler.example/api/jobs/list",
        "x" * 3000,
    ],
)
def test_a_strange_file_url_is_refused(file_url):
    with pytest.raises(Invalid):
        files.resolve(file_url, own=["https://hostler.example"])


async def test_pages_follow_the_time_of_the_upload(store, memory):
    ids = []
    clock = iter(range(1_000_000, 2_000_000, 1000))
    store.now_ms = lambda: next(clock)  # type: ignore[method-assign]
    for number in range(5):
        ids.append((await uploaded(store, f"{number}.zip")).id)
    total, found = await files.page(store, limit=2, offset=1)
    assert (total, [file.id for file in found]) == (5, [ids[3], ids[2]])
    total, found = await files.page(store, limit=10, offset=3, descending=False)
    assert (total, [file.id for file in found]) == (5, ids[3:])
    assert await files.page(store, limit=10, offset=9) == (5, [])


async def test_an_announced_file_is_neither_listed_nor_served_until_it_is_complete(store, memory):
    file, url = await files.presign(
        store, filename="a.zip", size_bytes=4, content_type=None, sha256=None, actor="user:u1"
    )
    assert url.endswith(f"/uploads/{file.id}")
    assert await files.page(store, limit=10, offset=0) == (0, [])
    with pytest.raises(NotFound):
        await files.get(store, file.id)
    with pytest.raises(Conflict):
        await files.complete(store, file.id)
    with pytest.raises(NotFound):
        await files.delete(store, file.id, actor="user:u1")
    memory.stored[file.key] = b"data"
    first = await files.complete(store, file.id)
    assert first == await files.complete(store, file.id) == await files.get(store, file.id)
    assert first.sha256 == hashlib.sha256(b"data").hexdigest()


@pytest.mark.parametrize(("data", "sha256"), [(b"more data", None), (b"data", "0" * 64)])
async def test_bytes_that_were_not_announced_are_thrown_away_and_may_be_put_again(
    store, memory, data, sha256
):
    file, _ = await files.presign(
        store, filename="a.zip", size_bytes=4, content_type=None, sha256=sha256, actor="user:u1"
    )
    memory.stored[file.key] = data
    with pytest.raises(Unprocessable):
        await files.complete(store, file.id)
    assert memory.stored == {}
    with pytest.raises(Conflict):
        await files.complete(store, file.id)


async def test_announcing_too_much_or_a_malformed_digest_is_refused(store, memory, redis_client):
    with pytest.raises(InvalidFile):
        await files.presign(store, filename="a", size_bytes=10**12, content_type=None, sha256=None, actor="u")
    with pytest.raises(Invalid):
        await files.presign(store, filename="a", size_bytes=1, content_type=None, sha256="x", actor="u")
    assert keys(redis_client) == set()


async def test_a_deleted_file_is_gone_with_its_bytes(store, memory, redis_client):
    file = await uploaded(store)
    await files.delete(store, file.id, actor="user:u1")
    assert memory.stored == {}
    assert keys(redis_client) == set()
    for call in (
        files.get(store, file.id),
        files.delete(store, file.id, actor="u"),
        files.complete(store, file.id),
    ):
        with pytest.raises(NotFound):
            await call


async def test_a_deletion_that_the_object_store_missed_is_finished_later(store, memory, redis_client):
    file = await uploaded(store)
    memory.away = True
    with pytest.raises(Unavailable):
        await files.delete(store, file.id, actor="user:u1")
    with pytest.raises(NotFound):
        await files.get(store, file.id)
    with pytest.raises(Unavailable):
        await files.expire_due(store, store.now_ms())
    memory.away = False
    assert await files.expire_due(store, store.now_ms()) == 1
    assert memory.stored == {}
    assert keys(redis_client) == set()


async def test_what_is_put_to_the_address_of_a_deleted_file_is_deleted_too(store, memory, redis_client):
    file, _ = await files.presign(
        store, filename="a", size_bytes=4, content_type=None, sha256=None, actor="user:u1"
    )
    memory.stored[file.key] = b"data"
    await files.complete(store, file.id)
    await files.delete(store, file.id, actor="user:u1")
    assert memory.stored == {}
    memory.stored[file.key] = b"late"
    for call in (files.get(store, file.id), files.complete(store, file.id)):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await files.delete(store, file.id, actor="user:u1")
    assert await files.expire_due(store, store.now_ms()) == 0
    assert await files.expire_due(store, store.now_ms() + DAY_MS) == 1
    assert memory.stored == {}
    assert keys(redis_client) == set()


async def test_old_files_and_stale_announcements_expire(store, memory, redis_client):
    now_ms = store.now_ms()
    await uploaded(store)
    announced, _ = await files.presign(
        store, filename="a", size_bytes=4, content_type=None, sha256=None, actor="user:u1"
    )
    memory.stored[announced.key] = b"data"
    assert await files.expire_due(store, now_ms) == 0
    assert await files.expire_due(store, now_ms + 2 * DAY_MS) == 1  # the announcement
    assert await files.expire_due(store, now_ms + 30 * DAY_MS) == 0
    assert await files.expire_due(store, now_ms + 32 * DAY_MS) == 1
    assert await files.expire_due(store, now_ms + 32 * DAY_MS) == 0
    assert memory.stored == {}
    assert keys(redis_client) == set()


async def test_expiry_goes_in_steps(store, memory):
    for _ in range(3):
        await uploaded(store)
    later = store.now_ms() + 32 * DAY_MS
    assert [await files.expire_due(store, later, limit=2) for _ in range(3)] == [2, 1, 0]


async def test_a_file_that_a_job_still_needs_is_kept(store, memory, redis_client):
    file = await uploaded(store)
    redis_client.sadd(f"h:file:{file.id}:jobs", "job-1", "job-2")
    redis_client.hset("h:job:job-1", "state", "completed")
    redis_client.hset("h:job:job-2", "state", "queued")
    with pytest.raises(Conflict):
        await files.delete(store, file.id, actor="user:u1")
    later = store.now_ms() + 32 * DAY_MS
    assert await files.expire_due(store, later) == 0
    assert await files.expire_due(store, later) == 0
    redis_client.hset("h:job:job-2", "state", "failed")
    assert await files.expire_due(store, later + 2 * DAY_MS) == 1
    assert memory.stored == {}


async def test_a_worker_may_read_the_files_of_the_jobs_it_holds(store, redis_client):
    redis_client.rpush("h:proc:worker-1", "job-1", "job-2")
    redis_client.hset("h:job:job-1", mapping={"file": "file-a", "state": "running"})
    redis_client.hset("h:job:job-2", mapping={"file": "", "state": "running"})
    redis_client.hset("h:job:job-3", mapping={"file": "file-b", "state": "running"})
    assert await grants.may_read_file(store, "worker-1", "file-a")
    assert not await grants.may_read_file(store, "worker-1", "file-b")
    assert not await grants.may_read_file(store, "worker-2", "file-a")
