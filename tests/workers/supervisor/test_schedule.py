"""Timetables: when runs are due, and what is told of them."""

from dataclasses import replace

from storage.manifests.parts import Process
from workers.supervisor.schedule import MOST_AT_ONCE, Timetable

HOUR_MS = 3_600_000
PROCESS = Process("report", "true", type="scheduled", schedule="0 3 * * *", timezone="Europe/Berlin")


def test_a_run_is_due_at_its_time_in_its_zone_and_once() -> None:
    table = Timetable(PROCESS)
    table.arm(0, armed=True)
    assert table.next_ms == 2 * HOUR_MS  # 3 o'clock in Berlin, winter
    assert not table.due(2 * HOUR_MS - 1)
    assert table.due(2 * HOUR_MS)
    assert not table.due(2 * HOUR_MS)
    assert table.next_ms == 26 * HOUR_MS


def test_times_that_were_missed_are_left_out() -> None:
    table = Timetable(PROCESS)
    table.arm(0, armed=True)
    assert table.due(100 * HOUR_MS)
    assert table.next_ms is not None
    assert table.next_ms > 100 * HOUR_MS


def test_nothing_is_due_while_it_is_paused_or_stopped() -> None:
    table = Timetable(PROCESS)
    table.arm(0, armed=True)
    table.arm(0, armed=False)
    assert (table.next_ms, table.due(1e12)) == (None, False)  # type: ignore[arg-type]


def test_runs_asked_for_by_hand_count_from_the_last_time_anybody_looked() -> None:
    table = Timetable(PROCESS)
    assert table.ask(7, known=False) == 0  # what was asked for before this node knew the app
    assert table.ask(9, known=True) == 2
    assert table.ask(9, known=True) == 0


def test_how_runs_went_survives_the_worker() -> None:
    table = Timetable(PROCESS)
    table.ask(3, known=False)
    for exit_code in (0, 1, 0, 0):
        table.began(5)
        table.ended(exit_code, succeeded=exit_code == 0)
    again = Timetable(PROCESS)
    again.recall(table.remembered())
    assert (again.success_rate, again.run_count, again.last_exit_code, again.last_ms) == (75.0, 4, 0, 5)
    assert again.ask(4, known=True) == 1


def test_any_number_at_once_is_bounded_all_the_same() -> None:
    assert Timetable(replace(PROCESS, max_concurrent=0)).most == MOST_AT_ONCE
    assert Timetable(replace(PROCESS, max_concurrent=2)).most == 2
