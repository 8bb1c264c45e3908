"""The three processes of the ticker; what they share lies in $HOSTLER_DATA_DIR."""

import os
import sys
import time
from pathlib import Path

DATA = Path(os.environ.get("HOSTLER_DATA_DIR", "."))
TICKS = DATA / "ticks"


def prepare() -> None:
    """Make the file that the others use."""
    TICKS.touch()
    print(f"there are {TICKS.stat().st_size} ticks already")


def tick() -> None:
    """Add a tick a second, for ever."""
    while True:
        with TICKS.open("a") as file:
            file.write(".")
        print(f"tick {TICKS.stat().st_size}")
        time.sleep(1)


def report() -> None:
    """Say how many there are."""
    print(f"{TICKS.stat().st_size} ticks so far")


if __name__ == "__main__":
    {"prepare": prepare, "tick": tick, "report": report}[sys.argv[1]]()
