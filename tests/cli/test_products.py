"""`hostler products`, against a server that answers as told."""

import json
from pathlib import Path

import pytest
from fake_server import Answer, FakeServer, error

from cli.main import main

RELEASE = {
    "product": "hello", "version": "1.0", "name": "Hello", "source": {"kind": "archive", "key": "k"},
    "publishedAt": "2026-01-25T10:30:00Z", "publishedBy": "user:u", "manifest": None,
}  # fmt: skip
MANIFEST = '\nid = "hello"\nversion = "1.0"\n[processes.web]\ncommand = ["true"]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "hostler.toml").write_text(MANIFEST)
    (folder / "main.py").write_text("print()")
    return folder


def test_publishing_uploads_the_folder_and_makes_a_release_of_it(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("POST /api/files/upload", Answer(201, {"fileId": "file-1"}))
    server.on("POST /api/releases", Answer(201, RELEASE))
    assert main(["products", "publish", str(folder)]) == 0
    assert capsys.readouterr().out == "hello 1.0\n"
    assert server.last("/api/releases").json == {"fileId": "file-1"}
    assert b"main.py" in server.last("/api/files/upload").body


def test_a_wrong_manifest_is_told_before_anything_is_uploaded(
    server: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "hostler.toml").write_text('id = "hello"\n[processes.web]\nscale = 2\n')
    assert main(["products", "publish", str(folder)]) == 1
    assert "processes.web.command" in capsys.readouterr().err
    assert server.asked == []


def test_a_folder_without_a_manifest_is_refused(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["products", "publish", str(tmp_path)]) == 1
    assert f"{tmp_path}: There is neither hostler.toml nor" in " ".join(capsys.readouterr().err.split())


def test_a_package_of_a_registry_is_named_with_a_manifest_of_ones_own(
    server: FakeServer, folder: Path
) -> None:
    server.on("POST /api/releases", Answer(201, RELEASE))
    words = ["products", "add", "hello", "--npm", "@scope/hello", "--version", "1.0"]
    assert main([*words, "--manifest", str(folder / "hostler.toml")]) == 0
    asked = server.last("/api/releases").json
    assert asked["source"] == {"kind": "npm", "package": "@scope/hello", "version": "1.0"}
    assert asked["manifest"]["processes"]["web"]["command"] == ["true"]


def test_a_product_comes_from_one_registry(server: FakeServer) -> None:
    assert main(["products", "add", "hello"]) == 2
    assert main(["products", "add", "hello", "--npm", "a", "--pypi", "b"]) == 2


def test_all_pages_of_products_are_listed(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    product = {"product": "hello", "name": "Hello", "newest": "1.0", "description": "", "releases": [RELEASE]}
    pages = [
        Answer(body={"products": [product], "total": 2}),
        Answer(body={"products": [product], "total": 2}),
    ]
    server.on("GET /api/releases", *pages)
    assert main(["products", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["products"]) == 2


def test_removing_a_product_removes_each_release_and_says_which_stayed(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = [{**RELEASE, "version": "2.0"}, RELEASE]
    server.on("GET /api/releases/hello", Answer(body={"releases": releases}))
    server.on("DELETE /api/releases/hello/2.0", Answer(204))
    server.on("DELETE /api/releases/hello/1.0", error(409, "Release 1.0 of 'hello' is installed as 'hello'."))
    assert main(["products", "remove", "hello"]) == 1
    told = capsys.readouterr().err
    assert "Removed hello 2.0." in told
    assert "is installed as 'hello'" in told
