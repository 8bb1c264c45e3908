"""A directory to unpack into, which nothing but what is unpacked may change."""

from collections.abc import Callable
from pathlib import Path

import pytest
from packing import tree

from workers import archives
from workers.archives import ArchiveRefused, Limits, extract


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
