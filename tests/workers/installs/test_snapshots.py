"""Copies of data: faithful, independent of the original, whole or not there, and led astray by no link."""

import os
import socket
from pathlib import Path

import pytest

from workers.installs import snapshots


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    (data / "inner" / "file").write_bytes(b"x" * 100_000)
    (data / "inner" / "file").chmod(0o640)
    os.utime(data / "inner" / "file", ns=(1_000_000_000, 2_000_000_000))
    (data / "empty").mkdir(mode=0o700)
    return data


def test_a_copy_keeps_content_modes_and_times(data: Path, tmp_path: Path) -> None:
    snapshots.take(data, tmp_path / "copy")
    facts = (tmp_path / "copy" / "inner" / "file").stat()
    assert (facts.st_size, facts.st_mode & 0o777, facts.st_mtime_ns) == (100_000, 0o640, 2_000_000_000)
    assert (tmp_path / "copy" / "empty").stat().st_mode & 0o777 == 0o700


def test_writing_into_the_original_leaves_the_copy_alone(data: Path, tmp_path: Path) -> None:
    snapshots.take(data, tmp_path / "copy")
    with (data / "inner" / "file").open("r+b") as file:
        file.write(b"changed")
    assert (tmp_path / "copy" / "inner" / "file").read_bytes() == b"x" * 100_000


def test_hard_links_stay_links_to_one_another_and_to_nothing_else(data: Path, tmp_path: Path) -> None:
    (data / "second").hardlink_to(data / "inner" / "file")
    (tmp_path / "outside").hardlink_to(data / "inner" / "file")
    snapshots.take(data, tmp_path / "copy")
    first, second = (tmp_path / "copy" / name for name in ("inner/file", "second"))
    assert first.samefile(second)
    assert not first.samefile(data / "second")
    assert first.stat().st_nlink == 2


def test_links_are_copied_and_never_followed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (data / "out").symlink_to(tmp_path / "secret")
    (data / "dangling").symlink_to("nowhere")
    snapshots.take(data, tmp_path / "copy")
    assert (tmp_path / "copy" / "out").readlink() == tmp_path / "secret"
    assert (tmp_path / "copy" / "dangling").is_symlink()


def test_what_is_neither_file_nor_folder_is_left_out(data: Path, tmp_path: Path) -> None:
    os.mkfifo(data / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(data / "socket"))
        snapshots.take(data, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"inner", "empty"}


def test_a_data_directory_that_is_a_link_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(OSError, match=r"symbolic|directory"):
        snapshots.take(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_is_cancelled_leaves_the_one_before(data: Path, tmp_path: Path) -> None:
    snapshots.take(data, tmp_path / "copy")
    (data / "new").write_text("new")
    with pytest.raises(InterruptedError):
        snapshots.take(data, tmp_path / "copy", cancelled=lambda: True)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "copy"}
    assert not (tmp_path / "copy" / "new").exists()


def test_a_snapshot_is_put_back_as_often_as_needed(data: Path, tmp_path: Path) -> None:
    snapshots.take(data, tmp_path / "copy")
    (data / "inner" / "file").write_text("spoilt")
    (data / "more").write_text("")
    for _ in range(2):
        snapshots.restore(tmp_path / "copy", data)
        assert (data / "inner" / "file").stat().st_size == 100_000
        assert not (data / "more").exists()
    assert (tmp_path / "copy").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owners_are_kept(data: Path, tmp_path: Path) -> None:
    for path in data, data / "inner", data / "inner" / "file":
        os.chown(path, 63_999, 63_999)
    snapshots.take(data, tmp_path / "copy")
    assert {(tmp_path / "copy" / name).stat().st_uid for name in ("", "inner", "inner/file")} == {63_999}
