"""What is packed in a way that cannot be trusted or counted is refused."""

import gzip
import struct
import zipfile
from collections.abc import Callable

import pytest
from packing import GOOD, GOOD_TREE, good_tar, header, overlapping_zip, pax, tar, zipped

from workers.archives import ArchiveRefused, Limits


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
