import os
import socket
import zipfile
from pathlib import Path

import pytest

from cli.packing import Packed, pack
from storage.errors import Invalid
from workers.archives import Extracted, extract


def write(path: Path, data: bytes = b"x", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def names(target: Path) -> list[str]:
    with zipfile.ZipFile(target) as archive:
        return archive.namelist()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def described(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = "directory"
        else:
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o755)
    return found


def test_what_is_packed_comes_out_the_same(project: Path, tmp_path: Path) -> None:
    write(project / "run.sh", b"#!/bin/sh\n", 0o755)
    write(project / "src/größe.py", b"x" * 600_000)
    write(project / "node_modules/tool/cli.js", b"code", 0o755)
    write(project / "secret", b"key", 0o600)
    write(project / "empty file", b"")
    (project / "empty").mkdir()
    (project / "node_modules/.bin").mkdir()
    (project / "node_modules/.bin/tool").symlink_to("../tool/cli.js")
    (project / "latest").symlink_to("src")
    (project / "dangling").symlink_to("not/yet")

    told: list[tuple[str, int]] = []
    packed = pack(project, tmp_path / "up.zip", on_file=lambda name, size: told.append((name, size)))
    extracted = extract(tmp_path / "up.zip", tmp_path / "out")

    assert described(tmp_path / "out") == described(project)
    assert packed == Packed(5, 600_017)
    assert extracted == Extracted(5, 600_017)
    assert told == [
        ("empty file", 0),
        ("node_modules/tool/cli.js", 4),
        ("run.sh", 10),
        ("secret", 3),
        ("src/größe.py", 600_000),
    ]


def test_the_same_files_give_the_same_bytes(project: Path, tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/b"):
        write(project / name)
    pack(project, tmp_path / "1.zip")
    os.utime(project / "b", (1, 1))
    pack(project, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert names(tmp_path / "1.zip") == ["a/", "a/b", "a/z", "b"]


def test_version_control_environments_and_caches_stay_behind(project: Path, tmp_path: Path) -> None:
    for folder in (".git", ".hg", ".svn", ".venv", "venv", ".tox", "lib/__pycache__", ".mypy_cache"):
        write(project / folder / "file")
    for folder in (".pytest_cache", ".ruff_cache", "node_modules", ".github"):
        write(project / folder / "file")
    pack(project, tmp_path / "up.zip")
    assert [name for name in names(tmp_path / "up.zip") if not name.endswith("/")] == [
        ".github/file",
        "node_modules/file",
    ]


def test_what_hostlerignore_matches_stays_behind(project: Path, tmp_path: Path) -> None:
    write(project / ".hostlerignore", b"# large things\n\n*.log\ndata/\nsrc/*.tmp\n")
    for name in ("a.log", "deep/b.log", "data/x", "src/data/kept", "src/y.tmp", "z.tmp"):
        write(project / name)
    pack(project, tmp_path / "up.zip")
    assert [name for name in names(tmp_path / "up.zip") if not name.endswith("/")] == [
        ".hostlerignore",
        "src/data/kept",
        "z.tmp",
    ]


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "a/../../outside"])
def test_a_link_that_leads_out_is_refused_by_name(target: str, project: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside")
    write(project / "a" / "b")
    (project / "sub").mkdir()
    (project / "link").symlink_to(target)
    with pytest.raises(Invalid, match="'link' leads out of the folder"):
        pack(project, tmp_path / "up.zip")
    assert not (tmp_path / "up.zip").exists()


def test_links_that_stay_inside_by_a_detour_are_straightened(project: Path, tmp_path: Path) -> None:
    write(project / "a/file")
    (project / "b").mkdir()
    (project / "b/absolute").symlink_to(project / "a/file")
    (project / "b/winding").symlink_to("../b/../a/file")
    (project / "b/around").symlink_to("../../project/a/file")
    pack(project, tmp_path / "up.zip")
    extract(tmp_path / "up.zip", tmp_path / "out")
    for name in ("absolute", "winding", "around"):
        assert os.readlink(tmp_path / "out/b" / name) == "../a/file"


def test_sockets_and_fifos_stay_behind(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(project / "fifo")
    monkeypatch.chdir(project)  # a socket's path may be short only
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        pack(project, tmp_path / "up.zip")
    assert names(tmp_path / "up.zip") == []


def test_the_target_does_not_pack_itself(project: Path) -> None:
    write(project / "file")
    target = project / "up.zip"
    for _ in range(2):
        pack(project, target)
        assert names(target) == ["file"]


@pytest.mark.parametrize(("name", "why"), [(b"back\\slash", "backslash"), (b"\xff", "UTF-8")])
def test_a_name_that_cannot_travel_is_refused(name: bytes, why: str, project: Path, tmp_path: Path) -> None:
    try:
        write(project / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system does not allow the name")
    with pytest.raises(Invalid, match=why):
        pack(project, tmp_path / "up.zip")
    assert not (tmp_path / "up.zip").exists()
