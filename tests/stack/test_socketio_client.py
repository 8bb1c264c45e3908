"""The stock JavaScript client of Socket.IO, with its default transports, against a web of two processes."""

import asyncio
import csv
import json
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from machines import Machine, machine
from processes import ROOT, Stack, new_stack, soon
from webs import start_web

from storage import apps, bootstrap, manifests, relay
from storage.relay import Ask, Head
from storage.store import Store

CLIENT = "socket.io-client@4.8"
#: How each kind of client connects; of each there are some, so that both processes get some.
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "polling": {"transports": ["polling"]},
    "websocket": {"transports": ["websocket"]},
}
EACH = 4
APP = {"id": "shop", "processes": {"web": {"command": "x"}}, "routes": {"prefix": "/plugins/shop", "process": "web"},
       "links": {"engine_url": "http://127.0.0.1:8000"}}  # fmt: skip

#: The example under "Socket.IO mit JavaScript" on Cuby's page, as it stands there.
EXAMPLE = """import { io } from 'socket.io-client';

const socket = io('http://localhost:3847', { auth: { apiKey: 'DEIN_API_KEY' } });

// Status-Updates empfangen
socket.on('products:status', (statuses) => { console.log('Produkt-Status:', statuses); });

// Install-Fortschritt empfangen
socket.on('install:status', ({ productId, progress, message }) => {
  console.log(`[${productId}] ${progress}% — ${message}`);
});

// Logs abonnieren
socket.emit('subscribe:logs', { productId: 'processcube-engine' });
socket.on('product:log', ({ productId, line }) => { console.log(`[${productId}] ${line}`); });
"""


@pytest.fixture(scope="module")
def modules(request: pytest.FixtureRequest) -> Path:
    """A directory with the client, which outlives the tests as pytest's cache does."""
    folder = request.config.cache.mkdir("socketio-client")
    if not (folder / "node_modules" / "socket.io-client" / "package.json").exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            str(folder),
            CLIENT,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm does not answer")
        if done.returncode:
            pytest.skip(f"{CLIENT} cannot be installed: {done.stderr[-300:]}")
    return folder / "node_modules"


@pytest.fixture(scope="module")
def web() -> Iterator[Stack]:
    """A web of two processes, without S3, scheduler and workers."""
    stack = new_stack()
    try:
        start_web(stack, processes=2)
        yield stack
    finally:
        for process in stack.processes:
            process.terminate()
            process.wait(20)
        stack.end()


@dataclass
class Clients:
    """The clients in one process of Node.js, and what they have said, in order."""

    process: asyncio.subprocess.Process
    key: str
    said: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")

    async def open(self, name: str, namespace: str = "/", **options: Any) -> None:
        """Connect, and wait until that is so."""
        self.tell(open=name, namespace=namespace, options={"auth": {"apiKey": self.key}, **options})
        await self.hear(name, "connect")

    def heard(self, name: str, event: str, after: int = 0) -> list[Any]:
        """Return what one client has heard of an event."""
        of = (each for each in self.said[after:] if (each["client"], each["event"]) == (name, event))
        return [each.get("data") for each in of]

    async def hear(self, name: str, event: str, after: int = 0) -> Any:
        """Wait until a client hears an event, and return what came with it the last time."""
        await soon(lambda: self.heard(name, event, after), f"{name} hears {event}", 15)
        return self.heard(name, event, after)[-1]

    async def spread(self, after: int = 0) -> None:
        """Open more until each of two processes has some of the sessions that were opened `after`, as their ids say."""
        for number in range(100):
            began = [each["data"]["session"] for each in self.said[after:] if each["event"] == "connect"]
            if len({session[8:16] for session in began}) == 2:
                return
            await asyncio.gather(*(self.open(f"{after} {number} {kind}", **KINDS[kind]) for kind in KINDS))
        raise AssertionError("One process takes all connections.")

    def cut_off(self, after: int) -> set[str] | None:
        """Return who was disconnected `after`, and has not connected again; None while nobody was disconnected."""
        last = {
            each["client"]: each["event"]
            for each in self.said[after:]
            if each["event"] in {"connect", "disconnect"}
        }
        if not any(each["event"] == "disconnect" for each in self.said[after:]):
            return None
        return {name for name, event in last.items() if event == "disconnect"}

    async def listen(self) -> None:
        """Take down what the clients say."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(json.loads(line))


NAMES = [f"{kind} {number}" for kind in KINDS for number in range(EACH)]


@dataclass
class Site:
    """The web, a node, and clients of every kind that are connected."""

    web: Stack
    store: Store
    node: Machine
    clients: Clients


@pytest.fixture
async def site(web: Stack, modules: Path) -> AsyncIterator[Site]:
    with web.redis() as client:
        client.flushdb()
    store = Store(web.settings)
    admin = await bootstrap.first_admin(store)
    assert admin is not None
    process = await asyncio.create_subprocess_exec(
        "node", str(Path(__file__).parent / "socketio_client.js"), web.url, env={"NODE_PATH": str(modules)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, executable=shutil.which("node"),
    )  # fmt: skip
    clients = Clients(process, admin.api_key)
    listening = asyncio.create_task(clients.listen())
    try:
        await asyncio.gather(*(clients.open(name, **KINDS[name.partition(" ")[0]]) for name in NAMES))
        await clients.spread()
        yield Site(web, store, await machine(store), clients)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await listening
        await store.close()


async def test_every_event_of_cubys_reaches_every_kind_of_client(site: Site) -> None:
    with (ROOT / "tests" / "contract" / "events.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["system"] == "cuby"]
    events = {row["event"] for row in rows if row["direction"] == "server->client"}
    assert len(events) == 6
    node, clients = site.node, site.clients
    app, _ = await apps.install(site.store, "test", inline=manifests.load(APP))
    await node.carry_out()
    await soon(lambda: _all(clients, "products:status"), "all know products")
    for name in NAMES:
        clients.tell(emit=name, event="subscribe:logs", args=[{"productId": "shop"}])
    assert [await clients.hear(name, "ack") for name in NAMES] == [{"ok": True}] * len(NAMES)
    await node.say("shop", "web", "a line")
    # what an app prints comes by another way than that it is gone, which ends following it
    await soon(lambda: _all(clients, "product:log"), "all hear what it prints")
    await site.store.call(apps.say(node.holder, "system.status", {"message": "Fetching Node.js"}))
    await apps.change(site.store, "test", app.instance_id, "uninstall")
    await node.carry_out()
    for event in events:
        await soon(lambda event=event: _all(clients, event), f"all hear {event}")
    for name in NAMES:
        assert clients.heard(name, "install:status")[-1]["productId"] == "shop"
        assert [said["line"] for said in clients.heard(name, "product:log")] == ["a line"]
        assert clients.heard(name, "ack") == [{"ok": True}]
    for kind in ("polling", "websocket"):
        assert clients.heard(f"{kind} 0", "connect")[0]["by"] == kind


def _all(clients: Clients, event: str) -> bool:
    return all(clients.heard(name, event) for name in NAMES)


async def test_an_apps_namespace_comes_and_goes_with_it_for_every_kind_of_client(site: Site) -> None:
    node, clients = site.node, site.clients
    clients.tell(open="early", namespace="/plugins/shop", options={"auth": {"apiKey": clients.key}})
    assert (await clients.hear("early", "connect_error"))["data"]["code"] == "NOT_FOUND"
    await apps.install(site.store, "test", inline=manifests.load(APP))
    await node.carry_out()

    async def answer(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        yield Head(200)
        yield json.dumps({"path": ask.path, "said": json.loads(ask.body)["args"]}).encode()

    serving = asyncio.create_task(relay.serve(node.store, node.holder.worker, answer))
    inside = [f"plugin {kind}" for kind in KINDS]
    for name, options in zip(inside, KINDS.values(), strict=True):
        await clients.open(name, "/plugins/%73hop", **options)
        clients.tell(emit=name, event="order", args=[{"n": 1}])
        assert await clients.hear(name, "ack") == {"path": "/plugins/shop/socket/order", "said": [{"n": 1}]}
    fields = {"event": "sold", "data": '{"n": 2}'}
    await site.store.call(apps.say(node.holder, "plugin.emit", fields, instance_id="shop"))
    assert [await clients.hear(name, "sold") for name in inside] == [{"n": 2}] * len(inside)
    await node.observe(await apps.get(site.store, "shop"), state="crashed")
    for name in inside:
        assert await clients.hear(name, "disconnect") == "io server disconnect"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_the_example_of_cubys_page_works_as_it_stands(site: Site, modules: Path) -> None:
    example = modules.parent / "example.mjs"  # beside the modules, which is where an import looks for them
    example.write_text(
        EXAMPLE.replace("http://localhost:3847", site.web.url).replace("DEIN_API_KEY", site.clients.key)
    )
    await apps.install(site.store, "test", inline=manifests.load({**APP, "id": "processcube-engine"}))
    await site.node.carry_out()
    process = await asyncio.create_subprocess_exec(
        "node", str(example), stdout=asyncio.subprocess.PIPE, executable=shutil.which("node")
    )
    printed: list[str] = []

    async def listen() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            printed.append(line.decode().rstrip())

    listening = asyncio.create_task(listen())
    try:
        await soon(
            lambda: any(each.startswith("Produkt-Status: {") for each in printed), "it hears of products"
        )
        await apps.install(site.store, "test", inline=manifests.load(APP))
        await site.node.carry_out()
        await soon(
            lambda: any(each.startswith("[shop] 100% —") for each in printed), "it hears of an install"
        )
        await site.node.say("processcube-engine", "web", "a line")
        await soon(lambda: "[processcube-engine] a line" in printed, "it hears a line")
        assert not any(each.startswith("[undefined]") for each in printed)
    finally:
        process.kill()
        await process.wait()
        await listening


async def test_clients_come_back_when_processes_are_replaced_and_when_one_is_killed(site: Site) -> None:
    clients = site.clients
    (master,) = site.web.processes
    before = _workers(master.pid)
    mark = len(clients.said)
    master.send_signal(signal.SIGHUP)
    for name in NAMES:
        await clients.hear(name, "connect", mark)
    await soon(
        lambda: len(_workers(master.pid) - before) == 2 == len(_workers(master.pid)), "two new processes"
    )
    await clients.spread(mark)
    mark = len(clients.said)
    killed = subprocess.run(["kill", "-9", str(min(_workers(master.pid)))], check=False)
    assert killed.returncode == 0
    await soon(lambda: clients.cut_off(mark) is not None, "some are cut off")
    await soon(lambda: clients.cut_off(mark) == set(), "they are back")
    await site.store.call(apps.say(site.node.holder, "system.status", {"message": "again"}))
    await soon(lambda: _all(clients, "system:status"), "all hear again")


def _workers(master: int) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()}
