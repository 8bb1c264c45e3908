"""Log files: read line by line, over restarts, rotation, and a writer that never pauses."""

import os
import threading
from pathlib import Path

import pytest

from workers.supervisor import logs
from workers.supervisor.logs import BACKLOG_BYTES, LINE_BYTES, Tail, last_lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "web-0.log"
    path.touch()
    return path


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def take(tail: Tail, *, finished: bool = False) -> list[bytes]:
    lines, position = tail.read(finished=finished)
    tail.told(position, len(lines))
    return lines


def test_a_line_is_told_once_it_is_whole(log: Path) -> None:
    tail = Tail.of(log)
    write(log, b"one\ntw")
    assert take(tail) == [b"one"]
    assert take(tail) == []
    write(log, b"o\n\nthree")
    assert take(tail) == [b"two", b""]
    assert take(tail, finished=True) == [b"three"]


def test_what_was_not_told_is_read_again(log: Path) -> None:
    tail = Tail.of(log)
    write(log, b"one\n")
    assert tail.read()[0] == tail.read()[0] == [b"one"]


def test_a_later_worker_goes_on_behind_what_was_told(log: Path) -> None:
    tail = Tail.of(log)
    write(log, b"one\ntwo\n")
    take(tail)
    write(log, b"three\n")
    again = Tail.of(log)
    assert (take(again), again.number) == ([b"three"], 3)


def test_very_many_very_short_lines_are_read_a_part_at_a_time(log: Path) -> None:
    write(log, b"\n" * 2500 + b"x\n")
    tail = Tail.of(log)
    found = [take(tail) for _ in range(4)]
    assert [len(each) for each in found] == [1000, 1000, 501, 0]
    assert found[2][-1] == b"x"


def test_a_line_too_long_is_told_in_pieces(log: Path) -> None:
    write(log, b"x" * (LINE_BYTES * 2 + 5) + b"\n")
    assert [len(line) for line in take(Tail.of(log))] == [LINE_BYTES, LINE_BYTES, 5]


def test_too_much_at_once_is_left_to_the_file_and_said(log: Path) -> None:
    line = b"y" * 99 + b"\n"
    write(log, line * (BACKLOG_BYTES // 100 + 1000))
    tail = Tail.of(log)
    lines = take(tail)
    assert tail.skipped > BACKLOG_BYTES // 4
    assert set(lines) == {b"y" * 99}  # it begins with a whole line


def test_rotation_loses_no_line_of_a_writer_that_goes_on(log: Path) -> None:
    told: list[bytes] = []
    written, enough = [0], threading.Event()

    def write_on() -> None:
        fd = os.open(log, os.O_WRONLY | os.O_APPEND)
        while not enough.is_set():
            os.write(fd, b"%08d\n" % written[0])
            written[0] += 1
        os.close(fd)

    writer = threading.Thread(target=write_on)
    writer.start()
    tail, rotations = Tail.of(log), 0
    while writer.is_alive() or tail.position < log.stat().st_size:
        told += take(tail)
        rotations += tail.rotate(limit_bytes=10_000)
        if rotations >= 20:
            enough.set()
    writer.join()
    assert told == [b"%08d" % number for number in range(written[0])]
    if tail.start:  # this file system knows holes: the file takes little room however long it seems
        assert log.stat().st_blocks * 512 < log.stat().st_size / 2


def test_what_was_rotated_is_kept_aside_and_the_rest_is_still_found(log: Path) -> None:
    tail = Tail.of(log)
    for round_number in range(4):
        write(log, b"%d\n" % round_number * 6000)
        while take(tail):
            pass
        assert tail.rotate(limit_bytes=10_000)
    assert sorted(path.name for path in log.parent.glob("web-0.log.*")) == ["web-0.log.1", "web-0.log.2"]
    assert log.with_name("web-0.log.1").read_bytes() == b"3\n" * 6000
    write(log, b"last\n")
    assert last_lines(log, 5) == ["last"]


def test_without_holes_a_file_is_cut_when_nothing_is_waiting(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_punch", lambda fd, start, length: False)
    tail = Tail.of(log)
    write(log, b"quite a long line\n" * 800)
    take(tail)
    tail.rotate(limit_bytes=10_000)
    assert (log.stat().st_size, tail.position) == (0, 0)
    write(log, b"next\n")
    assert take(tail) == [b"next"]
