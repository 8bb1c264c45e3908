"""`hostler top` in a terminal of 80 by 24, and the socket that feeds it."""

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
import pytest
from fake_server import Answer, FakeServer, error, job
from websockets.asyncio.server import ServerConnection, serve

from cli import live
from cli.client import Client
from cli.contexts import Server
from cli.failures import Failed
from cli.main import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("textual") is None, reason="textual, the extra `top`, is not installed"
)

JOBS = [
    job(jobId="job-1", status="running", command="make test", ranMs=None, exitCode=None),
    job(jobId="job-2", status="failed", command="make \x1b[31mlint", exitCode=2),
]
OVERVIEW = {
    "jobs": {
        "queued": 3, "waiting": 1, "running": 1, "completed": 7, "failed": 2, "cancelled": 0, "quarantined": 0,
    },
    "queues": [],
    "minutes": {"submitted": [0, 4], "ended": [1, 2], "failed": [0, 0]},
    "latency": {}, "workers": {"total": 2, "online": 1, "draining": 0, "slots": 4, "running": 1},
    "apps": {"running": 1},
}  # fmt: skip
POOL = {
    "tags": ["gpu"], "depth": 2, "running": 1, "oldestAgeSeconds": 65.0, "workers": 1, "workersNeeded": 2, "slots": 4
}  # fmt: skip


class Feed:
    """The messages of a socket, put there by a test."""

    def __init__(self) -> None:
        self.messages: dict[str, asyncio.Queue[dict[str, Any]]] = {}

    def put(self, path: str, **message: Any) -> None:
        self.messages.setdefault(path, asyncio.Queue()).put_nowait(message)

    async def listen(
        self, _client: Client, path: str, *, on_state: Callable[[bool], None] = lambda _: None, **_: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        on_state(True)
        queue = self.messages.setdefault(path, asyncio.Queue())
        while True:
            yield await queue.get()


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    feed = Feed()
    monkeypatch.setattr(live, "listen", feed.listen)
    return feed


@pytest.fixture
def fleet(server: FakeServer) -> FakeServer:
    server.on("GET /api/overview", Answer(body=OVERVIEW))
    server.on("GET /api/jobs/list", Answer(body={"jobs": JOBS, "total": 2}))
    server.on("GET /api/queues", Answer(body={"pools": [POOL]}))
    server.on("GET /api/nodes", Answer(body={"nodes": []}))
    server.on("GET /api/apps", Answer(body={"apps": []}))
    return server


def seen(app: Any) -> str:
    """Return what is on the screen."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(part.text for part in strip).rstrip() for strip in strips)


async def until(pilot: Any, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await pilot.pause(0.05)


async def test_it_shows_what_there_is_and_follows_what_happens(fleet: FakeServer, feed: Feed) -> None:
    from cli.top_screen import Top

    with Client(Server(url=fleet.url, secret="cb_x")) as client:
        app = Top(client)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "make test" in seen(app))
            screen = seen(app)
            assert all(len(line) <= 80 for line in screen.split("\n"))
            for words in (
                "live",
                "1 running, 3 queued, 2 failed",
                "1/2 online",
                "ended, last hour",
                "make lint",
            ):
                assert words in screen
            assert "\x1b" not in screen
            fleet.routes["GET /api/jobs/list"] = [Answer(body={"jobs": [job(command="new one")], "total": 1})]
            feed.put("/api/events", type="job.queued", id="1-0", jobId="job-3")
            await until(pilot, lambda: "new one" in seen(app))
            await pilot.press("2")
            await until(pilot, lambda: "1 min 5 s" in seen(app))
            await pilot.press("3")
            await until(pilot, lambda: "hostler worker" in seen(app))


async def test_words_and_states_are_asked_for_at_the_server(fleet: FakeServer, feed: Feed) -> None:
    from cli.top_screen import Top

    with Client(Server(url=fleet.url, secret="cb_x")) as client:
        app = Top(client)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "make test" in seen(app))
            await pilot.press("slash")
            await until(pilot, lambda: app.focused is not None and app.focused.id == "filter")
            await pilot.press(*"lint", "enter", "s")
            asked = {"status": "running", "search": "lint", "limit": "200"}
            await until(pilot, lambda: fleet.last("/api/jobs/list").query == asked)
            await pilot.press("escape")
            await until(pilot, lambda: fleet.last("/api/jobs/list").query == {"limit": "200"})


async def test_a_job_is_cancelled_once_somebody_agrees_and_a_refusal_is_shown(
    fleet: FakeServer, feed: Feed
) -> None:
    from cli.top_screen import Top

    fleet.on("POST /api/jobs/cancel", error(403, "This needs the operator role."))
    with Client(Server(url=fleet.url, secret="cb_x")) as client:
        app = Top(client)
        async with app.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "make test" in seen(app))
            await pilot.press("c")
            await until(pilot, lambda: "Cancel job-1?" in seen(app))
            await pilot.press("n")
            await until(pilot, lambda: "Cancel job-1?" not in seen(app))
            assert not [asked for asked in fleet.asked if asked.method == "POST"]
            await pilot.press("j", "c")
            await until(pilot, lambda: "Cancel job-2?" in seen(app))
            await pilot.press("y")
            await until(pilot, lambda: "This needs" in seen(app))
            assert fleet.last("/api/jobs/cancel").json == {"jobId": "job-2"}


async def test_the_log_of_a_job_is_followed(fleet: FakeServer, feed: Feed) -> None:
    from cli.top_screen import Top

    with Client(Server(url=fleet.url, secret="cb_x")) as client:
        app = Top(client)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "make test" in seen(app))
            await pilot.press("l")
            for data in ("one\ntw", "o\n\x1b]0;title\x07three"):
                feed.put("/api/jobs/stream", type="job.output", id="1", stream="stdout", data=data)
            feed.put("/api/jobs/stream", type="job.completed", id="2", status="failed", exitCode=3)
            await until(pilot, lambda: "[failed, exit code 3]" in seen(app))
            lines = [line.strip() for line in seen(app).split("\n")]
            assert lines[1:5] == ["one", "two", "three", "[failed, exit code 3]"]
            await pilot.press("escape")
            await until(pilot, lambda: "make test" in seen(app))


async def test_a_lost_socket_is_taken_up_where_it_was(config: Any) -> None:
    asked, states = list[str](), list[bool]()

    async def answer(socket: ServerConnection) -> None:
        asked.append(socket.request.path)  # type: ignore[union-attr]
        assert socket.request.headers["X-API-Key"] == "cb_x"  # type: ignore[union-attr]
        await socket.send(orjson.dumps({"type": "job.queued", "id": f"{len(asked)}-0"}).decode())
        if len(asked) == 1:
            socket.transport.abort()  # type: ignore[attr-defined]  as when the server dies
        elif len(asked) == 2:
            await socket.close(1012, "The server is about to restart.")
        else:
            await socket.close(1000, "That was all.")

    async with serve(answer, "127.0.0.1", 0) as socket_server:
        port = socket_server.sockets[0].getsockname()[1]
        with Client(Server(url=f"http://127.0.0.1:{port}", secret="cb_x")) as client:
            async with asyncio.timeout(30):
                messages = live.listen(client, "/api/events", on_state=states.append)
                got = [message["id"] async for message in messages]
    assert got == ["1-0", "2-0", "3-0"]
    assert asked == ["/api/events", "/api/events?after=1-0", "/api/events?after=2-0"]
    assert states == [True, False, True, False, True]


async def test_who_is_not_admitted_learns_it(server: FakeServer) -> None:
    server.on("GET /api/events", Answer(403, b""))
    server.on("GET /api/auth/me", error(401, "The session has expired."))
    with Client(Server(url=server.url, secret="cb_x")) as client:
        async with asyncio.timeout(30):
            with pytest.raises(Failed, match="expired"):
                await anext(live.listen(client, "/api/events"))


def test_without_textual_it_says_what_to_install(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(["top"]) == 1
    assert "Try: pip install 'hostler[top]'" in capsys.readouterr().err


def test_without_a_terminal_nothing_is_painted(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cli.top_screen.Top.run", lambda _top: pytest.fail("painted"))
    assert main(["top"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "hostler: There is no terminal to show it on.",
        "Try: hostler overview, or hostler jobs list --watch",
    ]
