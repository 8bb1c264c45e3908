"""A WebSocket that follows jobs tells everything once, in order, and closes for stated reasons."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from socket import SO_RCVBUF, SOL_SOCKET
from socket import socket as raw_socket

import engine
import pytest
from live import Live, messages, next_message, output, serve, types
from websockets.exceptions import ConnectionClosed, InvalidStatus

from storage import attempts, jobs, users


@pytest.fixture
async def live(settings) -> AsyncIterator[Live]:
    async with serve(settings) as live:
        yield live


async def closed(socket) -> int:
    """Return the code with which the server closes the socket."""
    async with asyncio.timeout(15):
        with contextlib.suppress(ConnectionClosed):
            async for _ in socket:
                pass
    return socket.close_code


async def test_all_of_a_jobs_life_comes_in_order_and_then_the_socket_closes(live):
    job_id = await engine.submit(live.store)
    async with live.socket(f"?jobId={job_id}") as socket:
        assert (await next_message(socket))["type"] == "job.queued"
        holder = await engine.register(live.store)
        (claimed,) = await engine.claim(live.store, holder)
        for number in range(20):
            await engine.output(live.store, holder, claimed, b"%d\n" % number)
        await live.store.call(attempts.progress(holder, job_id, 1, 45))
        await engine.output(live.store, holder, claimed, b"oh\n", channel="e")
        await engine.settle(live.store, holder, claimed, "failed", exit_code=3)
        taken = await messages(socket)
        assert socket.close_code == 1000
    assert types(taken)[0] == "job.started"
    assert types(taken)[-1] == "job.completed"
    assert output(taken) == "".join(f"{number}\n" for number in range(20)) + "oh\n"
    started, ended = taken[0], taken[-1]
    assert (started["jobId"], started["workerId"], started["attempt"]) == (job_id, "w", 1)
    assert (ended["status"], ended["reason"], ended["exitCode"]) == ("failed", "exit_code", 3)
    printed = [message for message in taken if message["type"] == "job.output"]
    assert [message["seq"] for message in printed] == list(range(1, 22))
    assert [message["stream"] for message in printed[-2:]] == ["stdout", "stderr"]
    assert [m["progress"] for m in taken if m["type"] == "job.progress"] == [45]


async def test_a_finished_job_is_told_from_its_log(live):
    job = await live.running_job()
    await live.say(job, b"one\ntwo\n")
    await live.end(job)
    async with live.socket(f"?jobId={job.id}") as socket:
        taken = await messages(socket)
    assert types(taken) == ["job.started", "job.output", "job.completed"]
    assert output(taken) == "one\ntwo\n"
    assert socket.close_code == 1000


async def test_a_late_client_has_the_past_once_and_then_the_present(live):
    job = await live.running_job()

    async def flood() -> None:
        for number in range(300):
            await live.say(job, b"%d\n" % number)
        await live.end(job)

    flooding = asyncio.create_task(flood())
    sockets = []
    for _ in range(5):
        await asyncio.sleep(0.01)
        sockets.append(await live.socket(f"?jobId={job.id}"))
    all_taken = await asyncio.gather(*(messages(socket) for socket in sockets))
    await flooding
    for taken, socket in zip(all_taken, sockets, strict=True):
        assert output(taken) == "".join(f"{number}\n" for number in range(300))
        assert types(taken) == ["job.started", "job.output", "job.completed"]
        await socket.close()


async def test_every_cursor_resumes_at_the_very_next_message(live):
    job = await live.running_job()
    for number in range(5):
        await live.say(job, b"line %d\n" % number)
    await live.say(job, b"long ", line_count=0)
    await live.say(job, b"longer ", line_count=0)
    await live.say(job, b"ended\n")
    await live.end(job)
    async with live.socket(f"?jobId={job.id}") as socket:
        taken = await messages(socket)
    for at, message in enumerate(taken[:-1]):
        async with live.socket(f"?jobId={job.id}&after={message['id']}") as socket:
            rest = await messages(socket)
        assert [(m["type"], m.get("data")) for m in rest] == [
            (m["type"], m.get("data")) for m in taken[at + 1 :]
        ]
    async with live.socket(f"?jobId={job.id}&after=3") as socket:
        assert output(await messages(socket)) == "line 3\nline 4\nlong longer ended\n"


async def test_a_live_cursor_resumes_too(live):
    job = await live.running_job()
    async with live.socket(f"?jobId={job.id}") as socket:
        assert (await next_message(socket))["type"] == "job.started"
        await live.say(job, b"one\n")
        await live.say(job, b"half", line_count=0)
        await next_message(socket)
        cursor = (await next_message(socket))["id"]
    await live.say(job, b" whole\n")
    async with live.socket(f"?jobId={job.id}&after={cursor}") as socket:
        assert (await next_message(socket))["data"] == " whole\n"


async def test_a_retry_starts_again_on_the_same_socket(live):
    holder = await engine.register(live.store)
    job_id = await engine.submit(live.store, retries=1, backoff=jobs.Backoff(delay_s=0.0001))
    async with live.socket(f"?jobId={job_id}") as socket:
        (first,) = await engine.claim(live.store, holder)
        await engine.output(live.store, holder, first, b"first\n")
        await engine.settle(live.store, holder, first, "failed")
        (second,) = await engine.claim(live.store, holder)
        await engine.output(live.store, holder, second, b"second\n")
        await engine.settle(live.store, holder, second)
        taken = await messages(socket)
    assert [m["attempt"] for m in taken if m["type"] == "job.started"] == [1, 2]
    assert [(m["attempt"], m["data"]) for m in taken if m["type"] == "job.output"] == [
        (1, "first\n"), (2, "second\n"),
    ]  # fmt: skip
    assert taken[-1]["status"] == "completed"


async def test_the_stream_of_all_jobs_keeps_each_jobs_order(live):
    async with live.socket() as socket:
        holder = await engine.register(live.store)
        ids = [await engine.submit(live.store) for _ in range(20)]
        claims = await engine.claim(live.store, holder, most=20)

        async def run(claimed) -> None:
            for number in range(5):
                await engine.output(live.store, holder, claimed, b"%d\n" % number)
            await engine.settle(live.store, holder, claimed)

        await asyncio.gather(*(run(claimed) for claimed in claims))
        told = {job_id: [] for job_id in ids}
        while not all(each and each[-1]["type"] == "job.completed" for each in told.values()):
            message = await next_message(socket)
            told[message["jobId"]].append(message)
    for taken in told.values():
        assert types(taken) == ["job.queued", "job.started", "job.output", "job.completed"]
        assert output(taken) == "0\n1\n2\n3\n4\n"


async def test_the_stream_of_all_jobs_resumes_with_events_and_says_which_output_it_lacks(live):
    async with live.socket() as socket:
        before = await live.running_job()
        cursor = (await messages(socket, "job.started"))[-1]["id"]
    await live.say(before, b"unheard\n")
    await live.end(before)
    async with live.socket(f"?after={cursor}") as socket:
        ended, gap = await next_message(socket), await next_message(socket)
        assert (ended["type"], ended["jobId"]) == ("job.completed", before.id)
        assert (gap["type"], gap["what"], gap["jobIds"]) == ("stream.gap", "output", [before.id])
        after = await live.running_job()
        assert (await messages(socket, "job.started"))[-1]["jobId"] == after.id
    async with live.socket(f"?jobId={before.id}&after={cursor}") as socket:
        assert output(await messages(socket)) == "unheard\n"


async def test_a_forgotten_cursor_of_all_jobs_is_a_gap(live, redis_client):
    async with live.socket() as socket:
        await engine.submit(live.store)
        cursor = (await next_message(socket))["id"]
    await engine.submit(live.store)
    await engine.submit(live.store)
    redis_client.xtrim("h:events", maxlen=1, approximate=False)
    async with live.socket(f"?after={cursor}") as socket:
        taken = await messages(socket, "job.queued")
    assert [(m["type"], m.get("what")) for m in taken] == [("stream.gap", "events"), ("job.queued", None)]


async def test_what_was_trimmed_is_a_gap_with_its_lines(live):
    job = await live.running_job()
    for number in range(200):
        await live.say(job, b"line %04d\n" % number, live_bytes=500)
    await live.end(job)
    async with live.socket(f"?jobId={job.id}") as socket:
        taken = await messages(socket)
    gap = next(message for message in taken if message["type"] == "stream.gap")
    printed = [message["seq"] for message in taken if message["type"] == "job.output"]
    assert (gap["from"], gap["to"] + 1) == (1, printed[0])
    assert printed == list(range(printed[0], 201))


@pytest.mark.parametrize(
    ("query", "code"),
    [("?jobId=job-00000000000000000000", 4404), ("?after=nonsense", 4400), ("?after=%D9%A1-%D9%A0", 4400)],
)
async def test_what_cannot_be_followed_closes_with_its_reason(live, query, code):
    async with live.socket(query) as socket:
        assert await closed(socket) == code


async def test_strangers_are_not_let_in(live):
    with pytest.raises(InvalidStatus) as refused:
        await live.socket(token="nobody")
    assert refused.value.response.status_code == 403


async def test_a_socket_of_an_ended_session_closes(live, monkeypatch):
    monkeypatch.setattr("api.realtime.websocket.STANDING_S", 0.05)
    async with live.socket() as socket:
        user = await users.named(live.store, "ada")
        await users.update(live.store, user.id, actor="test", changes={"role": "w"})
        assert await closed(socket) == 4401


async def test_a_socket_of_an_ended_session_that_takes_nothing_is_cut_off(live, monkeypatch, caplog):
    monkeypatch.setattr("api.realtime.websocket.STANDING_S", 0.05)
    monkeypatch.setattr("api.server.GOODBYE_S", 0.1)
    job = await live.running_job()
    with raw_socket() as raw:
        raw.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", live.port))
        head = (
            f"GET /api/jobs/stream?jobId={job.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.token}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await loop.sock_sendall(raw, head.encode())
        assert b" 101 " in await loop.sock_recv(raw, 64)
        (connection,) = live.server.server_state.connections
        async with asyncio.timeout(20):
            while connection.writable.is_set():
                await live.say(job, b"x" * 99_999 + b"\n")
                await asyncio.sleep(0.005)
        user = await users.named(live.store, "ada")
        await users.update(live.store, user.id, actor="test", changes={"role": "w"})
        async with asyncio.timeout(5):
            while connection in live.server.server_state.connections or live.server.server_state.tasks:
                await asyncio.sleep(0.01)
    assert not [record for record in caplog.records if record.name == "hostler.api"]


async def test_a_client_that_talks_too_much_is_closed(live):
    async with live.socket() as socket:
        await socket.send("x" * 5000)
        assert await closed(socket) == 1009
    async with live.socket() as socket:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(1000):
                await socket.send("x")
        assert await closed(socket) == 1008
    async with live.socket() as socket:
        await socket.send(b"binary")
        assert await closed(socket) == 1003


async def test_a_stopping_server_says_that_it_restarts(live):
    async with live.socket() as socket:
        live.server.should_exit = True
        assert await closed(socket) == 1012


async def test_clients_that_leave_leave_nothing_behind(live, redis_client):
    job = await live.running_job()
    tasks = len(asyncio.all_tasks())
    for _ in range(30):
        sockets = await asyncio.gather(*(live.socket(f"?jobId={job.id}") for _ in range(5)))
        for socket in sockets:
            socket.transport.abort()
    async with asyncio.timeout(10):
        while redis_client.pubsub_numsub(f"h:out:{job.id}")[0][1] or len(asyncio.all_tasks()) > tasks + 5:
            await asyncio.sleep(0.02)
