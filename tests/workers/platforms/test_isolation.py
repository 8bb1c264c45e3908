"""Commands are kept apart, from each other and from the worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from platform_bench import HAS_LANDLOCK, IS_ROOT, PATH, SCOPES_SIGNALS, Bench, launcher_of, need, read_line

from workers.platforms import IsolationUnavailable, choose


def test_a_command_reads_nothing_of_another_slot(isolated):
    first = isolated.spawn("sh", "-c", "echo secret >file; echo ready; sleep 100", slot=0)
    read_line(first.stdout)
    _, printed, complaint = isolated.run("cat", str(first.command.directory / "file"), slot=1)
    assert printed == b""
    assert b"ermission denied" in complaint


def test_a_command_reads_nothing_of_the_worker_or_of_another_command(isolated):
    other = isolated.spawn("sh", "-c", "echo $$; sleep 100", environment={"SECRET": "1"})
    pids = [os.getpid(), int(read_line(other.stdout)), *launcher_of(isolated.platform)]
    for pid in pids:
        for name in ("environ", "mem", "fd/0"):
            assert isolated.run("cat", f"/proc/{pid}/{name}", slot=1)[1] == b""


def test_a_command_cannot_signal_the_worker_or_another_command(isolated):
    if isolated.kind == "landlock" and not SCOPES_SIGNALS:
        pytest.skip("this kernel's Landlock does not scope signals")
    other = isolated.spawn("sh", "-c", "echo $$; sleep 100", slot=0)
    pids = [os.getpid(), int(read_line(other.stdout)), *launcher_of(isolated.platform)]
    for pid in pids:
        outcome, _, complaint = isolated.run("sh", "-c", f"kill -0 {pid}", slot=1)
        assert outcome.exit_code != 0
        assert b"not permitted" in complaint


def test_a_command_does_not_inherit_that_its_launcher_goes_first(isolated):
    _, said, _ = isolated.run("sh", "-c", "nice; cat /proc/self/autogroup || true")
    assert int(said.split()[0]) == os.nice(0)
    assert b"nice -" not in said


def test_a_command_gains_no_privilege(isolated):
    _, status, _ = isolated.run("cat", "/proc/self/status")
    assert b"NoNewPrivs:\t1\n" in status
    assert b"CapEff:\t0000000000000000\n" in status
    if isolated.kind == "uid":
        user = b"%d" % isolated.platform._users[0]
        assert b"Uid:" + (b"\t" + user) * 4 in status
        assert b"Gid:" + (b"\t" + user) * 4 in status
        assert b"Groups:\t \n" in status


def test_a_program_that_landlock_forbids_gives_way_to_the_next_one_in_path(folder, tmp_path):
    need("landlock")
    own = tmp_path / "own"  # as a developer's shims are, in a home directory
    own.mkdir()
    (own / "echo").write_text("#!/bin/sh\necho forbidden\n")
    (own / "echo").chmod(0o755)
    bench = Bench("landlock", folder)
    try:
        for _ in range(2):
            outcome, printed, _ = bench.run("echo", "found", environment={"PATH": f"{own}:{PATH}"})
            assert (outcome.exit_code, printed) == (0, b"found\n")
    finally:
        bench.close()


def test_behind_landlock_only_the_system_is_read_and_only_the_directory_written(folder):
    need("landlock")
    outside = folder / "outside"
    outside.write_text("secret")
    outside.chmod(0o666)
    bench = Bench("landlock", folder)
    try:
        assert b"denied" in bench.run("cat", str(outside))[2]
        assert bench.run("sh", "-c", f"echo x >{outside}")[0].exit_code != 0
        assert (
            bench.run("sh", "-c", "mkdir a && mv a b && echo x >b/c && ln -s b l && rm -r b l")[0].exit_code
            == 0
        )
        assert (
            bench.run(sys.executable, "-c", "import multiprocessing; multiprocessing.Lock()")[0].exit_code
            == 0
        )
    finally:
        bench.close()
    assert outside.read_text() == "secret"


def test_a_directory_is_given_and_taken_back_with_all_that_lies_in_it(bench):
    directory = bench.folder / "slot-0"
    (directory / "deep").mkdir(parents=True)
    (directory / "deep" / "file").write_text("1")
    (directory / "link").symlink_to("/etc/passwd")
    owner_before = Path("/etc/passwd").stat().st_uid
    outcome, _, complaint = bench.run("sh", "-c", "echo 2 >deep/file && chmod 000 deep", slot=0)
    assert (outcome.exit_code, complaint) == (0, b"")
    bench.platform.reclaim_directory(directory)
    assert (directory / "deep" / "file").read_text() == "2\n"
    assert directory.stat().st_uid == os.getuid()
    assert Path("/etc/passwd").stat().st_uid == owner_before


def test_directories_that_a_slot_cannot_reach_are_refused(folder):
    need("uid")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    bench = Bench("uid", closed)
    try:
        with pytest.raises(IsolationUnavailable, match=r"closed'.*o\+x"):
            bench.spawn("true")
    finally:
        bench.close()
    chosen = choose("auto", slots=1, directory=closed)
    chosen.close()
    assert chosen.isolation != "uid"
    assert any("closed" in warning for warning in chosen.warnings)


def test_two_workers_share_no_user(folder):
    need("uid")
    one, two = choose("uid", slots=3), choose("uid", slots=3)
    try:
        assert not set(one._users) & set(two._users)
    finally:
        one.close()
        two.close()


def test_the_best_isolation_there_is_is_chosen():
    chosen = choose("auto", slots=1)
    chosen.close()
    assert chosen.isolation == ("uid" if IS_ROOT else "landlock" if HAS_LANDLOCK else "none")
    if chosen.isolation == "none":
        assert chosen.warnings


UNPRIVILEGED = """
import os, sys
sys.path.insert(0, os.getcwd())
from workers.platforms import IsolationUnavailable, choose, protect_this_process
import workers.platforms.linux, workers.platforms.portable
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
protect_this_process()
print(os.stat("/proc/self/environ").st_uid)
try:
    choose("uid", slots=1)
except IsolationUnavailable as error:
    print(error)
"""


def test_an_ordinary_user_is_told_what_it_cannot_have_and_can_hide_its_memory():
    need("uid")
    argv = [sys.executable, "-c", UNPRIVILEGED]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout.splitlines() == [
        "0",  # what belongs to root in /proc is closed to its own user
        "Commands cannot run as users of their own. The worker does not run as root.",
    ]
