"""Logs are read once and in order from Redis and the object store together, with every hole told."""

from collections.abc import AsyncIterator
from types import SimpleNamespace

import engine
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import archive, attempts, jobs, logs, tries
from storage.attempts import Claim, Holder
from storage.calls import command
from storage.errors import NotFound
from storage.logs import Entry, Gap, Place
from storage.store import Store

BEGINNING = Place()


class MemoryObjects:
    """An object store in memory, which hands objects out in small chunks."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.being_read = 0

    async def put(self, key: str, data: bytes, *, content_type: str = "") -> None:
        self.kept[key] = data

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        if key not in self.kept:
            raise NotFound("There is no such object.")
        return self.kept[key]

    async def open(self, key: str) -> "MemoryReading":
        return MemoryReading(self, await self.get(key, limit_bytes=1 << 30))

    def close(self) -> None:
        assert self.being_read == 0


class MemoryReading:
    def __init__(self, objects: MemoryObjects, data: bytes) -> None:
        self.objects = objects
        self.chunks = [data[at : at + 7] for at in range(0, len(data), 7)]
        objects.being_read += 1

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def close(self) -> None:
        self.objects.being_read -= 1


@pytest.fixture
async def job(store: Store) -> SimpleNamespace:
    """A running job whose output the test writes; parts of its log are in memory."""
    store.objects.close()
    store.objects = MemoryObjects()
    job_id = await engine.submit(store)
    holder = await engine.register(store)
    (claimed,) = await engine.claim(store, holder)
    return SimpleNamespace(store=store, id=job_id, holder=holder, claim=claimed)


async def store_part(
    store: Store, holder: Holder, claimed: Claim, first: int, stop: int, *entries: Entry
) -> None:
    key = f"logs/{claimed.job_id}/{claimed.attempt}/{first:012d}"
    frames = b"".join(logs.encode_frame(e.attempt, e.line, e.count, e.channel, e.data) for e in entries)
    await store.objects.put(key, frames)
    record = {"attempt": claimed.attempt, "first": first, "next": stop, "key": key, "size_bytes": len(frames)}
    name = f"{claimed.attempt}:{first:012d}"
    await store.call(attempts.attach(holder, claimed.job_id, claimed.attempt, "logparts", name, record))


async def collect(job, place: Place = BEGINNING) -> list[Entry | Gap]:
    found = await logs.snapshot(job.store, job.id, after=place.line)
    return [piece async for piece in logs.pieces(job.store, found, place)]


async def whole(job) -> bytes:
    return b"".join([chunk async for chunk in await logs.text(job.store, job.id)])


async def test_lines_come_numbered_from_one_with_their_channel(job):
    await engine.output(job.store, job.holder, job.claim, b"one\ntwo\n")
    await engine.output(job.store, job.holder, job.claim, b"oh\n", channel="e")
    log = await logs.read(job.store, job.id)
    assert [(line.seq, line.stream, line.text) for line in log.lines] == [
        (1, "stdout", "one"), (2, "stdout", "two"), (3, "stderr", "oh"),
    ]  # fmt: skip
    assert (log.next, log.gap, log.more, log.state) == (3, None, False, "running")


async def test_reading_goes_on_after_the_line_the_reader_has_even_inside_an_entry(job):
    await engine.output(job.store, job.holder, job.claim, b"one\ntwo\nthree\n")
    log = await logs.read(job.store, job.id, after=2)
    assert [(line.seq, line.text) for line in log.lines] == [(3, "three")]
    assert (await logs.read(job.store, job.id, after=3)).lines == []


async def test_pages_of_any_size_make_the_whole(job):
    for number in range(50):
        await engine.output(job.store, job.holder, job.claim, f"{number}a\n{number}b\n".encode())
    seen, after, more = [], 0, True
    while more:
        log = await logs.read(job.store, job.id, after=after, limit_lines=7)
        assert len(log.lines) <= 7
        seen += [line.text for line in log.lines]
        after, more = log.next, log.more
    assert seen == [f"{number}{half}" for number in range(50) for half in "ab"]


async def test_a_line_in_pieces_is_one_line_with_others_between(job):
    await engine.output(job.store, job.holder, job.claim, b"a\nbegun ")
    await engine.output(job.store, job.holder, job.claim, b"further ", line_count=0)
    await engine.output(job.store, job.holder, job.claim, b"warning\n", channel="e")
    assert [line.text for line in (await logs.read(job.store, job.id, after=1)).lines] == ["warning"]
    await engine.output(job.store, job.holder, job.claim, b"ended\nlast", line_count=2)
    lines = (await logs.read(job.store, job.id, after=2)).lines
    assert [(line.seq, line.text) for line in lines] == [(3, "begun further ended"), (4, "last")]


async def test_bytes_that_are_no_text_are_shown_as_such_and_kept_as_they_are(job):
    await engine.output(job.store, job.holder, job.claim, b"\xff\x00\x1b[2J\n")
    assert (await logs.read(job.store, job.id)).lines[0].text == "\ufffd\x00\x1b[2J"
    assert await whole(job) == b"\xff\x00\x1b[2J\n"


async def test_what_left_the_stream_and_is_nowhere_else_is_a_stated_gap(job):
    for number in range(200):
        data = f"line {number:04d}\n".encode()
        await engine.output(job.store, job.holder, job.claim, data, live_bytes=500)
    log = await logs.read(job.store, job.id)
    assert log.gap is not None
    assert (log.gap.first, log.lines[0].seq) == (1, log.gap.last + 1)
    assert [line.seq for line in log.lines] == list(range(log.gap.last + 1, 201))
    assert (await whole(job)).startswith(b"[hostler] lines 1 to %d are not kept\n" % log.gap.last)


async def test_parts_and_stream_overlap_without_doubling(job):
    entries = []
    for number in range(200):
        data = f"line {number:04d}\n".encode()
        await engine.output(job.store, job.holder, job.claim, data, live_bytes=1000)
        entries.append(Entry(1, number, 1, "o", data))
    await store_part(job.store, job.holder, job.claim, 0, 100, *entries[:100])
    await store_part(job.store, job.holder, job.claim, 100, 190, *entries[100:190])
    assert await collect(job) == entries
    assert await collect(job, Place(150)) == entries[150:]
    assert await collect(job, Place(199)) == entries[199:]
    assert await whole(job) == b"".join(entry.data for entry in entries)
    assert [
        line.seq for line in (await logs.read(job.store, job.id, after=95, limit_lines=10)).lines
    ] == list(range(96, 106))


async def test_a_hole_between_parts_and_stream_is_told_where_it_is(job):
    entries = []
    for number in range(200):
        data = f"line {number:04d}\n".encode()
        await engine.output(job.store, job.holder, job.claim, data, live_bytes=500)
        entries.append(Entry(1, number, 1, "o", data))
    await store_part(job.store, job.holder, job.claim, 0, 50, *entries[:50])
    pieces = await collect(job)
    (gap,) = [piece for piece in pieces if isinstance(piece, Gap)]
    assert pieces[:50] == entries[:50]
    assert pieces[50] is gap
    assert gap.first == 51
    assert pieces[51:] == entries[gap.last :]
    log = await logs.read(job.store, job.id)
    assert (log.next, log.gap, log.more) == (50, None, True)
    assert (await logs.read(job.store, job.id, after=50)).gap == gap


@pytest.mark.parametrize("count", [1, 3000])
async def test_a_part_is_packed_where_that_gains_something(count):
    frames = b"".join(logs.encode_frame(1, line, 1, "o", b"(%d\n" % line) for line in range(count))
    packed = logs.pack(frames)
    assert (len(packed) < len(frames) / 3) == (count > 1)

    async def arriving():
        for at in range(len(packed)):  # also where a piece of plain frames begins as packed ones do
            yield packed[at : at + 1]

    assert [entry.line for entry in [each async for each in logs.decode_stream(arriving())]] == list(
        range(count)
    )


async def test_a_part_that_was_damaged_shows_as_a_gap(job):
    frames = logs.encode_frame(1, 0, 100, "o", b"line\n" * 100)
    key, record = "logs/damaged", {"attempt": 1, "first": 0, "next": 100, "key": "logs/damaged"}
    packed = logs.pack(frames)
    await job.store.objects.put(key, packed[:-9] + bytes(9))
    step = attempts.attach(job.holder, job.id, job.claim.attempt, "logparts", "1:0", record)
    await job.store.call(step)
    await job.store.call(
        attempts.output(
            job.holder,
            job.id,
            1,
            "o",
            b"more\n",
            first_line=100,
            line_count=1,
            live_bytes=1000,
            limit_bytes=9999,
        )
    )
    await job.store.call(command("HSET", f"h:job:{job.id}", "dropped", "500"))
    assert [type(piece) for piece in await collect(job)] == [Gap, Entry]


async def test_a_part_that_the_object_store_lost_shows_as_a_gap(job):
    for number in range(100):
        await engine.output(job.store, job.holder, job.claim, b"line %04d\n" % number, live_bytes=500)
    await store_part(job.store, job.holder, job.claim, 0, 100, Entry(1, 0, 100, "o", b"x\n" * 100))
    job.store.objects.kept.clear()
    assert isinstance((await collect(job))[0], Gap)


async def test_a_long_line_in_pieces_is_whole_across_part_and_stream(job):
    entries = []
    for number in range(60):
        data = bytes([65 + number % 26]) * 100
        await engine.output(job.store, job.holder, job.claim, data, line_count=0, live_bytes=1000)
        entries.append(Entry(1, 0, 0, "o", data))
    await store_part(job.store, job.holder, job.claim, 0, 0, *entries[:57])
    assert await whole(job) == b"".join(entry.data for entry in entries)
    assert await collect(job, Place(0, 20)) == entries[20:]
    await engine.output(job.store, job.holder, job.claim, b"end\n", live_bytes=1000)
    assert (await logs.read(job.store, job.id)).lines[0].text == (await whole(job)).decode().rstrip("\n")


async def test_an_unfinished_line_of_a_lost_attempt_is_kept_apart(job):
    await engine.output(job.store, job.holder, job.claim, b"half", line_count=0)
    await engine.settle(job.store, job.holder, job.claim, "released")
    (again,) = await engine.claim(job.store, job.holder)
    await engine.output(job.store, job.holder, again, b"fresh\n")
    lines = (await logs.read(job.store, job.id)).lines
    assert [(line.attempt, line.text) for line in lines] == [(1, "half"), (2, "fresh")]


async def test_a_tail_is_the_newest_output_by_channel(job):
    await engine.output(job.store, job.holder, job.claim, b"0123456789\n")
    await engine.output(job.store, job.holder, job.claim, b"err\n", channel="e")
    both = await logs.tail(job.store, job.id, limit_bytes=1000)
    assert both == {"stdout": "0123456789\n", "stderr": "err\n", "truncated": False}
    some = await logs.tail(job.store, job.id, limit_bytes=8)
    assert some == {"stdout": "789\n", "stderr": "err\n", "truncated": True}


async def test_a_job_comes_with_its_tail_in_one_step(job):
    calls = []
    call = job.store.wire.call
    job.store.wire.call = lambda step, **options: calls.append(step) or call(step, **options)
    assert await logs.with_tail(job.store, job.id, limit_bytes=8) == (
        await jobs.get(job.store, job.id),
        {"stdout": "", "stderr": "", "truncated": False},
    )
    await engine.output(job.store, job.holder, job.claim, b"0123456789\n")
    calls.clear()
    seen, tail = await logs.with_tail(job.store, job.id, limit_bytes=8)
    assert len(calls) == 1
    assert seen == await jobs.get(job.store, job.id)
    assert tail == await logs.tail(job.store, job.id, limit_bytes=8, lines=seen.lines)
    assert tail["stdout"] == "3456789\n"
    job.store.wire.call = call


async def test_a_tail_of_a_job_without_lines_asks_nobody(settings):
    store = Store(settings)
    assert (await logs.tail(store, "job-x", limit_bytes=9, lines=0))["stdout"] == ""
    assert store.wire._connection is None
    await store.close()


async def test_an_unknown_job_has_no_log(job):
    for read in (logs.read, logs.text, logs.snapshot):
        with pytest.raises(NotFound):
            await read(job.store, "job-" + "0" * 20)
        with pytest.raises(NotFound):
            await read(job.store, "../../etc")


async def test_the_log_of_an_archived_job_is_read_as_before(job):
    await engine.output(job.store, job.holder, job.claim, b"one\n\xff\n")
    await engine.settle(job.store, job.holder, job.claim)
    before = (await logs.read(job.store, job.id), await whole(job))
    assert await archive.put(job.store, job.id)
    assert (await logs.read(job.store, job.id), await whole(job)) == before
    assert before[0].state == "completed"


async def seen(job) -> tuple:
    found = await logs.snapshot(job.store, job.id)
    ranges = [(await logs.read(job.store, job.id, after=after)).lines for after in range(4)]
    tails = [await logs.tail(job.store, job.id, limit_bytes=size) for size in (1, 5, 1000)]
    return found.live, found.lines, ranges, tails, await tries.line_times(job.store, job.id), await whole(job)


async def test_a_short_log_is_packed_into_the_record_at_the_end_and_read_as_before(job):
    for data, channel in ((b"one\ntwo\n", "o"), (b"1 2 3\n\xff\0\n", "e"), (b"three\n", "o")):
        await engine.output(job.store, job.holder, job.claim, data, channel=channel)
    before = await seen(job)
    await engine.settle(job.store, job.holder, job.claim)
    assert await job.store.call(command("EXISTS", f"h:log:{job.id}")) == 0
    assert await seen(job) == before
    record, tail = await logs.with_tail(job.store, job.id, limit_bytes=1000)
    assert (record.state, tail["stderr"]) == ("completed", "1 2 3\n\ufffd\0\n")


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_a_short_log_is_packed_however_its_job_ends(job, outcome):
    await engine.output(job.store, job.holder, job.claim, b"one\n")
    await engine.settle(job.store, job.holder, job.claim, outcome)
    assert await job.store.call(command("EXISTS", f"h:log:{job.id}")) == 0
    assert await whole(job) == b"one\n"


@pytest.mark.parametrize("pieces", [[b"x" * 901], [b"\n"] * 33, [b"ab\n"] * 60])
async def test_a_longer_log_stays_a_stream(job, pieces):
    for piece in pieces:
        await engine.output(job.store, job.holder, job.claim, piece)
    await engine.settle(job.store, job.holder, job.claim)
    assert await job.store.call(command("XLEN", f"h:log:{job.id}")) == len(pieces)
    assert await whole(job) == b"".join(pieces)


@pytest.mark.parametrize(
    "written", [b"nonsense", b"1 2 3\n", b"1 1 0 1 o 99\nx", b"x 1 0 1 o 1\nx", b"1 1 0 1 o -5\nx", b"\xff\n"]
)
async def test_what_somebody_else_wrote_in_the_place_of_a_packed_log_does_no_harm(job, written):
    await engine.settle(job.store, job.holder, job.claim)
    await job.store.call(command("HSET", f"h:job:{job.id}", "log", written, "lines", 1))
    assert len((await logs.snapshot(job.store, job.id)).live) <= 1
    await tries.line_times(job.store, job.id)
    await whole(job)


ENTRIES = st.lists(
    st.builds(
        Entry,
        st.integers(1, 99),
        st.integers(0, 10**9),
        st.integers(0, 99),
        st.sampled_from("oe"),
        st.binary(),
    )
)


@given(ENTRIES, st.integers(1, 50))
async def test_frames_come_back_as_they_were_however_they_are_cut(entries, size):
    frames = b"".join(logs.encode_frame(e.attempt, e.line, e.count, e.channel, e.data) for e in entries)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(frames), size):
            yield frames[at : at + size]

    assert list(logs.decode(frames)) == entries
    assert [entry async for entry in logs.decode_stream(chunks())] == entries
