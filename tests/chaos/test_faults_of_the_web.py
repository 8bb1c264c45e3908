"""F23-F31: web processes that die or reload, and clients that repeat themselves, vanish, or never finish a sentence."""

import random
import signal
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import httpx
import orjson
import pytest
from processes import until
from world import Client, World, children, strike, together

MIB = 1 << 20


def web_of(world: World) -> int:
    """Return the process that gunicorn's workers are children of."""
    (master,) = [p.pid for p in world.stack.processes if "gunicorn" in p.args and p.poll() is None]  # type: ignore[operator]
    return master


def resources(world: World) -> dict[str, float]:
    """Return what the web processes use: open descriptors, and memory in MiB."""
    pids = children(web_of(world))
    rss = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)
    return {
        "descriptors": float(sum(len(list(Path(f"/proc/{p}/fd").iterdir())) for p in pids)),
        "MiB": rss / MIB,
    }


@pytest.mark.proves("F23")
def test_what_a_dying_web_process_acknowledged_is_kept_and_the_rest_can_be_repeated(
    world: World, client: Client, chance: random.Random, evidence: list[str]
) -> None:
    world.worker("f23", "--slots", "4")
    killed = 0

    def submit(_: int) -> None:
        key = f"f23-{chance.random()}"
        made = client.submit("true", key)
        for _ in range(100):
            if made.outcome == "ok":
                return
            time.sleep(0.1)
            made = client.submit("true", key)
        raise AssertionError(f"never accepted: {made}")

    with together(8) as pool:
        submits = [pool.submit(submit, number) for number in range(200)]
        while not all(each.done() for each in submits) and killed < 4:
            time.sleep(chance.uniform(0.05, 0.3))
            if victims := children(web_of(world)):
                strike(chance.choice(victims))
                killed += 1
        for each in submits:
            each.result()
    evidence += [f"{killed} web processes killed", world.check()]


@pytest.mark.proves("F24")
def test_a_job_that_vanished_from_its_queue_is_put_back(
    world: World, client: Client, evidence: list[str]
) -> None:
    ids = [client.insist("true") for _ in range(5)]
    with world.redis() as database:
        for job_id in ids[:3]:
            assert database.lrem("rq:queue:jobs.normal", 0, job_id) == 1
    began = time.monotonic()
    world.worker("f24")
    for job_id in ids:
        assert client.ended(job_id)["status"] == "completed"
    took_s = time.monotonic() - began
    assert took_s < 10
    evidence += [f"3 entries lost, all run within {took_s:.1f} s", world.check()]


@pytest.mark.proves("F25")
def test_a_reload_under_load_fails_nobody_and_followers_resume(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f25")
    followed = client.insist("for i in $(seq 60); do echo line $i; sleep 0.1; done")
    world.await_start(followed)
    seen: list[int] = []
    resumed = 0

    def follow() -> None:
        nonlocal resumed
        last = "0"
        while True:
            with suppress(httpx.TransportError):
                headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
                with client.http.stream("GET", f"/api/jobs/{followed}/log", headers=headers) as answer:
                    if answer.status_code != 200:
                        time.sleep(0.1)
                        continue
                    event = ""
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last = value
                        elif name == "event":
                            event = value
                        elif name == "data" and event == "output":
                            seen.extend(_numbers(value))
                        if event == "completed" and not line:
                            return
            resumed += 1

    follower = threading.Thread(target=follow)
    follower.start()
    stopping = threading.Event()

    def load() -> None:
        while not stopping.is_set():
            client.insist("true")
            time.sleep(0.02)

    with together(3) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        for _ in range(2):
            time.sleep(0.7)
            strike(web_of(world), signal.SIGHUP)
        time.sleep(1.5)
        stopping.set()
        for each in loads:
            each.result()
    follower.join(30)
    assert seen == list(range(1, 61)), seen
    assert resumed >= 1
    failed = [call for call in world.calls if call.status >= 500]
    assert not failed, failed[:3]
    evidence += [f"2 reloads: no 5xx, the follower resumed {resumed} times and missed nothing", world.check()]


def _numbers(data: str) -> list[int]:
    return [int(line.split()[1]) for line in orjson.loads(data)["data"].splitlines()]


@pytest.mark.proves("F26")
def test_fifty_submits_under_one_key_are_one_job(world: World, client: Client, evidence: list[str]) -> None:
    world.worker("f26")
    key = f"f26-{uuid.uuid4().hex}"
    with together(50) as pool:
        made = list(pool.map(lambda _: client.submit("true", key), range(50)))
    assert {each.outcome for each in made} == {"ok"}
    assert len({each.text for each in made}) == 1
    other = client.submit("false", key)
    assert other.status == 422
    evidence += ["50 at once: 1 job, 1 answer; another body: 422", world.check()]


@pytest.mark.proves("F27")
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
def test_an_upload_that_breaks_off_leaves_nothing(
    world: World, client: Client, share: float, evidence: list[str]
) -> None:
    name = f"broken-{share}.bin"
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" % name.encode()
    ) + bytes(20 * MIB)
    head = (
        f"POST /api/files/upload HTTP/1.1\r\nHost: x\r\nX-API-Key: {world.key}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body) + 9}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", world.web_port), 20) as connection:
        connection.sendall(head + body[: int(len(body) * share)])
        time.sleep(0.2)
    bucket = world.stack.env["S3_BUCKET"]
    assert world.s3 is not None
    store = world.s3.client
    until(lambda: not store.list_multipart_uploads(Bucket=bucket).get("Uploads"), "its parts are gone", 60)
    listed = client.http.get("/api/files/list").json()["files"]
    assert name not in [file["filename"] for file in listed]
    with world.redis() as database:
        pending = [key for key in database.scan_iter("h:file:*") if database.type(key) == b"hash"]
        states = [database.hmget(key, "state", "name") for key in pending]
    evidence += [f"broken off at {share:.0%}: not listed, no parts left"]
    assert all(state != b"ready" or broken != name.encode() for state, broken in states)
    world.check()


@pytest.mark.proves("F28")
def test_clients_that_vanish_while_they_are_told_something_cost_nothing(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f28")
    followed = client.insist("sleep 20; true", timeout=60)
    world.await_start(followed)
    uploaded = client.http.post("/api/files/upload", files={"file": ("big.bin", bytes(8 * MIB))}).json()

    def vanish(number: int) -> None:
        path, accept = f"/api/jobs/{followed}/log", "text/event-stream"
        if number % 5 == 0:
            path, accept = f"/api/files/download/{uploaded['fileId']}", "*/*"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {world.key}\r\nAccept: {accept}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", world.web_port), 20) as connection:
            connection.sendall(request.encode())
            connection.recv(2000)

    with together(16) as pool:
        list(
            pool.map(vanish, range(250))
        )  # the first ones bring in what stays: clients of the stores, threads
        time.sleep(1)
        before = resources(world)
        list(pool.map(vanish, range(500)))
    deadline = time.monotonic() + 10
    while (after := resources(world))["descriptors"] > before[
        "descriptors"
    ] + 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    world.growth.append(("descriptors", before["descriptors"], after["descriptors"]))
    world.growth.append(("MiB", before["MiB"], after["MiB"]))
    client.cancel(followed)
    evidence += [
        f"500 vanished: descriptors {before['descriptors']:.0f} -> {after['descriptors']:.0f}",
        world.check(),
    ]


@pytest.mark.slow
@pytest.mark.proves("F30")
def test_two_hundred_clients_that_never_finish_a_sentence_hold_nobody_up(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f30")
    connections = []
    for number in range(200):
        connection = socket.create_connection(("127.0.0.1", world.web_port), 20)
        head = b"GET /api/health HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"G"
        connection.sendall(head)
        connections.append(connection)
    began = time.monotonic()
    open_ones, took = set(connections), []
    while open_ones and time.monotonic() - began < 40:
        for connection in list(open_ones):
            connection.setblocking(False)
            try:
                connection.send(b"x")
                if connection.recv(1000) == b"":
                    open_ones.discard(connection)
            except BlockingIOError:
                pass
            except OSError:
                open_ones.discard(connection)
        asked = time.monotonic()
        assert client.http.get("/api/jobs/list").status_code == 200
        took.append(time.monotonic() - asked)
        time.sleep(0.2)
    cut_s = time.monotonic() - began
    for connection in connections:
        connection.close()
    assert not open_ones
    slowest = sorted(took)[int(len(took) * 0.99)]
    assert slowest < 1
    client.insist("true")
    evidence += [
        f"all cut after {cut_s:.0f} s; others were served in {slowest * 1000:.0f} ms (p99)",
        world.check(),
    ]


@pytest.mark.proves("F31")
def test_a_handler_that_fails_answers_without_a_trace_and_goes_on(
    world: World, client: Client, evidence: list[str]
) -> None:
    world.worker("f31")
    spoilt = "job-" + "0" * 20
    keys = [f"h:job:{spoilt}", f"h:artifacts:{spoilt}", f"h:log:{spoilt}", "h:file:file-" + "0" * 20]
    with world.redis() as database:
        for key in keys:  # not what any handler expects there
            database.rpush(key, "spoilt")
    try:
        paths = [("GET", f"/api/jobs/status?jobId={spoilt}"), ("GET", f"/api/jobs/{spoilt}/log?after=0"),
                 ("GET", f"/api/jobs/{spoilt}/why"), ("GET", f"/api/jobs/{spoilt}/artifacts"),
                 ("POST", f"/api/jobs/{spoilt}/retry"), ("GET", "/api/files/file-" + "0" * 20)]  # fmt: skip
        answers = [client.http.request(method, path) for method, path in paths]
        answers.append(client.http.post("/api/jobs/cancel", json={"jobId": spoilt}))
    finally:
        with world.redis() as database:
            database.delete(*keys)
    for answer in answers:
        assert answer.status_code in {404, 500}, (answer.url, answer.text)
        assert answer.headers["x-request-id"]
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.json()
        assert not any(word in answer.text for word in ("Traceback", "WRONGTYPE", ".py", "redis"))
    failed = sum(answer.status_code == 500 for answer in answers)
    assert failed >= 3
    assert client.ended(client.insist("true"))["status"] == "completed"
    evidence += [f"{failed} handlers failed: JSON, request id, no trace", world.check()]
