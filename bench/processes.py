"""Processes of the bench: started in a session of their own, their CPU and memory read, ended as a family."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from settings import process_environment

ROOT = Path(__file__).parent.parent
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_OURS = ("HOSTLER_", "S3_", "AWS_", "REDIS_", "PORT", "WEB_CONCURRENCY", "GUNICORN_")


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what configures Hostler, and with `more`."""
    return {k: v for k, v in process_environment().items() if not k.startswith(_OURS)} | more


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(
    command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT,
    grace_s: float = 30.0,
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """Run `command` in a session of its own, its words in the file `log`; TERM, then KILL at the end."""
    with log.open("ab") as words:
        child = subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=dict(env or environment()), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield child
    finally:
        family = descendants(child.pid)
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            for pid in [*family, child.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.wait(10)


def await_port(port: int, child: subprocess.Popen[bytes], log: Path, patience_s: float = 30) -> None:
    """Wait until somebody listens on `port`. Raises RuntimeError with the end of `log` when `child` ends first."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if child.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Nothing listens on {port}: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(pid: int) -> list[int]:
    """Return the living processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) is not None:
            parents.setdefault(int(fields[1]), []).append(int(name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def cpu_s(*pids: int) -> float:
    """Return the CPU seconds that `pids`, all below them, and their reaped children have used so far."""
    family = {each for pid in pids for each in [pid, *descendants(pid)]}
    stats = [fields for each in family if (fields := _stat(each)) is not None]
    return sum(sum(map(int, fields[11:15])) for fields in stats) * _TICK_S


def rss_bytes(*pids: int) -> int:
    """Return the resident memory of `pids` themselves."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids)


def python(*arguments: str) -> list[str]:
    """Return the command that runs this Python."""
    return [sys.executable, *arguments]
