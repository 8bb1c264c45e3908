"""L19: what the way through Hostler adds to a request to an app."""

import statistics
import time

import httpx

from bench.figure import Bench
from bench.paced import Order, paced
from bench.processes import free_port
from bench.stack import NO_LIMIT, NO_LIMIT_NOTE, stack
from bench.target import Found, Target, at_most, shown

APP = """
import asyncio, os
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 2\\r\\n\\r\\nok"
class Line(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        *asked, self.data = (self.data + data).split(b"\\r\\n\\r\\n")
        self.transport.write(ANSWER * len(asked))
async def main():
    server = await asyncio.get_running_loop().create_server(Line, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()
asyncio.run(main())
"""
RATE, SECONDS, ROUNDS = 50, 5, 3
_PATIENCE_S = 30.0


def overhead(bench: Bench) -> Found:
    """Ask an app through its plugin route, and straight at its port, in turns."""
    up, port = stack(bench, workers=1, **NO_LIMIT), free_port()
    manifest = {
        "id": "load", "version": "1.0.0", "processes": {"web": {"command": ["python3", "-c", APP], "port": port}},
        "routes": {"process": "web", "prefix": "/"},
    }  # fmt: skip
    with up.client() as client:
        client.post("/api/apps", json={"manifest": manifest}).raise_for_status()
        _await_answer(client)
    straight = Order(url=f"http://127.0.0.1:{port}/ok", rate=RATE, seconds=SECONDS)
    through = Order(url=f"{up.url}/api/plugins/load/ok", rate=RATE, seconds=SECONDS, headers=up.headers)
    found = [(paced(straight).expect_success(), paced(through).expect_success()) for _ in range(ROUNDS)]
    p50 = statistics.median(there.p50 - here.p50 for here, there in found)
    p99 = statistics.median(there.p99 - here.p99 for here, there in found)
    upstream = statistics.median(here.p99 for here, _ in found)
    return Found(
        {"added p99": p99},
        (f"p50 {shown(p50)}ms, upstream p99 {shown(upstream)}ms, {RATE}/s, median of {ROUNDS}",),
    )


def _await_answer(client: httpx.Client) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while (answer := client.get("/api/plugins/load/ok")).status_code != 200:
        if time.monotonic() > deadline:
            raise RuntimeError(f"The app does not answer: {answer.status_code} {answer.text[:300]}")
        time.sleep(0.1)


TARGETS = [
    Target(
        id="L19",
        what="GET of an app through its plugin route beside GET straight at its port",
        limits=(at_most("added p99", 10, "ms"),),
        measure=overhead,
        overrides=(NO_LIMIT_NOTE,),
    )
]
