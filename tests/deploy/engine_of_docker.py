"""A Docker engine, the machine's or one that ends with the tests, and a base image that comes from no registry."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from settings import process_environment

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Engine:
    """A Docker engine; `own` tells that it is ours, without networks and without a registry."""

    host: str | None
    own: bool

    def __call__(self, *words: str, within_s: float = 60, check: bool = True, stdin: object = None) -> str:
        """Run `docker` with these words, and return what it printed."""
        environ = process_environment() | ({"DOCKER_HOST": self.host} if self.host else {})
        ended = subprocess.run(
            ["docker", *words], env=environ, capture_output=True, timeout=within_s, check=False, stdin=stdin
        )  # type: ignore[call-overload]
        printed = ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")
        assert not check or ended.returncode == 0, f"docker {words}: {printed[-4000:]}"
        return printed.strip()


@contextmanager
def engine() -> Iterator[Engine]:
    """Give an engine. Skips where there is none and none can be started."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker in PATH")
    known = subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False)
    if known.returncode == 0:
        yield Engine(None, own=False)
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("no Docker engine runs here, and only root can start dockerd")
    directory = Path(tempfile.mkdtemp(prefix="hostler-docker-"))
    log, host = directory / "log", f"unix://{directory}/docker.sock"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", f"--data-root={directory}/data",
             f"--exec-root={directory}/exec", f"--pidfile={directory}/pid", f"--host={host}",
             "--default-ulimit=nofile=1024:4096", "--default-ulimit=nproc=4096:4096"],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        found = Engine(host, own=True)
        deadline = time.monotonic() + 30
        while "Server Version" not in found("info", check=False):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {log.read_text(errors='replace')[-300:]}")
            time.sleep(0.2)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        for line in (
            Path("/proc/self/mounts").read_text().splitlines()
        ):  # dockerd leaves a network namespace behind
            if (mounted := line.split()[1]).startswith(f"{directory}/"):
                subprocess.run(["umount", mounted], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def import_base(docker: Engine, name: str) -> None:
    """Make a small Debian with Python, which trusts whom this machine trusts, and import it as the image `name`."""
    if shutil.which("debootstrap") is None:
        pytest.skip("there is no registry to pull a base image from, and no debootstrap to make one with")
    directory = Path(tempfile.mkdtemp(prefix="hostler-base-"))
    try:
        root = directory / "root"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm",
             str(root)],
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip(f"debootstrap cannot fetch Debian here: {made.stdout[-300:]}")
        for part in ("share/doc", "share/man", "share/locale", "share/info"):  # as slim images do
            shutil.rmtree(root / "usr" / part, ignore_errors=True)
        for part in ("var/cache/apt/archives", "var/lib/apt/lists"):
            for path in (root / part).iterdir():
                if path.is_file():
                    path.unlink()
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
            (root / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packing:
            docker("import", "-", name, within_s=300, stdin=packing.stdout)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
