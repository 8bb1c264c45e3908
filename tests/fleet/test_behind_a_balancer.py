"""Two web servers behind a balancer and three workers on hosts of their own: each is killed and restarted in turn."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import socketio
from balancers import KINDS, balancer
from checker import Call
from hosts import Door, Host, host
from servers import S3, free_port
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect
from world import Client, World, children, new_world, strike, together

#: A request counts as in flight at a strike when it began at most so long after it: until a balancer has noticed.
NOTICED_S = 2.5


@dataclass
class Fleet:
    """Two web servers, two schedulers, and three workers each in a network namespace of its own."""

    world: World
    webs: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    doors: list[Door] = field(default_factory=list)
    strikes: list[float] = field(default_factory=list)

    @property
    def ports(self) -> tuple[int, int]:
        """Return where the two web servers listen."""
        first, second = self.webs
        return first, second

    def start_web(self, port: int) -> None:
        """Start a web server of two processes, and wait until it answers."""
        self.webs[port] = self.world.web(wait=False, PORT=str(port), WEB_CONCURRENCY="2")
        self.world.await_web(self.webs[port], port)

    def start_worker(self, name: str) -> None:
        """Start a worker on its host, which reaches Redis and S3 through doors of its own."""
        its, env = self.hosts[name], self.world.stack.env
        ways = {}
        for variable in ("REDIS_URL", "S3_ENDPOINT_URL"):
            url = httpx.URL(env[variable])
            door = Door(its.address, int(url.port or 0))
            self.doors.append(door)
            ways[variable] = str(env[variable]).replace(f"127.0.0.1:{url.port}", f"{its.address}:{door.port}")
        command = its.command(sys.executable, "-m", "workers", "--name", name)
        self.workers[name] = self.world.start(*command, **ways)
        self.world.stack.await_workers([name])

    def strike(self, process: subprocess.Popen[bytes], number: int, *, patience_s: float = 30) -> None:
        """Send a signal to a process, with its children where it is KILL, and wait for its end."""
        victims = [process.pid, *(children(process.pid) if number == signal.SIGKILL else [])]
        self.strikes.append(time.monotonic())
        for pid in victims:
            strike(pid, number)
        process.wait(patience_s)


@pytest.fixture(scope="module")
def whole_fleet(fleet_s3: S3) -> Iterator[Fleet]:
    with ExitStack() as stack:
        hosts = {f"host-{number}": stack.enter_context(host(number)) for number in range(1, 4)}
        world = new_world(fleet_s3, web=False, HOSTLER_TRUSTED_PROXIES="127.0.0.1/32", HOSTLER_SLOTS="2")
        stack.callback(world.end)
        stack.callback(world.tell)
        fleet = Fleet(world, hosts=hosts)
        stack.callback(lambda: [door.close() for door in fleet.doors])
        world.stack.start("scheduler")
        for _ in range(2):
            fleet.start_web(free_port())
        for name in hosts:
            fleet.start_worker(name)
        yield fleet


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Fleet:
    """The fleet, with nothing of earlier tests to be told of."""
    whole_fleet.world.begin()
    whole_fleet.strikes.clear()
    return whole_fleet


class Follower:
    """A client that follows everything by WebSocket, and comes back with the last id it has when a socket ends."""

    def __init__(self, port: int, key: str) -> None:
        self._url, self._key = f"ws://127.0.0.1:{port}/api/jobs/stream", key
        self.completed: Counter[str] = Counter()
        self.codes: list[int] = []
        self._over = threading.Event()
        self.listening = threading.Event()

    def run(self) -> None:
        """Follow until told that it is over."""
        after = ""
        while not self._over.is_set():
            url = f"{self._url}?after={after}" if after else self._url
            try:
                with connect(url, additional_headers={"X-API-Key": self._key}, proxy=None) as socket:
                    self.listening.set()
                    while not self._over.is_set():
                        with suppress(TimeoutError):
                            message = json.loads(socket.recv(timeout=0.2))
                            after = message.get("id", after)
                            if message.get("type") == "job.completed":
                                self.completed[message["jobId"]] += 1
            except ConnectionClosed as error:
                self.codes.append(error.rcvd.code if error.rcvd else 1006)
            except (OSError, WebSocketException):
                time.sleep(0.1)

    def end_after(self, jobs: set[str | None], patience_s: float = 60) -> None:
        """Stop following when all these jobs have been told to be completed, or patience is over."""
        deadline = time.monotonic() + patience_s
        while not jobs <= self.completed.keys() and time.monotonic() < deadline:
            time.sleep(0.1)
        self._over.set()


@contextmanager
def under_load(client: Client, follower: Follower) -> Iterator[None]:
    """Have jobs submitted, looked at and followed while something is struck."""
    over = threading.Event()

    def submit() -> None:
        while not over.is_set():
            client.insist("sleep 0.05")
            time.sleep(0.02)

    def look() -> None:
        while not over.is_set():
            client.call("list", "GET", "/api/jobs/list", params={"limit": 5})
            time.sleep(0.02)

    with together(4) as pool:
        following = pool.submit(follower.run)
        assert follower.listening.wait(20)
        loads = [pool.submit(submit), pool.submit(submit), pool.submit(look)]
        try:
            yield
            time.sleep(1)
        finally:
            over.set()
            for each in loads:
                each.result()
            follower.end_after(_accepted(client))
            following.result()


def _accepted(client: Client) -> set[str | None]:
    return {each.job_id for each in client.calls if each.action == "submit" and each.outcome == "ok"}


def _unexcused(calls: list[Call], strikes: list[float]) -> list[Call]:
    """Return those calls while which nothing was struck."""
    return [
        each
        for each in calls
        if not any(each.began_s - NOTICED_S <= struck <= each.ended_s for struck in strikes)
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_part_is_killed_and_restarted_in_turn_and_nothing_is_lost(
    fleet: Fleet, kind: str, tmp_path: Path
) -> None:
    world = fleet.world
    with balancer(kind, tmp_path / kind, fleet.ports) as port:
        client, follower = world.client(port), Follower(port, world.key)
        with under_load(client, follower):
            for web in fleet.ports:
                for number in (signal.SIGKILL, signal.SIGTERM):
                    time.sleep(1)
                    fleet.strike(fleet.webs[web], number)
                    time.sleep(NOTICED_S)
                    fleet.start_web(web)
            for name in fleet.hosts:
                fleet.strike(fleet.workers[name], random.choice((signal.SIGKILL, signal.SIGTERM)))  # noqa: S311
                fleet.start_worker(name)
            for scheduler in [
                each for each in world.stack.processes if "scheduler" in each.args and each.poll() is None
            ]:  # type: ignore[operator]
                fleet.strike(scheduler, signal.SIGKILL)
                world.stack.start("scheduler")
        failed = [each for each in client.calls if each.outcome != "ok"]
        assert not _unexcused(failed, fleet.strikes), _unexcused(failed, fleet.strikes)[:3]
        world.calls[:] = [
            each for each in world.calls if each.status not in {502, 504}
        ]  # the balancer's own words
        said = world.check(patience_s=60)
        accepted = _accepted(client)
        assert accepted == follower.completed.keys()  # none missed, though sockets ended
        assert set(follower.completed.values()) == {1}  # and none twice
        assert follower.codes
        jobs = [client.job(str(job_id)) for job_id in accepted]
        unlike = [(job["status"], job["reason"], job["exitCode"], job["attempt"]) for job in jobs]
        assert {each[0] for each in unlike} == {"completed"}, Counter(unlike)
    print(
        f"{kind}: {said}; {len(client.calls)} calls, {len(failed)} of them in flight at {len(fleet.strikes)} strikes"
    )
    print(f"sockets ended with {Counter(follower.codes)} and went on where they were")


@pytest.mark.parametrize("kind", list(KINDS))
async def test_without_stickiness_sockets_work_and_a_poll_that_is_led_astray_says_why(
    fleet: Fleet, kind: str, tmp_path: Path
) -> None:
    with balancer(kind, tmp_path / kind, fleet.ports, sticky=False) as port:
        for _ in range(4):  # round robin: two at each server
            client = socketio.AsyncClient(reconnection=False)
            await client.connect(
                f"http://127.0.0.1:{port}",
                transports=["websocket"],
                auth={"apiKey": fleet.world.key},
                wait_timeout=10,
            )
            await client.disconnect()
            await client.shutdown()
        refusals = await asyncio.to_thread(_polls, f"http://127.0.0.1:{port}", fleet.world.key)
        assert refusals
        for refusal in refusals:
            assert refusal.status_code == 400
            assert "sticky" in refusal.text
    with balancer(kind, tmp_path / f"{kind}-sticky", fleet.ports) as port:
        assert not await asyncio.to_thread(_polls, f"http://127.0.0.1:{port}", fleet.world.key)


def _polls(url: str, key: str) -> list[httpx.Response]:
    """Open a session by polling and go on in it with connections of its own each time; returns the refusals."""
    refused: list[httpx.Response] = []

    def ask(method: str, session: str = "", **how: Any) -> httpx.Response:
        params = {"EIO": "4", "transport": "polling"} | ({"sid": session} if session else {})
        with httpx.Client(headers={"X-API-Key": key}, timeout=20, trust_env=False) as client:
            return client.request(method, f"{url}/socket.io/", params=params, **how)

    session = json.loads(ask("GET").raise_for_status().text[1:])["sid"]
    for _ in range(4):
        answer = ask("POST", session, content=f"40{json.dumps({'apiKey': key})}")
        refused += [answer] if answer.is_error else []
    return refused
