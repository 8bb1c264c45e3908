"""Attacks by addresses that users name: inward, by redirect, by name servers."""

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ears import Outside, listening
from target import Target, until

INSIDE = (
    "http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "https://[::1]:{port}/", "https://0.0.0.0:{port}/", "https://[::]:{port}/",
    "https://169.254.169.254/latest/meta-data/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/",
    "https://100.64.0.1/", "https://[fd00::1]/", "https://[fe80::1]/", "https://2130706433:{port}/", "https://0x7f000001:{port}/",
    "https://0177.0.0.1:{port}/", "https://127.1:{port}/", "https://0x7f.1/", "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://127.0.0.1.:{port}/",
    "https://localhost:{port}/", "https://localhost.:{port}/", "https://a.localhost/", "https://user@127.0.0.1/",
    "https://evil.example@127.0.0.1/", "https://evil.example:x@127.0.0.1:{port}/", "https://127.0.0.1\\@evil.example/",
    "https://evil.example#@127.0.0.1/\n", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_PING", "unix:///run/x", "ftp://127.0.0.1/",
    "redis://127.0.0.1:{redis}/", "https://127.0.0.1:{redis}/", "dict://127.0.0.1:{redis}/", "data:text/plain,x",
    "//127.0.0.1/",
    "https:///x", "https://", "javascript:alert(1)", "https://①②⑦.0.0.1/", "https://127。0。0。1/", "http://evil.example/",
    "https://evil.example:0/", "https://evil.example:99999/", "https://168.63.129.16/", "https://[::127.0.0.1]/",
)  # fmt: skip


@pytest.mark.proves("A32")
def test_an_address_that_leads_inside_is_refused_unasked(
    target: Target, ear: Any, evidence: list[str]
) -> None:
    operator = target.client("operator")
    for address in INSIDE:
        url = address.format(port=ear.port, redis=target.redis_port)
        for order in ({"fileUrl": url}, {"webhook": url}, {"webhook": {"url": url, "secret": "s"}}):
            answer = operator.post("/api/jobs/submit", json={"command": "true", **order})
            assert answer.status_code == 400, f"{order}: {answer.text}"
        neighbour = target.client("admin").put(
            "/api/processcubes/sub-cubies/inside", json={"url": url, "apiKey": "k"}
        )
        assert neighbour.status_code == 400, f"{url}: {neighbour.text}"
    with listening() as another:  # the same words for an open port and a closed one
        closed = another.port
    words = set()
    for port in (ear.port, closed, target.redis_port):
        answer = operator.post(
            "/api/jobs/submit", json={"command": "true", "webhook": f"https://127.0.0.1:{port}/"}
        )
        words.add(answer.text.replace(str(port), ""))
    assert len(words) == 1
    assert not ear.heard()
    evidence.append(f"{len(INSIDE)} addresses as fileUrl, webhook and sub-Cuby: 400, nobody connected")


@pytest.mark.proves("A33")
def test_a_redirect_inside_is_not_followed(
    target: Target, ear: Any, outside: Outside, evidence: list[str]
) -> None:
    assert target.run("cat *", fileUrl=f"{outside.url}/plain")["stdout"] == "ok"  # the way out works
    for place in (
        f"http://127.0.0.1:{ear.port}/",
        f"https://127.0.0.1:{ear.port}/",
        "file:///etc/passwd",
        f"{outside.url}/plain",
    ):
        outside.redirect_to = place
        job = target.run("cat *", fileUrl=f"{outside.url}/redirect")
        assert (job["status"], job["reason"]) == ("failed", "invalid"), job
        assert "root:" not in job["stdout"]
    hooked = target.submit("true", webhook=f"{outside.url}/redirect-hook")
    target.finished(hooked)
    until(lambda: any(path == "/redirect-hook" for path, _, _ in outside.asked), "the webhook is told")
    job = target.run("true", fileUrl=f"{outside.url}/endless")
    assert job["reason"] == "invalid"
    assert not ear.heard()
    evidence.append("redirects of fileUrl and webhook: not followed")


class _Resolver:
    """A name server that answers with a public address the first time, and with loopback ever after."""

    def __init__(self, host: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 53))
        self.asked: dict[bytes, int] = {}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            question, peer = self.socket.recvfrom(512)
            if question == b"stop":
                return
            end = question.index(b"\0", 12) + 5
            name, kind = question[12:end], question[end - 4 : end - 2]
            answer = b""
            if kind == b"\0\1":
                self.asked[name] = self.asked.get(name, 0) + 1
                inside = b"inside" in name or self.asked[name] > 1
                address = socket.inet_aton("127.0.0.1" if inside else "192.88.98.1")
                answer = b"\xc0\x0c\0\1\0\1" + struct.pack("!IH", 0, 4) + address
                if b"both" in name:
                    answer += b"\xc0\x0c\0\1\0\1" + struct.pack("!IH", 0, 4) + socket.inet_aton("127.0.0.1")
            count = len(answer) // 16
            head = question[:2] + b"\x81\x80\0\1" + struct.pack("!HHH", count, 0, 0)
            self.socket.sendto(head + question[12:end] + answer, peer)

    def close(self) -> None:
        """Stop answering."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"stop", self.socket.getsockname())
        self._thread.join()
        self.socket.close()


@pytest.fixture
def resolver(target: Target) -> Iterator[_Resolver]:
    """A resolver of our own for a worker with the tag `rebound`, which sees another /etc/resolv.conf."""
    host = "127.0.0.77"
    config = target.directory / "resolv.conf"
    config.write_text(f"nameserver {host}\noptions timeout:1 attempts:1\n")
    prefix = (
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        f'mount --bind {config} /etc/resolv.conf && exec "$@"',
        "sh",
    )
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
        server = _Resolver(host) if allowed else None
    except OSError:
        server = None
    if server is None:
        pytest.skip("this machine lets nobody give a process a name server of its own (unshare -m, port 53)")
    target.worker("rebound", tags="rebound", prefix=prefix)
    try:
        target.await_worker("rebound")
        yield server
    finally:
        process = target.processes["rebound"]
        process.terminate()
        process.wait(20)
        server.close()


@pytest.mark.proves("A33")
def test_a_name_that_turns_inward_is_looked_up_once(
    target: Target, ear: Any, resolver: _Resolver, evidence: list[str]
) -> None:
    names = ("rebind.attack.test", "inside.attack.test", "both.attack.test")
    jobs = {
        name: target.submit("cat *", fileUrl=f"https://{name}:{ear.port}/x.tar", tags=["rebound"], timeout=20)
        for name in names
    }
    for name in names[1:]:
        assert target.finished(jobs[name])["reason"] == "invalid", name
    asked = until(lambda: [n for label, n in resolver.asked.items() if b"rebind" in label], "it is looked up")
    time.sleep(1)
    assert not ear.heard()
    target.client("operator").post("/api/jobs/cancel", json={"jobId": jobs[names[0]]})
    assert target.finished(jobs[names[0]])["status"] in {"cancelled", "failed"}
    assert not ear.heard()
    evidence.append(f"names that lead inside or turn there: looked up {asked[0]} time(s), nobody connected")
