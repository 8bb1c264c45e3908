"""The rule that advises how many workers a load needs."""

import pytest

from storage.capacity import Advice, Load, advise, drain_s


@pytest.mark.parametrize(
    ("load", "slots_per_worker", "target_s", "expected"),
    [
        (Load(0, 0), 2, 60, Advice(0, 0)),  # to zero
        (Load(1, 0, 0.01), 4, 60, Advice(1, 1)),  # whatever waits needs somebody
        (Load(0, 6, 10), 2, 60, Advice(6, 3)),  # what is busy is what arrivals keep busy
        (Load(600, 0, 1), 2, 60, Advice(10, 5)),
        (Load(600, 10, 1), 2, 60, Advice(10, 5)),  # these are on their way through it
        (Load(600, 20, 1), 2, 60, Advice(20, 10)),
        (Load(600, 20, 1), 2, 10, Advice(57, 29)),
        (Load(3, 0, 3600), 1, 60, Advice(3, 3)),  # three jobs cannot use 180 slots
        (Load(3, 10, 3600), 1, 60, Advice(13, 13)),  # none of the ten will be free in time
        (Load(60, 0, 1), 2, 60, Advice(1, 1)),  # exactly
        (Load(5, 0, 1), 0, 60, Advice(1, 1)),  # workers that tell of no slots have one
    ],
)
def test_the_rule_keeps_what_is_busy_and_starts_what_waits_within_the_target(
    load: Load, slots_per_worker: float, target_s: float, expected: Advice
) -> None:
    assert advise(load, slots_per_worker=slots_per_worker, target_s=target_s) == expected


def test_a_shorter_target_and_longer_jobs_never_need_fewer_workers() -> None:
    for target_s in (1, 10, 100):
        needed = [
            advise(Load(waiting, 3, run_s), slots_per_worker=4, target_s=target_s).slots
            for waiting in (0, 1, 10, 1000)
            for run_s in (0.1, 1, 10)
        ]
        sooner = [
            advise(Load(waiting, 3, run_s), slots_per_worker=4, target_s=target_s / 2).slots
            for waiting in (0, 1, 10, 1000)
            for run_s in (0.1, 1, 10)
        ]
        assert all(more >= less for more, less in zip(sooner, needed, strict=True))
        for at in range(0, len(needed), 3):
            assert needed[at : at + 3] == sorted(needed[at : at + 3])


def test_the_time_until_nothing_waits_follows_from_the_slots() -> None:
    assert drain_s(Load(0, 5, 2), 0) == 0
    assert drain_s(Load(10, 0, 2), 0) is None
    assert drain_s(Load(10, 0, 2), 4) == 5
