"""The systemd units: one a process, understood by systemd, with no more rights than each needs."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine import submit
from stack.processes import Stack, finished, log_of, new_stack

from settings import Settings
from storage.store import Store

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
#: systemd's own figure for how exposed a service is, from 0 to 10.
MOST_EXPOSED = {"prepare": 2.0, "web": 2.0, "scheduler": 2.0, "worker": 6.5}
systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze in PATH"
)


def directives(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with the programs where this environment has them."""
    for path in UNITS:
        text = path.read_text().replace("/opt/hostler/bin", str(Path(sys.executable).parent))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def test_each_process_has_a_unit() -> None:
    assert {path.stem for path in UNITS} == {f"hostler-{name}" for name in MOST_EXPOSED}
    commands = {
        path.stem.partition("-")[2]: directives(path)["ExecStart"][0].partition("bin/")[2] for path in UNITS
    }
    procfile = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    assert commands["web"] == procfile["web"]
    assert {name: command for name, command in commands.items() if name != "web"} == {
        "prepare": "hostler doctor --prepare", "worker": "hostler worker", "scheduler": "hostler scheduler",
    }  # fmt: skip


@systemd
def test_systemd_understands_every_directive(installed: Path) -> None:
    ended = subprocess.run(
        ["systemd-analyze", "verify", *map(str, installed.glob("*.service"))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in ended.stderr.splitlines() if "hostler" in line]  # others' units are none of ours
    assert ours == []


@systemd
@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_no_unit_is_more_exposed_than_it_has_to_be(name: str, installed: Path) -> None:
    ended = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(installed / f"hostler-{name}.service")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unrecognized option" in ended.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", ended.stdout)
    assert found is not None, ended.stderr
    assert float(found[1]) <= MOST_EXPOSED[name]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_secrets_come_from_a_file_and_restarts_from_systemd(path: Path) -> None:
    found = directives(path)
    assert "/etc/hostler/hostler.env" in found["EnvironmentFile"]
    given = dict(each.split("=", 1) for each in found.get("Environment", []))
    Settings.from_env(given)
    assert not [name for name in given if "SECRET" in name or "PASSWORD" in name]
    assert ("Restart" in found) is ("prepare" not in path.stem)
    assert found["NoNewPrivileges"] == ["yes"]


def test_a_worker_has_the_time_to_hand_its_jobs_back_and_leaves_apps_alone() -> None:
    found, settings = directives(ROOT / "deploy/systemd/hostler-worker.service"), Settings.from_env({})
    assert int(found["TimeoutStopSec"][0]) >= settings.drain_s + settings.kill_grace_s + 10
    assert found["KillMode"] == ["process"]


@pytest.mark.stack
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and util-linux's setpriv",
)
async def test_the_rights_of_the_workers_unit_suffice_to_run_jobs_as_users_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (words,) = directives(ROOT / "deploy/systemd/hostler-worker.service")["CapabilityBoundingSet"]
    rights = ",".join(["-all", *(f"+{word.removeprefix('CAP_').lower()}" for word in words.split())])
    stack = await asyncio.to_thread(new_stack)
    try:
        _within(stack, "setpriv", "--bounding-set", rights, "--inh-caps", "-all", "--no-new-privs", "--")
        store = Store(stack.settings)
        job_id = await submit(store, "id -u; grep CapBnd /proc/self/status")
        job = await finished(store, job_id)
        user, bounds = (await log_of(store, job.id)).decode().splitlines()
        await store.close()
        assert job.state == "completed"
        assert int(user) != 0
        assert int(bounds.split()[1], 16) == 0
    finally:
        await asyncio.to_thread(stack.end)


def _within(stack: Stack, *prefix: str) -> None:
    """Start a worker behind `prefix`, and wait until it is there."""
    environ = {"PATH": os.environ["PATH"], **stack.env}  # noqa: TID251  what a shell would find, the worker does too
    with (stack.directory / "00-workers.log").open("wb") as log:
        command = [*prefix, sys.executable, "-m", "workers", "--name", "confined"]
        stack.processes.append(subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log))
    stack.await_workers(["confined"])
