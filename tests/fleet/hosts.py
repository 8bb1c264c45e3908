"""Hosts of a fleet on one machine: network namespaces that reach the control plane by a cable each, and no further."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace: `address` is what it sees of the machine outside."""

    namespace: str
    address: str

    def command(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs on this host."""
        return ("ip", "netns", "exec", self.namespace, *command)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def host(number: int) -> Iterator[Host]:
    """Make a host; skips where the machine cannot have one."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    word = f"{os.getpid() % 100_000}x{number}"
    name, outside, inside = f"hostler-{word}", f"ho{word}", f"hi{word}"
    subnet = f"10.231.{os.getpid() % 250}.{number * 4}".rpartition(".")
    ours, its = (f"{subnet[0]}.{int(subnet[2]) + each}" for each in (1, 2))
    try:
        _ip("netns", "add", name)
    except OSError as error:
        pytest.skip(f"this machine has no network namespaces: {error}")
    try:
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("addr", "add", f"{ours}/30", "dev", outside)
        _ip("link", "set", outside, "up")
        _ip("-n", name, "addr", "add", f"{its}/30", "dev", inside)
        _ip("-n", name, "link", "set", inside, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield Host(name, ours)
    finally:
        with suppress(OSError):
            _ip("link", "delete", outside)
        _ip("netns", "delete", name)


class Door:
    """A port on a host's side of its cable that leads to a port of loopback, until it is closed."""

    def __init__(self, address: str, port: int) -> None:
        self._target, self._lines = ("127.0.0.1", port), set[socket.socket]()
        self._listener = socket.create_server((address, 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                with suppress(OSError):
                    other = socket.create_connection(self._target)
                    self._lines |= {line, other}
                    for one, two in ((line, other), (other, line)):
                        threading.Thread(target=self._carry, args=(one, two), daemon=True).start()

    def _carry(self, one: socket.socket, two: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                two.sendall(data)
        for each in (one, two):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            with closing(each):
                self._lines.discard(each)

    def close(self) -> None:
        """Let nobody through any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._lines):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
