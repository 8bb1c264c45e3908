"""Commands are started, kept apart and killed whole."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from workers.platforms import Child, Command, CommandNotStarted, IsolationUnavailable, Outcome, choose
from workers.platforms.portable import PortablePlatform

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these commands need a POSIX shell")
ON_LINUX = sys.platform == "linux"
IS_ROOT = ON_LINUX and os.geteuid() == 0
PATH = "/usr/local/bin:/usr/bin:/bin"
PATIENCE_S = 10

if ON_LINUX:
    from workers.platforms import launcher
    from workers.platforms.landlock import version as landlock_version

    HAS_LANDLOCK = landlock_version() > 0
    SCOPES_SIGNALS = landlock_version() >= 6
else:
    HAS_LANDLOCK = SCOPES_SIGNALS = False

NEEDED = {
    "uid": (IS_ROOT, "only root gives commands users of their own"),
    "landlock": (HAS_LANDLOCK, "this kernel has no Landlock"),
    "none": (ON_LINUX, "the launcher needs Linux"),
    "portable": (True, ""),
}


def need(kind):
    there, reason = NEEDED[kind]
    if not there:
        pytest.skip(reason)


class Bench:
    """A platform with a directory for each of its four slots and followers, and a loop around it."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.platform = PortablePlatform() if kind == "portable" else choose(kind, slots=4, followers=4)
        self.children: list[Child] = []
        self.ended: list[int] = []  # in this order
        self.next_slot = 0

    def spawn(self, *argv, environment=None, slot=None, memory_limit_bytes=None, **follows):
        job_id = f"job-{uuid.uuid4().hex}"
        if slot is None:
            slot, self.next_slot = self.next_slot, (self.next_slot + 1) % 4
        directory = self.folder / f"slot-{slot}"
        self.platform.prepare_directory(directory, slot)
        variables = {"PATH": PATH, "HOSTLER_JOB_ID": job_id, **(environment or {})}
        child = self.platform.spawn(
            Command(list(argv), variables, directory, slot, job_id, memory_limit_bytes), **follows
        )
        self.children.append(child)
        return child

    def follow(self, before, *argv, for_s=PATIENCE_S):
        slot = (before.command.slot + 4) % 8
        return self.spawn(*argv, slot=slot, after=before, until_s=time.monotonic() + for_s)

    def pump(self, timeout_s=PATIENCE_S):
        poll = select.poll()
        poll.register(self.platform.fileno(), select.POLLIN)
        poll.poll(timeout_s * 1000)
        self.ended += map(id, self.platform.pump())

    def wait(self, child) -> Outcome | None:
        deadline = time.monotonic() + PATIENCE_S
        while id(child) not in self.ended:
            assert time.monotonic() < deadline, "the command did not end"
            self.pump(1)
        return None if child.given_back else child.outcome()

    def run(self, *argv, **options):
        child = self.spawn(*argv, **options)
        return self.wait(child), read_all(child.stdout), read_all(child.stderr)

    def close(self):
        self.platform.close()
        for child in self.children:
            child.close()


def read_all(output):
    """Return what is in an output now, without waiting for its end."""
    data = b""
    while piece := output.read(65536):
        data += piece
    return data


def read_line(output):
    """Wait for a line of an output."""
    poll = select.poll()
    poll.register(output.fileno(), select.POLLIN)
    data = b""
    while not data.endswith(b"\n"):
        assert poll.poll(PATIENCE_S * 1000), "nothing was printed"
        piece = output.read(1)
        assert piece, "the output ended before the line did"
        data += piece
    return data.decode().strip()


def alive(word):
    """Return the processes whose command line holds `word`."""
    listed = subprocess.run(
        ["ps", "axww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 2) for line in listed.stdout.splitlines() if word in line]
    return [int(words[0]) for words in lines if words[1][0] not in "ZX"]


def descriptors(pid):
    """Return how many descriptors a process has open, once it stays that for a moment."""
    before = None
    while before != (now := len(os.listdir(f"/proc/{pid}/fd"))):
        before = now
        time.sleep(0.05)
    return now


def await_true(condition, timeout_s=PATIENCE_S):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def folder():
    # pytest's tmp_path is closed to other users, and slots are other users
    path = Path(tempfile.mkdtemp(prefix="hostler-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def launcher_of(platform):
    """Return the launcher, and its guardian."""
    guardian = platform._launcher.pid
    return [child_of(guardian), guardian]


def child_of(pid):
    found = []

    def look():
        found[:] = [child for child, one in launcher.read_processes().items() if one.parent == pid]
        return found

    await_true(look)
    return found[0]


@pytest.fixture(params=["uid", "landlock", "none", "portable"])
def bench(request, folder):
    need(request.param)
    made = Bench(request.param, folder)
    yield made
    made.close()


@pytest.fixture(params=["uid", "landlock"])
def isolated(request, folder):
    need(request.param)
    made = Bench(request.param, folder)
    yield made
    made.close()


@pytest.fixture(params=["uid", "landlock", "none"])
def linux(request, folder):
    need(request.param)
    made = Bench(request.param, folder)
    yield made
    made.close()


@pytest.fixture
def mark():
    """A word by which `alive` finds the processes of one test, as the argument of a shell."""
    return f"mark-{uuid.uuid4().hex}"


# Running


def test_the_exit_code_is_told(bench):
    outcome, _, _ = bench.run("sh", "-c", "exit 7")
    assert (outcome.exit_code, outcome.signal) == (7, None)
    assert outcome.max_rss_bytes > 100_000


def test_the_signal_that_ended_it_is_told(bench):
    outcome, _, _ = bench.run("sh", "-c", "kill -USR1 $$")
    assert (outcome.exit_code, outcome.signal) == (None, signal.SIGUSR1)


def test_processor_time_is_told(bench):
    outcome, _, _ = bench.run("sh", "-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done")
    assert 0.005 < outcome.cpu_s < 5


def test_both_outputs_are_told_apart(bench):
    assert bench.run("sh", "-c", "echo one; echo two >&2")[1:] == (b"one\n", b"two\n")


def test_outputs_can_be_opened_by_name(bench):
    assert bench.run("sh", "-c", "echo one >/dev/stdout; echo two >/dev/stderr")[1:] == (b"one\n", b"two\n")


def test_it_runs_in_its_directory_and_keeps_files_to_itself(bench):
    child = bench.spawn("sh", "-c", "pwd; echo hello >made; umask")
    bench.wait(child)
    assert read_all(child.stdout).decode().split() == [str(child.command.directory), "0077"]
    assert (child.command.directory / "made").read_text() == "hello\n"


def test_its_input_is_empty(bench):
    assert bench.run("cat")[0].exit_code == 0


def test_its_environment_is_exactly_the_given_one(bench):
    child = bench.spawn("env", "-0", environment={"NAME": "välue\nline"})
    bench.wait(child)
    shown = dict(entry.split("=", 1) for entry in read_all(child.stdout).decode().split("\0") if entry)
    assert shown == child.command.environment


def test_no_descriptor_of_the_worker_is_inherited(bench):
    if not ON_LINUX:
        pytest.skip("only Linux lists the descriptors of a process in /proc")
    with socket.socket() as inheritable:
        inheritable.set_inheritable(True)
        _, listed, _ = bench.run("sh", "-c", "echo /proc/$$/fd/*")
    numbers = {int(word.rsplit(b"/", 1)[1]) for word in listed.split()}
    assert numbers - {3} == {0, 1, 2}  # 3: the listing's own


def test_signals_that_python_ignores_are_not_ignored_in_a_command(bench):
    assert bench.run("sh", "-c", "kill -PIPE $$")[0].signal == signal.SIGPIPE


def test_a_command_longer_than_a_packet_arrives_whole(bench):
    _, printed, _ = bench.run("sh", "-c", "printf %s $#", "sh", *["x" * 1000] * 400)
    assert printed == b"400"


@pytest.mark.parametrize(
    "argv",
    [
        ["no-such-program"],
        ["/no/such/program"],
        ["/etc/passwd"],
        [],
        ["echo", "a\0b"],
        ["echo", "x" * 3_000_000],
    ],
    ids=["not on the path", "not in the folder", "not executable", "empty", "NUL", "too long"],
)
def test_what_cannot_be_started_is_said(bench, argv):
    child = bench.spawn(*argv)
    with pytest.raises(CommandNotStarted, match=r"cannot be started: .*\.$|is empty\.$"):
        bench.wait(child)


def test_a_missing_directory_is_said(linux, folder):
    child = linux.platform.spawn(Command(["true"], {"HOSTLER_JOB_ID": "j"}, folder / "absent", 0, "j"))
    linux.children.append(child)
    with pytest.raises(CommandNotStarted, match="absent"):
        linux.wait(child)


def test_the_memory_limit_holds(linux):
    outcome, _, complaint = linux.run(
        "sh", "-c", "ulimit -v; head -c 300000000 /dev/zero | tail -c 290000000 >/dev/null",
        memory_limit_bytes=100 * 1024 * 1024,
    )  # fmt: skip
    assert outcome.exit_code != 0
    assert complaint


def test_commands_run_side_by_side(bench):
    first = bench.spawn("sleep", "100")
    assert bench.run("true")[0].exit_code == 0
    first.kill()
    assert bench.wait(first).signal == signal.SIGKILL


# Following


def test_a_command_follows_another_one_without_a_word_of_the_worker(linux):
    first = linux.spawn("sh", "-c", "sleep 0.2; date +%s%N")
    second = linux.follow(first, "date", "+%s%N")
    told = int(read_line(second.stdout))
    assert linux.ended == []
    assert linux.wait(second).exit_code == 0
    assert linux.ended == [id(first), id(second)]
    assert int(read_line(first.stdout)) <= told
    assert not second.given_back


def test_what_a_command_left_is_gone_before_another_one_follows(linux, mark):
    first = linux.spawn("sh", "-c", "setsid sh -c 'sleep 100; :' $0 & sleep 0.1", mark)
    second = linux.follow(first, "sh", "-c", "echo here; sleep 100")
    assert read_line(second.stdout) == "here"
    assert not alive(mark)
    assert linux.wait(first).exit_code == 0
    second.kill()
    assert linux.wait(second).signal == signal.SIGKILL


def test_a_command_that_follows_has_a_user_of_its_own(folder):
    need("uid")
    bench = Bench("uid", folder)
    first = bench.spawn("sh", "-c", "id -u; sleep 0.1")
    second = bench.follow(first, "id", "-u")
    assert {read_line(each.stdout) for each in (first, second)} <= {str(uid) for uid in bench.platform._users}
    assert len(set(bench.platform._users)) == 8
    bench.wait(second)
    bench.close()


def test_a_command_that_follows_nothing_any_more_starts_at_once(linux):
    first = linux.spawn("true")
    linux.wait(first)
    second = linux.follow(first, "echo", "here", for_s=-1)
    assert linux.wait(second).exit_code == 0
    assert read_all(second.stdout) == b"here\n"


def test_a_command_that_is_recalled_in_time_is_given_back(linux):
    first = linux.spawn("sleep", "100")
    second = linux.follow(first, "touch", str(linux.folder / "slot-4" / "started"))
    for _ in range(2):
        second.recall()
        linux.wait(second)
    assert second.given_back
    first.kill()
    assert linux.wait(first).signal == signal.SIGKILL
    assert linux.ended == [id(second), id(first)]
    assert linux.run("true")[0].exit_code == 0
    assert not list(linux.folder.glob("*/started"))


def test_a_command_that_runs_cannot_be_recalled(linux):
    first = linux.spawn("true")
    second = linux.follow(first, "sh", "-c", "echo here; sleep 100")
    read_line(second.stdout)
    second.recall()
    linux.wait(first)
    assert linux.run("true")[0].exit_code == 0
    assert id(second) not in linux.ended
    second.terminate()
    assert linux.wait(second).signal == signal.SIGTERM


def test_a_command_that_has_waited_for_too_long_is_given_back_before_the_other_ones_end(linux):
    first = linux.spawn("sleep", "0.2")
    second = linux.follow(first, "true", for_s=0.05)
    assert linux.wait(first).exit_code == 0
    assert linux.ended == [id(second), id(first)]
    assert second.given_back


def test_what_is_wrong_with_a_command_that_follows_is_said_at_its_turn(linux):
    first = linux.spawn("sleep", "0.1")
    second = linux.follow(first, "/no/such/program")
    with pytest.raises(CommandNotStarted, match="no such program"):
        linux.wait(second)
    assert linux.ended == [id(first), id(second)]
    third = linux.spawn("sleep", "100")
    fourth = linux.follow(third)
    assert linux.wait(fourth) is None
    third.kill()
    linux.wait(third)


@pytest.mark.parametrize("which", ["launcher", "guardian"])
def test_what_was_to_follow_is_given_back_by_a_launcher_that_is_killed(linux, mark, which):
    first = linux.spawn("sh", "-c", "echo ready; sleep 100; :", mark)
    second = linux.follow(first, "sh", "-c", "sleep 100; :", mark)
    read_line(first.stdout)
    pids = dict(zip(["launcher", "guardian"], launcher_of(linux.platform), strict=True))
    os.kill(pids[which], signal.SIGKILL)
    assert linux.wait(first).signal == signal.SIGKILL
    assert linux.ended == [id(second), id(first)]
    assert second.given_back
    await_true(lambda: not alive(mark), 2)


@pytest.mark.parametrize("found_by", ["pump", "spawn"])
def test_what_a_launcher_told_before_it_was_killed_is_heard(linux, found_by):
    first = linux.spawn("echo", "here")
    second = linux.follow(first, "sh", "-c", "echo here; sleep 100")
    third = linux.spawn("sh", "-c", "echo here; sleep 100")
    for each in (second, third):
        read_line(each.stdout)
    pid = launcher_of(linux.platform)[0]
    os.kill(pid, signal.SIGSTOP)
    third.terminate()  # lies there unread, which makes the worker's end of the socket fail at once
    os.kill(pid, signal.SIGKILL)
    linux.platform._launcher.wait()
    if found_by == "spawn":
        fourth = linux.spawn("true")
        assert linux.wait(fourth).exit_code == 0
    assert linux.wait(first).exit_code == 0
    assert linux.wait(second).signal == signal.SIGKILL
    assert not second.given_back
    assert linux.wait(third).signal == signal.SIGKILL


def test_commands_that_follow_and_are_given_back_leave_no_descriptor_open(linux):
    pids = [os.getpid(), launcher_of(linux.platform)[0]]
    linux.run("true", slot=0)
    linux.children[-1].close()
    before = [descriptors(pid) for pid in pids]
    for number in range(60):
        first = linux.spawn("true", slot=0)
        second = linux.follow(first, "true")
        if number % 2:
            second.recall()
        for each in (first, second):
            linux.wait(each)
            each.close()
        linux.ended.clear()  # another child may get the id of one that is gone
    assert [descriptors(pid) for pid in pids] == before


def test_there_are_as_many_followers_as_users_are_left(monkeypatch):
    need("uid")
    from workers.platforms import slot_users

    claim = slot_users.claim
    monkeypatch.setattr(slot_users, "claim", lambda count: claim(min(count, 4)))
    chosen = choose("uid", slots=3, followers=3)
    assert chosen.followers == 1
    chosen.close()
    with pytest.raises(IsolationUnavailable, match="more slots together"):
        choose("uid", slots=5, followers=5)


def test_five_hundred_commands_leave_no_descriptor_open(linux):
    pids = [os.getpid(), launcher_of(linux.platform)[0]]
    linux.run("true", slot=0)
    before = [descriptors(pid) for pid in pids]
    linux.children[-1].close()  # kept, so that no later child is taken for it
    for _ in range(250):
        for child in [linux.spawn("true", slot=slot) for slot in (0, 1)]:
            assert linux.wait(child).exit_code == 0
            child.close()
    assert [descriptors(pid) for pid in pids] == [before[0] - 2, before[1]]


def test_outputs_that_were_opened_ahead_serve_one_command_and_go_with_the_platform(folder, linux):
    def count():
        return len(os.listdir("/proc/self/fd"))

    before, each = count(), ("sh", "-c", "echo one >/dev/stdout; echo two >/dev/stderr")
    linux.platform.make_ready()
    linux.platform.make_ready()
    assert count() == before + 4
    for slot in (1, 0):  # by whose user that may be
        assert linux.run(*each, slot=slot)[1:] == (b"one\n", b"two\n")
        linux.children[-1].close()
    assert count() == before
    another = Bench(linux.kind, folder)
    another.platform.make_ready()
    another.close()
    assert count() == before


# Killing

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
    root = Path(__file__).parents[2]
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


# Keeping apart


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
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines() == [
        "0",  # what belongs to root in /proc is closed to its own user
        "Commands cannot run as users of their own. The worker does not run as root.",
    ]


def test_the_process_table_reads_names_with_brackets_and_spaces():
    need("none")
    found = launcher.Process(b"7 (a) R 1) S 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 200 0")
    assert (found.alive, found.parent, found.group, found.session) == (True, 3, 4, 5)
