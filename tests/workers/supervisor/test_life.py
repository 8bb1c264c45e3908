"""The life of an instance, on a clock that the tests turn."""

from typing import Any

import pytest

from storage.manifests.parts import Restart
from workers.supervisor.life import Life, State, Step
from workers.supervisor.restart import Budget


def life(policy: Any = "always", *, runs_once: bool = False, **rules: Any) -> Life:
    one = Life(Budget(Restart(policy=policy, **rules), runs_once))
    one.want(True)
    return one


def run(one: Life, now: float, *, ready: bool = True) -> None:
    assert one.next(now) is Step.START
    one.began(now)
    if ready:
        one.ready()


def test_it_is_started_once_and_runs_when_it_is_ready() -> None:
    one = life()
    assert (one.state, one.next(0)) == (State.STARTING, Step.START)
    one.began(0)
    assert (one.state, one.next(1)) == (State.STARTING, None)
    one.ready()
    assert (one.state, one.next(2)) == (State.RUNNING, None)


def test_who_was_stopped_while_being_started_waits_for_nothing() -> None:
    one = life()
    assert one.next(0) is Step.START
    one.want(False)
    one.wait("The disk is full.")
    assert (one.state, one.message, one.next(1)) == (State.STOPPED, "", None)


def test_a_crash_is_restarted_after_its_pause_and_counted() -> None:
    one = life()
    run(one, 0)
    one.ended(10, 1, None)
    assert (one.state, one.due, one.message) == (State.CRASHED, 15, "It ended with exit code 1.")
    assert one.next(14.9) is None
    run(one, 15)
    assert (one.restart_count, one.message, one.exit_code) == (1, "", None)


def test_spent_attempts_end_in_failed_until_somebody_asks() -> None:
    one = life(attempts=1)
    run(one, 0)
    one.ended(1, None, 9)
    run(one, 6)
    one.ended(7, None, 9)
    assert (one.state, one.next(1e9), one.message) == (State.FAILED, None, "It was ended by signal 9.")
    one.replace()
    assert one.next(1e9) is Step.START


def test_a_stop_during_the_pause_wins() -> None:
    one = life()
    run(one, 0)
    one.ended(1, 1, None)
    one.want(False)
    assert (one.state, one.next(1e9)) == (State.STOPPED, None)


def test_a_stop_is_told_once_and_is_no_crash() -> None:
    one = life()
    run(one, 0)
    one.want(False)
    assert one.next(1) is Step.STOP
    one.stops()
    assert (one.state, one.next(2)) == (State.STOPPING, None)
    one.ended(3, None, 15)
    assert (one.state, one.restart_count, one.next(4)) == (State.STOPPED, 0, None)


def test_a_start_while_it_stops_starts_it_again_afterwards() -> None:
    one = life()
    run(one, 0)
    one.want(False)
    one.stops()
    one.want(True)
    assert one.next(1) is None
    one.ended(2, 0, None)
    assert (one.state, one.next(2)) == (State.STARTING, Step.START)


def test_a_replacement_stops_and_starts_without_touching_the_budget() -> None:
    one = life("never")
    run(one, 0)
    one.replace()
    assert one.next(1) is Step.STOP
    one.stops()
    one.ended(2, None, 15)
    run(one, 2)
    assert (one.state, one.restart_count, one.budget.used) == (State.RUNNING, 0, 0)


def test_an_end_that_we_brought_about_for_a_reason_counts_as_a_crash() -> None:
    one = life()
    run(one, 0)
    one.ended(1, 0, None, "It did not pass its health check.")
    assert (one.state, one.message) == (State.CRASHED, "It did not pass its health check.")


def test_what_runs_once_completes_and_stays_so() -> None:
    one = life("on-failure", runs_once=True)
    run(one, 0)
    one.ended(1, 0, None)
    assert (one.state, one.next(1e9)) == (State.COMPLETED, None)


def test_a_start_that_fails_uses_up_attempts() -> None:
    one = life(attempts=1)
    one.unable(0, "No.")
    assert (one.state, one.due) == (State.CRASHED, 5)
    one.unable(5, "No.")
    assert (one.state, one.message) == (State.FAILED, "No.")


def test_what_keeps_a_crashed_one_from_starting_does_not_hide_that_it_crashed() -> None:
    one = life()
    run(one, 0)
    one.ended(1, 1, None)
    one.wait("The disk is full.")
    assert (one.state, one.message, one.next(6)) == (State.CRASHED, "The disk is full.", Step.START)


@pytest.mark.parametrize("passed_s", [0, 3, 100])
def test_a_later_worker_goes_on_where_the_earlier_one_was(passed_s: float) -> None:
    one = life()
    run(one, 0)
    one.ended(1, 1, None)
    told = one.remembered(1)
    again = Life(Budget(Restart(policy="always"), runs_once=False))
    again.recall(told, 1000)
    assert (again.state, again.budget.used, again.restart_count) == (State.CRASHED, 1, 0)
    assert again.next(1000 + passed_s) is (Step.START if passed_s >= 5 else None)
    assert again.wanted
