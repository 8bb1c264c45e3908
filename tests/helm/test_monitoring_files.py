"""The alert rules and the dashboard that the chart brings: understood by promtool, right for any number of replicas."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "files" / "alerts.yaml"
DASHBOARD = ROOT / "helm" / "files" / "dashboard.json"
TESTS = Path(__file__).parent / "alerts_test.yaml"

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (prometheus) is not installed"
)
#: Series that each server or page has of its own, so that they may be added up.
OWN = re.compile(r"hostler_(http_request_seconds\w*|info|scrape_seconds)")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Return every expression of rules and dashboard, with what it is called."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@promtool
def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    found = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(rules())} rules found" in found.stdout


@promtool
def test_each_alert_comes_when_it_should_and_only_then() -> None:
    found = subprocess.run(["promtool", "test", "rules", TESTS], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_test_that_it_stays_quiet() -> None:
    (quiet, *_) = yaml.safe_load(TESTS.read_text())["tests"]
    assert [each["alertname"] for each in quiet["alert_rule_test"]] == [rule["alert"] for rule in rules()]


def test_every_alert_says_what_is_wrong_and_what_follows_and_is_documented() -> None:
    documented = (ROOT / "docs" / "observability.md").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"].endswith(".")
        assert f"`{rule['alert']}`" in documented


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_what_is_said_of_the_fleet_is_not_added_up_over_replicas(where: str, expression: str) -> None:
    for match in re.finditer(r"hostler_\w+", expression):
        if OWN.fullmatch(match.group()):
            continue
        before = expression[: match.start()]
        assert re.search(r"\b(max|min)( by \([^)]*\))? ?\((rate\(|increase\(|delta\()?$", before), where


def test_panels_of_the_dashboard_do_not_lie_on_one_another_and_have_ids_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
