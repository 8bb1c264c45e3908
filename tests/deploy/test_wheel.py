"""Wheel and sdist: what a clean environment installs from them is the whole of Hostler, under its right version."""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deploy.slug import ROOT, environ_of, uv

pytestmark = pytest.mark.stack


@dataclass
class Built:
    """What was built, and where it is installed with the embedded servers."""

    wheel: Path
    sdist: Path
    programs: Path

    @property
    def version(self) -> str:
        """Return what the wheel calls itself."""
        return self.wheel.name.split("-")[1]

    def run(self, *words: str, within_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run one of the environment's programs, far away from the tree."""
        program = str(self.programs / words[0])
        return subprocess.run(
            [program, *words[1:]], cwd=self.programs.parent, env=environ_of(self.programs), capture_output=True,
            text=True, timeout=within_s, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    with tempfile.TemporaryDirectory(prefix="hostler-wheel-") as folder:
        directory = Path(folder)
        directory.chmod(0o711)  # slots are other users
        done = uv("build", "--quiet", "--out-dir", str(directory / "dist"), str(ROOT))
        assert done.returncode == 0, done.stderr
        (wheel,) = (directory / "dist").glob("*.whl")
        (sdist,) = (directory / "dist").glob("*.tar.gz")
        environment = directory / "environment"
        for words in (
            ("venv", "--quiet", "--python", sys.executable, str(environment)),
            ("pip", "install", "--quiet", "--python", str(environment), f"{wheel}[embedded]"),
        ):
            done = uv(*words)
            assert done.returncode == 0, done.stderr
        yield Built(wheel, sdist, environment / "bin")


def test_the_wheel_installed_in_an_empty_environment_passes_the_demonstration(built: Built) -> None:
    ended = built.run("python", str(ROOT / "examples/demo.py"), within_s=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for shown in ("$ hostler up --port 0", "PASSED: 14 of 14 tests", "everything is stopped"):
        assert shown in ended.stdout


def test_what_is_installed_knows_its_version(built: Built) -> None:
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(\.dev\d+)?", built.version)
    for words in (("hostler", "--version"), ("python", "-c", "import settings; print(settings.__version__)")):
        assert built.run(*words).stdout.strip() == built.version
    assert built.sdist.name == f"hostler-{built.version}.tar.gz"


def test_an_install_from_the_sdist_is_the_same(built: Built) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = uv("build", "--quiet", "--wheel", "--out-dir", folder, str(built.sdist))
        assert done.returncode == 0, done.stderr
        (again,) = Path(folder).glob("*.whl")
        assert again.name == built.wheel.name
        assert names(again) == names(built.wheel)


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_neither_tests_nor_what_was_left_lying_is_in_them(built: Built) -> None:
    held = names(built.wheel)
    rooms = {name.partition("/")[0] for name in held if not name.startswith("hostler-")}
    assert rooms == {"api", "cli", "integrations", "scheduler", "settings.py", "storage", "workers"}
    assert not [name for name in held if "node_modules" in name or "__pycache__" in name]
    assert any(name.endswith("storage/scripts/submit.lua") for name in held)
    with tarfile.open(built.sdist) as archive:
        inside = {name.partition("/")[2].partition("/")[0] for name in archive.getnames()}
    assert inside.isdisjoint({"tests", ".git", ".venv", "bench"})
    assert os.path.getsize(built.wheel) < 5e6
