"""A download is what was asked for, and nothing that a browser would run."""

import asyncio
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from forms import DATA, form

from storage.objects import Reading

from .serving_files import until

pytestmark = pytest.mark.stack


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
