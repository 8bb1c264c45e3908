"""The scoreboard of faults, attacks and loads: a line for each id, `ID PASS|FAIL|SKIP seconds evidence`.

A test says which ids it covers with `@pytest.mark.proves("F01")` and, through the fixture `evidence`, what it saw.
An id passes when all of its tests do. `--only F03,F17` runs these alone, `--only F` all of a letter, `--seeds 5` runs
each test so many times with another `seed`. Ids that must not be skipped where CI runs are listed in `required.txt`
beside the tests.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import groups
import pytest

_RESULTS: dict[str, list[tuple[str, float, str]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only", default="", help="ids to run, comma-separated, e.g. F03,F17; F for all of them"
    )
    parser.addoption("--seeds", type=int, default=1, help="how often to run each of these tests")
    parser.addoption("--soak-minutes", type=float, default=1.0, help="how long the soak takes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(*ids): the faults, attacks or loads that a test covers")


def ids_of(item: pytest.Item) -> tuple[str, ...]:
    """Return the ids that a test proves."""
    return tuple(str(each) for mark in item.iter_markers("proves") for each in mark.args)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = {each.strip() for each in config.getoption("--only").split(",") if each.strip()}
    if only:
        kept = [item for item in items if only & {word for each in ids_of(item) for word in (each, each[0])}]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    groups.put_in_order(config, items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds")))


@pytest.fixture
def chance(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Chance that the seed and the test's name decide, so that a failure can be had again."""
    return random.Random(f"{request.node.originalname} {seed}")  # noqa: S311  times of kills, not secrets


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> list[str]:
    """What the test saw, for its line on the scoreboard."""
    seen: list[str] = []
    request.node.evidence = seen
    return seen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    decided = report.when == "call" or report.outcome != "passed"
    if decided and (ids := ids_of(item)):
        word = {"passed": "PASS", "failed": "FAIL", "skipped": "SKIP"}[report.outcome]
        why = "; ".join(getattr(item, "evidence", ()))
        if word == "SKIP" and isinstance(report.longrepr, tuple):
            why = report.longrepr[2].removeprefix("Skipped: ")
        elif word == "FAIL":
            why = f"{item.name}: {str(report.longrepr).strip().splitlines()[-1][:200]}"
        # it goes with the report, which may go to another process
        report.proves = [(each, word, report.duration, why) for each in ids]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for each, word, duration_s, why in getattr(report, "proves", ()):
        _RESULTS.setdefault(each, []).append((word, duration_s, why))


def _verdict(results: list[tuple[str, float, str]]) -> str:
    words = {word for word, _, _ in results}
    return next(word for word in ("FAIL", "SKIP", "PASS") if word in words)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _RESULTS:
        return
    terminalreporter.section("scoreboard")
    verdicts = {each: _verdict(results) for each, results in sorted(_RESULTS.items())}
    for each, verdict in verdicts.items():
        results = _RESULTS[each]
        seconds = sum(duration for _, duration, _ in results)
        said = "; ".join(dict.fromkeys(why for word, _, why in results if why and word == verdict))
        terminalreporter.write_line(f"{each} {verdict} {seconds:.1f} {said}".rstrip())
    counts = {
        word: sum(verdict == word for verdict in verdicts.values()) for word in ("PASS", "FAIL", "SKIP")
    }
    terminalreporter.write_line(f"{counts['PASS']} PASS, {counts['FAIL']} FAIL, {counts['SKIP']} SKIP")


def required() -> set[str]:
    """Return the ids that must pass where CI runs."""
    lists = Path(__file__).parent.glob("*/required.txt")
    words = (line.partition("#")[0].split() for path in lists for line in path.read_text().splitlines())
    return {word for line in words for word in line}


def pytest_sessionfinish(session: pytest.Session) -> None:
    skipped = sorted(each for each in required() & set(_RESULTS) if _verdict(_RESULTS[each]) == "SKIP")
    if os.environ.get("CI") and skipped:  # noqa: TID251  a test runner may ask where it runs
        print(f"\nskipped, but required here: {', '.join(skipped)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
