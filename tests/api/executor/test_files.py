"""CMD Executor's file endpoints, over real sockets, on a real Valkey and a real SeaweedFS."""

import asyncio
import hashlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn

from api import body as bodies
from api import multipart
from settings import MIB, Settings, process_environment
from storage import files
from storage.objects import PART_BYTES, Reading
from storage.read_into import Pieces, whole_of
from storage.store import Store

from .files_app import around

pytestmark = pytest.mark.stack

DATA = os.urandom(3 * MIB + 17)
BOUNDARY = b"----hostler-tests"


class Served:
    """The endpoints, and a client that calls them without a network between."""

    def __init__(self, store: Store) -> None:
        self.store, self.app = store, around(store)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://hostler")

    async def upload(
        self, data: bytes = DATA, name: str = "project.zip", media_type: str = "application/zip"
    ) -> Any:
        answer = await self.client.post("/api/files/upload", files={"file": (name, data, media_type)})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def raw(self, body: bytes, *, content_type: str | None = None, **headers: str) -> httpx.Response:
        sent = {
            "Content-Type": content_type or f"multipart/form-data; boundary={BOUNDARY.decode()}",
            **headers,
        }
        return await self.client.post("/api/files/upload", content=body, headers=sent)


@pytest.fixture
async def served(settings_with_s3: Settings) -> AsyncIterator[Served]:
    store = Store(settings_with_s3)
    served = Served(store)
    yield served
    await served.client.aclose()
    await store.close()


@pytest.fixture
async def port(served: Served) -> AsyncIterator[int]:
    """The same endpoints behind a server, for what only a socket shows."""
    config = uvicorn.Config(
        served.app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@pytest.fixture
def nothing_left(s3: Any, served: Served, redis_client: Any) -> Callable[[], bool]:
    """Tells whether bucket, multipart uploads and records are all empty."""
    bucket = served.store.objects.bucket

    def look() -> bool:
        objects = s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        parts = s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return not (objects or parts or redis_client.keys("h:file*"))

    return look


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.02)


def form(*parts: tuple[bytes, bytes], end: bytes = b"--" + BOUNDARY + b"--\r\n") -> bytes:
    body = b"".join(b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return body + end


FILE = b'Content-Disposition: form-data; name="file"; filename="a.zip"'
FIELD = b'Content-Disposition: form-data; name="note"'


async def test_an_upload_answers_the_pages_fields_and_comes_back(served):
    body = await served.upload()
    assert set(body) == {
        "success", "fileId", "filename", "size", "uploadedAt", "url", "expiresAt", "sha256", "contentType",
        "uploadedBy",
    }  # fmt: skip
    assert (body["success"], body["filename"], body["size"]) == (True, "project.zip", len(DATA))
    assert body["sha256"] == hashlib.sha256(DATA).hexdigest()
    for path in (f"/api/files/download/{body['fileId']}", body["url"]):
        answer = await served.client.get(path, headers={"X-Role": "viewer"})
        assert answer.status_code == 200
        assert answer.content == DATA
        assert answer.headers["Content-Length"] == str(len(DATA))
        assert answer.headers["Content-Type"] == "application/zip"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="project.zip"'
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        head = await served.client.head(path)
        assert {**head.headers, "date": ""} == {**answer.headers, "date": ""}
        assert head.content == b""
    assert (await served.client.get(f"/api/files/{body['fileId']}")).json() == body


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES + 1])
async def test_files_of_any_size_pass(served, size_bytes):
    data = (DATA * 3)[:size_bytes]
    body = await served.upload(data)
    assert (body["size"], body["sha256"]) == (size_bytes, hashlib.sha256(data).hexdigest())
    assert (await served.client.get(body["url"])).content == data


async def test_the_list_carries_both_keys_and_the_paging(served):
    ids = [(await served.upload(b"x", f"{number}.zip"))["fileId"] for number in range(3)]
    body = (
        await served.client.get("/api/files/list?limit=2&sort=uploadedAt", headers={"X-Role": "viewer"})
    ).json()
    assert body["files"] == body["data"]
    assert (body["total"], body["limit"], body["offset"], body["hasMore"]) == (3, 2, 0, True)
    body = (await served.client.get("/api/files/list?offset=2")).json()
    assert (body["total"], len(body["files"]), body["hasMore"]) == (3, 1, False)
    assert body["files"][0]["fileId"] in ids


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "sort=size", "x=1"])
async def test_a_bad_page_is_refused(served, query):
    answer = await served.client.get(f"/api/files/list?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"] == "Invalid request"


async def test_a_deleted_file_is_not_found_and_its_object_is_gone(served, nothing_left):
    body = await served.upload(b"x")
    answer = await served.client.delete(f"/api/files/{body['fileId']}")
    assert answer.json() == {"success": True, "fileId": body["fileId"], "deleted": True}
    assert nothing_left()
    for path in (f"/api/files/download/{body['fileId']}", body["url"], f"/api/files/{body['fileId']}"):
        answer = await served.client.get(path)
        assert (answer.status_code, answer.json()["message"]) == (404, "File not found")
    assert (await served.client.delete(f"/api/files/{body['fileId']}")).status_code == 404


async def test_a_viewer_may_read_and_not_write(served, nothing_left):
    viewer = {"X-Role": "viewer"}
    calls = [
        ("POST", "/api/files/upload"),
        ("POST", "/api/files/presign"),
        ("POST", "/api/files/file-1/complete"),
        ("DELETE", "/api/files/file-1"),
    ]
    for method, path in calls:
        assert (await served.client.request(method, path, headers=viewer)).status_code == 403
    assert nothing_left()


async def test_a_worker_reads_the_files_of_the_jobs_it_holds_and_no_others(served, redis_client):
    body, worker = await served.upload(b"x"), {"X-Role": "worker"}
    for path in (body["url"], f"/api/files/download/{body['fileId']}"):
        assert (await served.client.get(path, headers=worker)).status_code == 403
    redis_client.rpush("h:proc:worker-1", "job-1")
    redis_client.hset("h:job:job-1", mapping={"file": body["fileId"], "state": "running"})
    for path in (body["url"], f"/api/files/download/{body['fileId']}"):
        assert (await served.client.get(path, headers=worker)).content == b"x"
    assert (await served.client.get("/api/files/list", headers=worker)).status_code == 403


# What a browser could be made to do


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("x.html", "text/html"),
        ("x.svg", "image/svg+xml"),
        ("x.xhtml", "application/xhtml+xml"),
        ("x.js", "text/javascript"),
    ],
)
async def test_what_a_browser_would_run_is_served_as_bytes_to_keep(served, name, media_type):
    body = await served.upload(b"<script>alert(1)</script>", name, media_type)
    answer = await served.client.get(body["url"])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("проект é.zip", "проект é.zip"),
        ("a;b.zip", "a;b.zip"),
        ("%2e%2e%2fpasswd", "_2e_2e_2fpasswd"),
    ],
)
async def test_a_hostile_filename_stays_a_name(served, s3, sent, kept):
    head = f'Content-Disposition: form-data; name="file"; filename="{sent.replace(chr(92), chr(92) * 2)}"'
    body = (await served.raw(form((head.encode(), b"x")))).json()
    assert body["filename"] == kept
    assert body["url"] == f"/uploads/{body['fileId']}/{quote(kept, safe='')}"
    stored = s3.client.list_objects_v2(Bucket=served.store.objects.bucket)["Contents"]
    assert [found["Key"] for found in stored] == [f"uploads/{body['fileId']}"]
    answer = await served.client.get(body["url"])
    assert answer.content == b"x"
    assert answer.headers["Content-Disposition"].startswith("attachment; filename=")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a;b.txt", 'attachment; filename="a;b.txt"'),
        ('a"; x=y', "attachment; filename=a___x_y; filename*=UTF-8''a%22%3B%20x%3Dy"),
        ("é.txt", "attachment; filename=e_.txt; filename*=UTF-8''%C3%A9.txt"),
    ],
)
async def test_a_download_says_its_name_and_nothing_beside_it(served, name, said):
    announced = {"filename": name, "size": 1}
    order = (await served.client.post("/api/files/presign", json=announced)).json()
    async with httpx.AsyncClient() as direct:
        assert (await direct.put(order["uploadUrl"], content=b"x", headers=order["headers"])).is_success
    done = await served.client.post(f"/api/files/{order['fileId']}/complete")
    assert done.status_code == 200, done.text
    answer = await served.client.get(f"/api/files/download/{order['fileId']}")
    assert answer.headers["content-disposition"] == said


@pytest.mark.parametrize(
    "path",
    [
        "/uploads/{id}/other.zip",
        "/uploads/{id}/..%2f..%2fetc%2fpasswd",
        "/uploads/..%2f..%2fetc/passwd",
        "/uploads/%252e%252e/passwd",
        "/api/files/download/..%2f..%2fetc%2fpasswd",
        "/api/files/download/{id}%00",
        "/api/files/download/job-1",
        "/api/files/download/%c0%ae%c0%ae",
    ],
)
async def test_a_path_that_leads_elsewhere_is_not_found(served, path):
    body = await served.upload(b"x", "a.zip")
    answer = await served.client.get(path.replace("{id}", body["fileId"]))
    assert answer.status_code == 404


# Conditions and ranges


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-99", slice(5, 100)),
        ("bytes=1048570-1048590", slice(1048570, 1048591)),
        (f"bytes={len(DATA) - 3}-", slice(-3, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=-999999999", slice(0, None)),
        ("bytes=10-999999999999", slice(10, None)),
    ],
)
async def test_a_range_gets_that_slice(served, header, part):
    body = await served.upload()
    answer = await served.client.get(body["url"], headers={"Range": header})
    begin, end, _ = part.indices(len(DATA))
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(DATA)}"
    assert answer.headers["Content-Length"] == str(end - begin)
    assert answer.content == DATA[part]


async def test_conditions_follow_the_etag(served):
    body = await served.upload(b"0123456789")
    etag = f'"{body["sha256"]}"'
    cases: list[tuple[dict[str, str], int, bytes]] = [
        ({"If-None-Match": etag}, 304, b""),
        ({"If-None-Match": f'"x", W/{etag}'}, 304, b""),
        ({"If-None-Match": "*"}, 304, b""),
        ({"If-None-Match": '"x"'}, 200, b"0123456789"),
        ({"Range": "bytes=2-3", "If-Range": etag}, 206, b"23"),
        ({"Range": "bytes=2-3", "If-Range": '"x"'}, 200, b"0123456789"),
        ({"Range": "bytes=2-3", "If-Range": f"W/{etag}"}, 200, b"0123456789"),
        ({"Range": "bytes=2-3", "If-Range": "Sat, 01 Jan 2050 00:00:00 GMT"}, 200, b"0123456789"),
        ({"Range": "bytes=0-1,4-5"}, 200, b"0123456789"),
        ({"Range": "bytes=3-2"}, 200, b"0123456789"),
        ({"Range": "bytes=-"}, 200, b"0123456789"),
        ({"Range": "lines=1-2"}, 200, b"0123456789"),
    ]
    for headers, status, content in cases:
        answer = await served.client.get(body["url"], headers=headers)
        assert (answer.status_code, answer.content) == (status, content), headers
        assert answer.headers["ETag"] == etag


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
async def test_a_range_beyond_the_end_is_416_and_says_where_the_end_is(served, header):
    body = await served.upload(b"0123456789")
    answer = await served.client.get(body["url"], headers={"Range": header})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */10")


async def test_a_redirect_leads_to_the_object_store(served):
    body = await served.upload(b"x" * 100, "é.html", "text/html")
    answer = await served.client.get(f"{body['url']}?redirect=1")
    assert answer.status_code == 302
    async with httpx.AsyncClient() as outside:
        followed = await outside.get(answer.headers["Location"])
    assert followed.content == b"x" * 100
    assert followed.headers["Content-Type"] == "application/octet-stream"
    assert followed.headers["Content-Disposition"].startswith("attachment")


# Uploads that are refused, or break off


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b'{"files":{"x":{"filepath":"/etc/passwd"}}}', 415),
        ("application/x-www-form-urlencoded", b"file=x", 415),
        ("", b"x", 415),
        ("multipart/mixed; boundary=x", b"--x--", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=" + "b" * 71, b"x", 400),
        ("multipart/form-data; boundary=" + "b" * 30_000, b"x", 400),
    ],
)
async def test_what_is_no_form_is_refused(served, nothing_left, content_type, body, status):
    answer = await served.raw(body, content_type=content_type or "none")
    assert answer.status_code == status
    assert nothing_left()


NESTED = form((b"Content-Type: multipart/mixed; boundary=inner", b"--inner\r\n\r\nx\r\n--inner--"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        form(),
        form((FIELD, b"x")),
        form((b'Content-Disposition: form-data; name="file"', b"x")),
        form((b'Content-Disposition: form-data; name="file"; filename=""', b"x")),
        form((b'Content-Disposition: form-data; name="file"; filename="\xff\xfe"', b"x")),
        form((b'Content-Disposition: form-data; name="upload"; filename="a.zip"', b"x")),
        form((FILE, b"x"), (FILE, b"y")),
        form((FILE, b"x"), (b'Content-Disposition: form-data; name="other"; filename="b"', b"y")),
        form((FILE, b"x"), end=b""),
        form((FILE, b"x"), end=b"--" + BOUNDARY),
        form((FILE + b"\r\nContent-Transfer-Encoding: base64", b"eA==")),
        form((FILE + b"\r\nX: " + b"x" * multipart.HEADERS_LIMIT_BYTES, b"x")),
        form((FIELD, b"x" * (multipart.AROUND_LIMIT_BYTES + 1)), (FILE, b"x")),
        form((FILE, b"x"), (FIELD, b"x" * (multipart.AROUND_LIMIT_BYTES + 1))),
        form(*[(FIELD, b"x")] * 10_000, (FILE, b"x")),
        form((FILE, b"x"), *[(FIELD, b"")] * 10_000),
        b"x" * (multipart.AROUND_LIMIT_BYTES + 1) + form((FILE, b"x")),
        form((FILE, b"x")) + b"x" * (multipart.AROUND_LIMIT_BYTES + 1),
        b"--" + BOUNDARY + b"garbage\r\n" + FILE + b"\r\n\r\nx\r\n--" + BOUNDARY + b"--",
        NESTED,
    ],
)
async def test_a_form_that_is_not_one_file_and_a_few_fields_is_refused(served, nothing_left, body):
    answer = await served.raw(body)
    assert answer.status_code == 400
    assert answer.json()["error"] in {"Invalid request", "Invalid file"}
    assert nothing_left()


async def test_fields_around_the_file_and_an_inner_form_do_no_harm(served):
    inner = form((FILE, b"inner")).replace(BOUNDARY, b"other")
    answer = await served.raw(
        b"a preamble\r\n" + form((FIELD, b"x"), (FILE, inner), (FIELD, b"y")) + b"an epilogue"
    )
    assert answer.status_code == 201
    assert (await served.client.get(answer.json()["url"])).content == inner


async def test_a_delimiter_split_anywhere_is_found():
    data = b"\r\n--" + BOUNDARY[:-1] + b"\r\r\n-\r\n--" + b"tail"
    whole = form((FIELD, b"x"), (FILE, data))
    for size in (1, 2, 3, 7, 19, 64):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(whole), size):
                yield whole[start : start + size]

        reader = multipart.FormReader(Pieces(pieces()).read_into, BOUNDARY)
        assert (await reader.file("file")).filename == "a.zip"
        assert await whole_of(reader.read_into) == data


async def test_a_delimiter_is_found_wherever_it_comes_to_lie_in_the_memory_of_its_reader():
    chance = random.Random(7)  # noqa: S311
    for _ in range(40):
        parts = [os.urandom(chance.choice([0, 1, 30_000])) for _ in range(chance.randrange(8))]
        parts += [(b"\r\n--" + BOUNDARY)[: chance.randrange(1, 20)] for _ in range(chance.randrange(9))]
        chance.shuffle(parts)
        data = b"".join(parts)
        whole, at = form((FIELD, b"x"), (FILE, data), (FIELD, b"y")), 0

        async def read_into(buffer: bytearray, start: int, end: int, look: Callable[[int], bool]) -> int:
            """Fill all of it, piece by piece, as a thread does."""
            nonlocal at
            filled, on = start, True
            while on and filled < end and at < len(whole):  # noqa: B023
                size = min(end - filled, chance.choice([1, 17, 5_000, 50_000]))
                piece = whole[at : at + size]  # noqa: B023
                buffer[filled : filled + len(piece)] = piece
                at, filled = at + len(piece), filled + len(piece)
                on = look(filled)
            return filled - start

        reader, found, told = multipart.FormReader(read_into, BOUNDARY), bytearray(), 0
        await reader.file("file")
        while True:
            room = bytearray(chance.choice([1, 5, 70, 17_000, 60_000]) + 2)
            told = 1

            def look(end: int) -> bool:
                nonlocal told
                assert end >= told
                told = end
                return True

            size = await reader.read_into(room, 1, len(room) - 1, look)
            if not size:
                break
            assert told == 1 + size
            assert room[0] == room[-1] == 0
            found += room[1 : 1 + size]
        assert found == data


async def test_a_client_that_stalls_is_given_up(monkeypatch):
    async def stalling() -> AsyncIterator[bytes]:
        yield form((FILE, b"x"), end=b"")
        await asyncio.Event().wait()

    monkeypatch.setattr(bodies, "BODY_IDLE_S", 0.01)
    request: Any = SimpleNamespace(content_length=None, stream=stalling(), scope={})
    reader = multipart.FormReader(bodies.Incoming(request).read_into, BOUNDARY)
    await reader.file("file")
    with pytest.raises(multipart.Invalid, match="stopped arriving"):
        await whole_of(reader.read_into)


async def test_too_much_is_refused_before_it_is_read(port, nothing_left):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /api/files/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 10737418240\r\n"
        b"Content-Type: multipart/form-data; boundary="
        + BOUNDARY
        + b"\r\n\r\n--"  # Falcon asks us once the first bytes are there
    )
    answer = await asyncio.wait_for(reader.read(), 5)  # to the end: the server closes the connection  # noqa: TID251
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error":"Invalid file","message":"File size exceeds 500MB limit"' in answer
    writer.close()
    await writer.wait_closed()
    assert nothing_left()


async def test_too_much_is_refused_while_it_streams(served, port, nothing_left):
    served.store.settings = replace(served.store.settings, upload_limit_bytes=9 * MIB)

    async def endless() -> AsyncIterator[bytes]:
        yield form((FILE, b""), end=b"")[:-2]
        for _ in range(64):
            yield DATA[:MIB]

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.post("/api/files/upload", content=endless(), headers=headers)
    except httpx.TransportError:
        pass  # the server may close while we still send
    else:
        assert answer.status_code == 400
        assert answer.json()["message"] == "File size exceeds 9MB limit"
    await until(nothing_left)


@pytest.mark.parametrize("sent_bytes", [10, 3 * MIB, 2 * PART_BYTES + MIB])
async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    port, nothing_left, redis_client, sent_bytes
):
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /api/files/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n"
        b"Content-Type: multipart/form-data; boundary="
        + BOUNDARY
        + b"\r\n\r\n"
        + form((FILE, b""), end=b"")[:-2]
    )
    writer.write((DATA * 6)[:sent_bytes])
    await writer.drain()
    await until(lambda: bool(redis_client.keys("h:file:file-*")))
    writer.close()
    await writer.wait_closed()
    await until(nothing_left)


async def test_a_download_stops_when_the_client_leaves(served, port):
    readings: list[Reading] = []
    opening = served.store.objects.open

    async def recorded(*arguments: Any, **named: Any) -> Reading:
        readings.append(await opening(*arguments, **named))
        return readings[-1]

    served.store.objects.open = recorded
    body = await served.upload(DATA * 10)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(f"GET {body['url']} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert await reader.readexactly(100)
    writer.transport.abort()
    await until(lambda: readings[0]._body._raw_stream.closed)
    assert readings[0]._body._amount_read < len(DATA) * 10


# The object store


async def test_a_presigned_upload_goes_around_us(served):
    announced = (
        await served.client.post(
            "/api/files/presign",
            json={"filename": "../big.zip", "size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()},
        )
    ).json()
    assert announced["method"] == "PUT"
    complete = f"/api/files/{announced['fileId']}/complete"
    assert (await served.client.post(complete)).status_code == 409
    assert (await served.client.get(f"/api/files/download/{announced['fileId']}")).status_code == 404
    assert (await served.client.get("/api/files/list")).json()["total"] == 0
    async with httpx.AsyncClient() as outside:
        put = await outside.put(announced["uploadUrl"], content=DATA, headers=announced["headers"])
    assert put.status_code == 200
    for _ in range(2):
        body = (await served.client.post(complete)).json()
        assert (body["filename"], body["size"]) == ("big.zip", len(DATA))
    assert (await served.client.get(body["url"])).content == DATA
    async with httpx.AsyncClient() as outside:  # what was taken in stays as it is
        again = await outside.put(announced["uploadUrl"], content=DATA[::-1], headers=announced["headers"])
    assert again.status_code == 412
    assert (await served.client.get(body["url"])).content == DATA


async def test_a_file_that_changes_behind_our_back_is_not_handed_out(served):
    announced = (
        await served.client.post("/api/files/presign", json={"filename": "a", "size": len(DATA)})
    ).json()
    async with httpx.AsyncClient() as outside:
        await outside.put(announced["uploadUrl"], content=DATA, headers=announced["headers"])
    body = (await served.client.post(f"/api/files/{announced['fileId']}/complete")).json()
    await served.store.objects.put(files.object_key(announced["fileId"]), DATA[::-1])
    assert (await served.client.get(body["url"])).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filename": "a"},
        {"filename": "a", "size": -1},
        {"filename": "a", "size": "1"},
        {"filename": "..", "size": 1},
        {"filename": "a", "size": 500 * MIB + 1},
        {"filename": "a", "size": 1, "sha256": "x"},
        {"filename": "a", "size": 1, "path": "/etc/passwd"},
        [],
    ],
)
async def test_a_bad_announcement_is_refused(served, nothing_left, body):
    assert (await served.client.post("/api/files/presign", json=body)).status_code == 400
    assert nothing_left()


async def test_without_the_object_store_it_is_503_and_it_recovers(own_s3, settings):
    bucket = {name.lower(): value for name, value in own_s3.environment("probe").items()}
    store = Store(replace(settings, **bucket))
    async with Served(store).client as client:

        async def upload() -> httpx.Response:
            return await client.post("/api/files/upload", files={"file": ("a.zip", DATA)})

        before = (await upload()).json()
        await asyncio.to_thread(own_s3.kill)
        answer = await upload()
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["error"] == "Service Unavailable"
        assert (await client.get(before["url"])).status_code == 503
        assert (await client.get("/api/files/list")).json()["total"] == 1
        await asyncio.to_thread(own_s3.start)
        assert (await upload()).status_code == 201
        assert (await client.get(before["url"])).content == DATA
        due = store.now_ms() + 2 * files.DAY_MS
        assert await files.expire_due(store, due) == 1  # what the outage had left unfinished
    await store.close()


async def test_a_large_upload_passes_in_bounded_memory(settings_with_s3):
    size_mib = 256
    settings = settings_with_s3
    environment = {
        **process_environment(),
        "REDIS_URL": settings.redis_url,
        "HOSTLER_SECRET_KEY": str(settings.secret_key),
        "S3_ENDPOINT_URL": str(settings.s3_endpoint_url),
        "S3_ACCESS_KEY_ID": str(settings.s3_access_key_id),
        "S3_SECRET_ACCESS_KEY": str(settings.s3_secret_access_key),
        "S3_BUCKET": settings.s3_bucket,
    }
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", "--app-dir", str(Path(__file__).parent), "files_app:create",
         "--fd", str(listening.fileno()), "--log-level", "critical"],
        env=environment, pass_fds=[listening.fileno()], cwd=Path(__file__).parents[3],
    )  # fmt: skip
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/api/files/upload"

    def peak_mib() -> float:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    async def content(mib: int) -> AsyncIterator[bytes]:
        yield form((FILE, b""), end=b"")[:-2]
        for _ in range(mib):
            yield DATA[:MIB]
        yield b"\r\n--" + BOUNDARY + b"--\r\n"

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    try:
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(
                url, content=content(1), headers=headers
            )  # imports, client and threads
            assert answer.status_code == 201
            before = peak_mib()
            answer = await client.post(url, content=content(size_mib), headers=headers)
        assert answer.json()["size"] == size_mib * MIB
        assert answer.json()["sha256"] == hashlib.sha256(DATA[:MIB] * size_mib).hexdigest()
        assert peak_mib() - before < 32
    finally:
        server.terminate()
        server.wait(10)
        listening.close()
