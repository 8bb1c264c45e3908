"""A command follows another one of its own accord, unless it is recalled or waits for too long."""

import os
import signal

import pytest
from platform_bench import Bench, alive, await_true, descriptors, launcher_of, need, read_all, read_line

from workers.platforms import CommandNotStarted, IsolationUnavailable, choose


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
