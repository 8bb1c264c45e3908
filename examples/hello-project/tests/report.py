"""Runs the tests, says so line by line, and writes reports/tests.json and reports/summary.txt."""

import json
import platform
import sys
import time
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
REPORTS = PROJECT / "reports"


class Recorder(unittest.TestResult):
    """Keeps each test's outcome and duration, and prints a line when it ends."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.expected = expected
        self.tests: list[dict[str, object]] = []
        self._started = 0.0
        self._outcome = ("passed", "")

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802  unittest's name
        """Remember when `test` began."""
        super().startTest(test)
        self._started, self._outcome = time.perf_counter(), ("passed", "")

    def addFailure(self, test, err) -> None:  # noqa: N802, D102  as above
        super().addFailure(test, err)
        self._outcome = ("failed", str(err[1]))

    def addError(self, test, err) -> None:  # noqa: N802, D102
        super().addError(test, err)
        self._outcome = ("error", f"{err[0].__name__}: {err[1]}")

    def addSkip(self, test, reason) -> None:  # noqa: N802, D102
        super().addSkip(test, reason)
        self._outcome = ("skipped", reason)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        """Record and print how `test` ended."""
        super().stopTest(test)
        duration_s = round(time.perf_counter() - self._started, 3)
        outcome, message = self._outcome
        name = test.id().rpartition(".")[2].removeprefix("test_").replace("_", " ")
        self.tests.append(
            {"id": test.id(), "name": name, "outcome": outcome, "message": message, "duration_s": duration_s}
        )
        print(f"[{len(self.tests):2}/{self.expected}] {outcome:7} {duration_s:6.3f} s  {name}", flush=True)


def main() -> int:
    """Run every test; return 0 when all passed, 1 otherwise."""
    suite = unittest.defaultTestLoader.discover(str(PROJECT / "tests"), top_level_dir=str(PROJECT))
    recorder = Recorder(suite.countTestCases())
    print(f"Running {recorder.expected} tests on Python {platform.python_version()}", flush=True)
    started = time.perf_counter()
    suite.run(recorder)
    duration_s = round(time.perf_counter() - started, 3)

    passed = sum(test["outcome"] == "passed" for test in recorder.tests)
    verdict = "PASSED" if recorder.tests and recorder.wasSuccessful() else "FAILED"
    report = {"verdict": verdict, "passed": passed, "total": len(recorder.tests), "duration_s": duration_s}
    lines = [f"{verdict}: {passed} of {len(recorder.tests)} tests passed in {duration_s} s", ""]
    lines += [f"{test['outcome']:7} {test['duration_s']:6.3f} s  {test['name']}" for test in recorder.tests]
    for test, trace in recorder.failures + recorder.errors:
        lines += ["", str(test), trace.rstrip()]
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "tests.json").write_text(
        json.dumps(report | {"tests": recorder.tests}, indent=2) + "\n", "utf-8"
    )
    (REPORTS / "summary.txt").write_text("\n".join(lines) + "\n", "utf-8")
    print(lines[0], flush=True)
    return 0 if verdict == "PASSED" else 1


if __name__ == "__main__":
    sys.exit(main())
