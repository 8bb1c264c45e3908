"""Nothing is silent for as long as routers of platforms wait: 30 s for a request, 55 s for a connection."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx
import pytest
from processes import Stack, new_stack
from servers import S3
from webs import start_web

from api.cbox import schedule
from api.executor import agents
from api.realtime import sse
from api.realtime.socketio import server as socketio
from api.server import Worker
from api.squareberg import registry
from storage import bootstrap, relay

#: Heroku's: https://devcenter.heroku.com/articles/http-routing#timeouts
REQUEST_S, CONNECTION_S = 30.0, 55.0
WATCHED_S = 60.0


def test_no_limit_lets_a_request_or_a_connection_be_silent_for_longer_than_routers_wait() -> None:
    requests = {
        "an agent's poll": agents.MOST_WAIT_S,
        "an app's answer": relay.TIMEOUT_S + 1,
        "a triggered run": schedule.SILENT_S,
        "stopping an app": registry.MOST_STOP_S,
        "starting an app": registry.START_S + registry.WAY_S,
        "a poll of Socket.IO": socketio.PING_S,
        "an event stream": sse.KEEP_ALIVE_S,
    }
    assert {what: limit_s for what, limit_s in requests.items() if limit_s > REQUEST_S - 3} == {}
    assert agents.MOST_WAIT_S < 25
    assert Worker.CONFIG_KWARGS["ws_ping_interval"] < CONNECTION_S - 10


@pytest.fixture
def web(s3: S3) -> Iterator[Stack]:
    stack = new_stack(s3)
    try:
        admin = bootstrap.prepare(stack.settings)
        stack.api_key = asyncio.run(admin).api_key  # type: ignore[union-attr]  # an empty Redis has none yet
        start_web(stack)
        yield stack
    finally:
        stack.end()


@dataclass
class Heard:
    """What came on a connection: how long it was silent at most, and when it ended."""

    silent_s: float
    lasted_s: float
    first: bytes


async def listen(url: str, request: str, for_s: float = WATCHED_S) -> Heard:
    """Send a request as it stands, and listen to what comes."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.replace("\n", "\r\n").encode())
    began = heard = time.monotonic()
    silent_s, first = 0.0, b""
    with suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            while piece := await reader.read(65536):
                first, now = first or piece, time.monotonic()
                silent_s, heard = max(silent_s, now - heard), now
    writer.close()
    now = time.monotonic()
    return Heard(max(silent_s, now - heard), now - began, first)


@pytest.mark.slow
async def test_what_is_kept_open_for_a_minute_is_heard_of_all_the_time(web: Stack) -> None:
    async with httpx.AsyncClient(base_url=web.url, headers={"X-API-Key": web.api_key}, timeout=30) as client:
        job = (
            await client.post("/api/jobs/submit", json={"command": "sleep 600", "tags": ["not-here"]})
        ).json()["jobId"]
        wanted = {"hostname": "h", "workerId": "silent", "metadata": {"tags": ["none-such"]}}
        agent = (await client.post("/api/workers/register", json=wanted)).json()
        opened = (await client.get("/socket.io/", params={"EIO": "4", "transport": "polling"})).text
        session = json.loads(opened[1:])["sid"]
        entered = await client.post(
            "/socket.io/", params={"EIO": "4", "transport": "polling", "sid": session},
            content=f'40{{"apiKey":"{web.api_key}"}}',
        )  # fmt: skip
        assert entered.status_code == 200
        await client.get("/socket.io/", params={"EIO": "4", "transport": "polling", "sid": session})
    key = f"Host: h\nX-API-Key: {web.api_key}\n"
    upgrade = f"Upgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: {'A' * 22}==\n"
    agents_poll, socketio_poll, events, socket = await asyncio.gather(
        listen(
            web.url,
            f"GET /api/jobs/get-job?wait=60 HTTP/1.1\nHost: h\nX-Worker-Token: {agent['token']}\nConnection: close\n\n",
        ),
        listen(
            web.url,
            f"GET /socket.io/?EIO=4&transport=polling&sid={session} HTTP/1.1\n{key}Connection: close\n\n",
        ),
        listen(web.url, f"GET /api/jobs/{job}/log HTTP/1.1\n{key}Accept: text/event-stream\n\n"),
        listen(web.url, f"GET /api/jobs/stream HTTP/1.1\n{key}{upgrade}\n"),
    )
    assert agents_poll.first.startswith((b"HTTP/1.1 204", b"HTTP/1.1 200")), agents_poll.first
    assert 20 < agents_poll.lasted_s < 25.5
    assert socketio_poll.first.startswith(b"HTTP/1.1 200"), socketio_poll.first
    assert socketio_poll.lasted_s < 25.5
    assert events.first.startswith(b"HTTP/1.1 200"), events.first
    assert socket.first.startswith(b"HTTP/1.1 101"), socket.first
    for each in (events, socket):
        assert each.lasted_s > 30  # nobody has hung up before it could be silent
        assert each.silent_s < 26
