"""Whatever bytes, members and links an archive consists of, nothing escapes."""

import os
import stat
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import GOOD, entry, header, pax, tar, zipped

from workers import archives
from workers.archives import ArchiveRefused, extract


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
