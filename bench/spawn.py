"""What starting a command costs: the platforms against xargs and plain subprocess, two `true` in flight."""

import argparse
import contextlib
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from workers.platforms import Command, Platform, choose
from workers.platforms.launcher import read_processes

PATH = "/usr/bin:/bin"


@contextlib.contextmanager
def measured(name: str, count: int, processes: Callable[[], list[int]] = list) -> Iterator[None]:
    """Print spawns a second and CPU ms a spawn: of this process, its children, `processes` and theirs."""

    def cpu_s() -> tuple[float, float, float]:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        others = 0.0
        for pid in processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            others += sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime, others

    before, started = cpu_s(), time.perf_counter()
    yield
    wall_s = time.perf_counter() - started
    own, children, others = ((b - a) / count * 1000 for a, b in zip(before, cpu_s(), strict=True))
    print(
        f"{name:12} {count / wall_s:7.0f}/s   CPU ms a spawn: {own + children + others:.2f} "
        f"(here {own:.2f}, children {children:.2f}, launcher and its children {others:.2f})"
    )


def launchers_of_this_process() -> list[int]:
    """Return this process's guardian and launcher."""
    table = read_processes()
    guardians = [pid for pid, one in table.items() if one.parent == os.getpid()]
    return guardians + [pid for pid, one in table.items() if one.parent in guardians]


def run_platform(platform: Platform, folder: Path, count: int) -> None:
    """Keep both slots of a platform busy until `count` commands have ended."""
    directories = [folder / f"slot-{slot}" for slot in (0, 1)]
    for slot, directory in enumerate(directories):
        platform.prepare_directory(directory, slot)
    environment = {"PATH": PATH, "HOSTLER_JOB_ID": "bench"}
    poll = select.poll()
    poll.register(platform.fileno(), select.POLLIN)
    started = ended = 0
    free = [0, 1]
    while ended < count:
        while free and started < count:
            slot = free.pop()
            platform.spawn(Command(["/usr/bin/true"], environment, directories[slot], slot, "bench"))
            started += 1
        poll.poll()
        for child in platform.pump():
            if child.outcome().exit_code:
                sys.exit("A command failed.")
            child.stdout.read(65536)
            child.stderr.read(65536)
            child.close()
            free.append(child.command.slot)
            ended += 1


def run_popen(count: int) -> None:
    """Do what a loop around subprocess would do, with two in flight."""
    running: list[subprocess.Popen[bytes]] = []
    for _ in range(count):
        if len(running) == 2:
            with running.pop(0) as process:
                process.communicate()
        running.append(
            subprocess.Popen(
                ["/usr/bin/true"], env={"PATH": PATH}, cwd="/tmp", start_new_session=True,  # noqa: S108
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    for process in running:
        process.communicate()


def main() -> None:
    """Measure each, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("kinds", nargs="*", default=["xargs", "popen", "uid", "landlock", "none"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    try:
        for kind in options.kinds:
            if kind == "xargs":
                lines = "\n".join("x" for _ in range(options.count)).encode()
                with measured(kind, options.count):
                    subprocess.run(["/usr/bin/xargs", "-P2", "-n1", "true"], input=lines, check=True)
            elif kind == "popen":
                with measured(kind, options.count):
                    run_popen(options.count)
            else:
                platform = choose(kind, slots=2)
                run_platform(platform, folder, 1)  # from here on the launcher is there
                launchers = launchers_of_this_process()
                with measured(kind, options.count, launchers.copy):
                    run_platform(platform, folder, options.count)
                platform.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
