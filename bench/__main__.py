"""`python -m bench`: run the figures, print a line for each goal, write RESULTS.md and results.json."""

import argparse
import sys

from bench import report
from bench.figures import all_figures
from bench.run import run


def main() -> int:
    """Run the chosen figures and return 1 if any of them misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help="ids of the figures to run, e.g. P3,P11")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--list", action="store_true", help="name the figures and run none")
    options = parser.parse_args()
    wanted = {name.strip().upper() for name in options.only.split(",") if name.strip()}
    figures = [each for each in all_figures() if not wanted or each.id in wanted]
    if unknown := wanted - {each.id for each in figures}:
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    if options.list:
        for figure in figures:
            print(figure.id, figure.what)
        return 0
    before = report.circumstances()
    packages = ", ".join(f"{name} {version}" for name, version in before["packages"].items())
    print(
        f"load {before['load'][0]} on {before['cores']} cores, commit {before['commit']}, "
        f"Python {before['python']}, {packages}",
        flush=True,
    )
    missed = False
    for figure in figures:
        verdicts = run(figure, quick=options.quick)
        for verdict in verdicts:
            print(verdict.line(), flush=True)
            missed = missed or verdict.outcome == "FAIL"
        report.write([figure], verdicts, before, quick=options.quick)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
