"""No member's path and no link leads out of where it is unpacked, or to where something is."""

import stat
import tarfile
from collections.abc import Callable

import pytest
from packing import entry, header, pax, tar, zipped

from workers.archives import ArchiveRefused

BAD_NAMES = {
    "../evil": "leads up",
    "a/../../evil": "leads up",
    "a/..": "leads up",
    "/etc/evil": "absolute",
    "//host/evil": "absolute",
    "C:evil": "drive",
    "c:/evil": "drive",
    "..\\evil": "backslash",
    "\\\\host\\evil": "backslash",
    "a\\b": "backslash",
    ".": "no name",
    "a" * 256: "too long a name",
    "a/" * 600 + "b": "too long a path",
    "a/" * 201 + "b": "too deep",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_path_that_is_not_plainly_inside_is_refused(
    name: str, unpack: Callable[..., dict[str, object]]
) -> None:
    for data in (
        tar(header("ok", b"x"), header(name, b"x")),
        tar(header("ok", b"x"), *pax({"path": name}, header("innocent", b"x"))),
        tar(header("ok", b"x"), *pax({"path": name}, header("innocent", b"x"), kind=tarfile.XGLTYPE)),
        tar(header("ok", b"x"), header("L", name.encode() + b"\0", kind=b"L"), header("innocent", b"x")),
        zipped(("ok", b"x"), (name, b"x")),
    ):
        with pytest.raises(ArchiveRefused, match=BAD_NAMES[name]):
            unpack(data)


def test_an_empty_name_a_nul_and_bytes_that_are_not_utf8_are_refused(
    unpack: Callable[..., dict[str, object]],
) -> None:
    for data, why in (
        (tar(*pax({"path": ""}, header("innocent", b"x"))), "no name"),
        (tar(*pax({"path": "a\0b"}, header("innocent", b"x"))), "NUL"),
        (zipped(("aXb", b"x")).replace(b"aXb", b"a\0b"), "NUL"),
        (tar(header("\udcff", b"x")), "UTF-8"),
    ):
        with pytest.raises(ArchiveRefused, match=why):
            unpack(data)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("same", "same"),
        ("same", "./same"),
        ("Readme", "README"),
        ("straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("file", "file/below"),
        ("FILE", "file/below"),
        ("dir/below", "DIR"),
    ],
)
def test_two_members_for_one_place_are_refused(
    first: str, second: str, unpack: Callable[..., dict[str, object]]
) -> None:
    for data in (tar(header(first, b"1"), header(second, b"2")), zipped((first, b"1"), (second, b"2"))):
        with pytest.raises(ArchiveRefused, match="where there is already"):
            unpack(data)


BAD_TARGETS = [
    "/etc/passwd",
    "..",
    "../../canary",
    "a/../../canary",
    "a/..",
    "C:/windows",
    "..\\canary",
    "",
    "x/" * 600,
]


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_a_symlink_that_may_lead_out_is_refused(
    target: str, unpack: Callable[..., dict[str, object]]
) -> None:
    for data in (
        tar(*pax({"linkpath": target}, header("link", kind=tarfile.SYMTYPE, linkname="ok"))),
        zipped((entry("link", stat.S_IFLNK | 0o777), target.encode())),
    ):
        with pytest.raises(ArchiveRefused, match="symbolic link"):
            unpack(data)


def test_links_that_lead_out_only_together_are_refused(unpack: Callable[..., dict[str, object]]) -> None:
    """Each is inside when read literally; the second climbs from where the first leads (CVE-2025-4517)."""
    data = tar(
        header("d/e/f/up", kind=tarfile.SYMTYPE, linkname="../../.."),
        header("out", kind=tarfile.SYMTYPE, linkname="d/e/f/up/../../canary"),
    )
    with pytest.raises(ArchiveRefused, match="'out' is a symbolic link that may lead out"):
        unpack(data)


@pytest.mark.parametrize("below", ["link/file", "LINK/file", "link/deep/file"])
def test_writing_through_a_symlink_is_refused_in_either_order(
    below: str, unpack: Callable[..., dict[str, object]]
) -> None:
    link, file = header("link", kind=tarfile.SYMTYPE, linkname="dir"), header(below, b"x")
    zip_link = (entry("link", stat.S_IFLNK | 0o777), b"dir")
    for data in (
        tar(header("dir/", kind=tarfile.DIRTYPE), link, file),
        tar(header("dir/", kind=tarfile.DIRTYPE), file, link),
        zipped(zip_link, (below, b"x")),
        zipped((below, b"x"), zip_link),
    ):
        with pytest.raises(ArchiveRefused, match="where there is already"):
            unpack(data)


@pytest.mark.parametrize("target", ["/etc/passwd", "../canary", "later", "link", "dir", "nowhere", "hard"])
def test_a_hard_link_to_anything_but_an_earlier_file_is_refused(
    target: str, unpack: Callable[..., dict[str, object]]
) -> None:
    data = tar(
        header("dir/", kind=tarfile.DIRTYPE),
        header("link", kind=tarfile.SYMTYPE, linkname="dir"),
        header("earlier", b"x"),
        header("hard", kind=tarfile.LNKTYPE, linkname=target),
        header("later", b"x"),
    )
    with pytest.raises(ArchiveRefused):
        unpack(data)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "FIFO"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"M", "unknown type"),
    ],
)
def test_a_special_member_of_a_tar_is_refused(
    kind: bytes, what: str, unpack: Callable[..., dict[str, object]]
) -> None:
    with pytest.raises(ArchiveRefused, match=what):
        unpack(tar(header("ok", b"x"), header("special", kind=kind)))


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_special_member_of_a_zip_is_refused(kind: int, unpack: Callable[..., dict[str, object]]) -> None:
    with pytest.raises(ArchiveRefused, match="device, FIFO or socket"):
        unpack(zipped(("ok", b"x"), (entry("special", kind | 0o600), b"")))
