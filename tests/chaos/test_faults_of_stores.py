"""F43-F48: an object store that dies, refuses or lies, disks and descriptors that run out."""

import hashlib
import http.server
import os
import random
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from processes import until
from servers import free_port
from test_faults_of_the_web import web_of
from world import Client, World, children

MIB = 1 << 20


@pytest.mark.proves("F43")
@pytest.mark.parametrize("moment", ["in a part", "before the end"])
def test_an_object_store_that_dies_during_an_upload_leaves_no_partial_file(
    world: World, client: Client, moment: str, evidence: list[str]
) -> None:
    assert world.s3 is not None
    name = f"f43 {moment}.bin"
    reached, resume = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        yield (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n" % name.encode()
        )
        for number in range(40):
            if number == (20 if moment == "in a part" else 39):
                reached.set()
                resume.wait(20)
            yield bytes(MIB)
        yield b"\r\n--b--\r\n"

    answers: list[httpx.Response] = []

    def upload() -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        with suppress(httpx.TransportError):
            answers.append(
                client.http.post("/api/files/upload", content=pieces(), headers=headers, timeout=60)
            )

    uploading = threading.Thread(target=upload)
    uploading.start()
    assert reached.wait(20)
    world.s3.kill()
    try:
        submitted = client.submit("true")
        assert submitted.outcome == "ok"  # nothing but files needs the store
        resume.set()
        uploading.join(60)
        assert [answer.status_code for answer in answers] in ([503], [])
    finally:
        world.s3.start()
    assert name not in [file["filename"] for file in client.http.get("/api/files/list").json()["files"]]
    world.worker("f43")
    again = client.http.post("/api/files/upload", files={"file": ("f43.bin", b"whole")})
    assert again.status_code == 201
    _swept(world)
    evidence += [f"killed {moment}: 503, not listed, parts swept", world.check()]


def _swept(world: World) -> None:
    """Carry out the leader's hourly duty now, for uploads of any age, and hold that no part is left."""
    from storage.store import Store

    assert world.s3 is not None

    async def sweep(store: Store) -> int:
        return await store.objects.sweep_uploads(0)

    world.in_store(sweep)
    bucket = world.stack.env["S3_BUCKET"]
    assert not world.s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@contextmanager
def refusing_sometimes(port: int, share: float, chance: random.Random) -> Iterator[int]:
    """Put a server in front of an S3 that answers 503 SlowDown to a share of the requests, and pass on the others."""
    refused = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            if chance.random() < share:
                self.send_response(503)
                self.send_header("Content-Length", str(len(refused)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else refused)
                return
            import http.client

            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            headers = {
                k: v for k, v in self.headers.items() if k.lower() not in {"transfer-encoding", "expect"}
            }
            headers["Content-Length"] = str(len(body))
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                    self.send_header(name, value)
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815  as http.server spells it

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.proves("F44")
def test_an_object_store_that_refuses_every_third_request_is_asked_again(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    assert world.s3 is not None
    with refusing_sometimes(world.s3.ports["s3"], 0.3, chance) as port:
        flaky = {"S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        web = world.web(PORT=str(free_port()), **flaky)
        web_port = int(_environment(web.pid)["PORT"])
        shaky = world.client(web_port)
        world.worker("f44", "--tags", "f44", **flaky)
        statuses = []
        for number in range(12):
            content = os.urandom(1000)
            answer = shaky.http.post("/api/files/upload", files={"file": (f"f44-{number}", content)})
            statuses.append(answer.status_code)
            if answer.status_code == 201:
                assert answer.json()["sha256"] == hashlib.sha256(content).hexdigest()
        assert set(statuses) <= {201, 503}, statuses
        assert statuses.count(201) >= 6
        job_id = shaky.insist(
            "for i in 1 2 3 4 5; do echo $i > $i.txt; done", artifacts=["*.txt"], tags=["f44"]
        )
        assert shaky.ended(job_id)["status"] == "completed"
        left = client.http.get(f"/api/jobs/{job_id}/artifacts").json()["artifacts"]
        assert len(left) == 5
        world.stack.end(web)
    evidence += [
        f"30 % SlowDown: uploads {statuses.count(201)} x 201, {statuses.count(503)} x 503, 5 artifacts kept"
    ]
    world.check()


def _environment(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(row.decode().split("=", 1) for row in rows if b"=" in row)


def _flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.proves("F45")
@pytest.mark.parametrize(
    "spoil", [_flipped, lambda content: content[:-7]], ids=["a flipped bit", "a truncated body"]
)
def test_an_upload_that_came_back_otherwise_is_not_worked_on(
    world: World, client: Client, spoil: Callable[[bytes], bytes], evidence: list[str]
) -> None:
    assert world.s3 is not None
    content = os.urandom(5000)
    made = client.http.post("/api/files/upload", files={"file": ("f45.bin", content)}).json()
    bucket = world.stack.env["S3_BUCKET"]
    stored = [e["Key"] for e in world.s3.client.list_objects_v2(Bucket=bucket, Prefix="uploads/")["Contents"]]
    (key,) = [each for each in stored if made["fileId"] in each]
    world.s3.client.put_object(Bucket=bucket, Key=key, Body=spoil(content))
    world.worker("f45")
    job_id = client.insist("cat f45.bin", fileUrl=made["url"], effects=False)
    job = client.ended(job_id)
    assert (job["status"], job["reason"]) == ("failed", "integrity")
    assert job["message"]
    client.http.delete(f"/api/files/{made['fileId']}")
    evidence += [f"failed, integrity: {job['message']}", world.check()]


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[Path]:
    """Mount a small filesystem in memory; skip where that is not allowed."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk (tmpfs) needs root and mount")
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let its root mount a tmpfs")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.proves("F47")
def test_uploads_need_no_disk_of_the_web_process(world: World, evidence: list[str]) -> None:
    with small_disk(world.stack.directory / "temporary", "size=1m,mode=1777") as temporary:
        web = world.web(PORT=str(free_port()), TMPDIR=str(temporary))
        full = temporary / "full"
        with suppress(OSError), full.open("wb") as file:
            for _ in range(2000):
                file.write(bytes(1024))
                file.flush()
        client = world.client(int(_environment(web.pid)["PORT"]))
        content = os.urandom(20 * MIB)
        answer = client.http.post("/api/files/upload", files={"file": ("f47.bin", content)}, timeout=60)
        assert answer.status_code in {201, 507}, answer.text
        if answer.status_code == 201:
            assert answer.json()["sha256"] == hashlib.sha256(content).hexdigest()
            got = client.http.get(f"/api/files/download/{answer.json()['fileId']}", timeout=60)
            assert got.content == content
            client.http.delete(f"/api/files/{answer.json()['fileId']}")
        evidence += [f"a full temporary disk: {answer.status_code}", world.check()]
        world.stack.end(web)


@pytest.mark.proves("F48")
def test_a_web_process_out_of_descriptors_refuses_and_recovers(
    world: World, client: Client, evidence: list[str]
) -> None:
    workers = children(web_of(world))
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
    held: list[socket.socket] = []
    try:
        for pid in workers:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, before[pid][1]))
        for _ in range(200):
            with suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", world.web_port), 0.5))
        refused = 0
        for _ in range(3):
            with suppress(httpx.TransportError):
                answer = httpx.get(
                    f"http://127.0.0.1:{world.web_port}/api/health/live", timeout=1, trust_env=False
                )
                assert answer.status_code in {200, 503}
                continue
            refused += 1
    finally:
        for connection in held:
            connection.close()
        for pid in workers:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before[pid])
    until(lambda: client.call("list", "GET", "/api/jobs/list").outcome == "ok", "it serves again", 10)
    assert children(web_of(world)) == workers  # nobody crashed
    world.worker("f48")
    assert client.ended(client.insist("true"))["status"] == "completed"
    world.calls[:] = [call for call in world.calls if call.action != "list"]
    evidence += [
        f"{len(held)} connections to 2 x 64 descriptors: {refused} of 3 refused, none crashed",
        world.check(),
    ]


@pytest.mark.proves("F48")
@pytest.mark.parametrize("options", ["size=2m,mode=711", "nr_inodes=24,mode=711"], ids=["bytes", "inodes"])
def test_a_worker_whose_disk_is_full_fails_cleanly_and_works_on(
    world: World, client: Client, options: str, evidence: list[str]
) -> None:
    with small_disk(world.stack.directory / "small", options) as small:
        worker = world.worker("f48-disk", "--tags", "f48", HOSTLER_WORK_DIR=str(small))

        def tidy() -> bool:
            root = small / "f48-disk"  # where empty directories may wait for the next jobs
            return not any(root.glob("*/*")) and not any(root.glob("fetch-*"))

        words = (
            "dd if=/dev/zero of=big bs=64k count=64"
            if "size" in options
            else "for i in $(seq 60); do : > f$i || exit 9; done"
        )
        greedy = client.insist(words, tags=["f48"])
        job = client.ended(greedy)
        assert job["status"] == "failed"
        until(tidy, "what the job filled the disk with is gone", 10)  # as long as I5 allows
        uploaded = client.http.post("/api/files/upload", files={"file": ("f48.bin", bytes(4 * MIB))}).json()
        filled = client.insist("true", tags=["f48"], fileUrl=uploaded["url"], effects=False)
        state = client.ended(filled)
        assert state["status"] == ("failed" if "size" in options else "completed"), state
        noisy = client.insist(
            "head -c 6000000 /dev/zero | tr '\\\\0' x | fold -w 1000", tags=["f48"], effects=False
        )
        heard = client.ended(noisy)  # its log does not fit, its result arrives all the same
        assert (heard["status"], heard["attempt"]) == ("completed", 1)
        after = client.insist("true", tags=["f48"])
        assert client.ended(after)["status"] == "completed"
        assert worker.poll() is None
        until(tidy, "what the jobs left is gone", 10)
        client.http.delete(f"/api/files/{uploaded['fileId']}")
        evidence += [
            f"no {'bytes' if 'size' in options else 'inodes'}: {job['reason']}, the next job ran",
            world.check(),
        ]
        world.stack.end(worker)
