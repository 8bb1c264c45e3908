"""Carries out jobs of a node in children that are killed at a given step; reads cases from stdin, a line each.

A case is JSON: {"environ": {...}, "folder": "...", "step": "fetch", "running": "path" | null}. With `running`, the
child is killed once that file is there, which the install step makes. Answers each line with how the child ended.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fake_node import Node

from settings import Settings


def die_once_there(path: str) -> None:
    """Kill this process once a file is there."""

    def watch() -> None:
        while not list(Path(path).parent.glob(Path(path).name)):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def killer(wanted: str) -> Callable[[str], None]:
    """Return what kills this process when the step `wanted` begins."""

    def step(name: str) -> None:
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


async def carry_out(case: dict[str, str]) -> None:
    """Take the next job of the node, until death."""
    node = Node(Settings.from_env(case["environ"]), Path(case["folder"]))
    await node.register(proof=case["proof"])
    if running := case.get("running"):
        die_once_there(running)
    with contextlib.suppress(IndexError):
        await node.work(step=killer(case["step"]))
    await node.store.close()


def main() -> None:
    """Fork a child for each case: it has everything imported already."""
    for line in sys.stdin:
        case = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                asyncio.run(carry_out(case))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
