"""Files, artifacts and parts of logs pass an agent's line whole or not at all."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_server import Answer, FakeServer
from faulty_api import GET_JOB, Client, plane
from line_talk import job, refusal

from storage.errors import Denied, Invalid, TooLarge, Unavailable
from workers.http_line import HttpLine
from workers.lines import IntegrityError


async def test_a_file_is_fetched_whole_or_not_at_all(fake: FakeServer, faked: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    disposition = "attachment; filename*=UTF-8''pro%20ject.zip"
    good = Answer(200, content, {"ETag": tag, "Content-Disposition": disposition})
    fake.on(
        "GET /uploads/f/project.zip",
        Answer(503, b"<html>"),
        good,
        good,
        Answer(200, content[:-1], {"ETag": tag}),
        good,
        refusal(403, "DENIED"),
    )
    fake.on(f"GET {GET_JOB}", job(fileUrl=f"{fake.url}/uploads/f/project.zip"))
    offer, into = await faked.offer(), tmp_path / "fetched"
    with pytest.raises(Unavailable):
        await faked.line.fetch_file(offer, into, limit_bytes=10**9)
    assert await faked.line.fetch_file(offer, into, limit_bytes=10**9) == "pro ject.zip"
    assert into.read_bytes() == content
    with pytest.raises(InterruptedError):
        await faked.line.fetch_file(offer, into, limit_bytes=10**9, cancelled=lambda: True)
    with pytest.raises(IntegrityError):
        await faked.line.fetch_file(offer, into, limit_bytes=10**9)
    with pytest.raises(TooLarge):
        await faked.line.fetch_file(offer, into, limit_bytes=1000)
    with pytest.raises(Denied):
        await faked.line.fetch_file(offer, into, limit_bytes=1000)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("attachment; filename=_t_.zip; filename*=UTF-8''%C3%A9t%C3%A9.zip", "été.zip"),
        ("attachment; filename*=UTF-8''%C3%A9t%C3%A9.zip; filename=_t_.zip", "été.zip"),
        ('attachment; filename="a b.zip"', "a b.zip"),
        ("attachment", "path.zip"),
    ],
)
async def test_a_file_keeps_the_name_that_is_said_in_full(
    fake: FakeServer, faked: Client, tmp_path: Path, disposition: str, name: str
) -> None:
    fake.on("GET /uploads/f/path.zip", Answer(200, b"x", {"Content-Disposition": disposition}))
    fake.on(f"GET {GET_JOB}", job(fileUrl=f"{fake.url}/uploads/f/path.zip"))
    assert await faked.line.fetch_file(await faked.offer(), tmp_path / "fetched", limit_bytes=10) == name


async def test_a_file_that_breaks_off_is_fetched_again(
    fake: FakeServer, faked: Client, tmp_path: Path
) -> None:
    class Broken(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        broken = plane(f"http://127.0.0.1:{server.server_port}", tmp_path)
        line = HttpLine(broken)
        line._received.append(
            line._taken_offer({"jobId": "job-1", "attempt": 1, "fileUrl": broken.url + "/f"})
        )
        with pytest.raises(Unavailable):
            await line.fetch_file(line._received[0], tmp_path / "f", limit_bytes=10**6)
        await broken.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_artifacts_and_log_parts_arrive_as_they_are(
    fake: FakeServer, faked: Client, tmp_path: Path
) -> None:
    fake.on(f"GET {GET_JOB}", job())
    offer, content = await faked.offer(), bytes(range(256)) * 4000
    (tmp_path / "report.bin").write_bytes(content)
    fake.on(
        "PUT /api/jobs/job-1/artifacts/out/a%20%23b.bin",
        refusal(503, "UNAVAILABLE"),
        Answer(200, {"size": 1}),
    )
    with pytest.raises(Unavailable):
        await faked.line.put_artifact(offer, "out/a #b.bin", tmp_path / "report.bin")
    await faked.line.put_artifact(offer, "out/a #b.bin", tmp_path / "report.bin")
    asked = fake.asked[-1]
    assert asked.body == content
    assert asked.query == {"attempt": "1"}
    assert asked.headers["content-length"] == str(len(content))
    fake.on("PUT /api/jobs/job-1/artifacts/b", refusal(409, "CONFLICT", "There are 1000 already."))
    with pytest.raises(Invalid, match="1000"):
        await faked.line.put_artifact(offer, "b", tmp_path / "report.bin")
    fake.on("POST /api/jobs/job-1/log", Answer(201, {"size": 1}))
    await faked.line.put_log(offer, b"1 0 1 o 2\na\n", first_line=0, next_line=1)
    asked = fake.asked[-1]
    assert (asked.body, asked.query) == (b"1 0 1 o 2\na\n", {"attempt": "1", "first": "0", "next": "1"})
