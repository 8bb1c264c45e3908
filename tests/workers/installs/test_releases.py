"""Releases on the disk: what counts as whole, what is thrown away, and that `current` never leads nowhere."""

import os
from pathlib import Path

import pytest

from storage.errors import NotFound
from workers.installs.releases import Note, Releases, remove_tree


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "app")


def make(releases: Releases, version: str, origin: str = "o") -> str:
    name = releases.name_for(version, origin)
    (releases.begin(name) / "file").write_text(version)
    releases.finish(name, Note(version, origin))
    return name


def test_a_release_is_whole_once_its_note_is_there(releases: Releases) -> None:
    releases.begin("1.0")
    assert releases.whole() == {}
    with pytest.raises(NotFound):
        releases.switch("1.0")
    releases.finish("1.0", Note("1.0", "o"))
    releases.switch("1.0")
    assert releases.current() == "1.0"


def test_the_same_bytes_are_found_again_and_others_get_another_directory(releases: Releases) -> None:
    assert make(releases, "1.0", "first") == "1.0"
    assert releases.name_for("1.0", "first") == "1.0"
    assert make(releases, "1.0", "second") == "1.0-2"
    assert releases.name_for("1.0", "second") == "1.0-2"
    assert releases.name_for("1.0", "third") == "1.0-3"


def test_a_sweep_removes_only_what_is_not_whole(releases: Releases) -> None:
    make(releases, "1.0")
    (releases.begin("2.0") / "half").write_text("half")
    (releases.path("2.0").parent / ".fetch-x").mkdir()
    assert releases.sweep() == 2
    assert set(releases.whole()) == {"1.0"}
    assert [path.name for path in releases.path("1.0").parent.iterdir()] == ["1.0"]


def test_a_note_without_its_directory_is_no_release(releases: Releases) -> None:
    make(releases, "1.0")
    remove_tree(releases.path("1.0"))
    assert releases.note("1.0") is None


def test_a_note_that_was_cut_short_is_no_release(releases: Releases) -> None:
    make(releases, "1.0")
    (releases.root / "notes" / "1.0.json").write_text('{"version": "1')
    assert releases.whole() == {}


def test_switching_replaces_the_link_in_one_step(releases: Releases) -> None:
    for version in "1.0", "2.0":
        make(releases, version)
        releases.switch(version)
    assert (releases.root / "current" / "file").read_text() == "2.0"
    (releases.root / "current.new").symlink_to("left by a kill")
    releases.switch("1.0")
    assert (releases.root / "current" / "file").read_text() == "1.0"
    assert not os.path.lexists(releases.root / "current.new")


def test_the_current_release_is_never_pruned(releases: Releases) -> None:
    for version in "1.0", "2.0", "3.0":
        make(releases, version)
    releases.switch("1.0")
    releases.prune({"3.0"})
    assert set(releases.whole()) == {"1.0", "3.0"}


def test_a_tree_is_removed_whatever_its_modes(tmp_path: Path) -> None:
    deep = tmp_path / "tree" / "locked"
    deep.mkdir(parents=True)
    (deep / "file").write_text("")
    deep.chmod(0o500)
    (tmp_path / "outside").write_text("stays")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "outside").read_text() == "stays"
