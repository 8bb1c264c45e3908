import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import Conflict
from workers import archives
from workers.archives import ArchiveRefused, Extracted, ExtractionCancelled, Limits, extract, is_archive

MIB = 1024 * 1024
END = bytes(1024)
Header = tuple[tarfile.TarInfo, bytes]


def header(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: object) -> Header:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def tar(*members: Header, format: int = tarfile.GNU_FORMAT) -> bytes:
    out = b""
    for member, data in members:
        out += member.tobuf(format, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)
    return out + END


def pax(records: dict[str, str], member: Header, *, kind: bytes = tarfile.XHDTYPE) -> tuple[Header, Header]:
    data = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return header("pax", data, kind=kind), member


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def entry(name: str, mode: int, flag_bits: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    info.flag_bits = flag_bits
    return info


def tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(params=["below open directories", "by plain paths"])
def unpack(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, object]]:
    """Unpack bytes into a directory beside which a canary lies; whatever happens, nothing else may change."""
    if request.param == "by plain paths":
        monkeypatch.setattr(archives.tree, "ANCHORED", False)
    elif not archives.tree.ANCHORED:
        pytest.skip("this system cannot open files relative to a directory")

    def unpack_into_tmp_path(data: bytes, **options: Limits) -> dict[str, object]:
        archive, into = tmp_path / "upload.bin", tmp_path / "in" / "to"
        archive.write_bytes(data)
        into.parent.mkdir(exist_ok=True)
        (tmp_path / "canary").write_bytes(b"alive")
        try:
            extract(archive, into, **options)
        except ArchiveRefused:
            assert not into.exists(), "a refused archive leaves something behind"
            raise
        finally:
            assert (tmp_path / "canary").read_bytes() == b"alive"
            assert {path.name for path in tmp_path.iterdir()} == {"upload.bin", "in", "canary"}
            assert {path.name for path in (tmp_path / "in").iterdir()} <= {"to"}
        return tree(into)

    return unpack_into_tmp_path


GOOD_TREE = {"a": None, "a/run.sh": b"#!/bin/sh\n", "a/b": None, "a/b/data": b"x" * 300_000, "empty": None}


def good_tar() -> bytes:
    return tar(
        header("a/", kind=tarfile.DIRTYPE),
        header("./a/run.sh", b"#!/bin/sh\n", mode=0o755),
        header("a/b/data", b"x" * 300_000, mode=0o644),
        header("empty/", kind=tarfile.DIRTYPE),
    )


def good_zip() -> bytes:
    return zipped(
        (entry("a/run.sh", stat.S_IFREG | 0o755), b"#!/bin/sh\n"),
        ("a/b/data", b"x" * 300_000),
        ("empty/", b""),
    )


GOOD = {
    "zip": good_zip,
    "tar": good_tar,
    "tar.gz": lambda: gzip.compress(good_tar(), 1),
    "tar.zst": lambda: zstandard.compress(good_tar()),
}


# ---- what is unpacked ----------------------------------------------------------------------------


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


# ---- what is refused: paths ----------------------------------------------------------------------

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


# ---- what is refused: links and special files ----------------------------------------------------

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


# ---- what is refused: how it is packed -----------------------------------------------------------


def test_an_encrypted_zip_is_refused(unpack: Callable[..., dict[str, object]]) -> None:
    data = bytearray(zipped(("secret", b"x")))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(ArchiveRefused, match="'secret' is encrypted"):
        unpack(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_without_bound_are_refused(method: int, unpack: Callable[..., dict[str, object]]) -> None:
    with pytest.raises(ArchiveRefused, match="neither stored nor deflated"):
        unpack(zipped(("a", b"x" * 1000), method=method))


def overlapping_zip(count: int, kernel: bytes) -> bytes:
    """Many entries of the table of contents that share one local entry."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(kernel) + packer.flush()
    sizes = struct.pack("<III", zlib.crc32(kernel), len(packed), len(kernel))
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 4, 0)
    table = b"".join(
        b"PK\1\2"
        + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33)
        + sizes
        + struct.pack("<HHHHHII", 4, 0, 0, 0, 0, 0, 0)
        + b"%04d" % at
        for at in range(count)
    )
    body = local + b"0000" + packed
    return body + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(table), len(body), 0)


def test_a_handmade_zip_of_one_entry_is_unpacked(unpack: Callable[..., dict[str, object]]) -> None:
    assert unpack(overlapping_zip(1, b"kernel")) == {"0000": b"kernel"}


def test_zip_entries_that_share_their_bytes_are_refused(unpack: Callable[..., dict[str, object]]) -> None:
    with pytest.raises(ArchiveRefused, match="overlaps"):
        unpack(overlapping_zip(2, b"kernel"))


def test_a_local_entry_quoted_by_the_one_before_is_refused(
    unpack: Callable[..., dict[str, object]],
) -> None:
    """The extra field of the first local entry swallows the second, so both unpack the same bytes."""
    data = bytearray(zipped(("1", b"x"), ("2", b"y"), method=zipfile.ZIP_STORED))
    second = data.index(b"PK\3\4", 4)
    data[28:30] = struct.pack("<H", second - 31 + 31)
    with pytest.raises(ArchiveRefused, match="overlaps"):
        unpack(bytes(data))


@pytest.mark.parametrize("kind", GOOD)
def test_a_truncated_archive_is_refused(kind: str, unpack: Callable[..., dict[str, object]]) -> None:
    data = GOOD[kind]()
    for part in (0.3, 0.7, 0.95):
        with pytest.raises(ArchiveRefused):
            unpack(data[: int(len(data) * part)])


def test_wrong_checksums_are_refused(unpack: Callable[..., dict[str, object]]) -> None:
    good = bytearray(zipped(("a", b"the data"), method=zipfile.ZIP_STORED))
    good[good.index(b"the data")] ^= 1
    with pytest.raises(ArchiveRefused, match="damaged"):
        unpack(bytes(good))
    packed = bytearray(gzip.compress(good_tar()))
    packed[-6] ^= 1
    with pytest.raises(ArchiveRefused, match="damaged"):
        unpack(bytes(packed))


def test_a_zip_that_claims_too_small_a_size_is_refused(unpack: Callable[..., dict[str, object]]) -> None:
    good = zipped(("a", b"x" * 100_000))
    lie = good.replace(struct.pack("<I", 100_000), struct.pack("<I", 10))
    with pytest.raises(ArchiveRefused, match="damaged"):
        unpack(lie)


def test_a_sparse_file_in_any_spelling_is_refused(unpack: Callable[..., dict[str, object]]) -> None:
    huge = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    for records in (huge, {"GNU.sparse.size": str(2**40)}, {"GNU.sparse.map": "0,1"}):
        with pytest.raises(ArchiveRefused, match="sparse"):
            unpack(tar(*pax(records, header("huge", b"x"))))


def test_a_size_that_is_not_there_is_refused(unpack: Callable[..., dict[str, object]]) -> None:
    for size in (2**40, -512):
        with pytest.raises(ArchiveRefused):
            unpack(tar(header("huge", size=size)))
    with pytest.raises(ArchiveRefused, match="damaged"):
        unpack(tar(*pax({"size": "9" * 19}, header("huge", b"x"))))
    with pytest.raises(ArchiveRefused, match="not a number"):
        unpack(tar(*pax({"size": "-1"}, header("huge", b"x"))))


def test_limits_hold_for_each_kind(unpack: Callable[..., dict[str, object]]) -> None:
    for kind in GOOD.values():
        with pytest.raises(ArchiveRefused, match="more than 4 members"):
            unpack(kind(), limits=Limits(max_members=4))
        with pytest.raises(ArchiveRefused, match="more than 300,000 bytes"):
            unpack(kind(), limits=Limits(max_total_bytes=300_000))
    assert unpack(good_tar(), limits=Limits(max_members=5, max_total_bytes=400_000)) == GOOD_TREE


# ---- bombs ---------------------------------------------------------------------------------------


@cache
def deflated_zeros(size_bytes: int, wbits: int) -> bytes:
    packer = zlib.compressobj(9, wbits=wbits)
    piece = bytes(MIB)
    return b"".join(packer.compress(piece) for _ in range(size_bytes // MIB)) + packer.flush()


def zip_bomb() -> bytes:
    """One entry that honestly claims 100 MiB."""
    packed = deflated_zeros(100 * MIB, -15)
    sizes = struct.pack("<III", 0, len(packed), 100 * MIB)
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", 1, 0) + b"a"
    table = (
        b"PK\1\2"
        + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33)
        + sizes
        + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(table), len(local) + len(packed), 0)
    return local + packed + table + end


def zeros_tar(kind: bytes = tarfile.REGTYPE) -> bytes:
    return tar(header("zeros", kind=kind, size=100 * MIB))[:512]


def crowded_zip(count: int) -> bytes:
    table = b"".join(
        b"PK\1\2"
        + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
        + b"%07d" % at
        for at in range(count)
    )
    # the trailer says 1 entry
    return b"PK\3\4" + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(table), 4, 0)


def crowded_tar(count: int) -> bytes:
    """Empty files, with random bytes where nobody looks, so that the crowd does not pack well."""
    blocks = []
    template = tar(header("0000000"))[:512]
    base = sum(template) - sum(template[:7]) - sum(template[148:156]) + 8 * 32
    for at in range(count):
        name = b"%07d" % at
        noise = os.urandom(12)
        total = base + sum(name) + sum(noise)
        blocks.append(name + template[7:148] + b"%06o\0 " % total + template[156:500] + noise)
    return b"".join(blocks) + END


def zstd_zeros() -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    pieces = [packer.compress(zeros_tar())]
    pieces += [packer.compress(bytes(MIB)) for _ in range(100)]
    return b"".join(pieces) + packer.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a zip of zeros": zip_bomb,
    "a tar.gz of zeros": lambda: gzip.compress(zeros_tar()) + deflated_zeros(100 * MIB, 31),
    "a tar.zst of zeros": zstd_zeros,
    "a pax header of 100 MiB": lambda: (
        gzip.compress(zeros_tar(tarfile.XHDTYPE)) + deflated_zeros(100 * MIB, 31)
    ),
    "a gzip padded with zeros": lambda: gzip.compress(good_tar()) + deflated_zeros(100 * MIB, 31),
    "a zip of many entries": lambda: crowded_zip(150_000),
    "a zip of a million entries": lambda: crowded_zip(1_000_000),
    "a tar of many entries": lambda: crowded_tar(150_000),
    "a tar.gz of many entries": lambda: gzip.compress(crowded_tar(150_000), 1),
    "a gzip of a million empty members": lambda: gzip.compress(zeros_tar()) + gzip.compress(b"") * 1_000_000,
    "a gzip whose header never ends": lambda: (
        gzip.compress(zeros_tar()) + b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 100 * MIB
    ),
    "hard links to one file": lambda: gzip.compress(
        tar(
            header("one", bytes(2 * MIB)),
            *(header(f"{at}", kind=tarfile.LNKTYPE, linkname="one") for at in range(1000)),
        )
    ),
    "overlapping entries": lambda: overlapping_zip(5000, bytes(MIB)),
    "headers that extend nothing": lambda: (
        tar(header("ok"), header("x", b"", kind=tarfile.XHDTYPE))[:1024]
        + tar(header("x", b"", kind=tarfile.XHDTYPE))[:512] * 600_000
    ),
}

JUDGE = """
import sys, time
from pathlib import Path
from workers.archives import ArchiveRefused, extract

def peak_bytes():  # of this process alone: getrusage would count the parent's, from before exec
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

before, began = peak_bytes(), time.process_time()
try:
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
except ArchiveRefused as error:
    print(time.process_time() - began, peak_bytes() - before, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_soon_and_in_little_memory(bomb: str, tmp_path: Path) -> None:
    archive, into = tmp_path / "bomb", tmp_path / "to"
    archive.write_bytes(BOMBS[bomb]())
    judged = subprocess.run(
        [sys.executable, "-c", JUDGE, str(archive), str(into)], capture_output=True, text=True, check=True
    )
    cpu_s, grown_bytes, _ = judged.stdout.split(" ", 2)
    assert float(cpu_s) < 2, judged.stdout
    assert int(grown_bytes) < 100 * MIB, judged.stdout
    assert not into.exists()
    archive.unlink()


# ---- fuzz ----------------------------------------------------------------------------------------


def survives(data: bytes) -> None:
    with TemporaryDirectory() as outer:
        archive, into = Path(outer, "upload"), Path(outer, "in", "to")
        archive.write_bytes(data)
        into.parent.mkdir()
        try:
            extract(archive, into)
        except (ArchiveRefused, OSError):
            assert not into.exists()
        else:
            root = into.resolve()
            for path in into.rglob("*"):
                assert path.is_symlink() or path.resolve().is_relative_to(root)
                if path.is_symlink():
                    assert Path(os.path.realpath(path)).is_relative_to(root)
        assert {path.name for path in Path(outer).iterdir()} == {"upload", "in"}
        assert {path.name for path in into.parent.iterdir()} <= {"to"}


FUZZ = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
SEEDS = [make() for make in GOOD.values()] + [
    tar(
        header("a/b", b"data"),
        header("a/up", kind=tarfile.SYMTYPE, linkname="../a"),
        header("hard", kind=tarfile.LNKTYPE, linkname="a/b"),
        *pax({"path": "long/name", "size": "4"}, header("n", b"data")),
    ),
    zipped((entry("a/link", stat.S_IFLNK | 0o777), b"../b"), ("b", b"data"), method=zipfile.ZIP_STORED),
]


@FUZZ
@given(st.binary(max_size=2000), st.sampled_from([b"", *archives._MAGIC]))
def test_random_bytes_never_escape_nor_surprise(data: bytes, magic: bytes) -> None:
    survives(magic + data)


@FUZZ
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), max_size=6),
)
def test_mutated_archives_never_escape_nor_surprise(data: bytes, changes: list[tuple[float, bytes]]) -> None:
    mutated = bytearray(data)
    for place, change in changes:
        at = int(place * len(mutated))
        mutated[at : at + len(change)] = change
    survives(bytes(mutated))


STEP = st.sampled_from(["a", "b", "A", "..", ".", "", "link"])
PATH = st.lists(STEP, min_size=1, max_size=5).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])


@FUZZ
@given(st.lists(st.tuples(PATH, KINDS, PATH), max_size=8))
def test_no_mixture_of_files_and_links_escapes(members: list[tuple[str, bytes, str]]) -> None:
    survives(tar(*(header(name, kind=kind, linkname=target) for name, kind, target in members)))


@FUZZ
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdA"), st.lists(st.sampled_from(["a", "b", "c", ".."]), max_size=4)),
        max_size=8,
    )
)
def test_no_chain_of_links_escapes(links: list[tuple[str, list[str]]]) -> None:
    for depth in ("", "x/y/"):
        survives(
            tar(*(header(depth + name, kind=tarfile.SYMTYPE, linkname="/".join(to)) for name, to in links))
        )
