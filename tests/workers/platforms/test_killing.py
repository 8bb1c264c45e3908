"""Commands are killed whole: by the worker, at their own end, and when worker or launcher dies."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from platform_bench import PATH, Bench, alive, await_true, child_of, launcher_of, need, read_all, read_line

from workers.platforms import choose

TREES = {
    "a daemon in a session of its own": "setsid sh -c 'sleep 100; :' $0 & echo ready; sleep 100",
    "a double fork": "(setsid sh -c '(sleep 100; :) & sleep 100' $0 & ) ; echo ready; sleep 100",
    "a daemon that hides its environment": "env -i setsid sh -c 'sleep 100; :' $0 & echo ready; sleep 100",
    "200 processes": "for i in $(seq 200); do sh -c 'sleep 100; :' $0 & done; echo ready; sleep 100",
}  # fmt: skip


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_kill_takes_everything_down(bench, mark, tree):
    if not shutil.which("setsid"):
        pytest.skip("this machine has no setsid command")
    child = bench.spawn("sh", "-c", tree, mark)
    read_line(child.stdout)
    await_true(lambda: len(alive(mark)) > 1)
    child.kill()
    assert bench.wait(child).signal == signal.SIGKILL
    await_true(lambda: not alive(mark), 2)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_what_a_command_leaves_behind_is_killed(bench, mark, tree):
    if not shutil.which("setsid"):
        pytest.skip("this machine has no setsid command")
    if bench.kind == "portable" and "env -i" in tree:
        pytest.skip("without a subreaper, an orphan that hides its environment cannot be found")
    child = bench.spawn("sh", "-c", tree.replace("echo ready; sleep 100", "sleep 0.1; echo last"), mark)
    assert bench.wait(child).exit_code == 0
    assert read_all(child.stdout) == b"last\n"
    await_true(lambda: not alive(mark), 2)


def test_leftovers_are_told_from_those_of_other_jobs(bench, mark):
    if not shutil.which("setsid"):
        pytest.skip("this machine has no setsid command")
    other = bench.spawn("sh", "-c", "setsid sh -c 'echo $$; sleep 100; :' $0 & wait", mark)
    daemon = int(read_line(other.stdout))
    bench.run("sh", "-c", "setsid sleep 100 & exit 0")
    assert daemon in alive(mark)
    other.kill()
    bench.wait(other)
    await_true(lambda: not alive(mark), 2)


def test_whether_a_command_left_something_to_kill_is_told_until_the_next_one_of_its_slot(linux):
    # what another test has killed may be about to end, of the same user
    await_true(lambda: linux.run("true", slot=0) and not linux.platform.left_something(0))
    linux.run("sh", "-c", "sleep 100 & exit 0", slot=0)
    assert linux.platform.left_something(0)
    assert not linux.platform.left_something(1)
    await_true(lambda: linux.run("true", slot=0) and not linux.platform.left_something(0))


def test_terminate_reaches_the_whole_group(bench):
    script = "trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.01; done"
    child = bench.spawn("sh", "-c", f"trap 'wait; exit 5' TERM; sh -c \"{script}\" & wait")
    read_line(child.stdout)
    child.terminate()
    assert bench.wait(child).exit_code == 5
    assert read_all(child.stdout) == b"child\n"


def test_ending_a_command_that_has_ended_does_nothing(bench):
    child = bench.spawn("true")
    bench.wait(child)
    child.terminate()
    child.kill()
    assert bench.run("true")[0].exit_code == 0


def test_closing_the_platform_kills_what_runs(bench, mark):
    child = bench.spawn("sh", "-c", "echo ready; sleep 100; :", mark)
    read_line(child.stdout)
    bench.platform.close()
    await_true(lambda: not alive(mark), 2)


def test_a_sweep_finds_what_an_earlier_worker_left(bench, mark):
    environment = {"PATH": PATH, "HOSTLER_JOB_ID": mark}
    argv = ["sh", "-c", "sleep 100; :", mark]
    with subprocess.Popen(argv, env=environment, start_new_session=True) as left:
        await_true(lambda: len(alive(mark)) == 1)
        assert bench.platform.sweep(mark) >= 1  # the shell, and its sleep if it has come so far
        assert left.wait() in {-signal.SIGKILL, 0}  # 0: its sleep went first, and so it came to its end
    await_true(lambda: bench.platform.sweep(mark) == 0, 2)


OWNER = """
import sys, time
from pathlib import Path
from workers.platforms import Command, choose
kind, folder, mark, tree = sys.argv[1:]
platform = choose(kind, slots=1, directory=Path(folder))
directory = Path(folder) / "slot"
platform.prepare_directory(directory, 0)
environment = {"PATH": "/usr/bin:/bin", "HOSTLER_JOB_ID": mark, "HOSTLER_ATTEMPT": "7"}
child = platform.spawn(Command(["sh", "-c", tree, mark], environment, directory, 0, mark))
while b"ready" not in (child.stdout.read(100) or b""):
    time.sleep(0.01)
print(platform._launcher.pid, flush=True)
time.sleep(100)
"""


@contextlib.contextmanager
def owner(kind, folder, mark, tree):
    need(kind)
    argv = [sys.executable, "-c", OWNER, kind, str(folder), mark, tree]
    root = Path(__file__).parents[3]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=root) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize("kind", ["uid", "landlock", "none"])
def test_nothing_outlives_a_killed_worker(folder, mark, kind, tree):
    with owner(kind, folder, mark, tree) as (process, launcher_pid):
        assert len(alive(mark)) > 2
        process.kill()
        process.wait()
        await_true(lambda: not alive(mark), 2)
        await_true(lambda: launcher_pid not in alive("launcher.py"), 2)


def test_the_next_worker_reads_how_the_jobs_of_a_killed_one_ended(folder, mark, linux):
    with owner(linux.kind, folder, mark, "echo ready; exec sleep 100") as (process, launcher_pid):
        process.kill()
        process.wait()
        await_true(lambda: launcher_pid not in alive("launcher.py"), 2)
    later = choose(linux.kind, slots=1, directory=folder)
    try:
        (found,) = later.obituaries()
        assert (found.job_id, found.attempt, found.how) == (mark, 7, "with-its-worker")
        assert found.signal == signal.SIGKILL
        assert found.max_rss_bytes > 1024 * 1024
        later.forget_obituaries()
        assert later.obituaries() == []
    finally:
        later.close()


def test_a_job_that_died_before_its_worker_is_told_from_one_that_died_with_it(folder, mark, linux):
    with owner(linux.kind, folder, mark, "echo ready; sleep 1.5; kill -SEGV $$") as (process, launcher_pid):
        process.send_signal(signal.SIGSTOP)
        main = next(pid for pid in alive(mark) if pid != process.pid)
        os.kill(launcher_pid, signal.SIGSTOP)
        os.kill(child_of(launcher_pid), signal.SIGSTOP)
        await_true(lambda: Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[0] == "Z", 20)
        process.kill()
        process.wait()
        os.kill(child_of(launcher_pid), signal.SIGCONT)
        os.kill(launcher_pid, signal.SIGCONT)
        await_true(lambda: launcher_pid not in alive("launcher.py"), 2)
    later = choose(linux.kind, slots=1, directory=folder)
    try:
        (found,) = later.obituaries()
        assert (found.how, found.signal) == ("by-itself", signal.SIGSEGV)
    finally:
        later.close()


@pytest.mark.parametrize("which", ["launcher", "guardian"])
def test_nothing_outlives_a_worker_killed_with_its_launcher_or_guardian(linux, folder, mark, which):
    with owner(linux.kind, folder, mark, TREES["a double fork"]) as (process, guardian):
        pids = {"guardian": guardian, "launcher": child_of(guardian)}
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(pids[which], signal.SIGKILL)
        process.kill()
        await_true(lambda: not [pid for pid in alive(mark) if pid != process.pid], 2)


@pytest.mark.parametrize("which", ["launcher", "guardian"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_nothing_outlives_a_killed_launcher_and_the_next_command_gets_a_new_one(linux, mark, tree, which):
    child = linux.spawn("sh", "-c", tree, mark)
    read_line(child.stdout)
    os.kill(
        dict(zip(["launcher", "guardian"], launcher_of(linux.platform), strict=True))[which], signal.SIGKILL
    )
    assert linux.wait(child).signal == signal.SIGKILL
    await_true(lambda: not alive(mark), 2)
    assert linux.run("true")[0].exit_code == 0


def test_a_launcher_found_dead_by_spawn_is_replaced_and_nothing_is_forgotten(linux, mark):
    running = linux.spawn("sh", "-c", "echo ready; sleep 100; :", mark)
    read_line(running.stdout)
    os.kill(launcher_of(linux.platform)[0], signal.SIGKILL)
    linux.platform._launcher.wait()
    assert linux.run("echo", "again")[1] == b"again\n"
    assert linux.wait(running).signal == signal.SIGKILL


def test_a_users_leftovers_from_before_are_killed_when_a_worker_starts(folder, mark):
    need("uid")
    from workers.platforms.linux import SLOT_USERS

    argv = ["sh", "-c", "sleep 100; :", mark]
    with subprocess.Popen(argv, user=SLOT_USERS[0], group=SLOT_USERS[0], extra_groups=[]) as left:
        bench = Bench("uid", folder)
        claimed = bench.platform._users[0]
        bench.run("true")
        bench.close()
        if claimed != SLOT_USERS[0]:
            left.kill()
            pytest.skip("another worker on this machine holds the first user")
        assert left.wait() == -signal.SIGKILL


def test_the_process_table_reads_names_with_brackets_and_spaces():
    need("none")
    from workers.platforms import launcher

    found = launcher.Process(b"7 (a) R 1) S 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 200 0")
    assert (found.alive, found.parent, found.group, found.session) == (True, 3, 4, 5)
