"""Installs as a whole: a real worker, its real supervisor, and an example that really runs."""

import asyncio
import json
import re
import shutil
import signal
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, ROOT, Stack, finished, soon

from cli.packing import pack
from storage import apps, files, manifests, products
from storage.apps import App
from storage.jobs import Job
from storage.read_into import Pieces
from storage.store import Store

APP = "hello-web"


async def publish(store: Store, folder: Path) -> None:
    """Publish a folder, as the command line does."""
    packed = folder.with_suffix(".zip")
    pack(folder, packed)

    async def chunks() -> AsyncIterator[bytes]:
        yield packed.read_bytes()

    file = await files.accept(
        store, Pieces(chunks()).read_into, filename="release.zip", content_type=None, actor="user:u"
    )
    await products.publish(store, "user:u", file.id, manifests.read_directory(folder))


async def example(store: Store, tmp_path: Path, version: str, *changes: tuple[str, str]) -> None:
    """Publish a version of an example, with changes of its manifest."""
    folder = tmp_path / f"release {version}"
    shutil.copytree(ROOT / "examples" / APP, folder)
    text = (folder / "hostler.toml").read_text()
    always = (
        ('version = "1.0.0"', f'version = "{version}"'),
        ("period_s = 2", "period_s = 0.2\nfailures = 100"),
    )
    for before, after in (*always, *changes):
        assert before in text
        text = text.replace(before, after)
    (folder / "hostler.toml").write_text(text)
    await publish(store, folder)


async def changed(store: Store, action: str, **how: Any) -> Job:
    return await finished(store, (await apps.change(store, "user:u", APP, action, **how)).id)


def asked(app: App) -> dict[str, Any]:
    """Return what the app answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{app.instances[0].port}/", timeout=5) as answer:
        return dict(json.load(answer))


@pytest.mark.proves("F51")
async def test_an_app_is_installed_updated_taken_back_and_removed_while_its_worker_is_killed(
    stack: Stack, store: Store, tmp_path: Path
) -> None:
    await example(store, tmp_path, "1.0.0")
    _, submitted = await apps.install(store, "user:u", product=APP, node="one", config={"greeting": "Moin"})
    job = await finished(store, submitted.id)
    assert job.state == "completed", job.facts
    app = await apps.get(store, APP)
    assert (app.status, app.version) == ("running", "1.0.0")
    assert asked(app) == {"greeting": "Moin", "number": 1}

    sick = ('path = "/health"', 'path = "/nothing"'), ("failures = 100", "failures = 3")
    await example(store, tmp_path, "2.0.0", *sick)
    job = await changed(store, "update")
    assert job.state == "failed"
    assert "was taken back" in job.facts["message"]
    app = await _running(store)
    assert asked(app) == {"greeting": "Moin", "number": 2}

    await example(store, tmp_path, "3.0.0", ("failures = 100", "failures = 100\nsuccesses = 8"))
    submitted = await apps.change(store, "user:u", APP, "update")
    home = stack.settings.apps_dir / APP
    await soon(lambda: _stage(home) == "trying", "the new release is tried")
    (worker,) = (each for each in stack.processes if each.poll() is None and "one" in each.args)
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    stack.worker("one")
    job = await finished(store, submitted.id)
    assert job.state == "completed", job.facts
    app = await _running(store)
    assert app.version == "3.0.0"
    assert (home / "current").resolve().name == "3.0.0"
    assert asked(app) == {"greeting": "Moin", "number": 3}

    assert (await changed(store, "rollback", version="1.0.0")).state == "completed"
    assert asked(await _running(store)) == {"greeting": "Moin", "number": 4}
    assert (await changed(store, "uninstall")).state == "completed"
    assert not home.exists()


def _stage(home: Path) -> str:
    try:
        found = re.search(r'"stage": "(\w+)"', (home / "update.json").read_text())
    except FileNotFoundError:
        return ""
    return found.group(1) if found else ""


async def _running(store: Store) -> App:
    """Wait until the app is seen to run."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            app = await apps.get(store, APP)
            if app.status == "running" and app.instances:
                return app
            await asyncio.sleep(0.05)
