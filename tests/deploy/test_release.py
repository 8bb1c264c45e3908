"""A release: one version everywhere, a readable changelog, a list of parts, workflows that run what people run."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from settings import __version__

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}
#: The kinds of change that keepachangelog.com names.
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def test_the_version_that_is_worked_on_is_one_everywhere(release: str | None) -> None:
    wanted = release or __version__
    chart = yaml.safe_load((ROOT / "helm/Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert __version__ == wanted
    assert chart["appVersion"] == wanted
    assert project["tool"]["hatch"]["version"]["fallback-version"] == wanted


def test_the_changelog_tells_each_kind_of_change_apart(release: str | None) -> None:
    title, *sections = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)
    assert title.startswith("# Changelog")
    headings = [section.splitlines()[0] for section in sections]
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:])
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= KINDS
    if release:
        assert headings[1].startswith(f"[{release}] - ")


def test_actions_are_pinned_and_may_do_no_more_than_they_have_to() -> None:
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 90
        for step in steps(name):
            used = step.get("uses")
            assert used is None or re.search(r"@(v\d+\.\d+\.\d+|[0-9a-f]{40})$", used), used


def test_the_workflows_run_what_people_run() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in WORKFLOWS:
        commands = [step["run"] for step in steps(name) if "run" in step]
        assert "make check" in commands
        made = [
            word
            for command in commands
            if command.startswith("make ")
            for word in command.split()[1:]
            if "=" not in word
        ]
        assert {word for word in made if word.isidentifier() or "-" in word} <= targets


def test_what_a_release_consists_of_is_listed_and_signed() -> None:
    used = [step.get("uses", "").partition("@")[0] for step in steps("release")]
    assert {
        "actions/attest-sbom",
        "actions/attest-build-provenance",
        "sigstore/gh-action-sigstore-python",
    } <= set(used)
    runs = [step.get("run", "") for step in steps("release")]
    assert runs.index("make check") < runs.index("make dist sbom")


def test_the_list_of_parts_is_the_lock(tmp_path: Path) -> None:
    written = tmp_path / "sbom.json"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", str(ROOT / "requirements.txt"),
         "--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--of", "JSON", "-o", str(written)],
        check=True, timeout=120,
    )  # fmt: skip
    listed = json.loads(written.read_text())
    locked = re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert {(part["name"], part["version"]) for part in listed["components"]} == set(locked)
    assert all(part["externalReferences"][0]["hashes"] for part in listed["components"])
    assert listed["metadata"]["component"]["name"] == "hostler"


@pytest.mark.parametrize("name", ["check", "release"])
def test_a_workflow_names_when_it_runs(name: str) -> None:
    assert WORKFLOWS[name][True]  # `on`, which YAML reads as yes
