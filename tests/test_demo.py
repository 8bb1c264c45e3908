"""`make demo`, on a stranger's folder: what is shown, what it exits with, and that nothing is left behind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parent.parent / "examples/demo.py"

TESTS = """
import pathlib, sys, unittest

class Test(unittest.TestCase):
    def test_something(self):
        print("a line of the log")
        pathlib.Path("reports").mkdir()
        pathlib.Path("reports/summary.txt").write_text("what the report says")
        self.fail("on purpose")
"""


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"tests/report.py": ""}, "python3 -m tests.report"),
        ({"package.json": json.dumps({"scripts": {"test": "jest"}})}, "npm test"),
        ({"package.json": "{}", "Makefile": "all:\n\ntest: all\n\ttrue\n"}, "make test"),
        ({"Makefile": "testing:\n", "tests/test_a.py": "import pytest"}, "python3 -m pytest"),
        ({"test_a.py": "import unittest"}, "python3 -m unittest -v"),
        ({"README.md": "no tests"}, None),
    ],
)
def test_the_command_is_guessed_from_what_is_there(
    files: dict[str, str], command: str | None, demo: ModuleType, tmp_path: Path
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert demo.guess(tmp_path) == command


def run(project: Path, temporary: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}  # noqa: TID251
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    environ["TMPDIR"] = str(temporary)
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(project)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_folder_that_is_not_plain_how_to_test_is_asked_about(tmp_path: Path) -> None:
    ended = run(tmp_path, tmp_path)
    assert ended.returncode == 2
    assert "CMD='…'" in ended.stderr


@pytest.mark.stack
def test_a_strangers_failing_tests_are_run_and_shown_with_public_commands(tmp_path: Path) -> None:
    project, temporary = tmp_path / "project", tmp_path / "temporary"
    project.mkdir()
    temporary.mkdir()
    (project / "test_it.py").write_text(TESTS)
    ended = run(project, temporary)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    for shown in (
        "CMD is not given",
        "$ hostler up --port 0",
        "$ hostler submit 'python3 -m unittest -v' --file",
        "a line of the log\n",
        "$ hostler jobs artifacts job-",
        "what the report says",
        "everything is stopped",
    ):
        assert shown in ended.stdout
    assert "failed, exit code 1" in ended.stderr
    assert list(temporary.iterdir()) == []
    assert left_running(temporary) == []


def left_running(folder: Path) -> list[str]:
    """Return the command lines of processes that know of `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in line:
            found.append(line)
    return found
