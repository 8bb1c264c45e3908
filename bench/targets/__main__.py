"""`python -m bench.targets`: put loads on Hostler, print a line for each target, write LOAD.md and load.json."""

import argparse
import collections
import signal
import sys
import time

from bench.report import circumstances
from bench.target import run, write
from bench.targets import all_targets


def main() -> int:
    """Run the chosen targets and return 1 if any of them is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.targets", description=__doc__)
    parser.add_argument("--only", default="", help="ids of the targets to run, e.g. L03,L07")
    parser.add_argument(
        "--long", action="store_true", help="hold load and outages for as long as they are asked for"
    )
    parser.add_argument("--list", action="store_true", help="name the targets and run none")
    options = parser.parse_args()
    wanted = {name.strip().upper() for name in options.only.split(",") if name.strip()}
    targets = [each for each in all_targets() if not wanted or each.id in wanted]
    if unknown := wanted - {each.id for each in targets}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.list:
        for target in targets:
            print(target.id, target.what)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with us
    began, outcomes = time.monotonic(), collections.Counter[str]()
    for target in targets:
        before = circumstances()
        verdict = run(target, long=options.long)
        print(verdict.line(), flush=True)
        write(verdict, before, circumstances(), long=options.long)
        outcomes[verdict.outcome] += 1
    counts = ", ".join(f"{outcomes[each]} {each}" for each in ("PASS", "FAIL", "SKIP"))
    print(f"{len(targets)} targets: {counts}, {time.monotonic() - began:.0f} s")
    return 1 if outcomes["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
