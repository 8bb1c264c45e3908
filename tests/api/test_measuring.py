"""Measuring requests: the files that processes count in take their room from the disk before they are written to."""

from pathlib import Path

import pytest

from api.measuring import _Allocated


def test_files_to_count_in_have_no_holes_that_a_full_disk_could_not_fill(tmp_path: Path) -> None:
    path = tmp_path / "counts.db"
    counts = _Allocated(str(path))
    try:
        for number in range(2000):
            counts.write_value(f"a series with a name of some length, number {number}", float(number), 0.0)
        status = path.stat()
        assert status.st_size > 1 << 16
        assert status.st_blocks * 512 >= status.st_size
        assert counts.read_value("a series with a name of some length, number 1999") == (1999.0, 0.0)
    finally:
        counts.close()


def test_a_full_disk_is_an_error_and_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        _Allocated(str(tmp_path / "counts.db"))
