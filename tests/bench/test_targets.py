import json
from pathlib import Path
from typing import Any

import pytest

from bench import target
from bench.figure import Bench, Missing
from bench.target import Found, Target, at_least, at_most, run
from bench.targets import all_targets

RUN: dict[str, Any] = {
    "at": "now", "cores": 2, "load": [1.0], "commit": "c0ffee", "python": "3", "kernel": "6",
    "packages": {"falcon": "4"},
}  # fmt: skip


def aim(figures: dict[str, float], **how: Any) -> Target:
    limits = (at_most("p99", 20, "ms"), at_least("rate", 25, "/s"))
    return Target(id="L98", what="a load", limits=limits, measure=lambda _: Found(figures, ("10 s",)), **how)


def test_a_target_whose_figures_keep_their_limits_passes_in_one_line() -> None:
    verdict = run(aim({"p99": 7.123, "rate": 25}))
    assert verdict.line() == "L98 p99 7.12ms <=20ms, rate 25/s >=25/s, 10 s PASS"


def test_a_target_names_the_figures_that_it_misses_and_their_reason() -> None:
    verdict = run(aim({"p99": 20.5, "rate": 30}, reason="the disk is the bound"))
    assert verdict.outcome == "FAIL"
    assert verdict.line().endswith("FAIL (p99) the disk is the bound")


def test_a_target_that_can_be_awaited_is() -> None:
    async def measure(_: Bench) -> Found:
        return Found({"lost": 0})

    assert run(Target(id="L98", what="", limits=(at_most("lost", 0),), measure=measure)).outcome == "PASS"


@pytest.mark.parametrize(
    ("error", "line"),
    [(Missing("there is no curl"), "L98 SKIP there is no curl"), (OSError("gone"), "L98 FAIL OSError: gone")],
)
def test_a_target_that_cannot_be_measured_says_why(error: Exception, line: str) -> None:
    def measure(_: Bench) -> Found:
        raise error

    assert run(Target(id="L98", what="", limits=(), measure=measure)).line() == line


def test_what_a_target_used_ends_with_it_and_the_long_setting_reaches_it() -> None:
    seen: list[Bench] = []

    def measure(bench: Bench) -> Found:
        seen.append(bench)
        (bench.directory / "blob").write_bytes(b"much")
        return Found({})

    run(Target(id="L98", what="", limits=(), measure=measure), long=True)
    assert seen[0].long
    assert not seen[0].directory.exists()


def test_the_table_keeps_what_other_runs_found(tmp_path: Path) -> None:
    for name, figures in (("L98", {"p99": 30.0, "rate": 25.0}), ("L03", {"p99": 5.0, "rate": 25.0})):
        aimed = Target(
            id=name, what="a|b", limits=aim({}).limits, measure=lambda _, found=figures: Found(found)
        )
        target.write(run(aimed), RUN, RUN, long=False, folder=tmp_path)
    kept = json.loads((tmp_path / "load.json").read_text())["targets"]
    assert {name: entry["outcome"] for name, entry in kept.items()} == {"L03": "PASS", "L98": "FAIL"}
    rows = [line for line in (tmp_path / "LOAD.md").read_text().splitlines() if line.startswith("| L")]
    assert [row.split(" | ")[1] for row in rows] == ["a\\|b", "a\\|b"]
    assert "p99 5ms <=20ms" in rows[0]


def test_every_target_that_was_asked_for_is_declared() -> None:
    wanted = [f"L{number:02}" for number in (*range(1, 17), 19)]
    assert [each.id for each in all_targets()] == wanted
