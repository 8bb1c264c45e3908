"""The wire: many steps on one connection, each answered by its own reply or by an error, through every loss."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hiredis
import pytest
import redis
from servers import Valkey, free_port, start_valkey

from storage import wire as module
from storage.calls import command, script
from storage.errors import Unavailable
from storage.wire import Address, Wire, backoff_s


@pytest.fixture
async def wire(redis_client: "redis.Redis[bytes]", valkey: Valkey) -> AsyncIterator[Wire]:
    wire = Wire(valkey.url)
    yield wire
    await wire.close()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that the test may hurt."""
    server = start_valkey(tmp_path)
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.process.kill()
    server.process.wait(10)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "database"),
    [
        ("redis://example.org", "example.org", 6379, None, 0),
        ("redis://u:p%40ss@h:7/3", "h", 7, None, 3),
        ("rediss://h:7?db=2", "h", 7, None, 2),
        ("unix:///run/valkey.sock?db=4", "127.0.0.1", 6379, "/run/valkey.sock", 4),
    ],
)  # fmt: skip
def test_an_address_is_read_from_its_url(
    url: str, host: str, port: int, path: str | None, database: int
) -> None:
    address = Address.of(url)
    assert (address.host, address.port, address.path, address.database) == (host, port, path, database)
    assert (address.tls is not None) == url.startswith("rediss")
    if "@" in url:
        assert (address.username, address.password) == ("u", "p@ss")
        assert address.greeting() == [("AUTH", "u", "p@ss"), ("SELECT", 3)]


def test_another_kind_of_url_is_refused() -> None:
    with pytest.raises(ValueError, match="http://"):
        Address.of("http://example.org")


async def test_many_steps_at_once_each_get_their_own_answer(wire: Wire) -> None:
    answers = await asyncio.gather(*(wire.call(command("ECHO", str(number))) for number in range(500)))
    assert answers == [str(number).encode() for number in range(500)]
    assert await wire.calls(command("ECHO", "a"), command("ECHO", "b")) == [b"a", b"b"]


async def test_a_step_that_nobody_waits_for_any_more_disturbs_no_other(wire: Wire) -> None:
    await wire.call(command("PING"))
    tasks = [asyncio.create_task(wire.call(command("ECHO", str(number)))) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1::2] == [str(number).encode() for number in range(1, 20, 2)]


async def test_who_is_to_hear_of_a_step_first_has_heard_of_it_when_its_answer_is_there(
    wire: Wire, redis_client: "redis.Redis[bytes]"
) -> None:
    await wire.call(command("PING"))
    publish = command("EVAL", "return redis.call('PUBLISH', ARGV[1], 'x')", 0, "heard first")
    with contextlib.closing(redis_client.pubsub()) as listener:
        listener.subscribe("heard first")
        assert listener.get_message(timeout=20)
        for _ in range(200):
            answered = wire.send(publish, others_first=True)
            assert answered is not None
            heard: list[bool] = []
            answered.add_done_callback(lambda _, heard=heard: heard.append(listener.connection.can_read(0)))
            assert await answered == 1
            assert heard == [True]
            assert listener.get_message(timeout=20)


async def test_a_word_that_cannot_be_sent_disturbs_no_other_step(wire: Wire) -> None:
    await wire.call(command("PING"))
    with pytest.raises(TypeError):
        await wire.call(command("ECHO", None))  # type: ignore[call-overload]  # somebody errs
    with pytest.raises(UnicodeEncodeError):
        await wire.call(command("ECHO", "\ud800"))
    assert await wire.calls(*(command("ECHO", number) for number in range(5))) == [
        b"%d" % n for n in range(5)
    ]


async def test_what_redis_refuses_for_good_is_raised_and_what_passes_is_unavailable(
    wire: Wire, redis_client: "redis.Redis[bytes]"
) -> None:
    redis_client.set("text", "words")
    with pytest.raises(hiredis.ReplyError, match="WRONGTYPE"):
        await wire.call(command("LPUSH", "text", "x"))
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="OOM"):
            await wire.call(command("SET", "more", "x" * 100))
    finally:
        redis_client.config_set("maxmemory", 0)
    assert await wire.call(command("GET", "text")) == b"words"


async def test_scripts_that_were_flushed_are_known_again(
    wire: Wire, redis_client: "redis.Redis[bytes]"
) -> None:
    lead = script("lead", "me", 1000, 15_000, 5000)
    assert await wire.call(lead) == 1
    redis_client.script_flush()
    assert await wire.call(lead) == 1
    assert await wire.call(lead) == 1


async def test_a_connection_that_is_cut_is_made_again(wire: Wire, redis_client: "redis.Redis[bytes]") -> None:
    for _ in range(3):
        assert await wire.call(command("PING")) == b"PONG"
        redis_client.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.02)


async def test_those_who_wait_when_the_connection_breaks_are_told_at_once(
    wire: Wire, redis_client: "redis.Redis[bytes]"
) -> None:
    waiting = asyncio.create_task(wire.call(command("BLPOP", "nothing", 0), deadline_s=30))
    while not redis_client.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.01)
    redis_client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 2)  # noqa: TID251


async def test_where_nobody_listens_is_unavailable_and_soon_said() -> None:
    wire = Wire(f"redis://127.0.0.1:{free_port()}/0")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(50):
        with pytest.raises(Unavailable):
            await wire.call(command("PING"))
    assert loop.time() - began < 2
    await wire.close()


async def test_a_frozen_redis_is_given_up_in_time_and_its_late_answers_reach_nobody(
    own_valkey: Valkey,
) -> None:
    wire = Wire(own_valkey.url)
    await wire.call(command("SET", "k", "0"))
    own_valkey.process.send_signal(signal.SIGSTOP)
    results = await asyncio.gather(
        *(wire.call(command("ECHO", "late"), deadline_s=0.3) for _ in range(20)), return_exceptions=True
    )
    assert {type(result) for result in results} == {Unavailable}
    own_valkey.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(Unavailable):
                assert await wire.call(command("GET", "k"), deadline_s=0.5) == b"0"
                break
            await asyncio.sleep(0.05)
    assert await wire.calls(*(command("ECHO", str(number)) for number in range(50))) == [
        str(number).encode() for number in range(50)
    ]
    await wire.close()


async def test_a_redis_that_restarts_is_found_again_with_its_scripts(
    own_valkey: Valkey, tmp_path: Path
) -> None:
    wire = Wire(own_valkey.url)
    assert await wire.call(script("lead", "me", 60_000, 15_000, 5000)) == 1
    own_valkey.process.kill()
    own_valkey.process.wait()
    with pytest.raises(Unavailable):
        await wire.call(command("PING"))
    own_valkey.process = start_valkey(tmp_path, wire.address.port).process
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(Unavailable):
                # the AOF has the lead
                assert await wire.call(script("lead", "me", 60_000, 15_000, 5000)) == 1
                break
            await asyncio.sleep(0.05)
    await wire.close()


async def test_a_listener_hears_every_message_and_is_told_of_each_new_connection(
    wire: Wire, redis_client: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PING_S", 0.1)  # so that it asks whether the line is alive, too
    heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    connected: asyncio.Queue[None] = asyncio.Queue()
    task = asyncio.create_task(
        wire.listen(
            ["one", "two"],
            lambda *message: heard.put_nowait(message),
            lambda: connected.put_nowait(None),
        )
    )
    try:
        for _ in range(3):
            await asyncio.wait_for(connected.get(), 5)  # noqa: TID251
            await asyncio.sleep(0.25)
            for channel in ("one", "two"):
                redis_client.publish(channel, f"to {channel}")
                assert await asyncio.wait_for(heard.get(), 5) == (channel.encode(), f"to {channel}".encode())  # noqa: TID251
            redis_client.client_kill_filter(_type="pubsub")
        assert heard.empty()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_listener_notices_that_the_other_side_fell_silent(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PING_S", 0.1)
    monkeypatch.setattr(module, "DEADLINE_S", 0.2)
    connected: asyncio.Queue[None] = asyncio.Queue()
    wire = Wire(own_valkey.url)
    task = asyncio.create_task(wire.listen(["c"], lambda *_: None, lambda: connected.put_nowait(None)))
    try:
        await asyncio.wait_for(connected.get(), 5)  # noqa: TID251
        own_valkey.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.8)
        own_valkey.process.send_signal(signal.SIGCONT)
        await asyncio.wait_for(connected.get(), 5)  # noqa: TID251
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await wire.close()


class _Starting(asyncio.Protocol):
    """A Redis that takes subscriptions, but no steps until it has `read` what it keeps."""

    def __init__(self, server: "Starting") -> None:
        self.server, self.reader = server, hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (words := self.reader.gets()) is not False:
            if words[0] == b"SUBSCRIBE":
                answer = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
            else:
                self.server.asked += 1
                answer = b"+OK\r\n" if self.server.read else b"-LOADING it reads\r\n"
            self.transport.write(answer)


class Starting:
    def __init__(self) -> None:
        self.read, self.asked, self.transports = False, 0, list[asyncio.Transport]()


@pytest.fixture
async def starting() -> AsyncIterator[tuple[Starting, str]]:
    starting = Starting()
    server = await asyncio.get_running_loop().create_server(lambda: _Starting(starting), "127.0.0.1", 0)
    yield starting, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for each in starting.transports:
        each.abort()


async def test_a_listener_tells_of_its_connection_once_steps_are_carried_out_too(starting) -> None:
    server, url = starting
    wire, connected = Wire(url), asyncio.Event()
    task = asyncio.create_task(wire.listen(["c"], lambda *_: None, connected.set))
    try:
        async with asyncio.timeout(20):
            while server.asked < 200:  # it goes on asking
                await asyncio.sleep(0.01)
            assert not connected.is_set()
            server.read = True
            await connected.wait()
            assert await wire.call(command("PING")) == b"OK"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await wire.close()


async def test_whichever_connection_reaches_redis_again_the_others_do_not_wait_any_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, pauses = free_port(), itertools.chain([0.05, 3600.0], itertools.repeat(0.05))
    monkeypatch.setattr(module, "backoff_s", lambda failures: next(pauses))
    wire, connected = Wire(f"redis://:test-password@127.0.0.1:{port}"), asyncio.Queue[None]()
    listening = [
        asyncio.create_task(wire.listen(["c"], lambda *_: None, lambda: connected.put_nowait(None)))
        for _ in range(2)
    ]
    try:
        while wire._failures < 5:  # one of them will not try again within the hour, the other one does
            await asyncio.sleep(0.01)
        server = await asyncio.to_thread(start_valkey, tmp_path, port)
        async with asyncio.timeout(20):
            for _ in listening:
                await connected.get()
            assert await wire.call(command("PING")) == b"PONG"
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        await wire.close()
    server.process.kill()
    server.process.wait(10)


@pytest.mark.parametrize("failures", [1, 5, 5000])
def test_however_long_redis_is_away_the_next_try_is_within_a_second(failures):
    assert 0.04 <= backoff_s(failures) <= 1
