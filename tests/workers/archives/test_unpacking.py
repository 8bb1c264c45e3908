"""What an archive holds is unpacked whole, or nothing of it is."""

import gzip
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from packing import GOOD, GOOD_TREE, entry, good_tar, header, tar, tree, zipped

from storage.errors import Conflict
from workers import archives
from workers.archives import ArchiveRefused, Extracted, ExtractionCancelled, extract, is_archive


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("anchored", [True, False])
def test_each_kind_of_archive_is_unpacked_whole(
    kind: str, anchored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not anchored:
        monkeypatch.setattr(archives.tree, "ANCHORED", False)
    archive = tmp_path / "upload.anything"
    archive.write_bytes(GOOD[kind]())
    assert is_archive(archive)
    assert extract(archive, tmp_path / "to") == Extracted(files=2, size_bytes=300_010)
    assert tree(tmp_path / "to") == GOOD_TREE
    assert os.access(tmp_path / "to/a/run.sh", os.X_OK)
    assert not (tmp_path / "to/a/b/data").stat().st_mode & 0o111


def test_an_archive_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    for name, data in {
        "report.zip": b"not a zip",
        "table.tar.gz": gzip.compress(b"a,b\n" * 500),
        "zeros.tar": bytes(4096),
        "empty.tar": b"",
        "short.gz": b"\x1f\x8b\x08",
        "text.zst": zstandard.compress(b"text" * 500),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert not is_archive(tmp_path / name), name
        with pytest.raises(ArchiveRefused, match="is not a zip, tar"):
            extract(tmp_path / name, tmp_path / "to")


def test_an_archive_inside_an_archive_stays_packed(unpack: Callable[..., dict[str, object]]) -> None:
    inner = zipped(("deep", b"data"))
    assert unpack(zipped(("inner.zip", inner))) == {"inner.zip": inner}


def test_an_empty_zip_makes_an_empty_directory(unpack: Callable[..., dict[str, object]]) -> None:
    assert unpack(zipped()) == {}


def test_several_gzip_members_and_zstandard_frames_are_read_as_one(
    unpack: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    data = good_tar()
    assert unpack(gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(100)) == GOOD_TREE
    archive = tmp_path / "frames"
    archive.write_bytes(zstandard.compress(data[:700]) + zstandard.compress(data[700:]))
    extract(archive, tmp_path / "frames.d")
    assert tree(tmp_path / "frames.d") == GOOD_TREE


def test_long_names_are_read_from_gnu_and_from_pax_headers(
    unpack: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    name = "/".join(["d" * 90] * 5) + "/ünder"
    for at, format in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        archive = tmp_path / f"long{at}"
        archive.write_bytes(tar(header(name, b"x"), header("after", b"y"), format=format))
        extract(archive, tmp_path / f"to{at}")
        assert (tmp_path / f"to{at}" / name).read_bytes() == b"x"
        assert (tmp_path / f"to{at}" / "after").read_bytes() == b"y"


def test_a_link_that_stays_inside_is_made_even_before_its_target(
    unpack: Callable[..., dict[str, object]],
) -> None:
    data = tar(
        header("bin/tool", kind=tarfile.SYMTYPE, linkname="../lib/tool.js"), header("lib/tool.js", b"code")
    )
    assert unpack(data)["bin/tool"] == "-> ../lib/tool.js"


def test_a_link_in_a_zip_is_made(unpack: Callable[..., dict[str, object]]) -> None:
    data = zipped((entry("here", stat.S_IFLNK | 0o777), b"./there"), ("there", b"data"))
    assert unpack(data) == {"here": "-> ./there", "there": b"data"}


def test_a_hard_link_becomes_a_copy_of_the_earlier_file(unpack: Callable[..., dict[str, object]]) -> None:
    data = tar(header("a/one", b"data"), header("two", kind=tarfile.LNKTYPE, linkname="a/one"))
    assert unpack(data) == {"a": None, "a/one": b"data", "two": b"data"}


def test_setuid_setgid_sticky_and_others_write_bits_are_dropped(tmp_path: Path) -> None:
    for name, data in {
        "t": tar(header("f", b"x", mode=0o7777), header("s", b"x", mode=0o600)),
        "z": zipped((entry("f", stat.S_IFREG | 0o7777), b"x"), (entry("s", stat.S_IFREG | 0o600), b"x")),
    }.items():
        (tmp_path / name).write_bytes(data)
        extract(tmp_path / name, tmp_path / f"{name}.d")
        mode = stat.S_IMODE((tmp_path / f"{name}.d/f").stat().st_mode)
        assert mode & ~0o755 == 0
        assert mode & 0o100
        assert stat.S_IMODE((tmp_path / f"{name}.d/s").stat().st_mode) == 0o600


def test_nothing_is_unpacked_into_a_directory_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(good_tar())
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine").write_bytes(b"mine")
    with pytest.raises(Conflict, match="not empty"):
        extract(tmp_path / "upload", tmp_path / "to")
    assert tree(tmp_path / "to") == {"mine": b"mine"}


@pytest.mark.parametrize("kind", GOOD)
def test_cancelling_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(GOOD[kind]())
    asked = iter([False, False, False])
    with pytest.raises(ExtractionCancelled):
        extract(tmp_path / "upload", tmp_path / "to", cancelled=lambda: next(asked, True))
    assert not (tmp_path / "to").exists()


def test_a_directory_that_was_there_before_stays_and_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(tar(header("a/b", b"x"), header("../c", b"y")))
    (tmp_path / "to").mkdir()
    with pytest.raises(ArchiveRefused):
        extract(tmp_path / "upload", tmp_path / "to")
    assert tree(tmp_path / "to") == {}


def test_a_parent_swapped_for_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    outside, into = tmp_path / "outside", tmp_path / "to"
    outside.mkdir()
    (tmp_path / "upload").write_bytes(
        tar(header("a/one", b"x"), header("b/two", b"x"), header("a/three", b"x"))
    )

    def swap() -> bool:
        if (into / "b/two").exists() and not (into / "a").is_symlink():
            (into / "a").rename(into / "moved")
            (into / "a").symlink_to(outside)
        return False

    if not archives.tree.ANCHORED:
        pytest.skip("this system cannot open files relative to a directory")
    with pytest.raises(OSError, match="a"):
        extract(tmp_path / "upload", into, cancelled=swap)
    assert not list(outside.iterdir())
    assert not into.exists()
