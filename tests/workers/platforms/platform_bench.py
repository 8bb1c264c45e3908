"""A platform with room for commands, driven step by step, and what the machine says of the processes of one test."""

import os
import select
import subprocess
import sys
import time
import uuid

import pytest

from workers.platforms import Child, Command, Outcome, choose
from workers.platforms.portable import PortablePlatform

ON_LINUX = sys.platform == "linux"
IS_ROOT = ON_LINUX and os.geteuid() == 0
PATH = "/usr/local/bin:/usr/bin:/bin"
PATIENCE_S = 10

if ON_LINUX:
    from workers.platforms import launcher
    from workers.platforms.landlock import version as landlock_version

    HAS_LANDLOCK = landlock_version() > 0
    SCOPES_SIGNALS = landlock_version() >= 6
else:
    HAS_LANDLOCK = SCOPES_SIGNALS = False

NEEDED = {
    "uid": (IS_ROOT, "only root gives commands users of their own"),
    "landlock": (HAS_LANDLOCK, "this kernel has no Landlock"),
    "none": (ON_LINUX, "the launcher needs Linux"),
    "portable": (True, ""),
}


def need(kind):
    there, reason = NEEDED[kind]
    if not there:
        pytest.skip(reason)


class Bench:
    """A platform with a directory for each of its four slots and followers, and a loop around it."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.platform = PortablePlatform() if kind == "portable" else choose(kind, slots=4, followers=4)
        self.children: list[Child] = []
        self.ended: list[int] = []  # in this order
        self.next_slot = 0

    def spawn(self, *argv, environment=None, slot=None, memory_limit_bytes=None, **follows):
        job_id = f"job-{uuid.uuid4().hex}"
        if slot is None:
            slot, self.next_slot = self.next_slot, (self.next_slot + 1) % 4
        directory = self.folder / f"slot-{slot}"
        self.platform.prepare_directory(directory, slot)
        variables = {"PATH": PATH, "HOSTLER_JOB_ID": job_id, **(environment or {})}
        child = self.platform.spawn(
            Command(list(argv), variables, directory, slot, job_id, memory_limit_bytes), **follows
        )
        self.children.append(child)
        return child

    def follow(self, before, *argv, for_s=PATIENCE_S):
        slot = (before.command.slot + 4) % 8
        return self.spawn(*argv, slot=slot, after=before, until_s=time.monotonic() + for_s)

    def pump(self, timeout_s=PATIENCE_S):
        poll = select.poll()
        poll.register(self.platform.fileno(), select.POLLIN)
        poll.poll(timeout_s * 1000)
        self.ended += map(id, self.platform.pump())

    def wait(self, child) -> Outcome | None:
        deadline = time.monotonic() + PATIENCE_S
        while id(child) not in self.ended:
            assert time.monotonic() < deadline, "the command did not end"
            self.pump(1)
        return None if child.given_back else child.outcome()

    def run(self, *argv, **options):
        child = self.spawn(*argv, **options)
        return self.wait(child), read_all(child.stdout), read_all(child.stderr)

    def close(self):
        self.platform.close()
        for child in self.children:
            child.close()


def read_all(output):
    """Return what is in an output now, without waiting for its end."""
    data = b""
    while piece := output.read(65536):
        data += piece
    return data


def read_line(output):
    """Wait for a line of an output."""
    poll = select.poll()
    poll.register(output.fileno(), select.POLLIN)
    data = b""
    while not data.endswith(b"\n"):
        assert poll.poll(PATIENCE_S * 1000), "nothing was printed"
        piece = output.read(1)
        assert piece, "the output ended before the line did"
        data += piece
    return data.decode().strip()


def alive(word):
    """Return the processes whose command line holds `word`."""
    listed = subprocess.run(
        ["ps", "axww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 2) for line in listed.stdout.splitlines() if word in line]
    return [int(words[0]) for words in lines if words[1][0] not in "ZX"]


def descriptors(pid):
    """Return how many descriptors a process has open, once it stays that for a moment."""
    before = None
    while before != (now := len(os.listdir(f"/proc/{pid}/fd"))):
        before = now
        time.sleep(0.05)
    return now


def await_true(condition, timeout_s=PATIENCE_S):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.01)


def launcher_of(platform):
    """Return the launcher, and its guardian."""
    guardian = platform._launcher.pid
    return [child_of(guardian), guardian]


def child_of(pid):
    found = []

    def look():
        found[:] = [child for child, one in launcher.read_processes().items() if one.parent == pid]
        return found

    await_true(look)
    return found[0]
