"""An upload that is refused or breaks off leaves nothing, over real sockets and stores."""

import asyncio
import hashlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from forms import BOUNDARY, DATA, FIELD, FILE, form

from api import multipart
from settings import MIB, process_environment
from storage.objects import PART_BYTES

from .serving_files import until

pytestmark = pytest.mark.stack


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
