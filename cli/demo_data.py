"""`hostler demo-data`: fills a Hostler with what a busy week might have left, to be looked at and shown around."""

import asyncio
import importlib.util
import json
import random
import secrets
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import rendering
from cli.client import Client
from cli.contexts import Server
from cli.doctor import environ_of
from cli.failures import Failed
from cli.submitting import upload
from settings import Settings, process_environment
from storage import backdating
from storage.store import Store

app = typer.Typer()

PATIENCE_S = 300.0
MINUTE_MS = 60_000

#: What finished in the last hour: name, command, tags, how often, about how long (ms), and how often of 100 it fails.
_PAST: tuple[tuple[str, str, list[str], int, int, int], ...] = (
    ("Unit tests", "echo '214 passed'", ["linux"], 60, 9_000, 4),
    ("Lint and types", "echo 'All checks passed!'", ["linux"], 40, 4_000, 3),
    ("Build the site", "echo 'built 318 pages'", [], 34, 6_500, 0),
    ("Import orders", "echo 'imported 1,204 orders'", [], 48, 1_600, 2),
    ("Resize pictures", "echo 'resized 96 pictures'", [], 42, 2_700, 0),
    ("Sync the warehouse", "echo 'synced'", ["linux"], 26, 12_000, 9),
)
_PROGRAM = """
import sys, time
def say(text, to=sys.stdout): print(text, file=to, flush=True)
say("\\x1b[1mCollecting tests\\x1b[0m"); time.sleep(.1)
say("::group::Environment"); say("Python " + sys.version.split()[0]); say(sys.platform); say("::endgroup::")
for n in range(1, 41): say(f"Downloading fixtures {n * 2.5:5.1f}% {n * 1.4:4.1f} MB/s")
names = ["cart", "prices", "taxes", "shipping", "refunds", "coupons", "stock", "search"]
for n in range(96):
    say(f"\\x1b[32mpassed\\x1b[0m  tests/test_{names[n % 8]}.py::test_case_{n:02d}  {n * 7 % 90 / 1000:.3f} s")
    if n % 24 == 23: say(f"::progress {n}")
say("\\x1b[31mfailed\\x1b[0m  tests/test_refunds.py::test_a_refund_is_never_more_than_was_paid", sys.stderr)
say("\\x1b[33mwarning\\x1b[0m  1 test is slower than a second")
say("96 passed, 1 failed in 3.2 s")
sys.exit(int(sys.argv[1]))
"""
_LIVE = """
import itertools, time
for n in itertools.count(1):
    print(f"batch {n:04d}: 500 rows read, {n * 3 % 17} changed, lag {n * 37 % 400} ms", flush=True)
    if n <= 180: print(f"::progress {min(96, n // 2 + 6)}", flush=True)
    time.sleep(.5)
"""
_REPORT = """<?xml version="1.0"?><testsuites><testsuite name="shop" tests="5" failures="1">
<testcase classname="test_cart" name="test_an_empty_cart_costs_nothing" time="0.002"/>
<testcase classname="test_cart" name="test_prices_add_up" time="0.011"/>
<testcase classname="test_taxes" name="test_books_are_taxed_less" time="0.004"/>
<testcase classname="test_stock" name="test_on_windows" time="0"><skipped/></testcase>
<testcase classname="test_refunds" name="test_a_refund_is_never_more_than_was_paid" time="0.041">
<failure message="12.50 != 10.00">assert refund(order) == paid(order)
E   AssertionError: assert Decimal('12.50') == Decimal('10.00')</failure></testcase>
</testsuite></testsuites>"""

_SCHEDULES = (
    ("Nightly backup check", "0 3 * * *", "restic check --read-data-subset 5%"),
    ("Refresh prices", "*/30 * * * *", "./prices.sh refresh"),
    ("Weekly report", "0 7 * * 1", "python3 report.py --week"),
    ("Rotate certificates", "15 */6 * * *", "./certificates.sh renew"),
)


@app.command(name="demo-data")
def demo_data(
    data: Annotated[
        Path, typer.Option("--data", help="Folder of the `hostler up` that is to be filled.")
    ] = Path("hostler-data"),
    seed: Annotated[int, typer.Option("--seed", help="The same number makes the same data.")] = 8,
) -> None:
    """Fill a `hostler up` with believable jobs, schedules, users, keys and an app, for a look around or pictures.

    For a Hostler of its own: what it adds is not taken away again, and finished jobs are moved into the past hour.
    """
    environ = environ_of(data, process_environment())
    try:
        admin = json.loads((data / "admin.json").read_text())
    except (OSError, ValueError):
        raise Failed(f"{data} holds no admin.json.", hint=f"hostler up --data {data}") from None
    with Client(Server(url=admin["url"], secret=admin["apiKey"])) as client:
        filling = _Filling(client, random.Random(seed))  # noqa: S311  believable, not secret
        moves = filling.past()
        asyncio.run(_move(Settings.from_env(environ), moves))
        filling.people()
        filling.app()
        filling.present()
    rendering.say(f"Filled with {len(moves)} jobs of the past hour, and what goes on now. See {admin['url']}")


async def _move(settings: Settings, moves: dict[str, tuple[int, int, int]]) -> None:
    store = Store(settings)
    try:
        await backdating.move(store, moves)
    finally:
        await store.close()


class _Filling:
    """One server that is being filled."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        self.client, self.chance = client, chance
        workers = client.get("/api/workers/list", status="online")["workers"]
        if not workers:
            raise Failed("No worker is online, so nothing would run.", hint="hostler up --workers 1")
        self.has = set(workers[0]["tags"])

    def submit(self, **order: Any) -> str:
        """Submit a job; answers its id."""
        return str(self.client.call("POST", "/api/jobs/submit", body=order)["jobId"])

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait for `condition`. Raises Failed when it does not come true in time."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise Failed(f"After {PATIENCE_S:.0f} s it is still not so that {what}.")
            time.sleep(0.1)
        return answer

    def past(self) -> dict[str, tuple[int, int, int]]:
        """Run some hundred short jobs, and answer when each shall have been created, started and ended (ms)."""
        orders, lengths = [], []
        for name, command, tags, times, length_ms, failing in _PAST:
            for number in range(times):
                fails = self.chance.random() * 100 < failing
                order = {
                    "name": f"{name} #{1800 + number}",
                    "command": f"{command}; exit {2 if fails else 0}",
                }
                orders.append({**order, "tags": [tag for tag in tags if tag in self.has]})
                lengths.append(float(length_ms) * self.chance.lognormvariate(0, 0.35))
        batch = self.client.call("POST", "/api/jobs/submit-batch", body={"jobs": orders})
        ids = [str(job_id) for job_id in batch["jobIds"]]
        self.until("all of them have ended", lambda: self._have_ended(ids))
        now_ms = time.time_ns() // 1_000_000
        moves = {}
        for job_id, took_ms in zip(ids, lengths, strict=True):
            back_min = self.chance.triangular(0.5, 59, 12)
            ended_ms = now_ms - int(back_min * MINUTE_MS)
            started_ms = ended_ms - int(took_ms)
            moves[job_id] = (started_ms - int(self.chance.expovariate(1 / 900)), started_ms, ended_ms)
        return moves

    def _have_ended(self, ids: list[str]) -> bool:
        found = self.client.get("/api/jobs/list", limit=1000)["jobs"]
        ended = {job["jobId"] for job in found if job["status"] in {"completed", "failed", "cancelled"}}
        return ended.issuperset(ids)

    def people(self) -> None:
        """Add an operator, a viewer, and keys."""
        known = {user["username"] for user in self.client.get("/api/users")["users"]}
        for username, role in (("ada", "operator"), ("grace", "viewer")):
            if username not in known:
                body = {"username": username, "email": f"{username}@example.org", "role": role}
                self.client.call("POST", "/api/users", body={**body, "password": secrets.token_urlsafe(12)})
        for name, role in (("ci", "operator"), ("dashboard", "viewer")):
            self.client.call("POST", "/api/keys", body={"name": name, "role": role})

    def app(self) -> None:
        """Publish and install the example that comes with the page."""
        spec = importlib.util.find_spec("api")
        if spec is None or spec.origin is None:
            raise Failed("The package 'api' is not installed beside this command.")
        file = upload(self.client, Path(spec.origin).parent / "page" / "app" / "hello-web.zip")
        self.client.call("POST", "/api/releases", body={"fileId": file["fileId"]})
        if not self.client.get("/api/apps", product="hello-web")["apps"]:
            self.client.call(
                "POST", "/api/apps", body={"product": "hello-web", "config": {"greeting": "Moin"}}
            )
            self.until("the app runs", lambda: self._status() == "running")

    def _status(self) -> str:
        apps = self.client.get("/api/apps", product="hello-web")["apps"]
        return str(apps[0]["status"]) if apps else ""

    def present(self) -> None:
        """Submit what is to be seen in every state, and what recurs."""
        write = f"mkdir -p reports && printf %s {shlex.quote(_REPORT)} > reports/junit.xml"
        notes = "printf '# Release 4.2\\n\\n* refunds are rounded down\\n' > reports/notes.md"
        check = f"{write}; {notes}; exec python3 -u -c {shlex.quote(_PROGRAM)}"
        tested = self.submit(
            name="Nightly tests of the shop", command=f"{check} 1", artifacts=["reports/**"], retries=1,
            backoff={"delay": 0.2}, metadata={"branch": "main", "commit": "8f3a1c0"},
        )  # fmt: skip
        self.until("the tests have ended", lambda: self._state(tested) == "failed")
        self.submit(name="Release notes", command=f"{check} 0", artifacts=["reports/**"])
        self.submit(
            name="Train the model", command="python3 train.py --epochs 40", tags=["gpu"], priority="high"
        )
        self.submit(name="Close the books", command="./close.sh", delay=5400)
        for name, cron, command in _SCHEDULES:
            schedule = {"cron": cron, "timezone": "Europe/Berlin"}
            self.submit(name=name, command=command, schedule=schedule)
        self.submit(
            name="Migrate customers", command=f"exec python3 -u -c {shlex.quote(_LIVE)}", timeout=1800
        )

    def _state(self, job_id: str) -> str:
        return str(self.client.get("/api/jobs/status", jobId=job_id)["job"]["status"])
