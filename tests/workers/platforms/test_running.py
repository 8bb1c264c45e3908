"""Commands run as they were given, and what came of them is told."""

import os
import signal
import socket

import pytest
from platform_bench import ON_LINUX, Bench, descriptors, launcher_of, read_all

from workers.platforms import Command, CommandNotStarted


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
