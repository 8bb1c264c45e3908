"""The balancers that Hostler ships a configuration for, started on ports of the test's own."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import ROOT, until
from servers import free_port

SHIPPED = ROOT / "deploy" / "balancers"
#: The ports in the configurations as they are shipped: of the balancer, and of two web servers.
PORTS = ("8080", "8081", "8082")


def _nginx(text: str, directory: Path) -> tuple[str, list[str]]:
    around = (
        f"daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;\n"
        "events { worker_connections 512; }\n"
        f"http {{ access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n"
        f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n{text}\n}}\n"
    )
    return around, ["nginx", "-e", "stderr", "-c"]


def _haproxy(text: str, directory: Path) -> tuple[str, list[str]]:
    return text, ["haproxy", "-db", "-f"]


KINDS: dict[str, tuple[str, Callable[[str, Path], tuple[str, list[str]]]]] = {
    "nginx": ("nginx.conf", _nginx),
    "haproxy": ("haproxy.cfg", _haproxy),
}


@contextmanager
def balancer(kind: str, directory: Path, webs: tuple[int, int], *, sticky: bool = True) -> Iterator[int]:
    """Start a balancer before two web servers, as it is shipped or without stickiness; its port is answered."""
    if shutil.which(kind) is None:
        pytest.skip(f"{kind} is not installed")
    name, prepared = KINDS[kind]
    text, port = (SHIPPED / name).read_text(), free_port()
    for before, after in zip(PORTS, (port, *webs), strict=True):
        text = text.replace(f"127.0.0.1:{before}", f"127.0.0.1:{after}")
    if not sticky:
        text = text.replace("hash $remote_addr consistent;", "").replace(
            "balance source\n    hash-type consistent", "balance roundrobin"
        )
    directory.mkdir(exist_ok=True)
    text, command = prepared(text, directory)
    file = directory / name
    file.write_text(text)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(file)], stdout=log, stderr=subprocess.STDOUT)
    try:

        def listens() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        until(listens, f"{kind} listens")
        time.sleep(1.5 if kind == "haproxy" else 0)  # its first health checks
        yield port
    finally:
        process.terminate()
        process.wait(10)
