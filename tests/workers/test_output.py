"""Output: numbered, within its quota, delivered in order and once, through outages and in little memory."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_line import FakeLine, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import Denied
from storage.logs import decode
from workers import output as module
from workers.lines import Offer
from workers.output import MEMORY_BYTES, MOST_WAITING, PIECE_BYTES, Output, Spool

OFFER = Offer("job", 1, {}, 0)


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


@pytest.fixture
async def make(line: FakeLine, tmp_path: Path) -> AsyncIterator[Callable[..., Output]]:
    made: list[Output] = []

    def make(offer: Offer = OFFER, **how: Any) -> Output:
        given: dict[str, Any] = {"limit_bytes": 1 << 30, "live_bytes": 1 << 20, "gone": lambda: None,
                                 "cancel": lambda: None, **how}  # fmt: skip
        made.append(Output(line, offer, directory=str(tmp_path), **given))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_lines_are_numbered_over_both_channels_from_where_the_job_was(
    line: FakeLine, make: Any
) -> None:
    output = make(Offer("job", 1, {}, 7))
    output.feed("o", b"a\nb\nunfinished")
    output.feed("e", b"c\n")
    output.feed("o", b" line\n")
    output.end()
    await output.delivered()
    assert line.of("job").pieces == [
        ("o", 7, 2, b"a\nb\n"), ("e", 9, 1, b"c\n"), ("o", 10, 1, b"unfinished line\n")
    ]  # fmt: skip


async def test_what_has_no_end_of_line_is_the_last_line(line: FakeLine, make: Any) -> None:
    output = make()
    output.feed("o", b"last")
    assert line.of("job").pieces == []
    output.end()
    output.end()
    await output.delivered()
    assert line.of("job").pieces == [("o", 0, 1, b"last")]


async def test_a_long_line_is_broken_and_every_piece_has_a_number(line: FakeLine, make: Any) -> None:
    output = make()
    for _ in range(10):
        output.feed("o", b"x" * 20_000)
    output.feed("o", b"end\nnext\n")
    output.end()
    await output.delivered()
    pieces = line.of("job").pieces
    assert [(first, count) for _, first, count, _ in pieces] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    assert [len(data) for *_, data in pieces[:3]] == [PIECE_BYTES] * 3
    assert line.of("job").text == b"x" * 200_000 + b"end\nnext\n"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.sampled_from("oe"), st.binary(max_size=40) | st.just(b"\n") | st.just(b"line\n"))
    ),
    most_waiting=st.integers(1, 4),
)
async def test_nothing_is_lost_or_reordered_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: list[tuple[str, bytes]], most_waiting: int
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 16)
    monkeypatch.setattr(module, "MOST_WAITING", most_waiting)
    line = FakeLine()
    output = Output(
        line, OFFER, directory=str(tmp_path), limit_bytes=1 << 20, live_bytes=1 << 20, gone=lambda: None,
        cancel=lambda: None,
    )  # fmt: skip
    for channel, data in chunks:
        output.feed(channel, data)
        if len(data) % 3 == 0:
            await asyncio.sleep(0)
    output.end()
    await output.delivered()
    await output.close()
    pieces, expected_line = line.of("job").pieces, 0
    for _, first, count, _ in pieces:
        assert first == expected_line
        expected_line += count
    for name in "oe":
        sent = b"".join(data for channel, _, _, data in pieces if channel == name)
        assert sent == b"".join(data for channel, data in chunks if channel == name)


async def test_an_outage_delays_output_and_loses_none_of_it(line: FakeLine, make: Any) -> None:
    output = make()
    line.away = True
    for number in range(50):
        output.feed("o", b"line %d\n" % number)
    await asyncio.sleep(0.05)
    assert line.of("job").pieces == []
    line.away = False
    output.end()
    await output.delivered()
    assert line.of("job").text == b"".join(b"line %d\n" % number for number in range(50))


async def test_short_lines_pile_up_in_few_pieces_while_nobody_listens(line: FakeLine, make: Any) -> None:
    output = make()
    line.away = True
    for number in range(100_000):
        output.feed("o", b"%d\n" % number)
    assert len(output._waiting) <= MOST_WAITING + 100_000 * 6 // PIECE_BYTES + 2
    line.away = False
    output.end()
    await output.delivered()
    assert line.of("job").text == b"".join(b"%d\n" % number for number in range(100_000))
    assert line.of("job").pieces[-1][1] + line.of("job").pieces[-1][2] == 100_000


async def test_what_waits_is_in_a_file_once_it_is_much(line: FakeLine, make: Any) -> None:
    output = make()
    line.away = True
    for number in range(64):
        output.feed("o", b"%063d\n" % number * 1000)
    held = sum(len(piece.data) for piece in output._waiting if piece.data is not None)
    assert held <= MEMORY_BYTES + PIECE_BYTES
    line.away = False
    await output.delivered()
    assert line.of("job").text == b"".join(b"%063d\n" % number * 1000 for number in range(64))


async def test_output_beyond_the_quota_is_cut_with_one_mark(line: FakeLine, make: Any) -> None:
    output = make(limit_bytes=100)
    for _ in range(30):
        output.feed("o", b"123456789\n")
    output.end()
    await output.delivered()
    assert output.truncated
    mark = b"[hostler] output limit of 100 bytes reached; what follows is not kept\n"
    assert line.of("job").text == b"123456789\n" * 10 + mark


async def test_a_log_beyond_the_live_cap_is_stored_whole_in_parts(line: FakeLine, make: Any) -> None:
    output = make(live_bytes=100_000)
    for number in range(100):
        output.feed("o", b"%099d\n" % number * 30)
        await asyncio.sleep(0)
    output.end()
    await output.delivered()
    parts = line.of("job").parts
    assert len(parts) > 3
    assert [first for first, _, _ in parts] == [0] + [after for _, after, _ in parts[:-1]]
    stored = b"".join(entry.data for _, _, frames in parts for entry in decode(frames))
    assert stored == line.of("job").text == b"".join(b"%099d\n" % number * 30 for number in range(100))


async def test_a_short_log_is_not_stored_unless_attempts_would_exceed_the_cap_together(
    line: FakeLine, make: Any
) -> None:
    for job_id, retries in (("once", 0), ("often", 3)):
        output = make(Offer(job_id, 1, {"retries": retries}, 0), live_bytes=4000)
        output.feed("o", b"x" * 1999 + b"\n")
        await output.delivered()
    assert line.of("once").parts == []
    assert len(line.of("often").parts) == 1


async def test_while_the_object_store_is_away_the_live_log_goes_on(line: FakeLine, make: Any) -> None:
    output = make(live_bytes=10_000)
    line.store_away = True
    for _ in range(20):
        output.feed("o", b"x" * 999 + b"\n")
    await until(lambda: len(line.of("job").text) == 20_000, "the live log has it all")
    waiting = asyncio.create_task(output.delivered())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    line.store_away = False
    await asyncio.wait_for(waiting, 5)  # noqa: TID251
    stored = b"".join(entry.data for _, _, frames in line.of("job").parts for entry in decode(frames))
    assert len(stored) == 20_000


async def test_a_result_does_not_wait_for_ever_for_a_log_that_cannot_be_stored(
    line: FakeLine, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORE_PATIENCE_S", 0.1)
    output = make(live_bytes=1000)
    line.store_away = True
    output.feed("o", b"x" * 2000 + b"\n")
    await asyncio.wait_for(output.delivered(), 5)  # noqa: TID251
    assert output.truncated


async def test_an_attempt_that_is_over_is_told_once_and_sends_nothing_more(line: FakeLine, make: Any) -> None:
    gone: list[int] = []
    output = make(gone=lambda: gone.append(1))
    line.stale.add(("job", 1))
    for _ in range(5):
        output.feed("o", b"line\n")
    await output.delivered()
    output.feed("o", b"more\n")
    await output.delivered()
    assert (gone, output.lost, line.of("job").pieces) == ([1], True, [])


async def test_a_wish_to_cancel_comes_back_with_the_output(line: FakeLine, make: Any) -> None:
    cancelled: list[int] = []
    output = make(cancel=lambda: cancelled.append(1))
    line.cancelled.add("job")
    output.feed("o", b"line\n")
    await output.delivered()
    assert cancelled == [1]


async def test_progress_is_told_when_it_changes(line: FakeLine, make: Any) -> None:
    output = make()
    for data in (b"HOSTLER_PROGRESS=10\n", b"words\n", b"::progress 55%\n"):
        output.feed("o", data)
        await output.delivered()
    assert line.of("job").percents == [10, 55]


@pytest.mark.parametrize("error", [Denied("No."), RuntimeError("a mistake of ours")])
async def test_output_that_nobody_takes_does_not_keep_the_result(
    line: FakeLine, make: Any, error: Exception
) -> None:
    output = make()
    line.error = error
    output.feed("o", b"line\n")
    await output.delivered()
    assert output.truncated
    await output.close()


async def test_a_full_disk_cuts_the_log_and_not_the_job(
    line: FakeLine, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = make()
    output.feed("o", b"line\n")
    monkeypatch.setattr(Spool, "append", full)
    output.feed("o", b"lost\n")
    await output.delivered()
    assert output.truncated
    assert line.of("job").text == b"line\n"


def test_a_spool_reads_what_was_written_in_memory_and_in_its_file(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    places = [(spool.append(bytes([number]) * 50_000), number) for number in range(10)]
    assert spool.size_bytes == 500_000 > MEMORY_BYTES
    for offset, number in places:
        assert spool.read(offset, 50_000) == bytes([number]) * 50_000
    spool.close()
    spool.close()
    with pytest.raises(ValueError, match="closed"):
        spool.append(b"late")
    assert list(tmp_path.iterdir()) == []


async def test_sending_goes_on_beside_a_part_that_is_being_stored_but_not_beyond_the_live_log(
    line: FakeLine, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = asyncio.Event()
    put_log = line.put_log

    async def slow(*arguments: Any, **named: Any) -> None:
        await let_go.wait()
        await put_log(*arguments, **named)

    monkeypatch.setattr(line, "put_log", slow)
    output = make(live_bytes=10_000)
    for _ in range(40):
        output.feed("o", b"x" * 999 + b"\n")
        await asyncio.sleep(0.005)
    sent = len(line.of("job").text)
    assert 5_000 < sent <= 8_500, "a part is under way, and what follows it is only in the live log"
    let_go.set()
    await output.delivered()
    assert len(line.of("job").text) == 40_000
    stored = b"".join(entry.data for _, _, frames in line.of("job").parts for entry in decode(frames))
    assert stored == line.of("job").text


async def test_the_quota_keeps_the_lines_that_fit_of_a_long_piece(line: FakeLine, make: Any) -> None:
    output = make(limit_bytes=95)
    output.feed("o", b"123456789\n" * 30)
    await output.delivered()
    assert line.of("job").text.startswith(b"123456789\n" * 9 + b"[hostler] output limit of 95 bytes")
