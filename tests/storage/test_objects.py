"""The object store, on a real SeaweedFS."""

import asyncio
import hashlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from urllib3.exceptions import ProtocolError

from settings import Settings
from storage.errors import Conflict, NotFound, TooLarge, Unavailable
from storage.objects import PART_BYTES, PARTS_AT_ONCE, Objects
from storage.objects.clients import Clients
from storage.read_into import Pieces

pytestmark = pytest.mark.stack

BLOCK = os.urandom(1024 * 1024)


async def blocks(size_bytes: int) -> AsyncIterator[bytes]:
    while size_bytes > 0:
        yield BLOCK[:size_bytes]
        size_bytes -= len(BLOCK)


def digest_of(size_bytes: int) -> str:
    whole = BLOCK * (size_bytes // len(BLOCK)) + BLOCK[: size_bytes % len(BLOCK)]
    return hashlib.sha256(whole).hexdigest()


@pytest.fixture(scope="module")
def one_client(s3: Any) -> Iterator[Objects]:
    objects = Objects(Settings.from_env(s3.environment("none")))
    yield objects
    objects.close()


@pytest.fixture
def objects(one_client: Objects, settings_with_s3: Settings) -> Objects:
    one_client.bucket = settings_with_s3.s3_bucket  # making a client costs more than most of these tests
    return one_client


@pytest.fixture
def leftovers(s3: Any, settings_with_s3: Settings) -> Callable[[], tuple[list[str], int]]:
    """Tells which keys the bucket holds, and how many multipart uploads are open."""
    bucket = settings_with_s3.s3_bucket

    def look() -> tuple[list[str], int]:
        keys = [found["Key"] for found in s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])]
        return keys, len(s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))

    return look


def test_constructing_it_touches_no_network_and_needs_no_credentials():
    Objects(Settings()).close()


async def test_the_bucket_may_be_asked_for_twice(objects):
    await objects.ensure_bucket()
    await objects.ensure_bucket()


async def test_what_was_put_comes_back(objects):
    put = await objects.put("a/b", b"some bytes", content_type="text/plain")
    assert put.sha256 == hashlib.sha256(b"some bytes").hexdigest()
    assert await objects.get("a/b", limit_bytes=10) == b"some bytes"
    head = await objects.head("a/b")
    assert (head.size_bytes, head.etag, head.content_type) == (10, put.etag, "text/plain")


async def test_an_object_beyond_the_limit_is_not_read_whole(objects):
    await objects.put("big", b"x" * 11)
    with pytest.raises(TooLarge):
        await objects.get("big", limit_bytes=10)


async def test_a_key_that_is_not_there_is_not_found(objects):
    for call in (objects.head("no"), objects.get("no", limit_bytes=1), objects.open("no")):
        with pytest.raises(NotFound):
            await call


@pytest.mark.parametrize(
    "size_bytes", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 20_000_001]
)
async def test_an_upload_of_any_size_arrives_whole(objects, leftovers, size_bytes):
    stored = await objects.upload(
        "up", Pieces(blocks(size_bytes)).read_into, content_type="x/y", limit_bytes=size_bytes
    )
    assert (stored.size_bytes, stored.sha256) == (size_bytes, digest_of(size_bytes))
    assert await objects.sha256("up", etag=stored.etag) == stored.sha256
    assert leftovers() == (["up"], 0)


@pytest.mark.parametrize("size_bytes", [1000, 3 * PART_BYTES])
async def test_an_upload_that_breaks_off_leaves_nothing(objects, leftovers, size_bytes):
    async def broken() -> AsyncIterator[bytes]:
        async for block in blocks(size_bytes):
            yield block
        raise ValueError("the client is gone")

    with pytest.raises(ValueError, match="gone"):
        await objects.upload("up", Pieces(broken()).read_into, content_type="x/y", limit_bytes=size_bytes)
    assert leftovers() == ([], 0)


async def test_an_upload_beyond_the_limit_leaves_nothing(objects, leftovers):
    with pytest.raises(TooLarge):
        await objects.upload(
            "up", Pieces(blocks(20_000_000)).read_into, content_type="x/y", limit_bytes=19_999_999
        )
    assert leftovers() == ([], 0)


async def test_uploads_together_send_no_more_parts_at_once_than_a_store_takes_in_time(settings, monkeypatch):
    under_way, most, lock = 0, 0, threading.Lock()

    class Slow:
        def __getattr__(self, operation):
            return lambda **_: {"UploadId": "1", "ETag": '"x"'}

        def upload_part(self, **_):
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.01)
            with lock:
                under_way -= 1
            return {"ETag": '"x"'}

    objects = Objects(settings)
    monkeypatch.setattr(objects, "_client", lambda kind="work": Slow())
    size_bytes = 2 * PART_BYTES
    uploads = [
        objects.upload(
            f"up-{number}", Pieces(blocks(size_bytes)).read_into, content_type="x/y", limit_bytes=size_bytes
        )
        for number in range(6)
    ]
    stored = await asyncio.gather(*uploads)
    assert {each.size_bytes for each in stored} == {size_bytes}
    assert len({each.sha256 for each in stored}) == 1
    assert 1 < most <= PARTS_AT_ONCE
    objects.close()


async def test_a_cancelled_upload_leaves_nothing(objects, leftovers):
    stalled = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        async for block in blocks(2 * PART_BYTES + 5):
            yield block
        stalled.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        objects.upload("up", Pieces(stalling()).read_into, content_type="x/y", limit_bytes=10**9)
    )
    await stalled.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers() == ([], 0)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (5, 99), (999_999, 1_048_576), (3_000_000, 3_000_004)])
async def test_a_range_is_that_slice(objects, first, last):
    data = BLOCK * 3
    await objects.put("o", data)
    reading = await objects.open("o", first=first, last=last)
    assert b"".join([chunk async for chunk in reading]) == data[first : last + 1]
    await reading.close()


@pytest.fixture
def short_spans(monkeypatch):
    monkeypatch.setattr("storage.objects.reading.SPAN_BYTES", 1 << 20)
    monkeypatch.setattr("storage.objects.READ_BYTES", 1 << 18)


@pytest.mark.parametrize("fast_bytes_a_s", [0, 1 << 60])
async def test_a_long_range_comes_in_spans_as_if_in_one(objects, short_spans, monkeypatch, fast_bytes_a_s):
    monkeypatch.setattr("storage.objects.reading.FAST_BYTES_A_S", fast_bytes_a_s)
    data = os.urandom(3 * len(BLOCK))
    await objects.put("o", data)
    for first, last in ((0, len(data) - 1), (999_999, 2_500_000), (1 << 20, (1 << 21) - 1)):
        reading = await objects.open("o", first=first, last=last)
        assert b"".join([chunk async for chunk in reading]) == data[first : last + 1]


async def test_a_span_that_was_opened_ahead_and_lost_meanwhile_is_opened_again(
    objects, short_spans, monkeypatch
):
    monkeypatch.setattr("storage.objects.reading.FAST_BYTES_A_S", 0)
    await objects.put("o", BLOCK * 3)
    reading = await objects.open("o", first=0, last=3 * len(BLOCK) - 1)
    read = [await anext(reading) for _ in range(3)]
    (await reading._ahead).close()
    reading._ahead = asyncio.get_running_loop().create_future()
    reading._ahead.set_result(Lost())
    read += [chunk async for chunk in reading]
    assert b"".join(read) == BLOCK * 3


class Lost:
    """A body whose connection the store has closed."""

    def read(self, amount: int) -> bytes:
        raise ProtocolError(f"None of {amount} bytes came.")

    def close(self) -> None:
        """There is nothing to close."""


async def test_what_replaces_an_object_does_not_follow_its_first_spans(objects, short_spans, monkeypatch):
    monkeypatch.setattr("storage.objects.reading.FAST_BYTES_A_S", 1 << 60)
    await objects.put("o", BLOCK * 3)
    reading = await objects.open("o", first=0, last=3 * len(BLOCK) - 1)
    assert await anext(reading)
    await objects.put("o", BLOCK * 3 + b"new")
    with pytest.raises(Conflict):
        [chunk async for chunk in reading]
    await reading.close()


async def test_reading_can_stop_in_the_middle_any_number_of_times(objects):
    await objects.put("o", BLOCK * 2)
    for _ in range(40):  # more than there are connections
        reading = await objects.open("o")
        assert await anext(reading)
        await reading.close()
        await reading.close()


async def test_what_was_opened_ahead_is_closed_with_the_rest(objects, short_spans, monkeypatch):
    monkeypatch.setattr("storage.objects.reading.FAST_BYTES_A_S", 0)
    await objects.put("o", BLOCK * 2)
    for _ in range(40):  # more than there are connections
        reading = await objects.open("o", first=0, last=2 * len(BLOCK) - 1)
        assert [await anext(reading) for _ in range(2)]
        ahead = reading._ahead
        await reading.close()
        assert (await ahead)._raw_stream.closed


async def test_an_object_that_was_replaced_is_not_read_as_the_old_one(objects):
    old = await objects.put("o", b"old")
    await objects.put("o", b"new")
    with pytest.raises(Conflict):
        await objects.open("o", etag=old.etag)
    with pytest.raises(Conflict):
        await objects.sha256("o", etag=old.etag)


async def test_deleting_may_be_repeated(objects, leftovers):
    for key in ("a/1", "a/2", "b/1", "c"):
        await objects.put(key, b"x")
    for _ in range(2):
        await objects.delete("c")
        await objects.delete("b/1", "nothing")
    assert await objects.delete_prefix("a/") == 2
    assert await objects.delete_prefix("a/") == 0
    assert leftovers() == ([], 0)


async def test_an_empty_prefix_deletes_nothing(objects):
    with pytest.raises(ValueError, match="whole bucket"):
        await objects.delete_prefix("")


async def test_uploads_that_a_crash_left_are_swept_once_they_are_old(objects, s3, leftovers):
    s3.client.create_multipart_upload(Bucket=objects.bucket, Key="orphan")
    assert await objects.sweep_uploads(3600) == 0
    assert leftovers()[1] == 1
    assert await objects.sweep_uploads(-60) == 1
    assert leftovers()[1] == 0


async def test_a_presigned_put_takes_that_size_and_type_and_no_other(objects):
    url = await objects.presign_put("p", content_type="application/zip", size_bytes=4, expires_s=60)
    async with httpx.AsyncClient() as client:
        for content, media_type, status in [
            (b"12345", "application/zip", 403),
            (b"1234", "text/html", 403),
            (b"1234", "application/zip", 200),
        ]:
            headers = {"Content-Type": media_type, "If-None-Match": "*"}
            answer = await client.put(url, content=content, headers=headers)
            assert answer.status_code == status
    assert await objects.get("p", limit_bytes=4) == b"1234"


async def test_what_a_presigned_put_has_stored_no_other_replaces(objects):
    url = await objects.presign_put("p", content_type="text/plain", size_bytes=4, expires_s=60)
    headers = {"Content-Type": "text/plain", "If-None-Match": "*"}
    contents = [b"%4d" % number for number in range(20)]
    async with httpx.AsyncClient(timeout=60) as client:
        answers = await asyncio.gather(*(client.put(url, content=c, headers=headers) for c in contents))
        stored = [c for c, answer in zip(contents, answers, strict=True) if answer.status_code == 200]
        assert [await objects.get("p", limit_bytes=4)] == stored
        assert {answer.status_code for answer in answers} <= {200, 409, 412}
        without = await client.put(url, content=b"xxxx", headers={"Content-Type": "text/plain"})
    assert without.status_code == 403
    assert [await objects.get("p", limit_bytes=4)] == stored


async def test_a_presigned_get_is_an_attachment_by_its_own_name(objects):
    await objects.put("p", b"<script>", content_type="text/html")
    url = await objects.presign_get("p", filename='é";\r\nX: y.html', expires_s=60)
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
    assert answer.content == b"<script>"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    assert "X" not in answer.headers


async def test_presigned_urls_carry_the_public_address(settings_with_s3):
    objects = Objects(replace(settings_with_s3, s3_public_endpoint_url="https://s3.example"))
    assert (await objects.presign_get("k", filename="f", expires_s=1)).startswith("https://s3.example/test-")
    objects.close()


@pytest.mark.parametrize(
    ("endpoint", "hashed"),
    [
        ("http://127.0.0.1:9", False),
        ("http://[::1]:9", False),
        ("http://localhost:9", False),
        ("http://10.0.0.7:9", True),
        ("http://localhost.example.com:9", True),
        ("https://10.0.0.7:9", False),
    ],
)
def test_a_body_is_hashed_for_its_signature_where_others_could_change_it_on_its_way(
    settings_with_s3: Settings, endpoint: str, hashed: bool
) -> None:
    sent = list[Any]()

    def before_send(request: Any, **_: Any) -> None:
        sent.append(request)
        raise ProtocolError("nothing is to leave")

    clients = Clients(replace(settings_with_s3, s3_endpoint_url=endpoint))
    client = clients.of("parts")
    client.meta.events.register("before-send.s3", before_send)
    with pytest.raises(ProtocolError):
        client.put_object(Bucket="b", Key="k", Body=b"body")
    clients.close()
    told = sent[0].headers["X-Amz-Content-SHA256"]
    assert told == (hashlib.sha256(b"body").hexdigest().encode() if hashed else b"UNSIGNED-PAYLOAD")
    assert b"x-amz-content-sha256" in sent[0].headers["Authorization"]


async def test_a_file_goes_up_and_comes_down_from_a_thread(objects, tmp_path: Path):
    (tmp_path / "up").write_bytes(BLOCK * 9)
    up = await asyncio.to_thread(objects.put_file, "f", tmp_path / "up")
    down = await asyncio.to_thread(objects.get_file, "f", tmp_path / "down", limit_bytes=up.size_bytes)
    assert (
        (down.size_bytes, down.sha256)
        == (up.size_bytes, up.sha256)
        == (9 * len(BLOCK), digest_of(9 * len(BLOCK)))
    )
    assert (tmp_path / "down").read_bytes() == BLOCK * 9


def test_a_file_that_is_too_large_or_not_wanted_any_more_is_removed(objects, tmp_path: Path):
    objects.put_bytes("f", BLOCK * 2)
    with pytest.raises(TooLarge):
        objects.get_file("f", tmp_path / "f", limit_bytes=len(BLOCK))
    with pytest.raises(InterruptedError):
        objects.get_file("f", tmp_path / "f", limit_bytes=10**9, cancelled=lambda: True)
    with pytest.raises(NotFound):
        objects.get_file("no", tmp_path / "f", limit_bytes=10**9)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_away_is_unavailable_and_nothing_else(tmp_path: Path):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    away = Objects(Settings(s3_endpoint_url=url, s3_access_key_id="a", s3_secret_access_key="b"))
    (tmp_path / "f").write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        away.ensure_bucket_now,
        lambda: away.put_bytes("k", b""),
        lambda: away.get_bytes("k", limit_bytes=1),
        lambda: away.put_file("k", tmp_path / "f"),
        lambda: away.get_file("k", tmp_path / "g", limit_bytes=1),
        lambda: asyncio.run(away.check()),
        lambda: asyncio.run(away.delete("k")),
        lambda: asyncio.run(away.delete_prefix("k")),
        lambda: asyncio.run(away.sweep_uploads(1)),
        lambda: asyncio.run(
            away.upload("k", Pieces(blocks(PART_BYTES + 1)).read_into, content_type="a/b", limit_bytes=10**9)
        ),
    ]
    for call in calls:
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.retry_after_s > 0
    away.close()


def test_wrong_credentials_are_unavailable_too(settings_with_s3):
    objects = Objects(replace(settings_with_s3, s3_secret_access_key="wrong"))
    with pytest.raises(Unavailable, match="refuses"):
        objects.put_bytes("k", b"x")
    objects.close()


async def test_the_check_answers_within_two_seconds(objects):
    assert 0 < await objects.check() < 2


async def test_after_closing_it_is_unavailable(settings_with_s3):
    objects = Objects(settings_with_s3)
    objects.close()
    with pytest.raises(Unavailable, match="stopping"):
        await objects.head("k")
