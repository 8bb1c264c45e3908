"""Installs as a machine really does them: steps as other users or behind Landlock, and disks that end."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_node import Node, leftovers

from settings import Settings
from storage.apps import Phase
from workers import platforms
from workers.installs import toolchains
from workers.installs.programs import Programs, client_environment, package_environment
from workers.platforms import IsolationUnavailable


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can pass through."""
    with tempfile.TemporaryDirectory(prefix="hostler-test-") as path:
        Path(path).chmod(0o711)
        yield Path(path)


def _has(isolation: str) -> bool:
    try:
        platforms.choose(isolation, slots=1).close()
    except IsolationUnavailable:
        return False
    return True


@pytest.mark.parametrize("isolation", ["uid", "landlock"])
async def test_an_install_step_reaches_nothing_but_its_release(
    settings: Settings, place: Path, isolation: str
) -> None:
    if not _has(isolation):
        pytest.skip(f"this machine has no isolation by {isolation}")
    node = Node(replace(settings, work_dir=place), place, isolation=isolation)
    try:
        await node.register()
        secret = place / "secret"
        secret.write_text("dear")
        secret.chmod(0o600)
        step = (
            f"id -u > user; cat {secret} && exit 9; touch {node.apps_dir}/new && exit 8; "
            "ls ../../data && exit 7; echo done > made"
        )
        await node.thing("1.0", f"\n[install]\ncommand = '{step}'\n")
        ending = await node.install()
        assert ending.outcome == "completed", ending.facts
        current = node.root() / "current"
        assert (current / "made").read_text() == "done\n"
        if isolation == "uid":
            own = node.supervisor.user("thing")
            assert own is not None
            assert int((current / "user").read_text()) not in {0, own}  # a slot's user, of no app
            assert {path.stat().st_uid for path in (current, current / "made", node.root() / "data")} == {own}
            assert await _uninstalled(node)
            assert node.supervisor.users._known == {}
    finally:
        await node.store.close()


async def _uninstalled(node: Node) -> bool:
    return (await node.change("uninstall")).outcome == "completed"


async def test_a_step_without_network_has_none_or_says_so(settings: Settings, place: Path) -> None:
    node = Node(replace(settings, work_dir=place), place, isolation="none")
    try:
        await node.register()
        more = "\n[install]\nnetwork = false\ncommand = 'cat /proc/net/dev > seen'\n"
        await node.thing("1.0", more)
        assert (await node.install()).outcome == "completed"
        lines = (node.root() / "current" / "seen").read_text().splitlines()[2:]
        assert node.job is not None
        alone = [line.split(":")[0].strip() for line in lines] == ["lo"]
        assert alone or b"cannot keep the install step from the network" in node.job.heard
    finally:
        await node.store.close()


@pytest.mark.proves("F46")
async def test_a_disk_that_ends_during_an_update_leaves_the_release_before_running(
    settings: Settings, place: Path, evidence: list[str]
) -> None:
    disk = place / "disk"
    disk.mkdir()
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk (tmpfs) needs root and mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let its root mount a tmpfs")
    node = Node(replace(settings, work_dir=disk), place, isolation="none")
    try:
        await node.register()
        await node.thing("1.0")
        await node.install()
        await node.thing("2.0", big=secrets.token_hex(5_000_000))
        ending = await node.change("update")
        assert ending.facts["message"] == "The disk of this node is full."
        app = await node.app()
        assert (app.phase, app.version) == (Phase.READY, "1.0")
        assert [each.state for each in node.supervisor.observed("thing")] == ["running"]
        assert {path.name for path in (node.root() / "releases").iterdir()} == {"1.0"}
        await node.thing("3.0", '\n[install]\ncommand = "cat /dev/zero > filled"\n')
        assert (await node.change("update")).outcome == "failed"
        assert {path.name for path in (node.root() / "releases").iterdir()} == {"1.0"}
        evidence.append("failed with 'The disk of this node is full.'; release 1.0 runs on, nothing is left")
    finally:
        await node.store.close()
        subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(place: Path) -> None:
    job_id = f"job-{secrets.token_hex(8)}"
    with Programs("none", job_id, hear=lambda *_: None) as programs:
        ended = await programs.run(
            ["/bin/sh", "-c", "(trap '' TERM; sleep 1000) & sleep 1000"], directory=place,
            environment={"PATH": os.defpath}, timeout_s=0.2,
        )  # fmt: skip
    assert (ended.timed_out, ended.succeeded) == (True, False)
    assert leftovers(job_id) == []


def test_clients_get_the_nodes_registries_and_packages_get_them_without_credentials() -> None:
    environ = {
        "HOSTLER_SECRET_KEY": "k", "REDIS_URL": "redis://", "AWS_SECRET_ACCESS_KEY": "a", "PATH": "/bin",
        "HOME": "/root",
        "npm_config_registry": "https://npm.example/", "npm_config__authToken": "t", "NPM_CONFIG_USERCONFIG": "/x",
        "PIP_INDEX_URL": "https://user:pass@pypi.example/simple", "PIP_EXTRA_INDEX_URL": "https://pypi.example/simple",
        "HTTPS_PROXY": "http://proxy:3128",
    }  # fmt: skip
    client = client_environment(environ)
    assert not {"HOSTLER_SECRET_KEY", "REDIS_URL", "AWS_SECRET_ACCESS_KEY"} & set(client)
    assert client["PIP_INDEX_URL"] == environ["PIP_INDEX_URL"]
    assert package_environment(environ) == {
        "PATH": "/bin", "npm_config_registry": "https://npm.example/", "HTTPS_PROXY": "http://proxy:3128",
        "PIP_EXTRA_INDEX_URL": "https://pypi.example/simple",
    }  # fmt: skip


@pytest.mark.slow
async def test_a_node_without_node_js_gets_a_real_one(place: Path) -> None:
    """Fetches 60 MB from the registry that the machine is configured with, or from its cache."""
    environment = client_environment()
    with pytest.raises(toolchains.NodeMissing):
        toolchains.find_node(place, {"PATH": ""}, shared=False)
    with Programs("none", "job-x", hear=lambda *_: None) as programs:
        try:
            node = await toolchains.bring_node(place, programs, environment)
        except toolchains.InstallFailed as error:
            pytest.skip(f"{error} {error.details.get('pip')}")
        assert toolchains.reachable(node.program)
        assert [path.name for path in (place / toolchains.FOLDER).iterdir()] == ["node"]
        told = await programs.run(
            [*node.client(), "--version"], directory=place, environment={"PATH": str(node.directory)}, timeout_s=60
        )  # fmt: skip
    assert told.succeeded, told.tail
