"""F51: a worker that is killed at any step of an install or an update; the job comes again, and it all comes right."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import reap
from fake_node import NODE, Node, leftovers
from servers import SECRET_KEY, Valkey

from storage import apps
from storage.apps import Phase
from storage.calls import command, text
from storage.store import Store

pytestmark = pytest.mark.proves("F51")

HERE = Path(__file__).parent

Die = Callable[..., None]


@pytest.fixture(scope="module")
def dying() -> Iterator[subprocess.Popen[str]]:
    """A process whose children die at the steps that they are told."""
    path = ":".join(str(each) for each in (HERE, HERE.parents[1], HERE.parents[2]))
    process = subprocess.Popen(
        [sys.executable, HERE / "killed.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": path, "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )  # fmt: skip
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


@pytest.fixture
def die(dying: subprocess.Popen[str], node: Node, valkey: Valkey, tmp_path: Path) -> Die:
    """Have a worker of the node die at a step of its next job."""

    async def die(step: str, running: str | None = None) -> None:
        known = text(await node.store.call(command("HGET", f"h:worker:{NODE}", "registration")))
        environ = {
            "REDIS_URL": valkey.url, "HOSTLER_SECRET_KEY": SECRET_KEY, "HOSTLER_WORK_DIR": str(tmp_path),
        }  # fmt: skip
        case = {"environ": environ, "folder": str(tmp_path), "step": step, "proof": known, "running": running}
        assert dying.stdin is not None
        assert dying.stdout is not None
        dying.stdin.write(json.dumps(case) + "\n")
        dying.stdin.flush()
        assert int(dying.stdout.readline()) == -9, f"there is no step {step!r}"
        await _come_back(node)

    return die  # type: ignore[return-value]


async def _come_back(node: Node) -> None:
    """Start the node's worker again; its jobs come back."""
    known = text(await node.store.call(command("HGET", f"h:worker:{NODE}", "registration")))
    await node.register(proof=known)
    await reap(node.store)


def assert_current_is_valid(node: Node) -> None:
    current = node.root() / "current"
    assert not current.is_symlink() or (current / "hostler.toml").is_file()


async def job_of(store: Store) -> str:
    return (await apps.get(store, "thing")).job


@pytest.mark.parametrize(
    "step", ["resolve", "fetch", "manifest", "script", "whole", "switch", "released", "start"]
)
async def test_an_install_that_was_killed_is_finished_by_its_next_attempt(
    node: Node, die: Die, step: str
) -> None:
    await node.thing("1.0", '\n[install]\ncommand = "test ! -e made && touch made"\n', hello="hello")
    await apps.install(node.store, "user:u", product="thing")
    await die(step)
    assert_current_is_valid(node)

    assert (await node.work()).outcome == "completed"
    app = await node.app()
    assert (app.phase, app.version, [each.dir for each in app.releases]) == (Phase.READY, "1.0", ["1.0"])
    assert (node.root() / "current" / "made").is_file()
    assert (node.root() / "current" / "hello").read_text() == "hello"
    assert {path.name for path in (node.root() / "releases").iterdir()} == {"1.0"}


async def test_an_install_step_dies_with_its_worker_and_runs_anew(node: Node, die: Die) -> None:
    count = node.folder / "count"
    step = f'echo again >> {count}; touch running; [ "$(wc -l < {count})" -gt 1 ] || sleep 1000'
    await node.thing("1.0", f"\n[install]\ncommand = '''{step}'''\n")
    await apps.install(node.store, "user:u", product="thing")
    job_id = await job_of(node.store)
    await die("", running=str(node.root() / "releases" / "1.0" / "running"))
    deadline = time.monotonic() + 5
    while leftovers(job_id):
        assert time.monotonic() < deadline, leftovers(job_id)
        time.sleep(0.02)
    assert (await node.work()).outcome == "completed"
    assert count.read_text() == "again\nagain\n"


@pytest.mark.parametrize(
    "step", ["fetch", "whole", "stop", "snapshot", "switch", "released", "try", "settle"]
)
async def test_an_update_that_was_killed_is_finished_by_its_next_attempt(
    node: Node, die: Die, step: str
) -> None:
    await node.thing("1.0")
    await node.install()
    (node.root() / "data" / "kept").write_text("dear")
    await node.thing("2.0", news="new")
    await apps.change(node.store, "user:u", "thing", "update")
    await die(step)
    assert_current_is_valid(node)

    assert (await node.work()).outcome == "completed"
    app = await node.app()
    assert (app.phase, app.version, [each.dir for each in app.releases]) == (
        Phase.READY,
        "2.0",
        ["2.0", "1.0"],
    )
    assert (node.root() / "current" / "news").read_text() == "new"
    assert (node.root() / "data" / "kept").read_text() == "dear"
    assert not list(node.root().glob("*.json"))
    assert (await node.change("rollback")).outcome == "completed"
    assert (node.root() / "current").resolve().name == "1.0"


@pytest.mark.parametrize("step", ["try", "back"])
async def test_an_update_that_is_taken_back_and_killed_meanwhile_ends_with_the_old_release(
    node: Node, die: Die, step: str
) -> None:
    await node.thing("1.0")
    await node.install()
    (node.root() / "data" / "kept").write_text("dear")
    await node.thing("2.0", sick="")
    await apps.change(node.store, "user:u", "thing", "update")
    await die(step)
    assert_current_is_valid(node)

    assert (await node.work()).outcome == "failed"
    app = await node.app()
    assert (app.phase, app.version, [each.dir for each in app.releases]) == (Phase.READY, "1.0", ["1.0"])
    assert (node.root() / "current").resolve().name == "1.0"
    assert "2.0" not in (node.root() / "data" / "starts").read_text()
    assert (node.root() / "data" / "kept").read_text() == "dear"


@pytest.mark.parametrize("step", ["stop", "remove", "forget"])
async def test_an_uninstall_that_was_killed_is_finished_by_its_next_attempt(
    node: Node, die: Die, step: str
) -> None:
    await node.thing("1.0")
    await node.install()
    await apps.change(node.store, "user:u", "thing", "uninstall")
    await die(step)
    assert (await node.work()).outcome == "completed"
    assert node.files() == set()
