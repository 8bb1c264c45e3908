"""The lock: it covers what pyproject.toml asks for, with hashes, and the embedded servers are not in it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.txt").read_text()


def locked() -> dict[str, tuple[Version, str]]:
    """Return what is locked: the version by name, and the text with the hashes."""
    found = {}
    for entry in re.split(r"\n(?=[a-z0-9])", LOCK):
        if match := re.match(r"([a-z0-9._-]+)==([^ ;\\]+)", entry):
            found[canonicalize_name(match[1])] = Version(match[2]), entry
    return found


@pytest.mark.parametrize("wanted", PROJECT["dependencies"])
def test_the_lock_covers_each_dependency(wanted: str) -> None:
    requirement = Requirement(wanted)
    version, _ = locked()[canonicalize_name(requirement.name)]
    assert version in requirement.specifier, f"{requirement} is locked at {version}; run make lock."


def test_everything_locked_has_hashes_and_comes_by_name() -> None:
    entries = locked()
    assert len(entries) > len(PROJECT["dependencies"])
    assert all(len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)) >= 1 for _, entry in entries.values())
    assert "://" not in LOCK  # no index and no link of whoever wrote it


@pytest.mark.parametrize("extra", ["embedded", "check"])
def test_extras_are_not_in_the_lock(extra: str) -> None:
    own = {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]}
    for each in PROJECT["optional-dependencies"][extra]:
        name = canonicalize_name(Requirement(each).name)
        assert name in own or name not in locked(), name


def test_the_python_that_a_buildpack_takes_is_one_that_is_tested() -> None:
    version = (ROOT / ".python-version").read_text().strip()
    assert re.fullmatch(r"3\.\d+", version)  # the newest patch of it, as it comes out
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])
    assert version == "3.11" or version == f"{sys.version_info.major}.{sys.version_info.minor}"
